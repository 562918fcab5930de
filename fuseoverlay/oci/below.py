"""What the layers below the one being unpacked hold."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Protocol

from fuseoverlay.oci.entries import Path
from fuseoverlay.oci.tree import find_below


class Below(Protocol):
    """The layers below, as far as they influence what is decided."""

    def is_directory(self, path: Path) -> bool:
        """Whether they show a directory at `path`."""


class DirectoriesBelow:
    """The unpacked layers below, top first. Records whether they were asked."""

    def __init__(self, lowers: Sequence[str | os.PathLike[str]]) -> None:
        self._lowers = lowers
        #: Whether they supplied data or influenced a decision.
        self.used = False

    def is_directory(self, path: Path) -> bool:
        """Whether they show a directory at `path`."""
        with self.at(path) as (_, kind):
            return stat.S_ISDIR(kind)

    @contextlib.contextmanager
    def at(self, path: Path) -> Iterator[tuple[int, int]]:
        """What the layers below show at `path`, as returned by `find_below`; type 0 if nothing. The
        descriptor is closed at the end of the block."""
        self.used = True
        source, kind = find_below(self._lowers, path) or (-1, 0)
        try:
            yield source, kind
        finally:
            if kind:
                os.close(source)
