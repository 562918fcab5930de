"""Whether every blob of the store is what its name says.

A manifest that an index names may be missing: not all platforms are fetched. All that a manifest
names must be there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from fuseoverlay.errors import FuseOverlayError, ImageError
from fuseoverlay.oci import model
from fuseoverlay.oci.job import store_error
from fuseoverlay.oci.model import Descriptor, Digest
from fuseoverlay.oci.streams import BlobReader
from fuseoverlay.store.content import Content
from fuseoverlay.store.images import Images
from fuseoverlay.store.names import Entry
from fuseoverlay.store.reach import decoded


@dataclass(frozen=True, slots=True)
class Broken:
    """A blob that is missing or wrong, as `problem` says, and the entries of the index that need
    it. To get these again repairs it, while it is `aside`."""

    blob: Descriptor
    problem: str
    entries: tuple[Entry, ...]


def verify(
    images: Images,
    entries: Iterable[Entry] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Broken]:
    """Read all blobs that images need, or those that `entries` name; what is broken. `progress` is
    told how many bytes each step read. ImageError for a damaged index."""
    verifier = _Verifier(images, progress)
    for entry in images.names.entries() if entries is None else entries:
        for blob in verifier.blobs(entry):
            verifier.check(blob, entry)
    return [
        Broken(blob, problem, tuple(verifier.entries[blob.digest]))
        for blob, problem in verifier.broken.values()
    ]


def check(
    content: Content, blob: Descriptor, progress: Callable[[int], None] | None = None
) -> None:
    """Read a blob of any size and verify it. ImageError, DigestError."""
    file, where = content.open(blob), str(blob.digest)
    with contextlib.closing(BlobReader(file, blob.size, blob.digest, where, progress)) as reader:
        reader.finish()


@contextlib.contextmanager
def aside(images: Images, blob: Descriptor) -> Iterator[None]:
    """A wrong blob is out of the way in this context, where another one can take its place. It
    comes back if that fails: else nobody could tell that it is not right. StoreError."""
    path = images.content.path(blob.digest)
    with images.store.workspace() as work:
        try:
            with contextlib.suppress(FileNotFoundError):
                os.rename(path, work / "wrong")
        except OSError as exc:
            raise store_error(exc, "cannot move a blob", images.store.root) from exc
        try:
            yield
        finally:
            if images.content.size(blob.digest) is None:
                with contextlib.suppress(FileNotFoundError):
                    os.rename(work / "wrong", path)


class _Verifier:
    """One verification: reads each blob once."""

    def __init__(self, images: Images, progress: Callable[[int], None] | None) -> None:
        self._content = images.content
        self._progress = progress
        self._read: set[Digest] = set()
        self.broken: dict[Digest, tuple[Descriptor, str]] = {}
        self.entries: dict[Digest, list[Entry]] = {}

    def blobs(self, entry: Entry) -> Iterator[Descriptor]:
        """All that has to be there for the entry, each before what it names."""
        todo = [entry.descriptor]
        seen: set[Digest] = set()
        while todo:
            blob = todo.pop()
            if blob.digest in seen:
                continue
            seen.add(blob.digest)
            yield blob
            if model.is_manifest(blob.media_type) and blob.digest not in self.broken:
                todo += self._needed(blob)

    def _needed(self, manifest: Descriptor) -> list[Descriptor]:
        found = model.needed(decoded(self._content, manifest))
        if manifest.media_type not in model.INDEX_TYPES:
            return found
        return [inner for inner in found if self._content.size(inner.digest) is not None]

    def check(self, blob: Descriptor, entry: Entry) -> None:
        """Note if the blob is broken."""
        if blob.digest not in self._read:
            self._read.add(blob.digest)
            try:
                self._check(blob)
            except FuseOverlayError as exc:
                self.broken[blob.digest] = blob, exc.what
        if blob.digest in self.broken:
            self.entries.setdefault(blob.digest, []).append(entry)

    def _check(self, blob: Descriptor) -> None:
        if self._content.size(blob.digest) is None:
            raise ImageError("missing", where=blob.digest)
        check(self._content, blob, self._progress)
        if model.is_manifest(blob.media_type):
            model.needed(decoded(self._content, blob))
