"""Copy-up: bring a lower object to the upper, whole or not at all.

Ancestors come first. The copy is staged in the work directory: data, owner, mode, attributes,
times; it is secured against a crash if the mount is durable, and published by one rename; then
the parent's times are restored.
Source: kernel Documentation/filesystems/overlayfs.rst, "Non-directories".

Directories and special files take a few metadata calls and are copied up without suspending. Only
the copy-up of a regular file suspends, under the lock of its inode.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import AsyncIterator, Iterator
from typing import Final, NamedTuple

import trio

from fuseoverlay.errors import no_entry, os_error
from fuseoverlay.layers import redirect, xattrs
from fuseoverlay.layers.layer import Place, RealDir
from fuseoverlay.layers.objects import stat_key
from fuseoverlay.overlay import hardlinks, linkindex, places, protection, staging
from fuseoverlay.overlay.copymetadata import (
    copy_metadata,
    copy_times,
    copy_xattrs,
    mark_impure,
    times_kept,
)
from fuseoverlay.overlay.inodes import Directory, File, Held, Inode
from fuseoverlay.overlay.owners import Overlay
from fuseoverlay.overlay.realobject import (
    Real,
    lower_of,
    path_below,
    real_by,
    real_of,
    stored_of,
    upper_of,
)
from fuseoverlay.system import syscalls
from fuseoverlay.system.copydata import copy_data
from fuseoverlay.system.descriptors import open_file
from fuseoverlay.system.syscalls import at
from fuseoverlay.system.transaction import Transaction, tidy

# Bytes; copying fewer is faster than waking a thread.
_INLINE: Final = 64 << 10


async def copy_up(ov: Overlay, inode: Inode, *, size: int | None = None, data: bool = True) -> bool:
    """Make sure that the object is in the upper. May suspend.

    `size`: truncate the file to this many bytes; no more are copied. Returns True if that was done,
    with the times of a truncation; otherwise the caller has to truncate.
    `data`: false if the caller changes only metadata; with `metacopy=on` the data then stays in the
    lower. EROFS; ENOSPC, EDQUOT, EIO of the copy, which then leaves nothing behind.
    """
    if isinstance(inode, Directory) and inode.removed:
        _copy_up_removed(ov, inode)
    elif isinstance(inode, Directory):
        copy_up_directory(ov, inode)
    elif isinstance(inode, File) and (_is_busy(inode) or not _is_up(inode, data)):
        ov.writable()
        if inode.lock is None:
            inode.lock = trio.Lock()
        async with _held(inode.lock):
            if not inode.in_upper:
                await _copy_up_file(ov, inode, size, data)
                return size is not None
            if not _is_up(inode, data):
                await _copy_up_data(ov, inode, size)
                return size is not None
    return False


@contextlib.asynccontextmanager
async def _held(lock: trio.Lock) -> AsyncIterator[None]:
    """Hold the lock; a free one is taken without a checkpoint."""
    try:
        lock.acquire_nowait()
    except trio.WouldBlock:
        await lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _is_up(file: File, data: bool) -> bool:
    return file.in_upper and not (data and file.data is not None)


def _is_busy(file: File) -> bool:
    """Whether its data is being copied. The copy restores the times at its end, so other changes
    have to wait."""
    return file.lock is not None and file.lock.locked()


def copy_up_directory(ov: Overlay, directory: Directory) -> RealDir:
    """Copy the directory and its ancestors up; returns the upper directory. Does not suspend."""
    ov.writable()
    if directory.removed:
        raise no_entry(directory.name)
    if directory.upper is None and not ov.inodes.is_in_place(directory):
        # Another directory has its path by now; what belongs into this one must not go there.
        raise os_error(errno.ESTALE, directory.name)
    missing = []
    step: Directory | None = directory
    while step is not None and step.upper is None:
        missing.append(step)
        step = step.parent
    for step in reversed(missing):
        _copy_up_one(ov, step)
    if directory.upper is None:
        raise no_entry(directory.name)
    return directory.upper


def _copy_up_one(ov: Overlay, directory: Directory) -> None:
    parent = directory.parent
    if parent is None or parent.upper is None:
        raise os_error(errno.EROFS)
    with Transaction() as change:
        staged = staging.stage(ov, change)
        stage_directory(ov, directory, staged)
        _publish(ov, staged, parent, directory.name)
    directory.upper = ov.stack.upper_dir(parent.upper, directory.name)
    if parent.index is not None:
        parent.index.put(directory.name, True)


def _copy_up_removed(ov: Overlay, directory: Directory) -> None:
    """Copy up a removed directory that is still open: the copy has no name either."""
    if directory.held is not None:
        return
    with Transaction() as change:
        staged = staging.stage(ov, change)
        stage_directory(ov, directory, staged)
        held = staging.hold(ov, staged, is_dir=True)
    ov.inodes.hold(directory, held)


def stage_directory(ov: Overlay, directory: Directory, staged: bytes) -> None:
    """Stage an empty directory with the metadata of this one. Does not suspend."""
    workdir = ov.writable()
    real = real_of(ov, directory)
    path = at(workdir.fd, staged)
    os.mkdir(staged, 0o700, dir_fd=workdir.fd)
    ov.identity.dress(workdir.fd, staged, stored_of(ov, real))
    copy_xattrs(ov, real, path)
    protection.keep(ov, directory, real, path)
    copy_times(real.st, workdir.fd, staged)


async def _copy_up_file(ov: Overlay, file: File, size: int | None, data: bool) -> None:
    # Pin the lower object: looked up by name for each step, the parts of the copy could come from
    # two objects, of different owners.
    with lower_of(ov, file) as lower, Transaction() as change:
        name = places.name_of(ov.stack, ov.inodes, file)
        if name is not None and name[0].upper is None:
            copy_up_directory(ov, name[0])
        origin = hardlinks.origin_to_store(ov, lower)
        real = real_by(lower)
        staged = staging.stage(ov, change)
        metacopy = None if data else _metacopy_redirect(ov, file, real.st)
        if metacopy is not None:
            await _copy_only_metadata(ov, file, real, staged, origin, metacopy)
        elif stat.S_ISREG(file.kind):
            await _copy_regular(ov, file, real, staged, size, origin)
        else:
            target = staging.read_link(ov, real) if stat.S_ISLNK(file.kind) else b""
            staging.make(ov, staged, stored_of(ov, real), target)
            copy_metadata(ov, file, real, staged, origin)
        copy = _publish_file(ov, change, file, staged, origin, real.st.st_nlink)
    _moved_up(ov, file, copy, metacopy is not None)


def _metacopy_redirect(ov: Overlay, file: File, st: os.stat_result) -> bytes | None:
    """The redirect to the data for a copy of the metadata alone; None: copy everything."""
    found = places.name_of(ov.stack, ov.inodes, file)
    if not (ov.config.metacopy and stat.S_ISREG(file.kind) and st.st_size and found):
        return None
    parent, name = found
    # Even if the lower file is a metacopy itself, redirect to it and not to its data: the kernel
    # searches data-only layers only on behalf of a lower file.
    path = path_below(parent) + b"/" + name
    return path if len(path) <= redirect.MAX_LENGTH else None


async def _copy_only_metadata(
    ov: Overlay, file: File, real: Real, staged: bytes, origin: bytes | None, path: bytes
) -> None:
    """Stage a file of the right size without data; `path`: the redirect to the data in the
    lowers."""
    workdir = ov.writable()
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    target = open_file(staged, flags, 0o600, dir_fd=workdir.fd)
    try:
        os.ftruncate(target, real.st.st_size)
        os.setxattr(target, workdir.namespace + xattrs.METACOPY, b"")
        os.setxattr(target, workdir.namespace + xattrs.REDIRECT, path)
        copy_metadata(ov, file, real, staged, origin)
        await _secure(ov, target)
    finally:
        os.close(target)


async def _copy_up_data(ov: Overlay, file: File, size: int | None) -> None:
    """Copy the data of a metacopy file up. Until the last step removes the metacopy attribute, only
    the upper file's metadata counts, size and times included."""
    target = ov.data.open_for_copy(file)
    try:
        before = os.fstat(target)
        times = before.st_atime_ns, before.st_mtime_ns
        with Transaction() as change:
            change.on_error(os.utime, target, ns=times)
            source = ov.data.acquire(file)
            try:
                length = before.st_size if size is None else min(size, before.st_size)
                shared = await ov.threads.run(copy_data, source.fd, target, length)
            finally:
                ov.data.release(source)
            if size is None:
                os.utime(target, ns=times)
            else:
                change.on_error(os.ftruncate, target, before.st_size)
                os.ftruncate(target, size)
            await _secure(ov, target, shared)
            _forget_metacopy(target)
        file.data = None
        ov.data.drop(file.ino)
    finally:
        os.close(target)


