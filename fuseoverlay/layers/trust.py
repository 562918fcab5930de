"""Which extended attributes count: what a layer's owner can tell whom.

The owner of a file can set `user.` attributes; `trusted.` and `security.` ones only root can set.
The mounts of root of the first user namespace honour setuid and show everybody's files. So for root
`user.` attributes of the overlay count only if root asks for it, or if a layer that only root can
have written says that it stores owners in them. Other users cannot read the other namespaces, and
lose nothing by trusting `user.` attributes: they reach only what is theirs, and their mounts give
nobody root's rights. docs/security.md has the whole reasoning.
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
    """Whether this process is root of the first user namespace, or of an equivalent one."""
    return os.geteuid() == 0 and is_first_namespace()


def is_first_namespace() -> bool:
    """Whether the user namespace of this process is the first, or equivalent: it maps every id to
    itself."""
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
    """The attribute in which the layer stores owners, modes and types; None: they are the files'
    real ones. `counted`: see `namespaces`."""
    wanted = xattrs.OVERRIDES if xattrs.USER in counted else (xattrs.PRIVILEGED_OVERRIDE_STAT,)
    return next(iter(xattrs.present(root_fd, wanted)), None)
