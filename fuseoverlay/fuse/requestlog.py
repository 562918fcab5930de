"""Lines of the log, with `-d`, for requests that are answered without pyfuse3. Numbers and
structures: <linux/fuse.h>."""

from __future__ import annotations

import errno
import logging
import struct
from typing import Final

log = logging.getLogger("fuseoverlay")

_NAMES: Final = {
    1: "lookup", 2: "forget", 3: "getattr", 4: "setattr", 14: "open", 15: "read", 16: "write",
    18: "release", 22: "getxattr", 23: "listxattr", 25: "flush", 27: "opendir", 29: "releasedir",
    34: "access", 35: "create", 39: "ioctl", 42: "batch_forget", 44: "readdirplus",
}  # fmt: skip
#: Where the name is in the body.
_NAMED: Final = {1: 0, 22: 8, 35: 16}
#: Those whose body begins with a handle, an offset and a size.
_RANGES: Final = (15, 16, 44)
_RANGE: Final = struct.Struct("=8xQI")


#: What a look-up answers that says that there is no such name, for the kernel to keep.
ABSENT: Final = "ok, no such name"


def answered(
    opcode: int, ino: int, uid: int, gid: int, pid: int, body: bytes, error: int, absent: int
) -> None:
    """A request was answered by the extension, or by a function that it called."""
    said = [str(ino)]
    if opcode in _NAMED:
        said.append(repr(body[_NAMED[opcode] :].partition(b"\0")[0]))
    elif opcode in _RANGES and len(body) >= _RANGE.size:
        offset, size = _RANGE.unpack_from(body)
        said.append(f"offset={offset} size={size}")
    said.append(f"uid={uid} gid={gid} pid={pid}")
    answer = errno.errorcode.get(error, error) if error else ABSENT if absent else "ok"
    log.debug("%s(%s) = %s", _NAMES.get(opcode, f"request {opcode}"), ", ".join(said), answer)
