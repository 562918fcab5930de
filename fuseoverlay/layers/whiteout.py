"""Whiteouts and opaque marks: recognise and make them, in every dialect.

A whiteout hides one name of the layers below; an opaque directory hides all of them. Dialects:

- `char`: a character device 0:0 (kernel overlayfs; needs no privilege since Linux 5.8);
- `xattr`: an empty regular file with the attribute `overlay.whiteout`, in a directory
  whose `overlay.opaque` is `x` (kernel overlayfs since 6.8);
- `oci`: a file `.wh.NAME` in the directory that would hold NAME (AUFS, OCI image layers).

Opaque: `overlay.opaque=y` on the directory, or a file `.wh..wh..opq` in it. Sources: kernel
Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories"; OCI image-spec
layer.md, "Whiteouts".
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import stat
from collections.abc import Sequence
from typing import Final

from fuseoverlay.layers import xattrs
from fuseoverlay.system import syscalls
from fuseoverlay.system.removal import names_in, remove_tree
from fuseoverlay.system.syscalls import DIR_FLAGS

WH_PREFIX: Final = b".wh."
#: Prefix of AUFS housekeeping: never an entry of the merged tree.
WH_META_PREFIX: Final = b".wh..wh."
WH_OPAQUE: Final = b".wh..wh..opq"
#: Names that AUFS creates in the root of a layer for itself.
WH_HOUSEKEEPING: Final = frozenset((b".wh..wh.aufs", b".wh..wh.orph", b".wh..wh.plnk"))

OPAQUE_YES: Final = b"y"
#: "Look for xattr whiteouts inside"; the directory itself is not opaque.
OPAQUE_XATTR_WHITEOUTS: Final = b"x"

NAME_MAX: Final = 255

#: A directory that exists while a filesystem is probed.
PROBE: Final = b".fuseoverlay-probe"
# Errors of filesystems that do not accept a whiteout. ENOENT: the filesystem takes it for a
# whiteout itself.
_NOT_TAKEN: Final = (
    errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENOENT, errno.ENODATA,
)  # fmt: skip


class Dialect(enum.Enum):
    """How a whiteout is written."""

    CHAR = "char"
    XATTR = "xattr"
    OCI = "oci"


def oci_target(name: bytes) -> bytes | None:
    """The name that `.wh.NAME` hides; None if `name` is not an OCI whiteout."""
    if name.startswith(WH_PREFIX) and not name.startswith(WH_META_PREFIX):
        return name[len(WH_PREFIX) :] or None
    return None


def is_char_whiteout(st: os.stat_result) -> bool:
    """Whether the status is of a character device 0:0."""
    return stat.S_ISCHR(st.st_mode) and st.st_rdev == 0


def is_xattr_whiteout(
    dir_fd: int, name: bytes, counted: Sequence[bytes], st: os.stat_result | None = None
) -> bool:
    """Whether `name` is an empty regular file with an `overlay.whiteout` attribute. `counted` as
    for `xattrs.get_overlay`; `st`: its status, if known."""
    if st is None:
        st = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    if not stat.S_ISREG(st.st_mode) or st.st_size:
        return False
    return xattrs.get_overlay(syscalls.at(dir_fd, name), xattrs.WHITEOUT, counted) is not None


def make(dialect: Dialect, dir_fd: int, name: bytes, namespace: bytes) -> None:
    """Make a whiteout object called `name` in the directory `dir_fd`.

    For `OCI` the caller passes the full `.wh.NAME`. An `XATTR` whiteout counts only after
    `mark_xattr_whiteouts` on its final directory. `namespace` is `xattrs.TRUSTED` or `xattrs.USER`.
    """
    if dialect is Dialect.CHAR:
        os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=dir_fd)
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    os.close(os.open(name, flags, 0o644 if dialect is Dialect.XATTR else 0, dir_fd=dir_fd))
    if dialect is Dialect.XATTR:
        try:
            os.setxattr(
                syscalls.at(dir_fd, name), namespace + xattrs.WHITEOUT, b"y", follow_symlinks=False
            )
        except OSError:
            os.unlink(name, dir_fd=dir_fd)
            raise


def dialect_for(name: bytes, preferred: Dialect) -> Dialect:
    """The dialect for a whiteout of `name`: names that leave no room for `.wh.` take `XATTR`."""
    if preferred is Dialect.OCI and len(name) + len(WH_PREFIX) > NAME_MAX:
        return Dialect.XATTR
    return preferred


def set_opaque(dir_fd: int, name: bytes, namespace: bytes) -> None:
    """Make the directory `name` in `dir_fd` opaque: by attribute, else by `.wh..wh..opq`."""
    try:
        xattrs.put(syscalls.at(dir_fd, name), namespace + xattrs.OPAQUE, OPAQUE_YES)
    except OSError as exc:
        if exc.errno not in (errno.EOPNOTSUPP, errno.EPERM):
            raise
        fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)
        try:
            with contextlib.suppress(FileExistsError):
                make(Dialect.OCI, fd, WH_OPAQUE, namespace)
        finally:
            os.close(fd)


def mark_xattr_whiteouts(dir_fd: int, namespace: bytes, counted: Sequence[bytes]) -> None:
    """Mark the directory as one that holds xattr whiteouts. An opaque one stays opaque."""
    if is_marked_opaque(dir_fd, counted):
        return
    xattrs.put(dir_fd, namespace + xattrs.OPAQUE, OPAQUE_XATTR_WHITEOUTS)


def opaque_value(path: bytes | int, counted: Sequence[bytes]) -> bytes | None:
    """The value of the directory's `overlay.opaque`, as by `xattrs.get_overlay`; None if not set.

    `path` is a descriptor, or a path whose last component is not a symbolic link that may be
    followed.
    """
    return xattrs.get_overlay(path, xattrs.OPAQUE, counted)


def is_opaque_value(value: bytes | None) -> bool:
    """Whether `overlay.opaque` with this value hides the layers below."""
    return value == OPAQUE_YES


def is_marked_opaque(path: bytes | int, counted: Sequence[bytes]) -> bool:
    """Whether the directory is opaque by its attribute; arguments as for `opaque_value`."""
    return is_opaque_value(opaque_value(path, counted))


def probe(dir_fd: int, namespace: bytes) -> Dialect | None:
    """The best dialect that the filesystem of `dir_fd` keeps; None if it keeps no whiteouts. Errors
    of `keeps`."""
    return next((dialect for dialect in Dialect if keeps(dialect, dir_fd, namespace)), None)


def keeps(dialect: Dialect, dir_fd: int, namespace: bytes) -> bool:
    """Whether a whiteout of this dialect is found again after it was made in a directory there. An
    overlay, for one, may accept it and hide it.

    Makes and removes a directory called `PROBE`; `OSError` if none can be made.
    """
    os.mkdir(PROBE, 0o700, dir_fd=dir_fd)
    try:
        fd = os.open(PROBE, DIR_FLAGS, dir_fd=dir_fd)
        try:
            return _is_kept(dialect, fd, namespace)
        finally:
            os.close(fd)
    finally:
        remove_tree(dir_fd, PROBE)


def _is_kept(dialect: Dialect, fd: int, namespace: bytes) -> bool:
    name = WH_PREFIX + b"probe" if dialect is Dialect.OCI else b"probe"
    try:
        make(dialect, fd, name, namespace)
        if dialect is Dialect.XATTR:
            mark_xattr_whiteouts(fd, namespace, [namespace])
            marked = opaque_value(fd, [namespace]) == OPAQUE_XATTR_WHITEOUTS
            return marked and is_xattr_whiteout(fd, name, [namespace])
        st = os.stat(name, dir_fd=fd, follow_symlinks=False)
        found = is_char_whiteout(st) if dialect is Dialect.CHAR else stat.S_ISREG(st.st_mode)
        return found and name in names_in(fd)
    except OSError as exc:
        if exc.errno in _NOT_TAKEN:
            return False
        raise


def best_namespace(dir_fd: int) -> bytes:
    """`trusted.overlay.` if this process may set it on the directory, else `user.overlay.`."""
    return xattrs.TRUSTED if takes_attributes(dir_fd, xattrs.TRUSTED) else xattrs.USER


def takes_attributes(dir_fd: int, namespace: bytes) -> bool:
    """Whether this process may set attributes of the namespace on the directory and finds them
    again."""
    path, name = syscalls.fd_path(dir_fd), namespace + b"probe"
    try:
        os.setxattr(path, name, b"y")
        found = xattrs.get_overlay(dir_fd, b"probe", [namespace])
        os.removexattr(path, name)
    except OSError:
        return False
    return found == b"y"
