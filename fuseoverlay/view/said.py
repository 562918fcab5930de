"""What each layer by itself says of a path: that it has it, or how it hides it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from fuseoverlay.view.layerindex import HIDES, OPAQUE, REDIRECT, LayerIndex
from fuseoverlay.view.stack import Path

#: Directories that are remembered.
_MOST: Final = 1 << 16


class Event(StrEnum):
    """What a layer does to a path. `MERGES`: it has a directory that shows together with those
    below. `REPEATS`: it has the file again as it was. `COVERS`: it has something else than a
    directory above the path, `OPAQUE` an opaque directory above it, without the path. `RENAMES`: it
    has the directory, or one above the path, that goes on under another name below."""

    ADDS = "adds"
    CHANGES = "changes"
    REPEATS = "repeats"
    MERGES = "merges"
    DELETES = "deletes"
    COVERS = "covers"
    OPAQUE = "makes opaque"
    RENAMES = "renames"


class Said(NamedTuple):
    """What a layer, from 0, says: that it has the path (`ADDS`) in this row, or how it hides it,
    and where. `opaque`, `renamed`: the last opaque or renamed directory above, or at, what it
    has."""

    layer: int
    event: Event
    at: Path
    row: int = 0
    opaque: Path | None = None
    renamed: Path | None = None


class Sayings:
    """What layers, bottom first, say of paths. What they say of all that is in a directory is
    remembered, so that of many paths each asks only the layers that have its directory."""

    def __init__(self, layers: Sequence[LayerIndex]) -> None:
        self._layers = layers
        self._of_all = [
            Said(number, Event.ADDS, (), 0, () if layer.flags[0] & OPAQUE else None)
            for number, layer in enumerate(layers)
        ]
        self._inside: dict[Path, list[Said]] = {}

    def of(self, path: Path, above: int = -1) -> Iterator[Said]:
        """What those layers say that are above the layer `above`, from the bottom up; the others
        say nothing."""
        if not path:
            return (said for said in self._of_all if said.layer > above)
        return self._next(self._directory(path[:-1]), path, above)

    def _directory(self, path: Path) -> list[Said]:
        """What the layers say of all that is in a directory: that they have the directory, or how
        they hide all of it."""
        known = len(path)
        while known and path[:known] not in self._inside:
            known -= 1
        found = self._inside[path[:known]] if known else self._of_all
        if len(self._inside) > _MOST:
            self._inside.clear()
        for depth in range(known + 1, len(path) + 1):
            at = path[:depth]
            found = [self._deeper(said) for said in self._next(found, at, -1)]
            self._inside[at] = found
        return found

    def _next(self, parent: Sequence[Said], path: Path, above: int) -> Iterator[Said]:
        """What the layers say of a path, from what they say of all that is in its directory."""
        name = path[-1]
        for said in parent:
            if said.layer <= above:
                continue
            if said.event is not Event.ADDS:
                yield said
                continue
            layer = self._layers[said.layer]
            row = layer.child(said.row, name)
            if row is None:
                if said.renamed is not None:
                    yield Said(said.layer, Event.RENAMES, said.renamed)
                elif said.opaque is not None:
                    yield Said(said.layer, Event.OPAQUE, said.opaque)
            elif layer.mode[row]:
                yield Said(said.layer, Event.ADDS, path, row, said.opaque, said.renamed)
            else:
                yield Said(said.layer, Event.DELETES, path)

    def _deeper(self, said: Said) -> Said:
        """What a layer says of all that is in a path, from what it says of the path."""
        if said.event is not Event.ADDS:
            return said
        layer = self._layers[said.layer]
        if not layer.is_dir(said.row):
            return Said(said.layer, Event.COVERS, said.at)
        if layer.flags[said.row] & REDIRECT:
            return said._replace(renamed=said.at)
        if layer.flags[said.row] & (OPAQUE | HIDES):
            return said._replace(opaque=said.at, renamed=None)
        return said
