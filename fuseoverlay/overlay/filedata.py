"""Data descriptors: one per inode, opened on demand; the least recently used is closed first.

There are no file handles: only this module knows what is open. `acquire` and `release` bracket
every use, so that no descriptor is closed while a thread reads from it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import OrderedDict
from types import TracebackType
from typing import Final, Self

from fuseoverlay.layers.layer import Place
from fuseoverlay.layers.objects import Sighting, open_checked, open_known, open_own
from fuseoverlay.layers.stack import LayerStack
from fuseoverlay.overlay import places
from fuseoverlay.overlay.inodes import File
from fuseoverlay.overlay.prepared import Prepared
from fuseoverlay.system.syscalls import fd_path

_FLAGS: Final = os.O_CLOEXEC | os.O_NONBLOCK


class Descriptor:
    """An open real file, closed once it is no longer kept and has no users."""

    __slots__ = ("fd", "kept", "users", "writable")

    def __init__(self, fd: int, writable: bool) -> None:
        self.fd = fd
        self.writable = writable
        self.users = 0
        self.kept = True


class FileData:
    """Owns the data descriptors of all inodes. It keeps at most `limit`; dropped ones that are
    still in use come on top."""

    def __init__(
        self,
        stack: LayerStack,
        prepared: Prepared,
        limit: int,
        *,
        real_status: bool = True,
        private: bool = True,
    ) -> None:
        """`real_status`: owner and mode of files in the upper are the real ones; `private`:
        nobody else changes the layers."""
        self._private = private
        self._stack = stack
        self._prepared = prepared
        self._real_status = real_status
        self._limit = limit
        self._open: OrderedDict[int, Descriptor] = OrderedDict()
        #: Whether writes need no check of the writer's privileges; set after `terms.agree`.
        self.may_bind_writers = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        for ino in list(self._open):
            self.drop(ino)

    def __len__(self) -> int:
        return len(self._open)

    def acquire(self, file: File, *, write: bool = False) -> Descriptor:
        """A descriptor of the file's data, to be given back to `release`; errors of open(2).

        With `write` the file must be in the upper.
        """
        found = self._open.get(file.ino)
        if found is None or (write and not found.writable):
            found = self._keep(file, self._open_file(file, write), write)
        else:
            self._open.move_to_end(file.ino)
        found.users += 1
        return found

    def adopt(self, file: File, fd: int) -> None:
        """Take over a descriptor of a new file, open for reading and writing."""
        self._keep(file, fd, True)

    def expect_writes(self, file: File) -> None:
        """Open the file for writing: it was just created, so writes will follow."""
        with contextlib.suppress(OSError):
            self.release(self.acquire(file, write=True))

    def release(self, descriptor: Descriptor) -> None:
        """End a use that began with `acquire`."""
        descriptor.users -= 1
        if not descriptor.kept and not descriptor.users:
            os.close(descriptor.fd)

    def _keep(self, file: File, fd: int, writable: bool) -> Descriptor:
        self.drop(file.ino)
        descriptor = self._open[file.ino] = Descriptor(fd, writable)
        if len(self._open) > self._limit:
            self.drop(next(iter(self._open)))
        self._prepared.bind(
            file.ino,
            fd,
            write=writable and self.may_bind_writers and not file.protection,
            attributes=self._shows_real_status(file),
            no_xattrs=writable and self._real_status and not _may_have_attributes(fd),
        )
        return descriptor

    def _shows_real_status(self, file: File) -> bool:
        if not self._real_status or not file.in_upper or file.links or file.data is not None:
            return False
        return file.held is None or not file.held.parked

    def drop(self, ino: int) -> None:
        """Close the inode's descriptor now or, if it is in use, when its last use ends."""
        descriptor = self._open.pop(ino, None)
        if descriptor is None:
            return
        self._prepared.unbind(ino)
        descriptor.kept = False
        if not descriptor.users:
            os.close(descriptor.fd)

    def shrink(self) -> None:
        """Close all descriptors that are not in use: something else needs descriptors."""
        for ino in [ino for ino, descriptor in self._open.items() if not descriptor.users]:
            self.drop(ino)

    def _open_file(self, file: File, write: bool) -> int:
        if file.data is not None:
            if write:
                raise AssertionError("data that is in a lower is never written")
            return self._open_lower(file, file.data, file.data_seen)
        if file.in_upper:
            return self._open_upper(file, write)
        if file.lower is None or write:
            raise AssertionError("a lower file is never opened for writing")
        return self._open_lower(file, file.lower, file.lower_seen)

    def _open_lower(self, file: File, place: Place, seen: Sighting | None) -> int:
        try:
            return self._open_at(place, seen)
        except OSError:
            found = places.find_again(self._stack, file, seen)
            if found is None:
                raise
            return self._open_at(found, seen)

    def _open_at(self, place: Place, seen: Sighting | None) -> int:
        flags = os.O_RDONLY | os.O_NOFOLLOW | _FLAGS
        dir_fd = self._stack.fd(place.real)
        return open_known(place.name, flags, dir_fd, seen, lasting=self._private)

    def _open_upper(self, file: File, write: bool) -> int:
        flags = (os.O_RDWR if write else os.O_RDONLY) | _FLAGS
        if self._stack.upper is not None:
            flags |= self._stack.upper.reading
        if file.held is not None and not file.held.name:
            # The path is a link in /proc, which has to be followed.
            return open_own(fd_path(file.held.fd), flags)
        if file.held is not None:
            return open_own(file.held.name, flags | os.O_NOFOLLOW, file.held.fd)
        if file.upper is None:
            raise AssertionError("not in the upper")
        name, dir_fd = file.upper.name, self._stack.fd(file.upper.real)
        return open_checked(
            lambda: open_own(name, flags | os.O_NOFOLLOW, dir_fd), name, dir_fd, file.check_upper
        )

    def open_for_copy(self, file: File) -> int:
        """A writable descriptor of an upper file whose data is still in a lower. The caller owns
        it."""
        return self._open_upper(file, True)


def _may_have_attributes(fd: int) -> bool:
    """Whether the file has extended attributes, or cannot say; false also if its filesystem has
    none."""
    try:
        return bool(os.listxattr(fd))
    except OSError as exc:
        return exc.errno != errno.EOPNOTSUPP
