"""What the tree shows: a flat list of rows, of which only those are looked up that are painted.

There is a row for each name in the directories that are open, and none for any other.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from fuseoverlay.commands import output
from fuseoverlay.commands.explore.comparing import DIFFERENT, Comparison, Helds, Pair
from fuseoverlay.commands.explore.search import Shown
from fuseoverlay.commands.explore.totals import Totals
from fuseoverlay.commands.show import units
from fuseoverlay.view.changes import Kind
from fuseoverlay.view.stack import Node, Path

#: What stands before a name, by what happened to it. `BELOW`: only below it something changed.
#: `AGAIN`: nothing, but a layer has the file once more.
LETTERS: Final = {Kind.ADDED: "A", Kind.CHANGED: "M", Kind.REMOVED: "D", Kind.SAME: " "}
BELOW: Final = "~"
AGAIN: Final = "="
#: So many names are looked at to find out whether something changed below a directory.
_LOOKED: Final = 20_000


class Opened(dict[bytes, "Opened"]):
    """The directories that are open in a directory."""


class Row:
    """A line of the tree. `opened`: of a directory that is open, those open in it. `shown`: of a
    directory of which only some is shown, what that is."""

    __slots__ = (
        *("depth", "helds", "is_last", "kind", "letter", "name", "opened", "pair", "parent"),
        "shown",
    )

    def __init__(
        self, parent: Row | None, name: bytes, helds: Helds, shown: Shown | None = None
    ) -> None:
        self.parent, self.name, self.helds, self.shown = parent, name, helds, shown
        self.depth: int = parent.depth + 1 if parent else 0
        self.is_last = False
        self.opened: Opened | None = None
        self.pair: Pair | None = None
        self.kind: Kind | None = None
        self.letter: str | None = None

    @property
    def is_dir(self) -> bool:
        """Whether it can be opened."""
        return self.parent is None or any(isinstance(held, tuple) for held in self.helds)

    @property
    def path(self) -> Path:
        """The names from the root to it."""
        names: list[bytes] = []
        row = self
        while row.parent is not None:
            names.append(row.name)
            row = row.parent
        return tuple(reversed(names))


class Line(NamedTuple):
    """A row as text. `mark` says whether it is open, `target` where a link leads."""

    letter: str
    mode: str
    owner: str
    size: str
    guides: str
    mark: str
    name: str
    target: str


class Model:
    """The rows, as they follow from what is compared, opened, and to be shown."""

    def __init__(self, comparison: Comparison, totals: Totals) -> None:
        self.comparison = comparison
        self.totals = totals
        #: What is shown: names of these kinds, and what leads to them.
        self.kinds: frozenset[Kind] = frozenset(Kind)
        self.by_size = False
        #: What a search found, None if there is none.
        self.found: Shown | None = None
        self.rows: list[Row] = []
        #: How many rows were looked up.
        self.looked_up = 0
        self._opened = Opened()
        self._all_opened = self._opened
        self.rebuild()

    def __str__(self) -> str:
        """How it differs from showing all by name."""
        left_out = ", ".join(kind for kind in Kind if kind not in self.kinds)
        return (f", without {left_out}" if left_out else "") + (", by size" if self.by_size else "")

    # what is shown

    def compare(self, comparison: Comparison) -> None:
        """Compare something else; what is open stays open."""
        self.comparison = comparison
        self.rebuild()

    def show_found(self, found: Shown | None) -> None:
        """Show only what a search found, opened up to there; None: all, as it was before."""
        if found is None:
            self._opened = self._all_opened
        else:
            self._opened = _opened_of(found)
        self.found = found
        self.rebuild()

    def toggle(self, kind: Kind) -> None:
        """Show names of this kind, or do not."""
        self.kinds ^= {kind}
        self.rebuild()

    def rebuild(self) -> None:
        """Make the rows anew."""
        root = Row(None, b"", (None, None), self.found)
        root.pair, root.opened = self.comparison.root(), self._opened
        self.rows = [root, *self._inside(root)]

    def _inside(self, row: Row) -> list[Row]:
        """The rows below an open directory."""
        rows: list[Row] = []
        waiting = [iter(self._children(row))]
        while waiting:
            inner = next(waiting[-1], None)
            if inner is None:
                waiting.pop()
                continue
            rows.append(inner)
            if inner.opened is not None:
                waiting.append(iter(self._children(inner)))
        return rows

    def _children(self, row: Row) -> list[Row]:
        pair = self.pair(row)
        names = self.comparison.names(pair)
        if row.shown is not None:
            names = {name: names[name] for name in row.shown if name in names}
        rows = [self._row(row, name, names[name]) for name in self._ordered(pair, names)]
        if len(self.kinds) < len(Kind):
            rows = [inner for inner in rows if self._is_shown(inner)]
        if rows:
            rows[-1].is_last = True
        return rows

    def _row(self, parent: Row, name: bytes, helds: Helds) -> Row:
        row = Row(parent, name, helds, parent.shown[name] if parent.shown is not None else None)
        if parent.opened and row.is_dir:
            row.opened = parent.opened.get(name)
        return row

    def _ordered(self, pair: Pair, names: Mapping[bytes, Helds]) -> Iterable[bytes]:
        if not self.by_size:
            return sorted(names)
        sizes: dict[bytes, int] = {}
        # What is there now counts more than what was.
        for stack, node in ((self.comparison.before, pair.was), (self.comparison.after, pair.now)):
            if stack is not None and node is not None and node.is_dir:
                sizes |= self.totals.sizes(stack, node)
        return sorted(names, key=lambda name: (-sizes.get(name, -1), name))

    def _is_shown(self, row: Row) -> bool:
        if self.kind(row) in self.kinds:
            return True
        return row.is_dir and self.comparison.has_below(self.pair(row), self.kinds)

    # opening and closing

    def open(self, index: int) -> None:
        """Show what is in the directory at this place in `rows`."""
        row = self.rows[index]
        beside = row.parent.opened if row.parent else None
        if row.opened is None and row.is_dir and beside is not None:
            row.opened = beside[row.name] = Opened()
            self.rows[index + 1 : index + 1] = self._inside(row)

    def close(self, index: int) -> None:
        """Show nothing of what is in the directory. The root stays open."""
        row = self.rows[index]
        beside = row.parent.opened if row.parent else None
        if row.opened is not None and beside is not None:
            del beside[row.name]
            row.opened = None
            del self.rows[index + 1 : self._end(index)]

    def close_all(self) -> None:
        """Close all directories."""
        self._opened.clear()
        self.rebuild()

    def _end(self, index: int) -> int:
        """The place after the last row below this one."""
        depth, end = self.rows[index].depth, index + 1
        while end < len(self.rows) and self.rows[end].depth > depth:
            end += 1
        return end

    def parent(self, index: int) -> int:
        """The place of the directory that holds the row; of the root its own."""
        depth = self.rows[index].depth
        while index and self.rows[index].depth >= depth:
            index -= 1
        return index

    def nearest(self, path: Path, *, opening: bool = False) -> int:
        """The place of this path, or of the directory next to it that has a row; `opening`
        directories on the way."""
        at = 0
        for name in path:
            if opening:
                self.open(at)
            inner = next(self._places(at, name), None)
            if inner is None:
                break
            at = inner
        return at

    def first_found(self) -> int:
        """The place of the first path that a search found, 0 if there is none."""
        return next((at for at in range(len(self.rows)) if self.is_found(at)), 0)

    def is_found(self, index: int) -> bool:
        """Whether a search found what is at this place, or a directory above it."""
        return self.found is not None and self.rows[index].shown is None

    def _places(self, index: int, name: bytes) -> Iterator[int]:
        depth = self.rows[index].depth + 1
        for at in range(index + 1, len(self.rows)):
            row = self.rows[at]
            if row.depth < depth:
                return
            if row.depth == depth and row.name == name:
                yield at

    # one row

    def pair(self, row: Row) -> Pair:
        """What the row is about, looked up once."""
        if row.pair is None:
            above = self.pair(row.parent) if row.parent else self.comparison.root()
            row.pair = self.comparison.pair(above, row.name, row.helds)
            self.looked_up += 1
        return row.pair

    def kind(self, row: Row) -> Kind:
        """What happened to it."""
        if row.kind is None:
            row.kind = self.comparison.kind(self.pair(row))
        return row.kind

    def letter(self, row: Row) -> str:
        """What stands before it."""
        if row.letter is None:
            row.letter = LETTERS[self.kind(row)]
            if row.letter == " ":
                row.letter = self._letter_of_same(row)
        return row.letter

    def _letter_of_same(self, row: Row) -> str:
        if self.pair(row).is_again:
            return AGAIN
        return BELOW if row.is_dir and self._has_changed_below(row) else " "

    def _has_changed_below(self, row: Row) -> bool:
        return self.comparison.has_below(self.pair(row), DIFFERENT, _LOOKED)

    def node(self, row: Row) -> Node:
        """The node that is shown, with its whole path."""
        node = self.pair(row).node
        return Node(row.path, node.layer, node.row, node.dirs)

    def line(self, row: Row, levels: int) -> Line:
        """The row as text; of the guides only the last so many levels."""
        pair = self.pair(row)
        entry = self.comparison.stack(pair).entry(pair.node)
        size = self.totals.of(pair.node)
        target = f" -> {output.named(entry.link)}" if entry.link else ""
        mark = "  " if not row.is_dir else "▾ " if row.opened is not None else "▸ "
        return Line(
            self.letter(row), stat.filemode(entry.mode), f"{entry.uid}:{entry.gid}",
            "" if size is None else units.size(size), _guides(row, levels), mark,
            output.named(row.name) if row.parent else "/", target,
        )  # fmt: skip


def _guides(row: Row, levels: int) -> str:
    parts: list[str] = []
    at = row
    while at.parent is not None and len(parts) < levels:
        if not parts:
            parts.append("└─" if at.is_last else "├─")
        else:
            parts.append("  " if at.is_last else "│ ")
        at = at.parent
    if at.parent is not None:
        parts.append("… ")
    return "".join(reversed(parts))


def _opened_of(shown: Shown) -> Opened:
    """What has to be open for all that was found to have a row."""
    top = Opened()
    waiting = [(shown, top)]
    while waiting:
        found, opened = waiting.pop()
        for name, inner in found.items():
            if inner is not None:
                opened[name] = Opened()
                waiting.append((inner, opened[name]))
    return top
