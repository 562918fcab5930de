"""What the program dive says of an image: its two figures, and what it calls inefficient.

The rules are dive's, with all that is odd in them, so that the figures are those that people know
and have thresholds for; `waste` has what could really be saved. In each layer dive looks at leaves:
files, directories that hold nothing, whiteouts. All leaves of one path belong together. A leaf
counts with the size in its header, so hard links, symbolic links and directories with 0; a whiteout
with 0, too, but that of a directory with the sizes of all that was below it.

Layers below a whiteout are put together in dive's way: opaque directories hide nothing, a file in
place of a directory leaves what was in it, a directory that no archive lists is none. Where a
whiteout finds nothing to hide, dive leaves out the rest of that layer.

Source: wagoodman/dive, dive/filetree/efficiency.go, file_tree.go, file_node.go and
dive/image/analysis.go, as of May 2025.
"""

from __future__ import annotations

import math
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final, NamedTuple

from fuseoverlay.view import collecting
from fuseoverlay.view.layerindex import HIDES, IMPLIED, LINK, LayerIndex
from fuseoverlay.view.stack import Path, Stack

#: How the name of a whiteout begins in an archive.
WHITEOUT: Final = b".wh."
_MARKED: Final = re.compile(rb"[^\0]")


class Repeated(NamedTuple):
    """A path with several leaves: how many, and the sum of their sizes in bytes."""

    path: Path
    times: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Figures:
    """What dive says. `efficiency`: from 0 to 1. `sizes`: of each layer in bytes, bottom first.
    `wasted`: bytes of all of `repeated`, which has most bytes first; of the same size, what was
    found last. (dive sorts so up to 12 paths, and more in an order of chance.)"""

    efficiency: float
    sizes: tuple[int, ...]
    wasted: int
    repeated: Sequence[Repeated]

    @property
    def user(self) -> int:
        """Bytes of all layers but the lowest."""
        return sum(self.sizes[1:])

    @property
    def wasted_share(self) -> float:
        """`wasted` as a part of `user`; infinite or no number where there is but one layer."""
        if self.user:
            return self.wasted / self.user
        return math.inf if self.wasted else math.nan


def figures(stack: Stack) -> Figures:
    """What dive says of these layers."""
    with collecting.paused():
        return _figures([Counted(index) for index in stack.layers])


def _figures(layers: Sequence[Counted]) -> Figures:
    walk = _Walk(layers)
    walk.run()
    result = _Result(layers, walk)
    return Figures(
        result.efficiency(), tuple(layer.total for layer in layers), result.wasted,
        result.repeated(),
    )  # fmt: skip


class Counted:
    """One layer as dive counts it. `links`: the rows that are hard links to others."""

    def __init__(self, index: LayerIndex) -> None:
        self.index: Final = index
        self.flags: Final = index.flags
        self.mode: Final = index.mode
        self.first: Final = index.first
        self.count: Final = index.count
        marked = [found.start() for found in _MARKED.finditer(bytes(index.flags))]
        self._whiteouts: Final = [row for row in marked if index.flags[row] & HIDES]
        listed = {row for row in marked if index.flags[row] & LINK}
        # Directories have no headers that say which names are links: the first one is none.
        self.links: Final = listed or _later_names(index)
        #: The sum of the sizes of all rows before each row.
        self._before: Final = _sums(self._sizes())

    def _sizes(self) -> list[int]:
        pairs = zip(self.mode, self.index.sizes, strict=True)
        sizes = [size if mode & 0o170000 == 0o100000 else 0 for mode, size in pairs]
        for row in self.links:
            sizes[row] = 0
        return sizes

    @property
    def total(self) -> int:
        """The size of the layer."""
        return self._before[-1]

    def size(self, row: int) -> int:
        """The size of one row."""
        return self._before[row + 1] - self._before[row]

    def below(self, row: int) -> int:
        """The size of all that is below a directory."""
        return self._before[self.index.end[row]] - self._before[self.first[row]]

    def names(self, row: int) -> Iterator[tuple[bytes, int]]:
        """What a directory holds: name and row."""
        return zip(self.index.names_in(row), self.index.children(row), strict=True)

    def has_whiteouts(self, row: int) -> bool:
        """Whether there are any below a directory."""
        found = self._whiteouts
        at = bisect_left(found, self.first[row]) if found else 0
        return at < len(found) and found[at] < self.index.end[row]

    def until(self, key: Path) -> int:
        """The size of all that comes before `key` in dive's order."""
        total, row = 0, 0
        for name in key:
            inside = None
            for other, child in self.names(row):
                if other < name:
                    total += self.size(child) + self.below(child)
                elif other == name:
                    inside = child
            if inside is None:
                break
            row = inside
        return total


