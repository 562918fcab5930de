"""Copy one file of an unpacked layer into another layer, unchanged."""

from __future__ import annotations

import os
import stat
from typing import Final

from fuseoverlay.layers import xattrs
from fuseoverlay.system import syscalls
from fuseoverlay.system.copydata import copy_data

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OVERLAY: Final = (xattrs.TRUSTED, xattrs.USER, xattrs.FUSE_OVERLAYFS)


def copy_file(src_dir: int, src: bytes, dst_dir: int, dst: bytes) -> None:
    """Copy data, type, owner, mode, attributes and times of `src`, which is not a directory.

    Keeps holes. The source's access time does not move if the kernel lets us prevent it.
    """
    st = os.stat(src, dir_fd=src_dir, follow_symlinks=False)
    if stat.S_ISREG(st.st_mode):
        _copy_regular(src_dir, src, dst_dir, dst, st.st_size)
    elif stat.S_ISLNK(st.st_mode):
        os.symlink(os.readlink(src, dir_fd=src_dir), dst, dir_fd=dst_dir)
    else:
        os.mknod(dst, stat.S_IFMT(st.st_mode) | 0o600, st.st_rdev, dir_fd=dst_dir)
    if os.geteuid() == 0:
        os.chown(dst, st.st_uid, st.st_gid, dir_fd=dst_dir, follow_symlinks=False)
    if not stat.S_ISLNK(st.st_mode):
        # Created above under a name that was free, so no link that could be followed.
        os.chmod(dst, stat.S_IMODE(st.st_mode), dir_fd=dst_dir)
    source, target = syscalls.at(src_dir, src), syscalls.at(dst_dir, dst)
    for name in xattrs.names(source):
        value = None if name.startswith(_OVERLAY) else xattrs.get(source, name)
        if value is not None:
            os.setxattr(target, name, value, follow_symlinks=False)
    times = (st.st_atime_ns, st.st_mtime_ns)
    os.utime(dst, ns=times, dir_fd=dst_dir, follow_symlinks=False)


def _copy_regular(src_dir: int, src: bytes, dst_dir: int, dst: bytes, size: int) -> None:
    reader = syscalls.open_noatime(src, _READ, src_dir)
    try:
        writer = os.open(dst, _CREATE, 0o600, dir_fd=dst_dir)
        try:
            copy_data(reader, writer, size)
        finally:
            os.close(writer)
    finally:
        os.close(reader)
