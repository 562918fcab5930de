"""System calls that `os` does not offer in full: with flags, raw buffers, positions.

All raise `OSError`. Layouts and numbers are those of 64-bit Linux.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
import os
import struct
from collections.abc import Iterator
from ctypes import c_char_p, c_int, c_long, c_size_t, c_ssize_t, c_uint, c_void_p
from pathlib import Path
from typing import NamedTuple, Self

from fuseoverlay.system.syscalls import AT_FDCWD

AT_SYMLINK_NOFOLLOW = 0x100
AT_REMOVEDIR = 0x200
AT_SYMLINK_FOLLOW = 0x400
AT_EMPTY_PATH = 0x1000
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
#: _IOR('f', 1, long), linux/fs.h
FS_IOC_GETFLAGS = 0x80086601
_IN_ALL_EVENTS = 0xFFF
STATX_NLINK = 4
STATX_BTIME = 0x800
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH, _MOUNT_ATTR_IDMAP = 1, 4, 0x100000
_SYS_GETDENTS64 = {"x86_64": 217}.get(os.uname().machine, 61)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = c_long
_libc.opendir.restype = c_void_p
_libc.opendir.argtypes = (c_char_p,)
_libc.closedir.argtypes = (c_void_p,)
_libc.rewinddir.argtypes = (c_void_p,)
_libc.telldir.restype = c_long
_libc.telldir.argtypes = (c_void_p,)
_libc.seekdir.argtypes = (c_void_p, c_long)
_libc.getxattr.restype = _libc.listxattr.restype = c_ssize_t
_libc.getxattr.argtypes = (c_char_p, c_char_p, c_void_p, c_size_t)
_libc.listxattr.argtypes = (c_char_p, c_void_p, c_size_t)
_libc.setxattr.argtypes = (c_char_p, c_char_p, c_char_p, c_size_t, c_int)
_libc.fallocate.argtypes = (c_int, c_int, c_long, c_long)
_libc.statx.argtypes = (c_int, c_char_p, c_int, c_uint, c_void_p)
_libc.mmap.restype = c_void_p
_libc.mmap.argtypes = (c_void_p, c_size_t, c_int, c_int, c_int, c_long)
_libc.munmap.argtypes = (c_void_p, c_size_t)
_libc.mincore.argtypes = (c_void_p, c_size_t, c_char_p)
_libc.getcwd.restype = c_void_p
_libc.getcwd.argtypes = (c_char_p, c_size_t)


class _Dirent(ctypes.Structure):
    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("length", ctypes.c_uint16),
        ("kind", ctypes.c_uint8),
        ("name", ctypes.c_char * 256),
    )


_libc.readdir64.restype = ctypes.POINTER(_Dirent)
_libc.readdir64.argtypes = (c_void_p,)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _bytes(path: os.PathLike[str] | str | bytes) -> bytes:
    return os.fsencode(path)


def linkat(old: Path | bytes, new: Path, flags: int, *, fd: int = AT_FDCWD) -> None:
    """linkat(2) with flags, `old` relative to `fd`."""
    _checked(_libc.linkat(c_int(fd), _bytes(old), c_int(AT_FDCWD), _bytes(new), c_int(flags)))


def setns(namespace: Path) -> None:
    """Enter a namespace, a file in /proc/PID/ns."""
    with open(namespace) as file:
        _checked(_libc.setns(c_int(file.fileno()), c_int(0)))


def unlinkat(path: Path, flags: int) -> None:
    """unlinkat(2) with flags."""
    _checked(_libc.unlinkat(c_int(AT_FDCWD), _bytes(path), c_int(flags)))


def utimensat(path: Path, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
    """utimensat(2) with (seconds, nanoseconds), so also with UTIME_NOW and UTIME_OMIT."""
    times = struct.pack("qqqq", *atime, *mtime)
    _checked(_libc.utimensat(c_int(AT_FDCWD), _bytes(path), times, c_int(flags)))


def faccessat(path: Path, mode: int, flags: int) -> None:
    """faccessat(3) with flags."""
    _checked(_libc.faccessat(c_int(AT_FDCWD), _bytes(path), c_int(mode), c_int(flags)))


def getxattr(path: Path, name: str, size: int) -> int:
    """getxattr(2) into a buffer of `size` bytes; the length of the value."""
    buffer = ctypes.create_string_buffer(size) if size else None
    return _checked(_libc.getxattr(_bytes(path), name.encode(), buffer, size))


def listxattr(path: Path, size: int) -> int:
    """listxattr(2) into a buffer of `size` bytes; the length of the list."""
    buffer = ctypes.create_string_buffer(size) if size else None
    return _checked(_libc.listxattr(_bytes(path), buffer, size))


def setxattr(path: Path, name: bytes, value: bytes, flags: int) -> None:
    """setxattr(2) with any flags."""
    _checked(_libc.setxattr(_bytes(path), name, value, len(value), flags))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), which unlike posix_fallocate(3) is never emulated."""
    _checked(_libc.fallocate(fd, mode, offset, length))


