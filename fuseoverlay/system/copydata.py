"""Copy the data of a file, as cheaply as the filesystems allow."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Final

from fuseoverlay.system import syscalls

_CHUNK: Final = 1 << 20
_NO_COPY_RANGE: Final = (
    errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EPERM,
)  # fmt: skip


def copy_data(source: int, target: int, length: int) -> bool:
    """Copy the first `length` bytes; share blocks where possible, and keep holes.

    `target` is empty. Returns True if all blocks are shared, and so on disk already. May block for
    long. Errors of copy_file_range(2) and write(2).
    """
    st = os.fstat(source)
    if length and length == st.st_size:
        with contextlib.suppress(OSError):
            syscalls.clone_file(source, target)
            return True
    if st.st_blocks * 512 >= st.st_size:
        end = _copy_range(source, target, 0, length)
    else:
        end = _copy_around_holes(source, target, length)
    if end < length:
        os.ftruncate(target, length)
    return False


def _copy_around_holes(source: int, target: int, length: int) -> int:
    """Copy the data between the holes; returns the offset at which the last data ends."""
    position = end = 0
    while position < length:
        try:
            start = os.lseek(source, position, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                break
            if exc.errno != errno.EINVAL:
                raise
            start, position = position, length
        else:
            position = os.lseek(source, start, os.SEEK_HOLE)
        end = _copy_range(source, target, start, min(position, length))
    return end


def _copy_range(source: int, target: int, start: int, end: int) -> int:
    """Copy from `start` to `end`; returns the offset reached, which is less if the source ends
    before."""
    in_kernel = True
    while start < end:
        count = min(end - start, _CHUNK)
        if in_kernel:
            try:
                done = os.copy_file_range(source, target, end - start, start, start)
            except OSError as exc:
                if exc.errno not in _NO_COPY_RANGE:
                    raise
                in_kernel = False
                continue
        else:
            done = os.pwrite(target, os.pread(source, count, start), start)
        if not done:
            break
        start += done
    return start
