"""Plain files of a lower that the kernel knows from a listing or a look-up, and of which nothing
else is known.

The inode table has them as plain tuples: the extension makes and reads them, too, and finds the
parts by their position, LISTED_* in csrc/native.h.
"""

from __future__ import annotations

from typing import NamedTuple

from fuseoverlay.layers.layer import RealDir
from fuseoverlay.overlay.inodes import Directory

#: As the inode table has it.
Raw = tuple[Directory, bytes, RealDir, int, int, bool, int]


class Listed(NamedTuple):
    """One of them, with names: `Listed(*raw)`."""

    parent: Directory
    name: bytes
    #: Where it is.
    real: RealDir
    #: The kernel's references.
    lookups: int
    #: File type, S_IFREG or S_IFLNK.
    kind: int
    #: Whether it has extended attributes.
    xattrs: bool
    #: User id << 32 | group id.
    owner: int

    @property
    def ids(self) -> tuple[int, int]:
        """Its owner and group."""
        return self.owner >> 32, self.owner & 0xFFFFFFFF