def statx_mask(path: Path, mask: int) -> int:
    """Which of the fields asked for statx(2) knows."""
    buffer = ctypes.create_string_buffer(256)
    _checked(_libc.statx(AT_FDCWD, _bytes(path), AT_SYMLINK_NOFOLLOW, mask, buffer))
    return int(struct.unpack_from("I", buffer)[0]) & mask


def links_alone(path: Path) -> int:
    """The link count, asked of statx(2) alone: a filesystem may know it without knowing the
    rest."""
    buffer = ctypes.create_string_buffer(256)
    _checked(_libc.statx(AT_FDCWD, _bytes(path), AT_SYMLINK_NOFOLLOW, STATX_NLINK, buffer))
    return int(struct.unpack_from("I", buffer, 16)[0])


def getdents(fd: int, size: int) -> int:
    """getdents64(2) into a buffer of `size` bytes; returns how many it filled."""
    buffer = ctypes.create_string_buffer(size)
    return _checked(
        _libc.syscall(c_long(_SYS_GETDENTS64), c_int(fd), buffer, c_size_t(size)),
    )


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[int]:
    """The address of a file's pages, for `ctypes.string_at`; mmap(2)."""
    fd = os.open(path, os.O_RDONLY)
    size = os.fstat(fd).st_size
    try:
        start = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        _checked(-1 if start == ctypes.c_void_p(-1).value else 0)
    finally:
        os.close(fd)
    try:
        yield start
    finally:
        _libc.munmap(start, size)


def cached_pages(path: Path) -> int:
    """How many pages of a file are in the page cache, asking for none of it; mincore(2).

    For files that the caller owns or may write.
    """
    size = os.stat(path).st_size
    if not size:
        return 0
    pages = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
    with mapped(path) as start:
        _checked(_libc.mincore(start, size, pages))
    return sum(page & 1 for page in pages.raw)


@contextlib.contextmanager
def watched(*paths: Path) -> Iterator[None]:
    """Have inotify watch these paths: the kernel then keeps their inodes, though it may forget
    their names and the directories above."""
    fd = _checked(_libc.inotify_init1(os.O_CLOEXEC))
    try:
        for path in paths:
            _checked(_libc.inotify_add_watch(fd, _bytes(path), _IN_ALL_EVENTS))
        yield
    finally:
        os.close(fd)


def getcwd() -> bytes:
    """getcwd(3)."""
    buffer = ctypes.create_string_buffer(65536)
    if not _libc.getcwd(buffer, len(buffer)):
        _checked(-1)
    return buffer.value


class Dirent(NamedTuple):
    """One entry of a listing: name, d_type, d_ino, and the position after it."""

    name: bytes
    kind: int
    ino: int
    offset: int


class Stream:
    """A directory stream of the C library, with positions."""

    def __init__(self, path: os.PathLike[str] | str | bytes) -> None:
        self._stream = _libc.opendir(_bytes(path))
        if not self._stream:
            _checked(-1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Dirent]:
        while (found := self.next()) is not None:
            yield found

    def next(self) -> Dirent | None:
        """The next entry; None at the end."""
        ctypes.set_errno(0)
        entry = _libc.readdir64(self._stream)
        if not entry:
            _checked(-1 if ctypes.get_errno() else 0)
            return None
        found = entry.contents
        return Dirent(found.name, found.kind, found.ino, found.offset)

    def take(self, count: int) -> list[bytes]:
        """Names of the next `count` entries, sorted; fewer at the end."""
        return sorted(found.name for found in itertools.islice(self, count))

    def rest(self) -> list[bytes]:
        """All names from here."""
        return [found.name for found in self]

    def tell(self) -> int:
        """The position; telldir(3)."""
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        """Go to a position that `tell` gave; seekdir(3)."""
        _libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        """Go to the start, so that changes show; rewinddir(3)."""
        _libc.rewinddir(self._stream)

    def close(self) -> None:
        """closedir(3)."""
        _libc.closedir(self._stream)


def map_ids(path: Path, user_namespace: Path) -> None:
    """Mount a directory on itself with the ids of a user namespace, mount_setattr(2)."""
    cwd, empty = c_int(AT_FDCWD), c_char_p(b"")
    flags = c_int(_OPEN_TREE_CLONE | os.O_CLOEXEC)
    tree = _checked(_libc.syscall(c_long(_SYS_OPEN_TREE), cwd, c_char_p(_bytes(path)), flags))
    with open(user_namespace) as ids:
        attr = struct.pack("QQQQ", _MOUNT_ATTR_IDMAP, 0, 0, ids.fileno())
        flags = c_int(AT_EMPTY_PATH)
        size = c_size_t(len(attr))
        number = c_long(_SYS_MOUNT_SETATTR)
        _checked(_libc.syscall(number, c_int(tree), empty, flags, c_char_p(attr), size))
    number, flags = c_long(_SYS_MOVE_MOUNT), c_int(_MOVE_MOUNT_F_EMPTY_PATH)
    _checked(_libc.syscall(number, c_int(tree), empty, cwd, c_char_p(_bytes(path)), flags))
    os.close(tree)
