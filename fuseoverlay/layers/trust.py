"""Whose extended attributes count: what a layer's owner may say to whom.

`user.` attributes can be set by whoever owns a file, `trusted.` and `security.` ones only by root.
To root of the first user namespace, whose mounts honour setuid and show everybody's files, `user.`
attributes are the overlay's only where he asks for it, or where a layer that is his alone says that
it keeps owners in them. Everybody else can read no other ones, and loses nothing by them: he gets
at what is his, and his mounts give nobody root's rights. docs/security.md has the whole.
"""

from __future__ import annotations

import functools
import os
from typing import Final

from fuseoverlay.layers import xattrs

_EVERY_ID: Final = ["0", "0", str(2**32 - 1)]
_WRITABLE_FOR_OTHERS: Final = 0o022


@functools.cache
def is_superuser() -> bool:
    """Whether this process is root of the first user namespace, or of one as good as that."""
    return os.geteuid() == 0 and is_first_namespace()


def is_first_namespace() -> bool:
    """Whether the user namespace of this process is the first, or one as good as that."""
    return all(map(_has_every_id, ("uid_map", "gid_map")))


def _has_every_id(which: str) -> bool:
    with open(f"/proc/self/{which}", encoding="ascii") as file:
        return file.read().split() == _EVERY_ID


def namespaces(root_fd: int, *, asked: bool) -> tuple[bytes, ...]:
    """The namespaces of overlay attributes that count in the layer with this root directory, in
    order of precedence. `asked`: the mount has `userxattr` or `xattr_permissions=2`."""
    return xattrs.NAMESPACES if asked or not is_superuser() else (xattrs.TRUSTED,)


def is_roots_alone(st: os.stat_result) -> bool:
    """Whether only root can have set the `user.` attributes of an object with this status."""
    return st.st_uid == 0 and not st.st_mode & _WRITABLE_FOR_OTHERS


def override(root_fd: int, counted: tuple[bytes, ...]) -> bytes | None:
    """The attribute that owners, modes and types of the layer are kept in; None: where they
    belong. `counted`: see `namespaces`."""
    wanted = xattrs.OVERRIDES if xattrs.USER in counted else (xattrs.PRIVILEGED_OVERRIDE_STAT,)
    return next(iter(xattrs.present(root_fd, wanted)), None)
