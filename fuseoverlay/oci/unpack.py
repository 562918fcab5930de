"""Unpack one layer archive into an empty directory that an overlay can use as a lower.

Deletions become whiteouts and opaque marks. Entries may come in any order: whiteouts, directory
metadata, and hard links whose target does not exist yet wait for the end. An entry below a symbolic
link of the layer goes where the link leads inside the layer (`follow`); no call follows a link:
each names one component in an open directory. Source: OCI image-spec layer.md. Where umoci,
containers-storage and Docker disagree:

- a whiteout acts on lower layers only: the layer's own name stays, a directory of that
  name becomes opaque;
- if a path comes twice, the last one counts; a directory keeps its children;
- a hard link to a file of a lower layer: the file is copied into this layer;
- an entry below something that is neither directory nor link in this layer is refused;
  below a link of a lower layer, or the missing target of a link, it gets a real directory;
- a whiteout below a link to what neither this layer nor those below have does nothing;
- files in `.wh..wh.plnk`, where AUFS kept those with several names, can be linked to and
  are removed at the end;
- char device 0:0 and names that lead out of the layer are refused, overlay attributes
  dropped.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass, replace
from typing import Final

from fuseoverlay.errors import DigestError, ImageError
from fuseoverlay.layers import whiteout, xattrs
from fuseoverlay.oci.below import Below
from fuseoverlay.oci.contents import write_all, write_data
from fuseoverlay.oci.copyfile import copy_file
from fuseoverlay.oci.deletions import Deletions
from fuseoverlay.oci.entries import Entry, Path, read_entries, show
from fuseoverlay.oci.job import Job
from fuseoverlay.oci.made import Made
from fuseoverlay.oci.malformed import malformed
from fuseoverlay.oci.metadata import Warnings, Writer
from fuseoverlay.oci.model import Digest
from fuseoverlay.oci.streams import BlobReader, ForwardStream, decompress
from fuseoverlay.oci.tree import DirCache
from fuseoverlay.system.syscalls import DIR_FLAGS

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: AUFS kept files here that had several names in a layer, each a hard link to one of these.
_AUFS_LINKS: Final = b".wh..wh.plnk"
#: The value of `xattrs.IMPLIED` on a root that was listed but holds directories that were not.
_IMPLIED_INSIDE: Final = b"x"


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
    try:
        plain = decompress(blob, job.where)
        with ForwardStream(plain, diff_id, job.where, job.limit) as stream:
            with malformed(job.where):
                unpacked = unpack_stream(stream, target, job)
            stream.finish()
        blob.finish()
    except DigestError:
        raise
    except ImageError:
        # A damaged blob is the likeliest cause, and its error says more than what it led to.
        blob.finish()
        raise
    return unpacked


def unpack_stream(stream: ForwardStream, target: str, job: Job) -> Unpacked:
    """`unpack_blob` for a plain tar stream. Does not read the stream to its end."""
    with contextlib.ExitStack() as stack:
        root_fd = os.open(target, DIR_FLAGS)
        stack.callback(os.close, root_fd)
        cache = stack.enter_context(DirCache(root_fd))
        warnings = Warnings()
        layer = _Layer(cache, stream, job, warnings)
        with layer.made.errors():
            for entry in read_entries(stream, job.where):
                layer.add(entry)
            layer.finish()
        warnings.report(job.warn, job.where)
        return Unpacked(layer.below.used, layer.size)


class _Layer:
    """A layer that is being unpacked: what was made so far, and what waits for the end."""

    def __init__(
        self, cache: DirCache, stream: ForwardStream, job: Job, warnings: Warnings
    ) -> None:
        self._stream = stream
        self._job = job
        self._warnings = warnings
        self._writer = Writer(job.override, warnings)
        self.made = Made(cache, job, self._writer)
        self.below = Below(job.lowers)
        self._deletions = Deletions(self.made, self.below)
        self.size = 0

    # one entry

    def add(self, entry: Entry) -> None:
        """Unpack one entry, or note it for the end."""
        self.made.current = entry.name
        if any(part.startswith(whiteout.WH_PREFIX) for part in entry.path):
            self._add_special(entry)
            return
        path = self.made.place(entry.path)
        if path != entry.path or entry.xattrs:
            entry = replace(entry, path=path, xattrs=self._writer.fit(entry))
        if entry.hardlink is not None:
            self._add_hardlink(path, entry.hardlink)
        elif stat.S_ISDIR(entry.mode):
            self._add_directory(entry)
        elif stat.S_ISREG(entry.mode) or self._writer.is_placeholder(entry):
            self._add_file(entry)
        else:
            self.made.make(path, lambda fd, name: self._writer.make_node(entry, fd, name))
            self.size += len(entry.link)

    def _add_special(self, entry: Entry) -> None:
        """Handle a name with `.wh.` in it. Its name says everything; the type of the file does not
        matter."""
        *parents, name = entry.path
        if _is_linked_by_aufs(entry.path) and stat.S_ISREG(entry.mode) and entry.hardlink is None:
            self._add_file(entry)
        elif any(part.startswith(whiteout.WH_META_PREFIX) for part in parents):
            self._warnings.add("AUFS housekeeping is left out", self.made.current)
        elif any(part.startswith(whiteout.WH_PREFIX) for part in parents):
            raise self.made.bad("a whiteout that is used as a directory")
        elif name == whiteout.WH_OPAQUE:
            self._deletions.add_opaque(self.made.follow(tuple(parents)))
        elif name.startswith(whiteout.WH_META_PREFIX):
            self._warnings.add("AUFS housekeeping is left out", self.made.current)
        else:
            self._deletions.add_whiteout(tuple(parents), name)

    def _add_directory(self, entry: Entry) -> None:
        path = entry.path
        if path not in self.made.dirs:
            self.made.make(path, lambda fd, name: os.mkdir(name, 0o700, dir_fd=fd))
            self.made.remembered.path(path)
        # Its metadata waits: later entries in it would change its times, and may need permissions
        # in it.
        self.made.dirs[path] = replace(entry, xattrs=self.made.remembered.attributes(entry.xattrs))

    def _add_file(self, entry: Entry) -> None:
        opened: list[int] = []
        self.made.make(
            entry.path,
            lambda fd, name: opened.append(os.open(name, _CREATE, 0o600, dir_fd=fd)),
        )
        (fd,) = opened
        try:
            if stat.S_ISREG(entry.mode):
                if not write_data(self._stream, entry, fd):
                    raise self.made.bad("the archive ends in the middle of this file")
                self.size += entry.size
            elif entry.link:
                write_all(fd, entry.link, 0)
            self._writer.finish(entry, fd)
        finally:
            os.close(fd)

    def _add_hardlink(self, path: Path, name: Path) -> None:
        special = any(part.startswith(whiteout.WH_PREFIX) for part in name)
        if not name or (special and not _is_linked_by_aufs(name)):
            raise self.made.bad(f"a hard link to {show(name)}, which is no file")
        target = name if special else self.made.place(name)
        if target in self.made.dirs:
            raise self.made.bad(f"a hard link to the directory {show(target)}")
        there = self.made.exists(target)
        if path == target and there:
            return
        if not path or (path in self.made.dirs and target[: len(path)] == path):
            raise self.made.bad(f"a hard link to {show(target)} in the place of its own directory")
        if there:
            self.made.link(path, target)
        else:
            self.made.need_directory(path[:-1])
            self.made.clear(path)
            self.made.remembered.path(path)
            self.made.remembered.path(name)
            self.made.links[path] = name

    # the end

    def finish(self) -> None:
        """Do what had to wait."""
        self._finish_links()
        if (_AUFS_LINKS,) in self.made.dirs:
            self.made.clear((_AUFS_LINKS,))
        self._deletions.finish()
        self._finish_directories()

    def _finish_links(self) -> None:
        copies: dict[Path, Path] = {}
        for path, name in list(self.made.links.items()):
            self.made.current = show(path)
            # Follow links that came after this entry, too.
            target = name if _is_linked_by_aufs(name) else self.made.place(name)
            if target in self.made.dirs:
                raise self.made.bad(f"a hard link to the directory {show(target)}")
            if path != target and self.made.exists(target):
                self.made.link(path, target)
            elif target in copies:
                self.made.link(path, copies[target])
            else:
                self._copy_below(path, target)
                copies[target] = path

    def _copy_below(self, path: Path, target: Path) -> None:
        with self.below.at(target) as (source, kind):
            if not kind or stat.S_ISDIR(kind):
                raise self.made.bad(
                    f"a hard link to {show(target)}, which is neither in this layer nor in those"
                    " below"
                )
            copy_file(source, target[-1], self.made.cache.fd(path[:-1]), path[-1])

    def _finish_directories(self) -> None:
        """Set the metadata of all directories, the deepest first."""
        dirs = self.made.dirs
        implied = {path for path, entry in dirs.items() if entry is None} - self.made.opaque
        for path in sorted(dirs, key=len, reverse=True):
            self.made.current = show(path)
            fd = self.made.cache.fd(path)
            if path in implied:
                self._mark(fd, xattrs.IMPLIED_SELF)
            elif not path and implied:
                self._mark(fd, _IMPLIED_INSIDE)
            entry = dirs[path] or Entry(path, stat.S_IFDIR | 0o755)
            self._writer.finish(entry, fd)

    def _mark(self, fd: int, value: bytes) -> None:
        try:
            os.setxattr(fd, xattrs.IMPLIED, value)
        except OSError as exc:
            if exc.errno != errno.EOPNOTSUPP:
                raise
            self._warnings.add(
                "without user attributes in the store's filesystem, the owner and mode of a"
                " directory that the layer does not list are lost",
                self.made.current,
            )


def _is_linked_by_aufs(path: Path) -> bool:
    return len(path) == 2 and path[0] == _AUFS_LINKS
