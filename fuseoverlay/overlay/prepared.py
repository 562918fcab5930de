"""Prepared answers: what some requests can be answered from without asking the overlay.

The overlay publishes here, and withdraws what is no longer true before it answers the request that
made it so. It does not know who reads: `fuse` hands the tables to the extension (docs/native.md).
"""

from __future__ import annotations

from typing import Final

from fuseoverlay.layers.layer import RealDir

#: Bits of an entry of `bound` below the descriptor; BOUND_* in csrc/native.h.
_READ: Final = 1
_WRITE: Final = 2
_ATTRIBUTES: Final = 4
_NO_XATTRS: Final = 8
_BITS: Final = 4


class Prepared:
    """The tables of one overlay, by inode number. A descriptor is withdrawn before it is closed."""

    __slots__ = ("bound", "names", "plain")

    def __init__(self) -> None:
        #: Descriptors that may be used, and for what; `bind`.
        self.bound: dict[int, int] = {}
        #: Of a merged directory a dictionary whose keys are its visible names: there is no other.
        self.names: dict[int, dict[bytes, int]] = {}
        #: Directories that only the upper has: the real one's status is what stat shows.
        self.plain: dict[int, RealDir] = {}

    def bind(self, ino: int, fd: int, *, write: bool, attributes: bool, no_xattrs: bool) -> None:
        """Data may be read from `fd`; `write`: also be written; `attributes`: fstat(2) says what
        stat shall show; `no_xattrs`: the file has none."""
        uses = _READ | write * _WRITE | attributes * _ATTRIBUTES | no_xattrs * _NO_XATTRS
        self.bound[ino] = fd << _BITS | uses

    def unbind(self, ino: int) -> None:
        """The descriptor is going to be closed."""
        del self.bound[ino]

    def forget_directory(self, ino: int) -> None:
        """Nothing is known of this directory any more."""
        self.names.pop(ino, None)
        self.plain.pop(ino, None)
