"""`security.capability` under id mapping: which root user a file capability is for.

The format is the kernel's (include/uapi/linux/capability.h, `struct vfs_cap_data`): a word of
revision and flags, the capabilities, and in revision 3 the id of the root of a user namespace; all
little-endian. Revision 2 is for root of the first user namespace. See capabilities(7), "Namespaced
file capabilities".
"""

from __future__ import annotations

import errno
import struct
from typing import Final

from fuseoverlay.errors import os_error
from fuseoverlay.layers.idmap import IdMap

_WORD: Final = struct.Struct("<I")
_REVISION: Final = 0xFF000000
_REVISION_2, _REVISION_3 = 0x02000000, 0x03000000
# Bytes without the root's id.
_SIZE: Final = 20


def shown(value: bytes, uids: IdMap) -> bytes:
    """The value that processes see: the root id translated to the id it is shown as. ENODATA if it
    is not shown."""
    root = _root(value)
    if root is None:
        return value
    if not uids.covers(root):
        raise os_error(errno.ENODATA)
    return _with_root(value, uids.shown(root))


def stored(value: bytes, uids: IdMap) -> bytes:
    """The value to store. A value without a root id stays so: it is for root of the layer.
    EOVERFLOW if no stored id is shown as the given root id."""
    root = _root(value)
    return value if not root else _with_root(value, uids.stored(root))


def _root(value: bytes) -> int | None:
    """The id of the root that the value is for; None if the value has another format."""
    revision = _WORD.unpack_from(value)[0] & _REVISION if len(value) >= _SIZE else 0
    if revision == _REVISION_3 and len(value) == _SIZE + _WORD.size:
        return int(_WORD.unpack_from(value, _SIZE)[0])
    return 0 if revision == _REVISION_2 and len(value) == _SIZE else None


def _with_root(value: bytes, root: int) -> bytes:
    flags = _WORD.unpack_from(value)[0] & ~_REVISION
    revision = _REVISION_3 if root else _REVISION_2
    tail = _WORD.pack(root) if root else b""
    return _WORD.pack(revision | flags) + value[_WORD.size : _SIZE] + tail
