"""Opcodes of requests: enum fuse_opcode of <linux/fuse.h>, without the `FUSE_` prefix."""

from __future__ import annotations

from typing import Final

LOOKUP: Final = 1
FORGET: Final = 2
GETATTR: Final = 3
SETATTR: Final = 4
OPEN: Final = 14
READ: Final = 15
WRITE: Final = 16
RELEASE: Final = 18
SETXATTR: Final = 21
GETXATTR: Final = 22
LISTXATTR: Final = 23
REMOVEXATTR: Final = 24
FLUSH: Final = 25
OPENDIR: Final = 27
RELEASEDIR: Final = 29
ACCESS: Final = 34
CREATE: Final = 35
IOCTL: Final = 39
BATCH_FORGET: Final = 42
FALLOCATE: Final = 43
READDIRPLUS: Final = 44
LSEEK: Final = 46
COPY_FILE_RANGE: Final = 47
TMPFILE: Final = 51
STATX: Final = 52
COPY_FILE_RANGE_64: Final = 53

#: Their names in the log.
NAMES: Final = {
    number: name.lower() for name, number in list(globals().items()) if isinstance(number, int)
}
