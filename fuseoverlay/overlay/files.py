"""File data: read, write, truncate, fsync.

I/O is by inode: there are no file handles. Every error of a write is returned by the call that
wrote. Calls that may block for long run in a thread (see docs/architecture.md).
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

# Bytes; writes of this size and above use a thread: the page cache may make them wait for the disk.
_INLINE_WRITE: Final = 128 << 10


def opened(ov: Overlay, file: File, flags: int, who: Changer) -> None:
    """Check an open, and note its caller's groups for setuid and setgid. For writing: EROFS on a
    read-only overlay, EPERM if the file may not be written."""
    if flags & os.O_ACCMODE != os.O_RDONLY:
        ov.writable()
        protection.check_open(ov, file, flags)
        if not who.privileged:
            groups = frozenset(who.groups())
            file.writers = groups if file.writers is None else file.writers & groups


async def read(ov: Overlay, file: File, offset: int, size: int) -> bytes | memoryview:
    """Read `size` bytes; fewer only at the end of the file. Errors of pread(2).

    What is in the page cache is read directly, the rest in a thread.
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
    """Read what the page cache holds from `offset` on; returns the number of bytes. 0 if there are
    none, or if the filesystem does not support RWF_NOWAIT."""
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
    """Write, after copy-up; returns the number of bytes. EPERM if the file may not be written
    there; ENOSPC, EDQUOT, EFBIG, EIO of pwrite(2)."""
    protection.check_write(ov, file, offset)
    descriptor = await _acquire_to_change(ov, file, who)
    try:
        if len(data) < _INLINE_WRITE:
            return os.pwrite(descriptor.fd, data, offset)
        return await ov.threads.run(os.pwrite, descriptor.fd, data, offset)
    finally:
        ov.data.release(descriptor)


async def _acquire_to_change(ov: Overlay, file: File, who: Changer) -> Descriptor:
    """Copy the file up and drop its setuid and setgid as needed; returns a writable descriptor, to
    be given back to `FileData.release`."""
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
    """fallocate(2), after copy-up, with the modes that the upper filesystem supports."""
    protection.check_allocation(ov, file, mode)
    descriptor = await _acquire_to_change(ov, file, who)
    try:
        await ov.threads.run(syscalls.fallocate, descriptor.fd, mode, offset, length)
    finally:
        ov.data.release(descriptor)


def seek(ov: Overlay, file: File, offset: int, whence: int) -> int:
    """The offset of the next data or hole: SEEK_DATA, SEEK_HOLE of lseek(2), with its errors."""
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
    """copy_file_range(2) between the real files, sharing blocks if possible; returns the number of
    bytes. Only the target is copied up."""
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
    """Write the file to disk. Nothing to do for a lower file, or unless the mount is durable."""
    if not ov.config.durable or not file.in_upper:
        return
    descriptor = ov.data.acquire(file)
    try:
        call = os.fdatasync if data_only else os.fsync
        await ov.threads.run(call, descriptor.fd)
    finally:
        ov.data.release(descriptor)


async def fsync_directory(ov: Overlay, directory: Directory) -> None:
    """Write the names in a directory to disk, likewise."""
    if not ov.config.durable or directory.upper is None or directory.removed:
        return
    with ov.stack.listing_fd(directory.upper) as fd:
        await ov.threads.run(os.fsync, fd)
