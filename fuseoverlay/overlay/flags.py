"""Flags of files and directories, as chattr(1) sets and lsattr(1) shows them.

Immutable and append-only are never set on an object of the upper, see `overlay.protection`; all
other flags are those of the real object. Sources: ioctl_iflags(2), ioctl_xfs_fsgetxattr(2),
linux/fs.h; fs/overlayfs/inode.c, ovl_fileattr_set().
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from fuseoverlay.layers.objects import open_known, open_own, sighting
from fuseoverlay.overlay import protection
from fuseoverlay.overlay.copyup import copy_up
from fuseoverlay.overlay.inodes import Directory, Inode
from fuseoverlay.overlay.owners import Overlay
from fuseoverlay.overlay.realobject import real_of
from fuseoverlay.system import syscalls
from fuseoverlay.system.transaction import Transaction

_WORD: Final = struct.Struct("=I")


class Form(NamedTuple):
    """One of the two pairs of ioctls, with a structure of `size` bytes whose first word holds the
    flags."""

    get: int
    set: int
    size: int
    append: int
    immutable: int

    def letters(self, word: int) -> bytes:
        """Immutable and append-only in the form of `overlay.protattr`."""
        append = protection.APPEND if word & self.append else b""
        return append + (protection.IMMUTABLE if word & self.immutable else b"")

    def word(self, letters: bytes) -> int:
        """The flags of the first word for these letters."""
        append = self.append if protection.APPEND in letters else 0
        return append | (self.immutable if protection.IMMUTABLE in letters else 0)

    def with_letters(self, value: bytes, letters: bytes) -> bytes:
        """`value` with the immutable and append-only flags set as in `letters`."""
        [word] = _WORD.unpack_from(value)
        word = word & ~(self.append | self.immutable) | self.word(letters)
        return _WORD.pack(word) + value[_WORD.size :]


#: An `int` of FS_*_FL, a `struct fsxattr` of FS_XFLAG_*.
FLAGS: Final = Form(
    syscalls.FS_IOC_GETFLAGS,
    syscalls.FS_IOC_SETFLAGS,
    4,
    syscalls.FS_APPEND_FL,
    syscalls.FS_IMMUTABLE_FL,
)
FSXATTR: Final = Form(
    syscalls.FS_IOC_FSGETXATTR,
    syscalls.FS_IOC_FSSETXATTR,
    28,
    syscalls.FS_XFLAG_APPEND,
    syscalls.FS_XFLAG_IMMUTABLE,
)


def get(ov: Overlay, inode: Inode, form: Form) -> bytes:
    """The flags of a regular file or directory. ENOTTY if its filesystem has none."""
    with _opened(ov, inode) as fd:
        value = fcntl.ioctl(fd, form.get, bytes(form.size))
    return form.with_letters(value, protection.flags_of(ov, inode))


async def put(ov: Overlay, inode: Inode, form: Form, value: bytes) -> None:
    """Set the flags, after copy-up. The kernel has checked the caller's permission. EOPNOTSUPP for
    flags that the upper filesystem does not support; EROFS."""
    await copy_up(ov, inode, data=False)
    with _opened(ov, inode) as fd, Transaction() as change:
        old = fcntl.ioctl(fd, form.get, bytes(form.size))
        fcntl.ioctl(fd, form.set, form.with_letters(value, b""))
        change.on_error(fcntl.ioctl, fd, form.set, old)
        protection.note(ov, inode, form.letters(*_WORD.unpack_from(value)))
    if isinstance(inode, Directory):
        inode.hands_down = None
    # The extension may have been allowed to write to it without a check.
    ov.data.drop(inode.ino)


@contextlib.contextmanager
def _opened(ov: Overlay, inode: Inode) -> Iterator[int]:
    real = real_of(ov, inode)
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    if not real.follow:
        flags |= os.O_NOFOLLOW
    if real.layer.number == 0:
        fd = open_own(real.path, flags)
    else:
        fd = open_known(real.path, flags, None, sighting(real.st))
    try:
        yield fd
    finally:
        os.close(fd)
