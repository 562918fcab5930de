"""`user.containers.override_stat`: an owner, mode and type that could not be set.

A plain user can neither give files away nor make device nodes. So the real file is a regular file
(or a directory) with this attribute, in the text format of containers-storage:
`uid:gid:0mode:type`, where type is one of `file`, `dir`, `symlink`, `pipe`, `socket`,
`block-MAJ-MIN`, `char-MAJ-MIN`. The placeholder of a symbolic link holds the target as its content.
A real symbolic link, in a layer that others made, cannot carry the attribute and belongs to 0:0.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from typing import Final

_TYPES: Final = {
    "file": stat.S_IFREG,
    "dir": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "pipe": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
    "block": stat.S_IFBLK,
    "char": stat.S_IFCHR,
}
_NAMES: Final = {kind: name for name, kind in _TYPES.items()}
# At most as many digits as the greatest valid value has, with a zero before the octal number:
# Python refuses to convert very long numbers.
_FORM: Final = re.compile(
    rb"(\d{1,10}):(\d{1,10}):([0-7]{1,7})(?::([a-z]{1,9})(?:-(\d{1,7})-(\d{1,7}))?)?\Z"
)
# The kernel's limits: ids have 32 bits, of which the greatest value means "none"; majors 12 bits,
# minors 20.
_MOST_ID: Final = 2**32 - 2
_MOST_MAJOR: Final = 2**12 - 1
_MOST_MINOR: Final = 2**20 - 1


@dataclass(frozen=True, slots=True)
class OverrideStat:
    """What the attribute says. `mode` holds type and permission bits."""

    uid: int
    gid: int
    mode: int
    rdev: int = 0

    @classmethod
    def parse(cls, value: bytes, real_mode: int) -> OverrideStat | None:
        """Parse the attribute. None if it is malformed, or if only one of its type and `real_mode`
        is a directory. Without a type, that of `real_mode` counts."""
        match = _FORM.match(value)
        if match is None:
            return None
        uid, gid, mode = int(match[1]), int(match[2]), int(match[3], 8) & 0o7777
        major, minor = int(match[5] or 0), int(match[6] or 0)
        kind = match[4]
        file_type = stat.S_IFMT(real_mode) if kind is None else _TYPES.get(kind.decode(), 0)
        has_number = match[5] is not None
        if (
            max(uid, gid) > _MOST_ID
            or major > _MOST_MAJOR
            or minor > _MOST_MINOR
            or not file_type
            or has_number != (file_type in (stat.S_IFBLK, stat.S_IFCHR))
            or stat.S_ISDIR(file_type) != stat.S_ISDIR(real_mode)
        ):
            return None
        # The mode is what an archive said of the symbolic link; on Linux all have the same.
        mode = 0o777 if stat.S_ISLNK(file_type) else mode
        return cls(uid, gid, file_type | mode, os.makedev(major, minor))

    def format(self) -> bytes:
        """The attribute's value."""
        kind = _NAMES[stat.S_IFMT(self.mode)]
        if kind in ("block", "char"):
            kind = f"{kind}-{os.major(self.rdev)}-{os.minor(self.rdev)}"
        return f"{self.uid}:{self.gid}:0{stat.S_IMODE(self.mode):o}:{kind}".encode()


def accessible(mode: int) -> int:
    """Permission bits for the real file, with which its owner can always use it."""
    if stat.S_ISDIR(mode):
        return 0o700
    return 0o600 | (0o100 if mode & 0o111 else 0)
