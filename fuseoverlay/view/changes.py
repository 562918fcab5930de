"""What a layer does to those below it: adds, changes, removes; and what it hides by that."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from fuseoverlay.view.layerindex import HIDES, IMPLIED, OPAQUE, REDIRECT, Entry
from fuseoverlay.view.stack import Dir, Node, Path, Stack

#: Whether two regular files have the same content.
Same = Callable[[Node, Node], bool]


class Kind(StrEnum):
    """What a layer does to a path. `SAME`: it has the path again as it was below, but for times."""

    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"
    SAME = "same"


class How(StrEnum):
    """How a layer hides what is below it. `METADATA`: it has the file with the same content again,
    `AGAIN`: also with the same owner, mode and attributes."""

    DELETED = "deleted"
    REPLACED = "replaced"
    METADATA = "metadata changed"
    AGAIN = "copied again"
    OPAQUE = "made opaque"


class Change(NamedTuple):
    """What a layer does to one path. `before`: what the layers below show there; `after`: what the
    layer has, None if it removes the path. `how` and `at`: how and where that is done, which may be
    a directory above; None for what is new."""

    kind: Kind
    path: Path
    before: Node | None
    after: Node | None
    how: How | None = None
    at: Path = ()

    @property
    def hides(self) -> bool:
        """Whether `before`, a file, is not to be seen any more."""
        if self.before is None or self.before.is_dir:
            return False
        return self.how is not None


class New(NamedTuple):
    """A directory that is all new, with so many entries that show, itself among them."""

    entries: int


def same_by_digest(stack: Stack) -> Same:
    """Compares digests; a file without one is like no other."""

    def same(one: Node, other: Node) -> bool:
        digest = stack.layers[one.layer].digest(one.row)
        return digest is not None and digest == stack.layers[other.layer].digest(other.row)

    return same


def is_same(one: Entry, other: Entry) -> bool:
    """Whether all but times, links and content is equal."""
    return (
        one.mode == other.mode
        and (one.uid, one.gid, one.rdev) == (other.uid, other.gid, other.rdev)
        and one.link == other.link
        and one.xattrs == other.xattrs
        and (one.size == other.size or not stat.S_ISREG(one.mode))
    )


def changes(stack: Stack, number: int, same: Same | None = None) -> Iterator[Change]:
    """What the layer `number`, from 0 at the bottom, does to each path that it touches. Directories
    that it only leads through are left out. Parents come before what is in them."""
    for found in _Walk(stack, number, same or same_by_digest(stack), whole=True).steps():
        if isinstance(found, Change):
            yield found


def summary(stack: Stack, number: int, same: Same | None = None) -> Iterator[Change | New]:
    """The same, where a directory that is all new is one `New`."""
    yield from _Walk(stack, number, same or same_by_digest(stack), whole=False).steps()


class _Visit(NamedTuple):
    """A directory of the layer: `before` is the directory that was there, `cut` how nothing of that
    shows any more, `at` since which directory."""

    row: int
    path: Path
    before: Node | None
    cut: How | None
    at: Path


class _Walk:
    """Goes through the directories of one layer beside what those below it show."""

    def __init__(self, stack: Stack, number: int, same: Same, *, whole: bool) -> None:
        self._stack = stack
        self._below = stack.up_to(number)
        self._number = number
        self._layer: Final = stack.layers[number]
        self._same = same
        self._whole = whole
        self._waiting: list[_Visit] = []

    def steps(self) -> Iterator[Change | New]:
        """All that the layer does."""
        opaque = How.OPAQUE if self._layer.flags[0] & OPAQUE else None
        if self._number:
            before = self._below.root
            yield from self._root(before)
            self._waiting.append(_Visit(0, (), before, opaque, ()))
        elif self._whole:
            self._waiting.append(_Visit(0, (), None, None, ()))
        else:
            yield New(self._shown(0))
        while self._waiting:
            visit = self._waiting.pop()
            inside: list[_Visit] = []
            yield from self._in(visit, inside)
            self._waiting += reversed(inside)

    def _root(self, before: Node) -> Iterator[Change]:
        if not self._layer.flags[0] & IMPLIED:
            after = Node((), self._number, 0, (Dir(self._number, 0),))
            if not self._is_same(before, after):
                yield Change(Kind.CHANGED, (), before, after)

    def _in(self, visit: _Visit, inside: list[_Visit]) -> Iterator[Change | New]:
        """What is in one directory; those in it that are to be visited go into `inside`."""
        names = self._layer.names_in(visit.row)
        there = self._there(visit, names)
        for row, name in enumerate(names, self._layer.first[visit.row]):
            found = there.get(name)
            was = None
            if found is not None and visit.before is not None:
                was = self._below.named(visit.before, name, found)
            if self._layer.is_dir(row):
                yield from self._directory(visit, row, name, was, inside)
            elif self._layer.mode[row]:
                yield from self._file(visit, row, name, was)
            elif was is not None:
                yield from self._removed(was, How.DELETED, was.path)
        if visit.cut is not None and visit.before is not None:
            own = set(names)
            for name in sorted(there):
                if name not in own:
                    was = self._below.named(visit.before, name, there[name])
                    yield from self._removed(was, visit.cut, visit.at)

    def _there(
        self, visit: _Visit, names: list[bytes]
    ) -> Mapping[bytes, Dir | tuple[Dir, ...]]:  # fmt: skip
        """What was there under these names, or all of it if it matters."""
        if visit.before is None:
            return {}
        if visit.cut is not None:
            return self._below.names(visit.before)
        return self._below.names_among(visit.before, names)

    def _directory(
        self, visit: _Visit, row: int, name: bytes, was: Node | None, inside: list[_Visit]
    ) -> Iterator[Change | New]:
        path = (*visit.path, name)
        if was is None and not self._whole:
            yield New(self._shown(row) + 1)
            return
        before = was if was is not None and was.is_dir else None
        flags, cut, at = self._layer.flags[row], visit.cut, visit.at
        if cut is None and flags & (OPAQUE | HIDES | REDIRECT):
            cut, at = How.OPAQUE, path
        inside.append(_Visit(row, path, before, cut, at))
        if before is None or not flags & IMPLIED:
            after = Node(path, self._number, row, (Dir(self._number, row),))
            if was is None:
                yield Change(Kind.ADDED, path, None, after)
            elif not self._is_same(was, after):
                # A directory hides nothing of one below.
                how = None if was.is_dir else How.REPLACED
                yield Change(Kind.CHANGED, path, was, after, how, path)

    def _file(
        self, visit: _Visit, row: int, name: bytes, was: Node | None
    ) -> Iterator[Change]:  # fmt: skip
        path = (*visit.path, name)
        after = Node(path, self._number, row)
        if was is None:
            yield Change(Kind.ADDED, path, None, after)
            return
        kind, how = self._compared(was, after)
        yield Change(kind, path, was, after, how, path)
        if was.is_dir:
            yield from (
                change for change in self._removed(was, How.REPLACED, path) if change.path != path
            )

    def _compared(self, was: Node, after: Node) -> tuple[Kind, How]:
        """What it is that a file of the layer replaces what was there."""
        one, other = self._stack.entry(was), self._stack.entry(after)
        files = stat.S_ISREG(one.mode) and stat.S_ISREG(other.mode)
        content = files and one.size == other.size and self._same(was, after)
        if is_same(one, other) and (content or not stat.S_ISREG(one.mode)):
            return Kind.SAME, How.AGAIN
        return Kind.CHANGED, How.METADATA if content else How.REPLACED

    def _is_same(self, was: Node, after: Node) -> bool:
        one, other = self._stack.entry(was), self._stack.entry(after)
        return is_same(one, other) and (not stat.S_ISREG(one.mode) or self._same(was, after))

    def _removed(self, node: Node, how: How, at: Path) -> Iterator[Change]:
        for inner in self._below.walk(node):
            yield Change(Kind.REMOVED, inner.path, inner, None, how, at)

    def _shown(self, row: int) -> int:
        """How many entries below a directory are no whiteouts."""
        rows = self._layer.below(row)
        hidden = sum(not mode for mode in self._layer.mode[rows.start : rows.stop])
        return len(rows) - hidden
