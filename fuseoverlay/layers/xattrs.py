"""Names of the extended attributes that an overlay keeps for itself.

Source: kernel Documentation/filesystems/overlayfs.rst ("trusted.overlay.",
"user.overlay.", "Nesting overlayfs mounts"); containers-storage for
`user.containers.override_stat`; fuse-overlayfs for `user.fuseoverlayfs.` and
`security.fuseoverlayfs.`.
Names are `bytes` everywhere.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Callable, Container, Sequence
from typing import Final, TypeVar

from fuseoverlay.errors import os_error
from fuseoverlay.system.syscalls import fd_path
from fuseoverlay.system.transaction import tidy

T = TypeVar("T")

TRUSTED: Final = b"trusted.overlay."
USER: Final = b"user.overlay."
FUSE_OVERLAYFS: Final = b"user.fuseoverlayfs."

#: Namespaces that can be read, in order of precedence; which count, `trust` says.
NAMESPACES: Final = (TRUSTED, USER, FUSE_OVERLAYFS)

#: Owner, mode and type that a plain user could not set: `uid:gid:0mode:type`.
OVERRIDE_STAT: Final = b"user.containers.override_stat"
#: The same that only root can write, and as older versions of fuse-overlayfs write it.
PRIVILEGED_OVERRIDE_STAT: Final = b"security.fuseoverlayfs.override_stat"
#: Names of it, in order of precedence. A layer's objects have the same as its root.
OVERRIDES: Final = (
    PRIVILEGED_OVERRIDE_STAT,
    OVERRIDE_STAT,
    b"user.fuseoverlayfs.override_stat",
)

CAPABILITY: Final = b"security.capability"
#: File capabilities, where owners are kept in a `user.` attribute.
OVERRIDE_CAPABILITY: Final = b"user.containers.override_security.capability"

#: On a directory that a layer archive needed but did not list: its own metadata
#: mean nothing, those of the directory below count. Also on the root of every
#: layer that holds such directories, so that others need not be asked.
IMPLIED: Final = b"user.fuseoverlay.implied"
#: Value of `IMPLIED` on such a directory itself; a root that was listed has another.
IMPLIED_SELF: Final = b"y"

#: Prefixes that no layer of an image may bring, and no user may set.
RESERVED: Final = (
    TRUSTED,
    USER,
    FUSE_OVERLAYFS,
    b"security.fuseoverlayfs.",
    b"user.containers.",
    b"user.fuseoverlay.",
)

#: Asked of a mount's top directory: which process serves it. Not listed.
DAEMON: Final = b"user.fuseoverlay.daemon"

OPAQUE: Final = b"opaque"
WHITEOUT: Final = b"whiteout"
ORIGIN: Final = b"origin"
IMPURE: Final = b"impure"
NLINK: Final = b"nlink"
REDIRECT: Final = b"redirect"
METACOPY: Final = b"metacopy"
UPPER: Final = b"upper"
PROTATTR: Final = b"protattr"

_ESCAPED: Final = b"overlay."
#: What filesystems answer that have no attributes: not all say so in the proper way.
NONE: Final = (errno.EOPNOTSUPP, errno.ENODATA, errno.EINVAL, errno.EPERM, errno.ENOSYS)


def to_real(name: bytes) -> bytes:
    """The name under which a user's attribute is stored in a layer.

    `trusted.overlay.x` of a nested overlay is stored as
    `trusted.overlay.overlay.x`. EPERM: the name is ours and cannot be escaped; EINVAL: it is
    only a prefix.
    """
    if name == TRUSTED:
        raise os_error(errno.EINVAL)
    for prefix in (TRUSTED, USER):
        if name.startswith(prefix):
            return prefix + _ESCAPED + name[len(prefix) :]
    if name.startswith(RESERVED):
        raise os_error(errno.EPERM)
    return name


def to_user(name: bytes) -> bytes | None:
    """The name a user sees for a stored attribute; None: it is private."""
    for prefix in (TRUSTED, USER):
        if name.startswith(prefix + _ESCAPED):
            return prefix + name[len(prefix + _ESCAPED) :]
    return None if name.startswith(RESERVED) else name


def get(path: bytes | int, name: bytes, *, follow: bool = False) -> bytes | None:
    """Value of one attribute; None where there is none or it may not be read.

    `path` is a path whose last component is not followed unless `follow`, or any
    descriptor, O_PATH too.
    """
    path, follow = _target(path, follow)
    try:
        return os.getxattr(path, name, follow_symlinks=follow)
    except OSError as exc:
        if exc.errno in NONE:
            return None
        raise


def put(path: bytes | int, name: bytes, value: bytes, *, follow: bool = False) -> None:
    """Set an attribute of an object of the upper, whatever its mode; errors of setxattr(2).

    `path` as in `get`. `user.` names take write permission: where a plain user has none on
    his own, he gets it for the moment of the call.
    """
    target, follow = _target(path, follow)
    _whatever_mode(target, lambda: os.setxattr(target, name, value, follow_symlinks=follow))


def drop(path: bytes | int, name: bytes, *, follow: bool = False) -> None:
    """Remove an attribute in the same way; errors of removexattr(2)."""
    target, follow = _target(path, follow)
    _whatever_mode(target, lambda: os.removexattr(target, name, follow_symlinks=follow))


def drop_any(path: bytes | int, name: bytes) -> None:
    """The same where there may be none."""
    try:
        drop(path, name)
    except OSError as exc:
        if exc.errno not in NONE:
            raise


def _whatever_mode(path: bytes, call: Callable[[], T]) -> T:
    try:
        return call()
    except PermissionError as exc:
        if exc.errno != errno.EACCES:
            raise
        # No symbolic link: those take no `user.` attributes and answer EPERM.
        mode = stat.S_IMODE(os.stat(path).st_mode)
        os.chmod(path, mode | stat.S_IRUSR | stat.S_IWUSR)
        try:
            return call()
        finally:
            tidy(os.chmod, path, mode)


def names(path: bytes | int, *, follow: bool = False) -> list[bytes]:
    """Names of all attributes; none where the filesystem has no attributes."""
    path, follow = _target(path, follow)
    try:
        found = os.listxattr(path, follow_symlinks=follow)
    except OSError as exc:
        if exc.errno in NONE:
            return []
        raise
    return [os.fsencode(name) for name in found]


def present(path: bytes | int, wanted: Sequence[bytes], *, follow: bool = False) -> list[bytes]:
    """Those of the `wanted` attributes that are there, also where all names are too many to be
    listed (E2BIG): whoever fills a file so must not keep others from its directory."""
    try:
        found: Container[bytes] = names(path, follow=follow)
    except OSError as exc:
        if exc.errno != errno.E2BIG:
            raise
        found = [name for name in wanted if get(path, name, follow=follow) is not None]
    return [name for name in wanted if name in found]


def is_marked(path: bytes | int, counted: Sequence[bytes], *, follow: bool = False) -> bool:
    """Whether any overlay attribute of these namespaces may be there: one question in place of one
    for each of them."""
    try:
        return any(name.startswith(tuple(counted)) for name in names(path, follow=follow))
    except OSError as exc:
        if exc.errno != errno.E2BIG:
            raise
        return True


def _target(path: bytes | int, follow: bool) -> tuple[bytes, bool]:
    return (fd_path(path), True) if isinstance(path, int) else (path, follow)


def get_overlay(
    path: bytes | int,
    what: bytes,
    counted: Sequence[bytes],
    *,
    follow: bool = False,
    upper: bool = False,
) -> bytes | None:
    """Value of the overlay attribute `what` (`OPAQUE` ...) in the first namespace that has it.

    `counted` are the layer's, see `trust`. `upper`: the object is of the upper and
    read whatever its mode, as with `put`.
    """
    for name in present(path, [namespace + what for namespace in counted], follow=follow):
        read = functools.partial(get, path, name, follow=follow)
        value = _whatever_mode(_target(path, follow)[0], read) if upper else read()
        if value is not None:
            return value
    return None
