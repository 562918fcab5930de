"""File data: read, write, truncate, fsync.

I/O is by inode: there are no handles. Every error of a write reaches the writer from the
call itself. What may block for long runs in a thread (see docs/architecture.md).
"""

from __future__ import annotations

import errno
import os
from typing import Final

from fuseoverlay.overlay import ownership, protection
from fuseoverlay.overlay.copyup import copy_up
from fuseoverlay.overlay.filedata import Descriptor
from fuseoverlay.overlay.inodes import Directory, File
from fuseoverlay.overlay.owners import Overlay
from fuseoverlay.overlay.ownership import Changer
from fuseoverlay.system import syscalls

# A larger write is worth a thread: the page cache may make it wait for the disk.
_INLINE_WRITE: Final = 128 << 10


def opened(ov: Overlay, file: File, flags: int, who: Changer) -> None:
    """Note who opens the file, for setuid bits; for writers EROFS of a read-only overlay,
    EPERM of a file that may not be written."""
    if flags & os.O_ACCMODE != os.O_RDONLY:
        ov.writable()
        protection.check_open(ov, file, flags)
        if not who.privileged:
            groups = frozenset(who.groups())
            file.writers = groups if file.writers is None else file.writers & groups


async def read(ov: Overlay, file: File, offset: int, size: int) -> bytes | memoryview:
    """Up to `size` bytes; fewer only at the end of the file. Errors of pread(2).

    What is in the page cache is read at once, the rest in a thread.
    """
    descriptor = ov.data.acquire(file)
    try:
        buffer = bytearray(size)
        done = read_nowait(descriptor.fd, buffer, offset)
        if done < size and offset + done < os.fstat(descriptor.fd).st_size:
            rest = memoryview(buffer)[done:]
            done += await ov.threads.run(_read_all, descriptor.fd, rest, offset + done)
    finally:
        ov.data.release(descriptor)
    return memoryview(buffer)[:done]


def read_nowait(fd: int, buffer: bytearray, offset: int) -> int:
    """Bytes that the page cache holds from `offset` on; 0 where it cannot be asked."""
    try:
        return os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except OSError as exc:
        if exc.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
            return 0
        raise


def _read_all(fd: int, buffer: memoryview, offset: int) -> int:
    done = 0
    while done < len(buffer):
        count = os.preadv(fd, [buffer[done:]], offset + done)
        if not count:
            break
        done += count
    return done


async def write(ov: Overlay, file: File, offset: int, data: bytes, who: Changer) -> int:
    """Write after copy-up; bytes written. EPERM; ENOSPC, EDQUOT, EFBIG, EIO of pwrite(2)."""
    protection.check_write(ov, file, offset)
    descriptor = await _acquire_to_change(ov, file, who)
    try:
        if len(data) < _INLINE_WRITE:
            return os.pwrite(descriptor.fd, data, offset)
        return await ov.threads.run(os.pwrite, descriptor.fd, data, offset)
    finally:
        ov.data.release(descriptor)


async def _acquire_to_change(ov: Overlay, file: File, who: Changer) -> Descriptor:
    """A writable descriptor, for `FileData.release`, after copy-up; setuid bits may end."""
    await copy_up(ov, file)
    descriptor = ov.data.acquire(file, write=True)
    try:
        if not who.privileged:
            ownership.drop_privileges(ov, file, who)
    except BaseException:
        ov.data.release(descriptor)
        raise
    return descriptor


async def allocate(
    ov: Overlay, file: File, mode: int, offset: int, length: int, who: Changer
) -> None:
    """fallocate(2) after copy-up, with the modes that the upper takes."""
    protection.check_allocation(ov, file, mode)
    descriptor = await _acquire_to_change(ov, file, who)
    try:
        await ov.threads.run(syscalls.fallocate, descriptor.fd, mode, offset, length)
    finally:
        ov.data.release(descriptor)


def seek(ov: Overlay, file: File, offset: int, whence: int) -> int:
    """Where the next data or hole is: SEEK_DATA, SEEK_HOLE of lseek(2), with its errors."""
    descriptor = ov.data.acquire(file)
    try:
        return os.lseek(descriptor.fd, offset, whence)
    finally:
        ov.data.release(descriptor)


async def copy_range(
    ov: Overlay,
    source: File,
    source_offset: int,
    target: File,
    target_offset: int,
    length: int,
    who: Changer,
) -> int:
    """copy_file_range(2) between the real files, sharing blocks where they can; bytes copied.
    Only the target is copied up."""
    protection.check_write(ov, target, target_offset)
    sink = await _acquire_to_change(ov, target, who)
    try:
        origin = ov.data.acquire(source)
        try:
            return await ov.threads.run(
                os.copy_file_range, origin.fd, sink.fd, length, source_offset, target_offset
            )
        finally:
            ov.data.release(origin)
    finally:
        ov.data.release(sink)


def truncate(ov: Overlay, file: File, size: int) -> None:
    """Set the size of a file that is in the upper. Errors of ftruncate(2)."""
    descriptor = ov.data.acquire(file, write=True)
    try:
        os.ftruncate(descriptor.fd, size)
    finally:
        ov.data.release(descriptor)


async def fsync(ov: Overlay, file: File, *, data_only: bool) -> None:
    """Write the file to disk; nothing to do for lowers and with `volatile`."""
    if not ov.config.durable or not file.in_upper:
        return
    descriptor = ov.data.acquire(file)
    try:
        call = os.fdatasync if data_only else os.fsync
        await ov.threads.run(call, descriptor.fd)
    finally:
        ov.data.release(descriptor)


async def fsync_directory(ov: Overlay, directory: Directory) -> None:
    """The same for the names in a directory."""
    if not ov.config.durable or directory.upper is None or directory.removed:
        return
    with ov.stack.listing_fd(directory.upper) as fd:
        await ov.threads.run(os.fsync, fd)
