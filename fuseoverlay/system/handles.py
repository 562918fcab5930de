"""File handles in the form in which kernel overlayfs stores them.

`overlay.origin` on a copy, `overlay.upper` on the index directory and, in hexadecimal, the
names in the index directory are `struct ovl_fb` (fs/overlayfs/overlayfs.h): which
filesystem, and which file in it, by a name that survives renames.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Final, NamedTuple

from fuseoverlay.system import syscalls
from fuseoverlay.system.descriptors import open_file, with_room

#: The handle is of the upper, not of a lower.
UPPER: Final = 4

# Version, magic, length, flags, handle type, filesystem UUID; then the handle.
_HEADER: Final = struct.Struct("BBBBB16s")
_MAGIC: Final = 0xFB
_BIG_ENDIAN: Final = 1
_ANY_ENDIAN: Final = 2
# What name_to_handle_at(2) answers where there are none, or none that it may tell.
_NO_HANDLES: Final = (errno.EOPNOTSUPP, errno.EOVERFLOW, errno.ENOSYS, errno.EPERM)


class Handle(NamedTuple):
    """`kind` and `opaque` are what open_by_handle_at(2) takes."""

    uuid: bytes
    kind: int
    opaque: bytes


def encode(dir_fd: int, name: bytes, uuid: bytes | None, flags: int = 0) -> bytes | None:
    """The handle of `name` in `dir_fd`, or of that itself where the name is empty.

    `uuid` is its filesystem's. None: that has no handles, or cannot be told from another.
    """
    if uuid is None:
        return None
    try:
        kind, opaque = syscalls.file_handle(dir_fd, name)
    except OSError as exc:
        if exc.errno not in _NO_HANDLES:
            raise
        return None
    return _HEADER.pack(0, _MAGIC, _HEADER.size + len(opaque), flags, kind, uuid) + opaque


def decode(value: bytes) -> Handle | None:
    """The parts of a handle; None: malformed, or of a machine with another byte order."""
    if len(value) <= _HEADER.size:
        return None
    version, magic, length, flags, kind, uuid = _HEADER.unpack_from(value)
    ours = bool(flags & _ANY_ENDIAN) or not flags & _BIG_ENDIAN
    if (version, magic, length) != (0, _MAGIC, len(value)) or not ours:
        return None
    return Handle(uuid, kind, value[_HEADER.size :])


def status(root_fd: int, handle: Handle) -> os.stat_result:
    """Status of the file with this handle on the filesystem of the directory `root_fd`.

    ESTALE: there is none. EPERM: only the superuser of the machine may ask.
    """
    # The call takes no O_PATH descriptor.
    mount_fd = open_file(b".", syscalls.DIR_FLAGS, dir_fd=root_fd)
    try:
        fd = with_room(syscalls.open_by_handle, mount_fd, handle.kind, handle.opaque)
    finally:
        os.close(mount_fd)
    try:
        return os.stat(fd)
    finally:
        os.close(fd)
