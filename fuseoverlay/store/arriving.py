"""Layers that are unpacked while they are downloaded.

A thread reads them, the event loop's side says how far they are. What is read here is not verified
against the digest of the blob, which whoever writes it down does; the unpacked layer is, against
its diff_id, before it is published.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterable
from typing import IO, Any, cast

from fuseoverlay.errors import ImageError
from fuseoverlay.oci.blobs import Layer
from fuseoverlay.oci.model import Descriptor, Digest
from fuseoverlay.oci.streams import BlobReader
from fuseoverlay.store.content import Content


class StoppedError(ImageError):
    """Nothing more will arrive."""


class Arrivals:
    """How much of each blob is there. `blobs` are all that will be asked for."""

    def __init__(self, content: Content, blobs: Iterable[Descriptor]) -> None:
        self._content = content
        self._sizes = {blob.digest: blob.size for blob in blobs}
        self._there: dict[Digest, int] = {}
        self._complete: set[Digest] = set()
        self._changed = threading.Condition()
        self._stopped = False

    def arrived(self, digest: Digest, count: int) -> None:
        """The first `count` bytes of a blob are in its file, not yet verified."""
        with self._changed:
            self._there[digest] = count
            self._changed.notify_all()

    def completed(self, digest: Digest) -> None:
        """A blob is verified and in its place."""
        with self._changed:
            self._there[digest] = self._sizes[digest]
            self._complete.add(digest)
            self._changed.notify_all()

    def stop(self) -> None:
        """Let all who read, or wait to read, fail with StoppedError."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def wait(self, digest: Digest, position: int) -> int:
        """How many bytes are there, once that is more than `position` or all. Blocks."""
        least = min(position + 1, self._sizes[digest])
        self._wait(digest, lambda: self._there.get(digest, 0) >= least)
        return self._there.get(digest, 0)

    def is_here(self, digest: Digest) -> bool:
        """Whether all bytes of a blob are there."""
        with self._changed:
            return self._there.get(digest) == self._sizes[digest]

    def wait_complete(self, digest: Digest) -> None:
        """Return once a blob is verified. Blocks."""
        self._wait(digest, lambda: digest in self._complete)

    def _wait(self, digest: Digest, ready: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or ready())
            if self._stopped:
                raise StoppedError("the download has ended", where=digest)

    def open(self, digest: Digest) -> IO[bytes]:
        """The file of a blob, or the part that is there: once anything is. Blocks."""
        self.wait(digest, 0)
        # It moves when it is complete.
        for path in (self._content.path(digest), self._content.partial_path(digest)):
            with contextlib.suppress(FileNotFoundError):
                return open(path, "rb", buffering=0)
        return open(self._content.path(digest), "rb", buffering=0)


class ArrivingLayers:
    """The layers of an image at `path`, which is for messages."""

    def __init__(self, path: str, arrivals: Arrivals) -> None:
        self.path = path
        self._arrivals = arrivals

    def open_layer(self, layer: Layer, progress: Callable[[int], None] | None = None) -> BlobReader:
        """The bytes of a layer, as they come."""
        digest = layer.digest or layer.diff_id
        file = _Growing(self._arrivals, digest)
        return BlobReader(
            cast("IO[bytes]", file), layer.size, None, f"{self.path}: {digest}", progress
        )


class _Growing(io.RawIOBase):
    """A file that others write. A read waits for what is not there yet."""

    def __init__(self, arrivals: Arrivals, digest: Digest) -> None:
        super().__init__()
        self._arrivals = arrivals
        self._digest = digest
        self._file = arrivals.open(digest)
        self._position = 0

    def readable(self) -> bool:
        """Always True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what is there, at least one byte before the end."""
        there = self._arrivals.wait(self._digest, self._position)
        view = memoryview(buffer).cast("B")[: there - self._position]
        count = os.preadv(self._file.fileno(), [view], self._position) if view else 0
        self._position += count
        return count

    def close(self) -> None:
        """Close the file, too."""
        if not self.closed:
            self._file.close()
        super().close()