def _forget_metacopy(fd: int) -> None:
    """Remove the metacopy attributes, and with them the redirects: from now on the file's own data
    counts. A metacopy attribute that stayed would make the next mount show the old data."""
    marks, redirects = (
        [namespace + what for namespace in xattrs.NAMESPACES]
        for what in (xattrs.METACOPY, xattrs.REDIRECT)
    )
    for name in xattrs.present(fd, marks):
        xattrs.drop(fd, name)
    for name in xattrs.present(fd, redirects):
        tidy(xattrs.drop, fd, name)


async def _copy_regular(
    ov: Overlay, file: File, real: Real, staged: bytes, size: int | None, origin: bytes | None
) -> None:
    """Stage data and metadata, secured against a crash. The descriptor is not kept: the file may be
    published under a name that needs another one."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    target = open_file(staged, flags, 0o600, dir_fd=ov.writable().fd)
    try:
        with _data(ov, file, real) as source:
            length = real.st.st_size if file.data is None else os.fstat(source).st_size
            length = length if size is None else min(size, length)
            if length <= _INLINE:
                shared = copy_data(source, target, length)
                _begin_to_secure(ov, target, shared)
            else:
                shared = await ov.threads.run(copy_data, source, target, length)
            own = source if file.data is None else None
            copy_metadata(ov, file, real, staged, origin, own)
            if size is not None:
                # Last, so that the file has the times of a truncation.
                os.ftruncate(target, size)
        await _secure(ov, target, shared)
    finally:
        os.close(target)


@contextlib.contextmanager
def _data(ov: Overlay, file: File, real: Real) -> Iterator[int]:
    """A descriptor of the data: of `real` itself, unless the data is elsewhere (metacopy)."""
    if file.data is None:
        fd = syscalls.open_noatime(real.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)
        return
    source = ov.data.acquire(file)
    try:
        yield source.fd
    finally:
        ov.data.release(source)


def _begin_to_secure(ov: Overlay, target: int, shared: bool) -> None:
    """Start writing a small copy's data to disk, so that it is often there by the time that the
    metadata is set."""
    if not shared and ov.config.durable and ov.writable().keeps_order:
        syscalls.start_writing(target)


async def _secure(ov: Overlay, target: int, shared: bool = False) -> None:
    """Before a copy is published: make sure that after a crash it either has its data or does not
    count.

    On a filesystem that keeps the order of changes it is enough to write the data, without waiting
    for the journal and the disk's cache. `shared` blocks are on disk already: filesystems that
    share blocks keep the order; the kernel's overlay relies on that as well.
    """
    if shared or not ov.config.durable:
        return
    if not ov.writable().keeps_order:
        await ov.threads.run(os.fsync, target)
    elif syscalls.is_written(target):
        syscalls.write_out(target)  # for its errors
    else:
        await ov.threads.run(syscalls.write_out, target)


class _Copy(NamedTuple):
    """A copy of a file that has just been published."""

    key: tuple[int, int]
    #: Where it is, or how to reach it if the file has no name any more.
    place: Place | Held
    #: The directory that holds it, if the file has a name.
    parent: Directory | None
    #: See `File.links`.
    links: int


def _publish_file(
    ov: Overlay,
    change: Transaction,
    file: File,
    staged: bytes,
    origin: bytes | None,
    lower_links: int,
) -> _Copy:
    """Commit without suspending; changes nothing in memory. The file's name may have been removed
    or moved during the copy; a file without a name stays without one."""
    workdir = ov.writable()
    key = stat_key(os.stat(staged, dir_fd=workdir.fd, follow_symlinks=False))
    links = lower_links - file.hidden
    entered = False
    # Also if only one name is left: the open file may have been reached by another.
    is_linked = ov.config.index and lower_links > 1 and links > 0
    if is_linked and origin is not None:
        entered = linkindex.enter(ov, change, staged, origin, links, lower_links)
    name = places.name_of(ov.stack, ov.inodes, file)
    place: Place | Held
    if name is not None:
        place = _publish(ov, staged, *name)
    elif entered and origin is not None:
        place = linkindex.copy_in_index(ov, origin)
        os.unlink(staged, dir_fd=workdir.fd)
    else:
        place = staging.hold(ov, staged)
    return _Copy(key, place, name[0] if name is not None else None, links if entered else 0)


def _moved_up(ov: Overlay, file: File, copy: _Copy, only_metadata: bool) -> None:
    """Record in memory that the file was copied up: from now on the copy counts."""
    if isinstance(copy.place, Held):
        ov.inodes.hold(file, copy.place)
    else:
        file.upper = copy.place
        if copy.parent is not None and copy.parent.index is not None:
            copy.parent.index.put(copy.place.name, False)
    ov.inodes.bind(file, copy.key)
    if not only_metadata:
        file.data = None
    elif file.data is None:
        file.data, file.data_seen = file.lower, file.lower_seen
    ov.data.drop(file.ino)
    linkindex.set_links(ov, file, copy.links)
    # The kernel drops only some of its cached attributes after a change that it requested itself.
    # Ancestors need no such call: copy-up changes nothing that they show.
    ov.writable().changed(file.ino)


def give_name(ov: Overlay, file: File, parent: Directory, name: bytes) -> None:
    """Make a real name in the upper for one that so far leads to the copy through the index of hard
    links. Does not suspend. ESTALE if the file is not in the upper: the name has come to lead to
    another lower file since the copy-up."""
    index = parent.index
    found = index.find(name) if index is not None else None
    if index is None or found is None or found.in_upper:
        return
    if not file.in_upper:
        raise os_error(errno.ESTALE, name)
    copy_up_directory(ov, parent)
    real = upper_of(ov, file)
    with Transaction() as change:
        linkindex.hold_count(ov, change, file, real)
        staged = staging.stage(ov, change)
        os.link(real.path, staged, dst_dir_fd=ov.writable().fd, follow_symlinks=real.follow)
        place = _publish(ov, staged, parent, name)
    file.upper = place
    ov.inodes.let_go(file)
    index.put(name, False)
    linkindex.set_links(ov, file, file.links)


def _publish(ov: Overlay, staged: bytes, parent: Directory, name: bytes) -> Place:
    """Rename a copy to a name that is free in the upper; the parent keeps its times."""
    place = Place(copy_up_directory(ov, parent), name)
    mark_impure(ov, parent)
    fd = ov.stack.fd(place.real)
    with times_kept(fd):
        staging.move_to_free(ov.writable().fd, staged, fd, name)
    return place