def _sums(sizes: Iterable[int]) -> Sequence[int]:
    """The sum of all before each, and of all. Sparse files may have more bytes than 64 bits say."""
    found = list(accumulate(sizes, initial=0))
    return array("Q", found) if found[-1] < 1 << 64 else found


def _later_names(index: LayerIndex) -> set[int]:
    return {
        row
        for row, (ino, nlink) in enumerate(zip(index.ino, index.nlink, strict=True))
        if nlink > 1 and ino != row
    }


#: A name in one layer: the number of the layer, and the row.
_Place = tuple[int, int]


def key_of(path: Path, *, whiteout: bool) -> Path:
    """Where dive has a leaf among others of its layer: by the names in the archive."""
    return (*path[:-1], WHITEOUT + path[-1]) if whiteout else path


def goes_before(name: bytes) -> bool:
    """Whether dive visits an entry before a whiteout of the same name and layer."""
    return name < WHITEOUT + name


class _Leaf(NamedTuple):
    layer: int
    whiteout: bool
    size: int


class _Cut(NamedTuple):
    """A whiteout in a layer: only what the layer `floor` and those above it have is left."""

    layer: int
    floor: int


@dataclass(slots=True)
class _Walk:
    """Goes through all directories that several layers have, or that hold whiteouts."""

    layers: Sequence[Counted]
    #: The leaves of each path with several ones or a whiteout, in dive's order.
    leaves: list[tuple[Path, list[_Leaf]]] = field(default_factory=list)
    #: Where dive stops in a layer: at the first whiteout of nothing.
    stops: dict[int, Path] = field(default_factory=dict)

    def run(self) -> None:
        """Fill `leaves` and `stops`."""
        roots = [(number, 0) for number in range(len(self.layers))]
        waiting: list[tuple[Path, list[_Place], tuple[_Cut, ...]]] = [((), roots, ())]
        while waiting:
            path, dirs, cuts = waiting.pop()
            for name, places in self._names(dirs).items():
                if len(places) == 1 and self._is_plain(*places[0]):
                    continue
                inner = (*path, name)
                inside = [place for place in places if self._holds(place)]
                whiteouts = self._whiteouts(name, places)
                if whiteouts:
                    self._note(inner, places, (*cuts, *whiteouts))
                elif len(places) - len(inside) > 1:
                    self.leaves.append((inner, self._entries(places)))
                if len(inside) > 1 or (inside and self._has_whiteouts(inside[0])):
                    waiting.append((inner, inside, (*cuts, *whiteouts)))

    def _names(self, dirs: Sequence[_Place]) -> dict[bytes, list[_Place]]:
        """What directories of one path hold together, and which layers have it."""
        names: dict[bytes, list[_Place]] = {}
        for number, row in dirs:
            for name, child in self.layers[number].names(row):
                if name in names:
                    names[name].append((number, child))
                else:
                    names[name] = [(number, child)]
        return names

    def _is_plain(self, number: int, row: int) -> bool:
        layer = self.layers[number]
        return not layer.flags[row] & HIDES and not layer.has_whiteouts(row)

    def _holds(self, place: _Place) -> bool:
        return self.layers[place[0]].count[place[1]] > 0

    def _has_whiteouts(self, place: _Place) -> bool:
        return self.layers[place[0]].has_whiteouts(place[1])

    def _hides(self, place: _Place) -> bool:
        return bool(self.layers[place[0]].flags[place[1]] & HIDES)

    def _mode(self, place: _Place) -> int:
        return self.layers[place[0]].mode[place[1]]

    def _whiteouts(self, name: bytes, places: Sequence[_Place]) -> list[_Cut]:
        if not any(map(self._hides, places)):
            return []
        # An entry that comes before the whiteout of its own layer goes with the others.
        more = goes_before(name)
        return [_Cut(place[0], place[0] + more) for place in places if self._hides(place)]

    # the leaves of a path

    def _entries(self, places: Sequence[_Place]) -> list[_Leaf]:
        layers = self.layers
        return [
            _Leaf(number, False, layers[number].size(row))
            for number, row in places
            if not layers[number].count[row]
        ]

    def _note(self, path: Path, places: Sequence[_Place], cuts: Sequence[_Cut]) -> None:
        leaves: list[_Leaf] = []
        for place in places:
            leaves += self._of_layer(path, place, places, cuts)
        self.leaves.append((path, leaves))

    def _of_layer(
        self, path: Path, place: _Place, places: Sequence[_Place], cuts: Sequence[_Cut]
    ) -> list[_Leaf]:
        number, row = place
        found = []
        if self._mode(place) and not self._holds(place):
            found.append(_Leaf(number, whiteout=False, size=self.layers[number].size(row)))
        if self._hides(place):
            whiteout = _Leaf(number, whiteout=True, size=self._hidden(path, number, places, cuts))
            found.insert(len(found) if goes_before(path[-1]) else 0, whiteout)
        return found

    def _hidden(
        self, path: Path, number: int, places: Sequence[_Place], cuts: Sequence[_Cut]
    ) -> int:
        """The size that a whiteout counts with."""
        if number:
            floor = max((cut.floor for cut in cuts if cut.layer < number), default=0)
            left = [one for one in places if floor <= one[0] < number and self._mode(one)]
        else:
            # Below the lowest layer dive has that layer itself.
            left = [one for one in places if not one[0] and self._mode(one)]
        if not left:
            self._stop(number, key_of(path, whiteout=True))
            return 0
        top, row = left[-1]
        if not self.layers[top].index.is_dir(row) or self.layers[top].flags[row] & IMPLIED:
            return 0
        return self._below(left) if number else self.layers[0].below(row)

    def _stop(self, number: int, key: Path) -> None:
        self.stops[number] = min(self.stops.get(number, key), key)

    def _below(self, places: Sequence[_Place]) -> int:
        """The size of all below a directory that these layers show together."""
        total = 0
        waiting = [list(filter(self._holds, places))]
        while waiting:
            dirs = waiting.pop()
            if len(dirs) == 1 and not self._has_whiteouts(dirs[0]):
                total += self.layers[dirs[0][0]].below(dirs[0][1])
                continue
            for name, found in self._names(dirs).items():
                left = self._left(name, found)
                if left:
                    number, row = left[-1]
                    total += self.layers[number].size(row)
                    inside = list(filter(self._holds, left))
                    if inside:
                        waiting.append(inside)
        return total

    def _left(self, name: bytes, places: Sequence[_Place]) -> list[_Place]:
        """What is left of a name after the whiteouts among its places."""
        left: list[_Place] = []
        for place in places:
            if self._hides(place):
                left = []
                if goes_before(name):
                    continue
            if self._mode(place):
                left.append(place)
        return left


