"""Which extended attributes a file system takes from root, and what they do to a file.

The index of a layer has the attributes that the unpacked layer would have. Sources: xattr(7);
acl(5); Linux, fs/posix_acl.c, fs/xattr.c and security/commoncap.c.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

from fuseoverlay.layers import xattrs
from fuseoverlay.system import acl

#: Linux's XATTR_NAME_MAX.
_NAME_MAX: Final = 255
_ANYWHERE: Final = (b"trusted.", b"security.")
_USER: Final = b"user."
#: A capability attribute that is not bound to a user namespace, and one that is.
_CAPABILITY: Final = struct.Struct("<I16s")
_BOUND_CAPABILITY: Final = struct.Struct("<I16sI")
_REVISION: Final = 0xFF000000
_REVISION_2: Final = 0x02000000
_REVISION_3: Final = 0x03000000
_EFFECTIVE: Final = 1
_NO_ID: Final = 0xFFFFFFFF


class Settable(NamedTuple):
    """A mode, and attributes beside it."""

    mode: int
    xattrs: Mapping[bytes, bytes]


def settable(mode: int, wanted: Mapping[bytes, bytes]) -> Settable:
    """What a file with this mode (type and permissions) has once root has set these attributes, in
    this order, and what cannot be set was left out."""
    kept: dict[bytes, bytes] = {}
    for name, value in wanted.items():
        found: bytes | None
        if name == acl.ACCESS:
            mode, found = _access(mode, value)
        else:
            found = _as_kept(mode, name, value)
        if found is not None:
            kept[name] = found
    return Settable(mode, kept)


def _access(mode: int, value: bytes) -> tuple[int, bytes | None]:
    if stat.S_ISLNK(mode):
        return mode, None
    try:
        return acl.as_set(mode, value)
    except OSError:
        return mode, None


def _as_kept(mode: int, name: bytes, value: bytes) -> bytes | None:
    if len(name) > _NAME_MAX or name in (_USER, *_ANYWHERE):
        return None
    if name == acl.DEFAULT:
        return _default(value) if stat.S_ISDIR(mode) else None
    if name == xattrs.CAPABILITY:
        return _capability(value)
    if name.startswith(_USER):
        return value if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else None
    return value if name.startswith(_ANYWHERE) else None


def _default(value: bytes) -> bytes | None:
    try:
        return acl.checked(value)
    except OSError:
        return None


def _capability(value: bytes) -> bytes | None:
    """The attribute as it is read again. That of the first user namespace's root is bound to
    none."""
    if len(value) == _CAPABILITY.size:
        return value if _CAPABILITY.unpack(value)[0] & _REVISION == _REVISION_2 else None
    if len(value) != _BOUND_CAPABILITY.size:
        return None
    magic, sets, root = _BOUND_CAPABILITY.unpack(value)
    if magic & _REVISION != _REVISION_3 or root == _NO_ID:
        return None
    effective = magic & _EFFECTIVE
    if not root:
        return _CAPABILITY.pack(_REVISION_2 | effective, sets)
    return _BOUND_CAPABILITY.pack(_REVISION_3 | effective, sets, root)
