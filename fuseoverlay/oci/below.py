"""What the layers below a layer in the making have."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence

from fuseoverlay.oci.entries import Path
from fuseoverlay.oci.tree import find_below


class Below:
    """The layers below, top first; remembers whether they were asked."""

    def __init__(self, lowers: Sequence[str | os.PathLike[str]]) -> None:
        self._lowers = lowers
        #: Whether they gave data or decided about something.
        self.used = False

    def is_directory(self, path: Path) -> bool:
        """Whether they show a directory there."""
        with self.at(path) as (_, kind):
            return stat.S_ISDIR(kind)

    @contextlib.contextmanager
    def at(self, path: Path) -> Iterator[tuple[int, int]]:
        """What the layers below have at `path`, as `find_below` has it; type 0: nothing."""
        self.used = True
        source, kind = find_below(self._lowers, path) or (-1, 0)
        try:
            yield source, kind
        finally:
            if kind:
                os.close(source)
