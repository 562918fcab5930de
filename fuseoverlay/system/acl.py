"""POSIX ACLs as stored in the `system.posix_acl_*` attributes: inheritance, ids, modes.

The format is the kernel's (include/uapi/linux/posix_acl_xattr.h): a version word, then entries of
tag, permissions and id, all little-endian. The algorithm is that of acl(5), "Object creation and
default ACLs".
"""

from __future__ import annotations

import errno
import stat
import struct
from collections.abc import Callable, Sequence
from typing import Final

from fuseoverlay.errors import os_error

PREFIX: Final = b"system.posix_acl_"
ACCESS: Final = PREFIX + b"access"
DEFAULT: Final = PREFIX + b"default"

_USER_OBJ: Final = 0x01
_USER: Final = 0x02
_GROUP_OBJ: Final = 0x04
_GROUP: Final = 0x08
_MASK: Final = 0x10
_OTHER: Final = 0x20
_HEADER: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")
_VERSION: Final = 2
_NO_ID: Final = 0xFFFFFFFF
#: The tags in the order that the kernel demands.
_ORDER: Final = (_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER)
_NAMED: Final = frozenset((_USER, _GROUP))


def inherit(default: bytes, mode: int) -> tuple[int, bytes | None]:
    """(mode, access ACL) of an object created with `mode` in a directory with this default ACL.

    The ACL is None if the mode alone expresses it. Only permission bits of `mode` change. As in the
    kernel, EINVAL if the attribute is not an ACL.
    """
    if not _is_acl(default):
        raise os_error(errno.EINVAL)
    entries = [list(entry) for entry in _ENTRY.iter_unpack(default[_HEADER.size :])]
    tags = {entry[0] for entry in entries}
    group_class = _MASK if _MASK in tags else _GROUP_OBJ
    limits = {_USER_OBJ: 6, group_class: 3, _OTHER: 0}
    for entry in entries:
        shift = limits.get(entry[0])
        if shift is not None:
            entry[1] &= (mode >> shift) & 7
            mode = mode & ~(7 << shift) | entry[1] << shift
    if tags <= {_USER_OBJ, _GROUP_OBJ, _OTHER}:
        return mode, None
    return mode, _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def limited(mode: int, value: bytes) -> int:
    """The mode to use where this access ACL of the object is not in effect: it grants no user more
    than the ACL did, whatever groups the user is in. If `value` is not an ACL, nothing is known,
    and only the owner keeps permissions.

    The group bits of an object with an ACL are its mask.
    """
    mask = mode >> 3 & 7
    group, named = mask, 7
    if not _is_acl(value):
        mask = group = named = 0
    else:
        for tag, permissions, _ in _ENTRY.iter_unpack(value[_HEADER.size :]):
            if tag == _GROUP_OBJ:
                group &= permissions
            elif tag in (_USER, _GROUP):
                named &= permissions & mask
    return mode & ~(stat.S_IRWXG | stat.S_IRWXO) | (group & named) << 3 | mode & named


def as_set(mode: int, value: bytes) -> tuple[int, bytes | None]:
    """(mode, ACL) of an object with `mode` once this access ACL was set, the ACL as `checked`
    returns it; None if the mode alone expresses it. Errors of `checked`."""
    kept = checked(value)
    if kept is None:
        return mode, None
    entries = list(_ENTRY.iter_unpack(kept[_HEADER.size :]))
    bits = {tag: permissions for tag, permissions, _ in entries}
    group = bits.get(_MASK, bits[_GROUP_OBJ])
    mode = mode & ~0o777 | bits[_USER_OBJ] << 6 | group << 3 | bits[_OTHER]
    return mode, None if len(entries) == len((_USER_OBJ, _GROUP_OBJ, _OTHER)) else kept


def checked(value: bytes) -> bytes | None:
    """An ACL as getxattr(2) returns it after setxattr(2); None if it has no entries, so that there
    is none afterwards.

    EINVAL if it is no ACL. Source: Linux, fs/posix_acl.c, posix_acl_valid.
    """
    if value and not _is_acl(value):
        raise os_error(errno.EINVAL)
    entries = list(_ENTRY.iter_unpack(value[_HEADER.size :]))
    if not entries:
        return None
    _check(entries)
    return _HEADER.pack(_VERSION) + b"".join(
        _ENTRY.pack(tag, permissions, number if tag in _NAMED else _NO_ID)
        for tag, permissions, number in entries
    )


def _check(entries: Sequence[tuple[int, int, int]]) -> None:
    tags = [tag for tag, _, _ in entries]
    known = set(tags) <= set(_ORDER)
    single = all(tags.count(tag) == 1 for tag in (_USER_OBJ, _GROUP_OBJ, _OTHER))
    if not known or not single or tags != sorted(tags, key=_ORDER.index):
        raise os_error(errno.EINVAL)
    if tags.count(_MASK) > 1 or (_NAMED & set(tags) and _MASK not in tags):
        raise os_error(errno.EINVAL)
    if any(bits > 7 or (tag in _NAMED and number == _NO_ID) for tag, bits, number in entries):
        raise os_error(errno.EINVAL)


def _is_acl(value: bytes) -> bool:
    """Whether the value has the format of an ACL: a header and whole entries."""
    whole = len(value) >= _HEADER.size and not (len(value) - _HEADER.size) % _ENTRY.size
    return whole and _HEADER.unpack_from(value)[0] == _VERSION


def with_ids(
    value: bytes, user: Callable[[int], int | None], group: Callable[[int], int | None]
) -> bytes:
    """The ACL with the ids of named users and groups translated; entries whose id becomes None are
    dropped. The mask stays, and with it the mode. A value that is not an ACL is returned as it is.
    Raises what the functions raise."""
    if not _is_acl(value):
        return value
    ids = {_USER: user, _GROUP: group}
    kept = [value[: _HEADER.size]]
    for tag, permissions, number in _ENTRY.iter_unpack(value[_HEADER.size :]):
        name = ids[tag](number) if tag in ids else number
        if name is not None:
            kept.append(_ENTRY.pack(tag, permissions, name))
    return b"".join(kept)


def without_group(value: bytes) -> bytes:
    """The ACL with the permissions of the owning group limited to those of others."""
    if not _is_acl(value):
        return value
    entries = list(_ENTRY.iter_unpack(value[_HEADER.size :]))
    others = next((permissions for tag, permissions, _ in entries if tag == _OTHER), 0)
    return value[: _HEADER.size] + b"".join(
        _ENTRY.pack(tag, permissions & others if tag == _GROUP_OBJ else permissions, number)
        for tag, permissions, number in entries
    )
