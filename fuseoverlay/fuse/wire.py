"""FUSE messages as bytes: requests that pyfuse3 has no handler for, and the replies that we make.

Structures and numbers: <linux/fuse.h>, the kernel's ABI.
"""

from __future__ import annotations

import os
import struct
from typing import Final, NamedTuple, Protocol

STATX_BASIC_STATS: Final = 0x7FF
STATX_BTIME: Final = 0x800

_FOPEN_KEEP_CACHE: Final = 1 << 1

_IN_HEADER: Final = struct.Struct("=IIQQIIIHH")
_FALLOCATE_IN: Final = struct.Struct("=QqqII")
_LSEEK_IN: Final = struct.Struct("=QqII")
_COPY_FILE_RANGE_IN: Final = struct.Struct("=QqQQqQQ")
_IOCTL_IN: Final = struct.Struct("=QIIQII")
_CREATE_IN: Final = struct.Struct("=IIII")
_IOCTL_OUT: Final = struct.Struct("=iIII")
_WRITE_OUT: Final = struct.Struct("=I4x")
_NUMBER_OUT: Final = struct.Struct("=Q")
_ATTR: Final = struct.Struct("=QQQqqqIIIIIIIIII")
_ENTRY_OUT: Final = struct.Struct("=QQQQII")
ATTR_SIZE: Final = _ATTR.size
#: The size of a struct fuse_entry_out in bytes.
ENTRY_SIZE: Final = _ENTRY_OUT.size + ATTR_SIZE
_OPEN_OUT: Final = struct.Struct("=QI4x")
_ATTR_VALID: Final = struct.Struct("=QI20x")
_STATX: Final = struct.Struct("=IIQIIIH2xQQQQ")
_STATX_TIME: Final = struct.Struct("=qI4x")
_STATX_DEVICES: Final = struct.Struct("=IIII112x")


class Request(NamedTuple):
    """The header of every request: who asks for what, about which inode."""

    opcode: int
    unique: int
    ino: int
    uid: int
    gid: int
    pid: int


class Status(Protocol):
    """`pyfuse3.EntryAttributes`: what stat(2) shows; timeouts in seconds."""

    st_ino: int
    generation: int
    entry_timeout: float
    attr_timeout: float
    st_mode: int
    st_nlink: int
    st_uid: int
    st_gid: int
    st_rdev: int
    st_size: int
    st_blksize: int
    st_blocks: int
    st_atime_ns: int
    st_mtime_ns: int
    st_ctime_ns: int


# Requests


def parse(request: bytes) -> tuple[Request, bytes]:
    """The header, and the body that follows it."""
    _, opcode, unique, ino, uid, gid, pid, _, _ = _IN_HEADER.unpack_from(request)
    return Request(opcode, unique, ino, uid, gid, pid), request[_IN_HEADER.size :]


def fallocate(body: bytes) -> tuple[int, int, int]:
    """mode, offset, length."""
    _, offset, length, mode, _ = _FALLOCATE_IN.unpack_from(body)
    return mode, offset, length


def lseek(body: bytes) -> tuple[int, int]:
    """offset, whence."""
    _, offset, whence, _ = _LSEEK_IN.unpack_from(body)
    return offset, whence


def copy_file_range(body: bytes) -> tuple[int, int, int, int]:
    """offset in the source, inode of the target, offset in the target, length."""
    _, offset_in, target, _, offset_out, length, _ = _COPY_FILE_RANGE_IN.unpack_from(body)
    return offset_in, target, offset_out, length


def ioctl(body: bytes) -> tuple[int, bytes]:
    """command, argument."""
    _, _, command, _, size, _ = _IOCTL_IN.unpack_from(body)
    return command, body[_IOCTL_IN.size : _IOCTL_IN.size + size]


def tmpfile(body: bytes) -> tuple[int, int]:
    """mode, umask."""
    _, mode, umask, _ = _CREATE_IN.unpack_from(body)
    return mode, umask


def create(body: bytes) -> tuple[int, int, bytes]:
    """mode, umask, name."""
    return *tmpfile(body), body[_CREATE_IN.size : -1]


# Replies


def number_reply(number: int) -> bytes:
    """To LSEEK and COPY_FILE_RANGE_64."""
    return _NUMBER_OUT.pack(number)


def count_reply(count: int) -> bytes:
    """To COPY_FILE_RANGE."""
    return _WRITE_OUT.pack(count)


def ioctl_reply(data: bytes) -> bytes:
    """To IOCTL."""
    return _IOCTL_OUT.pack(0, 0, 0, 0) + data


def create_reply(status: Status) -> bytes:
    """To TMPFILE: the new inode, and a handle, which is its number."""
    return b"".join(
        (
            entry(
                status.st_ino, status.generation,
                split(status.entry_timeout), split(status.attr_timeout),
            ),
            attr(
                status.st_ino, status.st_size, status.st_blocks,
                status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns,
                status.st_mode, status.st_nlink, status.st_uid, status.st_gid,
                status.st_rdev, status.st_blksize,
            ),
            opened(status.st_ino),
        )
    )  # fmt: skip


def statx_reply(status: Status, birth_ns: int | None) -> bytes:
    """To STATX; `birth_ns` is None if the filesystem does not record it."""
    mask = STATX_BASIC_STATS | (STATX_BTIME if birth_ns is not None else 0)
    times = (status.st_atime_ns, birth_ns or 0, status.st_ctime_ns, status.st_mtime_ns)
    return b"".join(
        (
            _ATTR_VALID.pack(*split(status.attr_timeout)),
            _STATX.pack(
                mask, status.st_blksize, 0, status.st_nlink, status.st_uid, status.st_gid,
                status.st_mode, status.st_ino, status.st_size, status.st_blocks, 0,
            ),
            *(_STATX_TIME.pack(*divmod(time, 10**9)) for time in times),
            _STATX_DEVICES.pack(*_device(status.st_rdev), 0, 0),
        )
    )  # fmt: skip


def opened(ino: int) -> bytes:
    """struct fuse_open_out: the handle is the inode."""
    return _OPEN_OUT.pack(ino, _FOPEN_KEEP_CACHE)


def entry(
    ino: int, generation: int, entry_valid: tuple[int, int], attr_valid: tuple[int, int]
) -> bytes:
    """struct fuse_entry_out up to its attributes; `split` makes the two validity times."""
    return _ENTRY_OUT.pack(
        ino, generation, entry_valid[0], attr_valid[0], entry_valid[1], attr_valid[1]
    )


def attr(
    ino: int,
    size: int,
    blocks: int,
    atime_ns: int,
    mtime_ns: int,
    ctime_ns: int,
    mode: int,
    nlink: int,
    uid: int,
    gid: int,
    rdev: int,
    blksize: int,
) -> bytes:
    """struct fuse_attr. Times in ns, negative before 1970; blocks of 512 bytes."""
    (atime, atime_rest), (mtime, mtime_rest), (ctime, ctime_rest) = (
        divmod(atime_ns, 10**9),
        divmod(mtime_ns, 10**9),
        divmod(ctime_ns, 10**9),
    )
    return _ATTR.pack(
        ino, size, blocks, atime, mtime, ctime, atime_rest, mtime_rest, ctime_rest,
        mode, nlink, uid, gid, rdev & 0xFFFFFFFF, blksize, 0,
    )  # fmt: skip


def split(seconds: float) -> tuple[int, int]:
    """Seconds and nanoseconds."""
    return divmod(round(seconds * 1e9), 10**9)


def _device(number: int) -> tuple[int, int]:
    return os.major(number), os.minor(number)
