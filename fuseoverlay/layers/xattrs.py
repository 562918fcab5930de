"""Names of the extended attributes that an overlay keeps for itself.

Source: kernel Documentation/filesystems/overlayfs.rst ("trusted.overlay.", "user.overlay.",
"Nesting overlayfs mounts"); containers-storage for `user.containers.override_stat`; fuse-overlayfs
for `user.fuseoverlayfs.` and `security.fuseoverlayfs.`. Names are `bytes` everywhere.
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

#: Namespaces that can be read, in order of precedence. `trust` says which count.
NAMESPACES: Final = (TRUSTED, USER, FUSE_OVERLAYFS)

#: Owner, mode and type that a plain user could not set: `uid:gid:0mode:type`.
OVERRIDE_STAT: Final = b"user.containers.override_stat"
#: The same, in a name that only root can write.
PRIVILEGED_OVERRIDE_STAT: Final = b"security.fuseoverlayfs.override_stat"
#: All names of it, in order of precedence; the last as older versions of fuse-overlayfs wrote it.
#: All objects of a layer use the same name as its root.
OVERRIDES: Final = (
    PRIVILEGED_OVERRIDE_STAT,
    OVERRIDE_STAT,
    b"user.fuseoverlayfs.override_stat",
)

CAPABILITY: Final = b"security.capability"
#: File capabilities, if owners are stored in a `user.` attribute.
OVERRIDE_CAPABILITY: Final = b"user.containers.override_security.capability"

#: On a directory that a layer archive needed but did not list: its own metadata mean nothing, those
#: of the directory below count. Also on the root of every layer with such directories, so that
#: other layers need not be searched for them.
IMPLIED: Final = b"user.fuseoverlay.implied"
#: The value of `IMPLIED` on such a directory itself. A root that was listed has another.
IMPLIED_SELF: Final = b"y"

#: Prefixes that no layer of an image may contain and no user may set.
RESERVED: Final = (
    TRUSTED,
    USER,
    FUSE_OVERLAYFS,
    b"security.fuseoverlayfs.",
    b"user.containers.",
    b"user.fuseoverlay.",
)

#: Read on a mount's root directory, tells which process serves it. Not listed.
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
#: Errors of filesystems without attributes: not all report it properly.
NONE: Final = (errno.EOPNOTSUPP, errno.ENODATA, errno.EINVAL, errno.EPERM, errno.ENOSYS)


def to_real(name: bytes) -> bytes:
    """The name under which a user's attribute is stored in a layer.

    `trusted.overlay.x` of a nested overlay is stored as `trusted.overlay.overlay.x`. EPERM: the
    name is ours and cannot be escaped; EINVAL: it is only a prefix.
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
    """The name that users see for a stored attribute; None if it is private."""
    for prefix in (TRUSTED, USER):
        if name.startswith(prefix + _ESCAPED):
            return prefix + name[len(prefix + _ESCAPED) :]
    return None if name.startswith(RESERVED) else name


def get(path: bytes | int, name: bytes, *, follow: bool = False) -> bytes | None:
    """The value of one attribute; None if it does not exist, or for any error in `NONE`.

    `path` is a descriptor, O_PATH or not, or a path whose last component is followed only with
    `follow`.
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

    `path` as in `get`. `user.` attributes require write permission: where a plain user lacks it on
    a file of their own, it is granted for the moment of the call.
    """
    target, follow = _target(path, follow)
    _whatever_mode(target, lambda: os.setxattr(target, name, value, follow_symlinks=follow))


def drop(path: bytes | int, name: bytes, *, follow: bool = False) -> None:
    """Remove an attribute in the same way; errors of removexattr(2)."""
    target, follow = _target(path, follow)
    _whatever_mode(target, lambda: os.removexattr(target, name, follow_symlinks=follow))


def drop_any(path: bytes | int, name: bytes) -> None:
    """Remove an attribute that may not exist, in the same way."""
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
        # Not a symbolic link: those take no `user.` attributes and answer EPERM.
        mode = stat.S_IMODE(os.stat(path).st_mode)
        os.chmod(path, mode | stat.S_IRUSR | stat.S_IWUSR)
        try:
            return call()
        finally:
            tidy(os.chmod, path, mode)


def names(path: bytes | int, *, follow: bool = False) -> list[bytes]:
    """The names of all attributes; none if the filesystem has no attributes."""
    path, follow = _target(path, follow)
    try:
        found = os.listxattr(path, follow_symlinks=follow)
    except OSError as exc:
        if exc.errno in NONE:
            return []
        raise
    return [os.fsencode(name) for name in found]


def present(path: bytes | int, wanted: Sequence[bytes], *, follow: bool = False) -> list[bytes]:
    """Those of the `wanted` attributes that exist. Works also if there are too many names to list
    (E2BIG): whoever fills a file so must not lock others out of its directory."""
    try:
        found: Container[bytes] = names(path, follow=follow)
    except OSError as exc:
        if exc.errno != errno.E2BIG:
            raise
        found = [name for name in wanted if get(path, name, follow=follow) is not None]
    return [name for name in wanted if name in found]


def is_marked(path: bytes | int, counted: Sequence[bytes], *, follow: bool = False) -> bool:
    """Whether any overlay attribute of these namespaces may exist: one call instead of one for
    each."""
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
    """The value of the overlay attribute `what` (`OPAQUE` ...) in the first namespace that has it.

    `counted`: the namespaces that count in the layer, see `trust`. `upper`: the object is of the
    upper, and is read whatever its mode, as with `put`.
    """
    for name in present(path, [namespace + what for namespace in counted], follow=follow):
        read = functools.partial(get, path, name, follow=follow)
        value = _whatever_mode(_target(path, follow)[0], read) if upper else read()
        if value is not None:
            return value
    return None