class _Result:
    """Adds up what the walk found."""

    def __init__(self, layers: Sequence[Counted], walk: _Walk) -> None:
        self._layers = layers
        self._stops = walk.stops
        #: Leaves of each path, as far as dive came.
        self._leaves = walk.leaves
        self._odd = 0
        if walk.stops:
            self._stop()
        self._rows = [
            (sum([leaf.size for leaf in leaves]), path, leaves)
            for path, leaves in self._leaves
            if len(leaves) > 1
        ]
        self.wasted = sum(size for size, _, _ in self._rows)

    def _stop(self) -> None:
        found = [(path, self._visited(path, leaves)) for path, leaves in self._leaves]
        stopped = {key_of(path, whiteout=True) for path, leaves in found if not leaves}
        # dive takes -1 for the size of what it stopped at, if it met it nowhere else.
        self._odd = len(stopped & set(self._stops.values()))
        self._leaves = found

    def _visited(self, path: Path, leaves: list[_Leaf]) -> list[_Leaf]:
        return [
            leaf
            for leaf in leaves
            if leaf.layer not in self._stops
            or key_of(path, whiteout=leaf.whiteout) < self._stops[leaf.layer]
        ]

    def efficiency(self) -> float:
        """The smallest leaf of each path by all of them."""
        every = sum(leaf.size for _, leaves in self._leaves for leaf in leaves if leaf.whiteout)
        for number, layer in enumerate(self._layers):
            stop = self._stops.get(number)
            every += layer.total if stop is None else layer.until(stop)
        more = sum(size - min([leaf.size for leaf in leaves]) for size, _, leaves in self._rows)
        return (every - more - self._odd) / every if every else 1.0

    def repeated(self) -> tuple[Repeated, ...]:
        """Paths with several leaves, the largest first."""
        self._rows.sort(key=_order, reverse=True)
        return tuple(Repeated(path, len(leaves), size) for size, path, leaves in self._rows)


def _order(row: tuple[int, Path, list[_Leaf]]) -> tuple[int, int, Path]:
    size, path, leaves = row
    return size, leaves[1].layer, key_of(path, whiteout=leaves[1].whiteout)
