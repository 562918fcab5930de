"""Immutable and append-only objects: `chattr +i` and `chattr +a`.

What they forbid the kernel refuses before it asks a filesystem, but of a FUSE mount it does
not know them: here the overlay refuses, with EPERM. A lower object has the flags
themselves, its copy has them as letters in `overlay.protattr`, because real ones would keep
the overlay from its own changes. Sources: chattr(1); the kernel's may_delete(),
may_setattr() and xattr_permission(); fs/overlayfs/util.c for the attribute.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from fuseoverlay import syscalls, xattrs
from fuseoverlay.inodes import Directory, File, Inode
from fuseoverlay.lookup import real_of
from fuseoverlay.overlay import Overlay

_APPEND: Final = b"a"
_IMMUTABLE: Final = b"i"


def flags_of(ov: Overlay, inode: Inode) -> bytes:
    """`a`, `i`, both or nothing, as in `overlay.protattr`. Asked once for each inode."""
    if inode.protection is None:
        real = real_of(ov, inode)
        stored = b""
        if real.layer.number == 0:
            found = xattrs.get_overlay(real.path, xattrs.PROTATTR, follow=real.follow, upper=True)
            stored = found or b""
        flags = syscalls.inode_flags(real.path, follow=real.follow)
        inode.protection = b"".join(
            letter
            for letter, flag in (
                (_APPEND, syscalls.STATX_ATTR_APPEND),
                (_IMMUTABLE, syscalls.STATX_ATTR_IMMUTABLE),
            )
            if flags & flag or letter in stored
        )
    return inode.protection


def keep(ov: Overlay, inode: Inode, copy: bytes) -> None:
    """Note the flags of a lower object on its copy, at the path `copy`."""
    flags = flags_of(ov, inode)
    if flags:
        name = ov.writable().namespace + xattrs.PROTATTR
        xattrs.put(copy, name, flags)


def check_change(ov: Overlay, inode: Inode) -> None:
    """EPERM unless owner, mode, times, size, attributes and links of the inode may change."""
    _refuse(flags_of(ov, inode))


def check_open(ov: Overlay, file: File, flags: int) -> None:
    """EPERM for an open(2) for writing that the file does not allow."""
    only_appends = flags & os.O_APPEND and not flags & os.O_TRUNC
    _refuse(flags_of(ov, file).strip(_APPEND if only_appends else b""))


def check_write(ov: Overlay, file: File, offset: int) -> None:
    """EPERM for a write to an immutable file, or before the end of an append-only one: where
    the kernel opens files without asking, `check_open` had no say."""
    flags = flags_of(ov, file)
    if flags:
        appends = offset >= real_of(ov, file).st.st_size
        _refuse(flags.strip(_APPEND) if appends else flags)


def check_creation(ov: Overlay, parent: Directory) -> None:
    """EPERM unless the directory takes new names."""
    _refuse(flags_of(ov, parent).strip(_APPEND))


def check_removal(ov: Overlay, parent: Directory, victim: Inode) -> None:
    """EPERM unless the name of `victim` in the directory may go."""
    _refuse(flags_of(ov, parent))
    _refuse(flags_of(ov, victim))


def _refuse(flags: bytes) -> None:
    if flags:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
