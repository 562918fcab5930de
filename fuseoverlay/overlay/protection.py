"""Immutable and append-only objects: `chattr +i` and `chattr +a`.

The kernel refuses what these flags forbid before it calls a filesystem. It does not know them for a
FUSE mount, so the overlay refuses, with EPERM. A lower object has the real flags. Its copy has them
as letters in `overlay.protattr`, because real ones would prevent the overlay's own changes.
Sources: chattr(1); the kernel's may_delete(), may_setattr() and xattr_permission();
fs/overlayfs/util.c for the attribute.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Final

from fuseoverlay.errors import os_error
from fuseoverlay.layers import xattrs
from fuseoverlay.layers.objects import open_known, open_own, sighting
from fuseoverlay.overlay.inodes import Directory, File, Inode
from fuseoverlay.overlay.owners import Overlay
from fuseoverlay.overlay.realobject import Real, pinned_of, real_of, upper_of
from fuseoverlay.system import syscalls
from fuseoverlay.system.syscalls import file_flags

APPEND: Final = b"a"
IMMUTABLE: Final = b"i"
_OPENING: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_COPIED: Final = syscalls.FS_SYNC_FL | syscalls.FS_NOATIME_FL


def flags_of(ov: Overlay, inode: Inode) -> bytes:
    """`a`, `i`, both or nothing, as in `overlay.protattr`. Read once for each inode."""
    if inode.protection is None:
        with pinned_of(ov, inode) as real:
            inode.protection = _stored_flags(real)
    return inode.protection


def _stored_flags(real: Real) -> bytes:
    stored = b""
    if real.layer.number == 0:
        found = xattrs.get_overlay(
            real.path, xattrs.PROTATTR, real.layer.namespaces, follow=real.follow, upper=True
        )
        stored = found or b""
    flags = syscalls.inode_flags(real.path, follow=real.follow)
    return b"".join(
        letter
        for letter, flag in (
            (APPEND, syscalls.STATX_ATTR_APPEND),
            (IMMUTABLE, syscalls.STATX_ATTR_IMMUTABLE),
        )
        if flags & flag or letter in stored
    )


def keep(ov: Overlay, inode: Inode, real: Real, copy: bytes, source: int | None = None) -> None:
    """Store the protection flags of the lower object `real` on its copy, at the path `copy`, and
    set those other flags that the kernel's overlay also copies. `source`: a descriptor of the lower
    object, if it is open for reading."""
    if inode.kind in (stat.S_IFREG, stat.S_IFDIR):
        with contextlib.suppress(OSError):
            _copy_flags(_flags(real) if source is None else file_flags(source), copy)
    if inode.protection is None:
        inode.protection = _stored_flags(real)
    flags = inode.protection
    if flags:
        name = ov.writable().namespace + xattrs.PROTATTR
        xattrs.put(copy, name, flags)


def _flags(real: Real) -> int:
    flags = _OPENING | (0 if real.follow else os.O_NOFOLLOW)
    fd = open_known(real.path, flags, None, sighting(real.st))
    try:
        return file_flags(fd)
    finally:
        os.close(fd)


def _copy_flags(flags: int, copy: bytes) -> None:
    if flags & _COPIED:
        fd = open_own(copy, _OPENING | os.O_NOFOLLOW)
        try:
            syscalls.set_file_flags(fd, file_flags(fd) | flags & _COPIED)
        finally:
            os.close(fd)


def hands_down(ov: Overlay, parent: Directory) -> bool:
    """Whether an upper directory has flags that new objects in it inherit. Read once for each."""
    if parent.hands_down is None:
        try:
            fd = open_own(upper_of(ov, parent).path, _OPENING)
        except OSError:
            return False
        try:
            parent.hands_down = bool(file_flags(fd) & syscalls.FS_INHERITED_FL)
        except OSError:
            # The filesystem has no flags.
            parent.hands_down = False
        finally:
            os.close(fd)
    return parent.hands_down


def note(ov: Overlay, inode: Inode, flags: bytes) -> None:
    """Change the protection flags of an object in the upper."""
    real = upper_of(ov, inode)
    mine = ov.writable().namespace
    if flags:
        xattrs.put(real.path, mine + xattrs.PROTATTR, flags, follow=real.follow)
    names = [namespace + xattrs.PROTATTR for namespace in xattrs.NAMESPACES]
    for name in xattrs.present(real.path, names, follow=real.follow):
        if not flags or name != mine + xattrs.PROTATTR:
            xattrs.drop(real.path, name, follow=real.follow)
    inode.protection = flags


def check_change(ov: Overlay, inode: Inode, *, touch: bool = False) -> None:
    """EPERM unless owner, mode, times, size, attributes and links of the inode may change; with
    `touch`, unless both times may be set to the current one."""
    flags = flags_of(ov, inode)
    _refuse(flags.strip(APPEND) if touch else flags)


def check_allocation(ov: Overlay, file: File, mode: int) -> None:
    """EPERM for a fallocate(2) that the file does not allow. An append-only file may get space."""
    flags = flags_of(ov, file)
    _refuse(flags if mode & ~syscalls.FALLOC_FL_KEEP_SIZE else flags.strip(APPEND))


def check_open(ov: Overlay, file: File, flags: int) -> None:
    """EPERM for an open(2) for writing that the file does not allow."""
    only_appends = flags & os.O_APPEND and not flags & os.O_TRUNC
    _refuse(flags_of(ov, file).strip(APPEND if only_appends else b""))


def check_write(ov: Overlay, file: File, offset: int) -> None:
    """EPERM for a write to an immutable file, or before the end of an append-only one. `check_open`
    does not suffice: the kernel may open files without a request."""
    flags = flags_of(ov, file)
    if flags:
        appends = offset >= real_of(ov, file).st.st_size
        _refuse(flags.strip(APPEND) if appends else flags)


def check_creation(ov: Overlay, parent: Directory) -> None:
    """EPERM unless names may be added to the directory."""
    _refuse(flags_of(ov, parent).strip(APPEND))


def check_removal(ov: Overlay, parent: Directory, victim: Inode) -> None:
    """EPERM unless the name of `victim` may be removed from the directory."""
    _refuse(flags_of(ov, parent))
    _refuse(flags_of(ov, victim))


def _refuse(flags: bytes) -> None:
    if flags:
        raise os_error(errno.EPERM)
