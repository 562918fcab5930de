"""What the layer that is being unpacked has so far: its directories, and names in them.

The target is asked for one name at a time, in a directory that was made here, so it follows no
link.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from fuseoverlay.errors import ImageError, describe
from fuseoverlay.oci.entries import Entry, Path, show
from fuseoverlay.oci.follow import follow
from fuseoverlay.oci.job import Job, store_error
from fuseoverlay.oci.remembered import Remembered
from fuseoverlay.oci.target import Target

#: The cost, in `Remembered.steps`, of checking whether one remembered path lies below another.
_PER_ITEM: Final = 4
#: Errors if the filesystem cannot hold what the layer contains, however much room it has.
_IMPOSSIBLE: Final = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EFBIG, errno.EINVAL, errno.EMLINK)

T = TypeVar("T")


class Made:
    """What was made so far, and what is noted for the end."""

    def __init__(self, target: Target, job: Job) -> None:
        self._job = job
        self.target = target
        self.remembered = Remembered(job.where)
        #: The entry that is being unpacked, for messages.
        self.current: Path = ()
        #: Every directory made; None if it was needed but not listed so far.
        self.dirs: dict[Path, Entry | None] = {(): None}
        #: Hard links whose target did not exist yet -> target.
        self.links: dict[Path, Path] = {}
        #: Deletions. Their directories may not exist yet.
        self.whiteouts: dict[Path, set[bytes]] = {}
        self.opaque: set[Path] = set()

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn OSError into an ImageError or a StoreError."""
        try:
            yield
        except OSError as exc:
            what = f"cannot unpack {show(self.current)}"
            if exc.errno in _IMPOSSIBLE:
                raise self.bad(f"{what}: {describe(exc)}") from exc
            raise store_error(exc, what, self._job.place) from exc

    def bad(self, what: str) -> ImageError:
        """The error to raise about the entry that is being unpacked."""
        return ImageError(what, where=self._where())

    def _where(self) -> str:
        return f"{self._job.where}: {show(self.current)}"

    def place(self, path: Path) -> Path:
        """The real place of `path`: links above its last component are followed, and what it is
        itself does not matter."""
        above = path[:-1]
        return path if above in self.dirs else (*self.follow(above), path[-1])

    def follow(self, path: Path) -> Path:
        """`path` with all symbolic links of the layer resolved; see `follow.follow`."""
        if path in self.dirs:
            return path
        return follow(
            path, self._where(), self.dirs.__contains__, self._link_text, self.remembered.steps
        )

    def _link_text(self, parent: Path, name: bytes) -> bytes | None:
        return self.target.link_text((*parent, name))

    def make(self, path: Path, make: Callable[[], T]) -> T:
        """Have something made at `path`, and remove what has the name already; returns what `make`
        returns."""
        if not path:
            raise self.bad("the root of a layer must be a directory")
        self.need_directory(path[:-1])
        if self.links:
            self.links.pop(path, None)
        try:
            return make()
        except FileExistsError:
            self.clear(path)
            return make()

    def link(self, path: Path, target: Path) -> None:
        """Make `path` a hard link to what is at `target`."""
        self.make(path, lambda: self.target.link(path, target))

    def clear(self, path: Path) -> None:
        """Remove what this layer has made at `path` so far, and everything noted below it."""
        self.links.pop(path, None)
        if path not in self.dirs:
            with contextlib.suppress(FileNotFoundError):
                self.target.unlink(path)
            return
        self.target.remove_tree(path)
        depth = len(path)
        for known in (self.dirs, self.whiteouts, self.links):
            self.remembered.steps(_PER_ITEM * len(known))
            for gone in [item for item in known if item[:depth] == path]:
                del known[gone]
        self.opaque = {item for item in self.opaque if item[:depth] != path}

    def need_directory(self, path: Path) -> None:
        """Make the directory `path` and those above it, where they are missing."""
        if path in self.dirs:
            return
        depth = len(path)
        while path[:depth] not in self.dirs:
            depth -= 1
        self.remembered.path(path, parents=len(path) - depth)
        for end in range(depth + 1, len(path) + 1):
            if path[:end] in self.links:
                raise self._no_directory(path[:end])
            try:
                self.target.mkdir(path[:end])
            except FileExistsError as exc:
                raise self._no_directory(path[:end]) from exc
            self.dirs[path[:end]] = None

    def is_replaced(self, path: Path) -> bool:
        """Whether this layer has anything but a directory at `path` or above."""
        while path not in self.dirs:
            self.remembered.steps(len(path))
            if path in self.links or self.exists(path):
                return True
            path = path[:-1]
        return False

    def _no_directory(self, path: Path) -> ImageError:
        return self.bad(f"{show(path)} is no directory in this layer")

    def exists(self, path: Path) -> bool:
        """Whether this layer has anything at `path`."""
        return path[:-1] in self.dirs and self.target.exists(path)
