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
_FORM: Final = re.compile(r"(\d+):(\d+):([0-7]+)(?::([a-z]+)(?:-(\d+)-(\d+))?)?\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class OverrideStat:
    """What the attribute says. `mode` holds type and permission bits."""

    uid: int
    gid: int
    mode: int
    rdev: int = 0

    @classmethod
    def parse(cls, value: bytes, real_mode: int) -> OverrideStat | None:
        """Read the attribute; None where it is malformed. No type: that of `real_mode`."""
        match = _FORM.match(value.decode("ascii", "replace"))
        if match is None:
            return None
        uid, gid, mode, kind, major, minor = match.groups()
        if kind is None:
            file_type = stat.S_IFMT(real_mode)
        elif kind in _TYPES:
            file_type = _TYPES[kind]
        else:
            return None
        rdev = os.makedev(int(major), int(minor)) if major is not None else 0
        return cls(int(uid), int(gid), file_type | (int(mode, 8) & 0o7777), rdev)

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
