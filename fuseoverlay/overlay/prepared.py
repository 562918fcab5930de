"""Prepared answers: tables from which some requests are answered without the overlay.

The overlay publishes entries here, and withdraws those that a request makes untrue before it
answers that request. It does not know the reader: `fuse` hands the tables to the extension
(docs/native.md).
"""

from __future__ import annotations

from typing import Final

from fuseoverlay.layers.layer import RealDir

#: Bits below the descriptor in an entry of `bound`; BOUND_* in csrc/native.h.
_READ: Final = 1
_WRITE: Final = 2
_ATTRIBUTES: Final = 4
_NO_XATTRS: Final = 8
_BITS: Final = 4


class Prepared:
    """The tables of one overlay, by inode number. A descriptor is withdrawn before it is closed."""

    __slots__ = ("bound", "names", "plain")

    def __init__(self) -> None:
        #: Descriptors that may be used, and for what: see `bind`.
        self.bound: dict[int, int] = {}
        #: For merged directories: a dictionary whose keys are all visible names.
        self.names: dict[int, dict[bytes, int]] = {}
        #: Directories that only the upper has: stat shows the status of the real directory.
        self.plain: dict[int, RealDir] = {}

    def bind(self, ino: int, fd: int, *, write: bool, attributes: bool, no_xattrs: bool) -> None:
        """Let data be read from `fd`. `write`: data may also be written to it; `attributes`:
        fstat(2) returns what stat shows; `no_xattrs`: the file has no extended attributes."""
        uses = _READ | write * _WRITE | attributes * _ATTRIBUTES | no_xattrs * _NO_XATTRS
        self.bound[ino] = fd << _BITS | uses

    def unbind(self, ino: int) -> None:
        """Withdraw the descriptor, which is about to be closed."""
        del self.bound[ino]

    def forget_directory(self, ino: int) -> None:
        """Withdraw everything about this directory."""
        self.names.pop(ino, None)
        self.plain.pop(ino, None)
