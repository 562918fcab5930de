"""File handles in the format in which kernel overlayfs stores them.

`overlay.origin` on a copy, `overlay.upper` on the index directory and, in hexadecimal, the names in
the index directory are `struct ovl_fb` (fs/overlayfs/overlayfs.h). It names a filesystem and a file
in it, and stays valid when the file is renamed.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Final, NamedTuple

from fuseoverlay.system import syscalls
from fuseoverlay.system.descriptors import open_file, with_room

#: Flag: the file is in the upper, not in a lower.
UPPER: Final = 4

# Version, magic, length, flags, handle type, filesystem UUID; then the handle.
_HEADER: Final = struct.Struct("BBBBB16s")
_MAGIC: Final = 0xFB
_BIG_ENDIAN: Final = 1
_ANY_ENDIAN: Final = 2
# Errors of name_to_handle_at(2) if the filesystem has no handles, or we may not have them.
_NO_HANDLES: Final = (errno.EOPNOTSUPP, errno.EOVERFLOW, errno.ENOSYS, errno.EPERM)


class Handle(NamedTuple):
    """The filesystem's UUID, and the arguments of open_by_handle_at(2)."""

    uuid: bytes
    kind: int
    opaque: bytes


def encode(dir_fd: int, name: bytes, uuid: bytes | None, flags: int = 0) -> bytes | None:
    """The handle of `name` in `dir_fd`, or of `dir_fd` itself if the name is empty.

    `uuid` is that of the filesystem. Returns None if the filesystem has no handles, or if `uuid` is
    None because it does not identify the filesystem.
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
    """The parts of a handle; None if it is malformed or was made with another byte order."""
    if len(value) <= _HEADER.size:
        return None
    version, magic, length, flags, kind, uuid = _HEADER.unpack_from(value)
    ours = bool(flags & _ANY_ENDIAN) or not flags & _BIG_ENDIAN
    if (version, magic, length) != (0, _MAGIC, len(value)) or not ours:
        return None
    return Handle(uuid, kind, value[_HEADER.size :])


def status(root_fd: int, handle: Handle) -> os.stat_result:
    """Status of the file with this handle, on the filesystem of the directory `root_fd`.

    ESTALE: there is no such file. EPERM: only root of the first user namespace may ask.
    """
    # open_by_handle_at(2) accepts no O_PATH descriptor.
    mount_fd = open_file(b".", syscalls.DIR_FLAGS, dir_fd=root_fd)
    try:
        fd = with_room(syscalls.open_by_handle, mount_fd, handle.kind, handle.opaque)
    finally:
        os.close(mount_fd)
    try:
        return os.stat(fd)
    finally:
        os.close(fd)
