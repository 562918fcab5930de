"""`user.containers.override_stat`: owner, mode and type that could not be set.

A plain user can neither give files away nor make device nodes. The real file then
is a regular file (or a directory) with this attribute, in the text form of
containers-storage: `uid:gid:0mode:type`, type one of `file`, `dir`, `symlink`,
`pipe`, `socket`, `block-MAJ-MIN`, `char-MAJ-MIN`. A symbolic link's placeholder
holds the target as its content. A real symbolic link, in a layer that others made,
cannot carry the attribute and belongs to 0:0.
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
# As many digits as what fits can have, with a zero before an octal number: Python refuses to
# convert very long ones.
_FORM: Final = re.compile(
    rb"(\d{1,10}):(\d{1,10}):([0-7]{1,7})(?::([a-z]{1,9})(?:-(\d{1,7})-(\d{1,7}))?)?\Z"
)
# The kernel's: 32 bits, the last of which means "none", and 12 and 20 bits.
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
        """Read the attribute; None where it is malformed, or tells a directory from what is
        none, or the other way round. No type: that of `real_mode`."""
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
        # Layers have what an archive says of a symbolic link. Linux has only one mode for all.
        mode = 0o777 if stat.S_ISLNK(file_type) else mode
        return cls(uid, gid, file_type | mode, os.makedev(major, minor))

    def format(self) -> bytes:
        """The attribute's value."""
        kind = _NAMES[stat.S_IFMT(self.mode)]
        if kind in ("block", "char"):
            kind = f"{kind}-{os.major(self.rdev)}-{os.minor(self.rdev)}"
        return f"{self.uid}:{self.gid}:0{stat.S_IMODE(self.mode):o}:{kind}".encode()


def accessible(mode: int) -> int:
    """Permission bits of the real file, so that its owner can always work on it."""
    if stat.S_ISDIR(mode):
        return 0o700
    return 0o600 | (0o100 if mode & 0o111 else 0)
