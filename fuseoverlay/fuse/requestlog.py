"""What `-d` logs of requests that are answered without pyfuse3. Numbers and structures:
<linux/fuse.h>."""

from __future__ import annotations

import errno
import logging
import struct
from typing import Final

from fuseoverlay.native import opcodes

log = logging.getLogger("fuseoverlay")

#: The offset of the name in the body.
_NAMED: Final = {opcodes.LOOKUP: 0, opcodes.GETXATTR: 8, opcodes.CREATE: 16}
#: Requests whose body begins with a handle, an offset and a size.
_RANGES: Final = (opcodes.READ, opcodes.WRITE, opcodes.READDIRPLUS)
_RANGE: Final = struct.Struct("=8xQI")


#: How the log shows a negative look-up, whose answer the kernel caches.
ABSENT: Final = "ok, no such name"


def answered(
    opcode: int, ino: int, uid: int, gid: int, pid: int, body: bytes, error: int, absent: int
) -> None:
    """Log a request that the extension answered, or a function that it called."""
    said = [str(ino)]
    if opcode in _NAMED:
        said.append(repr(body[_NAMED[opcode] :].partition(b"\0")[0]))
    elif opcode in _RANGES and len(body) >= _RANGE.size:
        offset, size = _RANGE.unpack_from(body)
        said.append(f"offset={offset} size={size}")
    said.append(f"uid={uid} gid={gid} pid={pid}")
    answer = errno.errorcode.get(error, error) if error else ABSENT if absent else "ok"
    name = opcodes.NAMES.get(opcode, f"request {opcode}")
    log.debug("%s(%s) = %s", name, ", ".join(said), answer)
