"""Lower files that the kernel knows, from a listing or a look-up, and that need no inode yet.

The inode table holds them as plain tuples: the extension creates and reads them too, by position,
LISTED_* in csrc/native.h.
"""

from __future__ import annotations

from typing import NamedTuple

from fuseoverlay.layers.layer import RealDir
from fuseoverlay.overlay.inodes import Directory

#: An entry as the inode table holds it.
Raw = tuple[Directory, bytes, RealDir, int, int, bool, int]


class Listed(NamedTuple):
    """An entry with named fields: `Listed(*raw)`."""

    parent: Directory
    name: bytes
    #: The lower directory that holds it.
    real: RealDir
    #: The look-up count.
    lookups: int
    #: File type, S_IFREG or S_IFLNK.
    kind: int
    #: Whether it has extended attributes.
    xattrs: bool
    #: User id << 32 | group id.
    owner: int

    @property
    def ids(self) -> tuple[int, int]:
        """User and group id."""
        return self.owner >> 32, self.owner & 0xFFFFFFFF
