"""Bytes that an image carries and nobody sees: files that a layer above replaces or deletes.

All copies of a file but the last are wasted, and all that is below a directory that was deleted or
made opaque. A file with several names in its layer is wasted once the last of them is hidden.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fuseoverlay.view import collecting
from fuseoverlay.view.changes import How, Kind, New, Same, summary
from fuseoverlay.view.layerindex import METACOPY, REDIRECT
from fuseoverlay.view.stack import Node, Path, Stack


@dataclass(frozen=True, slots=True)
class Cause:
    """How bytes were wasted: the layer `by` (from 0) did it to `files` files, which have `bytes`
    bytes in the layers below: layer -> bytes."""

    how: How
    by: int
    files: int
    bytes: int
    of: dict[int, int]


@dataclass(frozen=True, slots=True)
class Waste:
    """What is wasted at a path and below it."""

    path: Path
    causes: tuple[Cause, ...]

    @property
    def bytes(self) -> int:
        """How many bytes."""
        return sum(cause.bytes for cause in self.causes)


@dataclass(frozen=True, slots=True)
class Effect:
    """What a layer does to those below it, in entries; and `wasted`: how many of its own bytes are
    hidden by the layers above."""

    added: int
    changed: int
    removed: int
    same: int
    wasted: int


@dataclass(frozen=True, slots=True)
class Found:
    """What was found out about all layers: an `Effect` for each, bottom first; what is wasted, the
    most first; and the same added up by what each layer did, the most first."""

    effects: tuple[Effect, ...]
    wastes: Sequence[Waste]
    causes: tuple[Cause, ...]

    @property
    def wasted(self) -> int:
        """Bytes wasted in all layers."""
        return sum(effect.wasted for effect in self.effects)


def find(stack: Stack, same: Same | None = None) -> Found:
    """Find out what each layer does, and what is wasted."""
    with collecting.paused():
        return _found(stack, same)


def _found(stack: Stack, same: Same | None) -> Found:
    ledger = _Ledger(stack)
    kinds = []
    for number in range(len(stack.layers)):
        count: Counter[Kind] = Counter()
        gone: dict[tuple[Path, How], list[Node]] = defaultdict(list)
        for step in summary(stack, number, same):
            if isinstance(step, New):
                count[Kind.ADDED] += step.entries
                continue
            count[step.kind] += 1
            if step.hides and step.before is not None and step.how is not None:
                gone[step.at, step.how].append(step.before)
        for (path, how), nodes in gone.items():
            ledger.note(number, path, how, nodes)
        kinds.append(count)
    effects = tuple(
        Effect(found[Kind.ADDED], found[Kind.CHANGED], found[Kind.REMOVED], found[Kind.SAME],
               ledger.wasted[number])
        for number, found in enumerate(kinds)
    )  # fmt: skip
    wastes = [Waste(path, tuple(causes)) for path, causes in ledger.causes.items()]
    wastes.sort(key=lambda waste: (-waste.bytes, waste.path))
    return Found(effects, tuple(wastes), _added_up(wastes))


def _added_up(wastes: Iterable[Waste]) -> tuple[Cause, ...]:
    files: Counter[tuple[How, int]] = Counter()
    of: dict[tuple[How, int], Counter[int]] = defaultdict(Counter)
    for waste in wastes:
        for cause in waste.causes:
            key = cause.how, cause.by
            files[key] += cause.files
            of[key].update(cause.of)
    causes = [
        Cause(how, by, files[how, by], sum(found.values()), dict(found))
        for (how, by), found in of.items()
    ]
    return tuple(sorted(causes, key=lambda cause: (-cause.bytes, cause.by, cause.how)))


@dataclass(slots=True)
class _Ledger:
    """Counts wasted bytes, those of a file once."""

    stack: Stack
    causes: dict[Path, list[Cause]] = field(default_factory=lambda: defaultdict(list))
    wasted: Counter[int] = field(default_factory=Counter)
    #: Of files with several names: how many are hidden.
    _names: Counter[tuple[int, int]] = field(default_factory=Counter)
    _shown: set[tuple[int, int]] | None = None

    def note(self, number: int, path: Path, how: How, nodes: Iterable[Node]) -> None:
        """The layer hides these files by what it does at `path`."""
        of: Counter[int] = Counter()
        files = 0
        for node in self._gone(nodes):
            files += 1
            of[node.layer] += self._freed(node)
        if files:
            self.wasted.update(of)
            self.causes[path].append(Cause(how, number, files, sum(of.values()), dict(of)))

    def _gone(self, nodes: Iterable[Node]) -> Iterable[Node]:
        """Those that are not to be seen at another place, because a directory was renamed."""
        if self._shown is None:
            self._shown = self._elsewhere()
        return [node for node in nodes if (node.layer, node.row) not in self._shown]

    def _elsewhere(self) -> set[tuple[int, int]]:
        moved = REDIRECT | METACOPY
        if not any(flags & moved for layer in self.stack.layers for flags in layer.flags):
            return set()
        found = set()
        for node in self.stack.walk(self.stack.root):
            found.add((node.layer, node.row))
            if self.stack.layers[node.layer].flags[node.row] & METACOPY and self.stack.data:
                found |= {self.stack.data(node) or (node.layer, node.row)}
        return found

    def _freed(self, node: Node) -> int:
        layer = self.stack.layers[node.layer]
        if not layer.is_file(node.row) or layer.flags[node.row] & METACOPY:
            return 0
        if layer.nlink[node.row] > 1:
            key = node.layer, layer.ino[node.row]
            self._names[key] += 1
            if self._names[key] < layer.nlink[node.row]:
                return 0
        return layer.sizes[node.row]
