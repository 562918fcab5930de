"""The names that directories of several layers show together.

Source of the rules: kernel Documentation/filesystems/overlayfs.rst, "Directories" and "whiteouts
and opaque directories".
"""

from __future__ import annotations

from typing import Generic, TypeVar

from fuseoverlay.layers.index import Listing

#: A directory of one layer: a `RealDir`, or one that an index lists.
_Dir = TypeVar("_Dir")


class Merged(Generic[_Dir]):
    """The names that lower directories show together: for each the directory that holds a
    non-directory of this name, or all that hold a directory of it, top first. Directories are added
    from the top down, here or by the extension."""

    __slots__ = ("closed", "names")

    def __init__(self) -> None:
        self.names: dict[bytes, _Dir | tuple[_Dir, ...]] = {}
        #: Names for which nothing further down counts. A file hides what is below it anyway.
        self.closed: set[bytes] = set()

    def add(self, real: _Dir, listing: Listing) -> None:
        """Add the names of the next directory."""
        names, closed = self.names, self.closed
        for name, is_dir in listing.entries.items():
            if name in closed:
                continue
            above = names.get(name)
            if above is None:
                names[name] = (real,) if is_dir else real
            elif isinstance(above, tuple):
                if is_dir:
                    names[name] = (*above, real)
                else:
                    closed.add(name)
        # A whiteout acts on the layers below, never on its own.
        closed |= listing.masks
        closed |= listing.wh
