"""Unpack one layer archive into an empty directory that an overlay can use as a lower.

`layer` decides what each entry means; `disk` makes it.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from fuseoverlay.oci.below import DirectoriesBelow
from fuseoverlay.oci.disk import DirectoryTarget
from fuseoverlay.oci.job import Job
from fuseoverlay.oci.layer import Layer, read_blob
from fuseoverlay.oci.metadata import Warnings
from fuseoverlay.oci.model import Digest
from fuseoverlay.oci.streams import BlobReader, ForwardStream
from fuseoverlay.oci.tree import DirCache
from fuseoverlay.system.syscalls import DIR_FLAGS


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What came of unpacking a layer.

    `used_lowers`: `job.lowers` supplied data or influenced a decision, so that the result is valid
    only above those. `size`: bytes of all files, as they are read, and of the targets of
    symbolic links, as Docker counts them.
    """

    used_lowers: bool
    size: int


def unpack_blob(blob: BlobReader, diff_id: Digest, target: str, job: Job) -> Unpacked:
    """Unpack `blob` into the empty directory `target`; verify its digest and `diff_id`.

    Raises ImageError, DigestError, StoreError; `target` then holds junk.
    """
    return read_blob(blob, diff_id, job, lambda stream: unpack_stream(stream, target, job))


def unpack_stream(stream: ForwardStream, target: str, job: Job) -> Unpacked:
    """`unpack_blob` for a plain tar stream. Does not read the stream to its end."""
    with contextlib.ExitStack() as stack:
        root_fd = os.open(target, DIR_FLAGS)
        stack.callback(os.close, root_fd)
        cache = stack.enter_context(DirCache(root_fd))
        warnings = Warnings()
        below = DirectoriesBelow(job.lowers)
        disk = DirectoryTarget(cache, job.override, warnings, below)
        layer = Layer(disk, below, stream, job, warnings)
        with layer.made.errors():
            disk.probe()
            layer.read()
        warnings.report(job.warn, job.where)
        return Unpacked(below.used, layer.size)
