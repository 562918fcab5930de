"""Two states of a stack beside each other, directory by directory: nothing is built but what is
asked for."""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, cast

from fuseoverlay.errors import FuseOverlayError
from fuseoverlay.view.changes import Kind, Same, is_same
from fuseoverlay.view.opened import View
from fuseoverlay.view.stack import Dir, Node, Stack

#: Kinds of a name that is not as it was.
DIFFERENT: Final = frozenset({Kind.ADDED, Kind.CHANGED, Kind.REMOVED})
#: Files without a digest that have more bytes are not read to be compared.
_READ: Final = 1 << 20

#: Where a name is: the directory that holds a file of this name, or all that hold a directory.
Held = Dir | tuple[Dir, ...]
#: Where a name was, and where it is.
Helds = tuple[Held | None, Held | None]


@dataclass(frozen=True, slots=True)
class Pair:
    """One name in both states, None where it is missing. Its nodes do not know their whole path."""

    was: Node | None
    now: Node | None

    @property
    def node(self) -> Node:
        """What there is to show; what there was of a name that is gone."""
        return cast("Node", self.now or self.was)

    @property
    def is_dir(self) -> bool:
        """Whether there is something below it in one of the states."""
        return any(node is not None and node.is_dir for node in (self.was, self.now))

    @property
    def is_again(self) -> bool:
        """Whether it was and is a file, and each time one of its own."""
        was, now = self.was, self.now
        if was is None or now is None or now.is_dir:
            return False
        return (was.layer, was.row) != (now.layer, now.row)

    @property
    def is_same_below(self) -> bool:
        """Whether all below it comes from the same directories."""
        return self.was is not None and self.now is not None and self.was.dirs == self.now.dirs


class Comparison:
    """Compares `before`, None for nothing at all, with `after`."""

    def __init__(self, before: Stack | None, after: Stack, same: Same) -> None:
        self.before, self.after = before, after
        self._same: Final = same

    def stack(self, pair: Pair) -> Stack:
        """The stack that has `pair.node`."""
        return self.after if pair.now is not None or self.before is None else self.before

    def root(self) -> Pair:
        """The roots."""
        return Pair(None if self.before is None else self.before.root, self.after.root)

    def names(self, pair: Pair) -> Mapping[bytes, Helds]:
        """The names in a directory, unsorted, for `pair`."""
        now = _names(self.after, pair.now)
        if pair.is_same_below:
            return {name: (held, held) for name, held in now.items()}
        was = _names(self.before, pair.was)
        names: dict[bytes, Helds] = {name: (was.get(name), held) for name, held in now.items()}
        names.update((name, (held, None)) for name, held in was.items() if name not in now)
        return names

    def pair(self, parent: Pair, name: bytes, helds: Helds) -> Pair:
        """One of the names of a directory."""
        was, now = helds
        return Pair(_named(self.before, parent.was, name, was),
                    _named(self.after, parent.now, name, now))  # fmt: skip

    def kind(self, pair: Pair) -> Kind:
        """What happened to the name itself."""
        was, now = pair.was, pair.now
        if was is None:
            return Kind.ADDED
        if now is None:
            return Kind.REMOVED
        if (was.layer, was.row) == (now.layer, now.row):
            return Kind.SAME
        one, other = (self.before or self.after).entry(was), self.after.entry(now)
        same = is_same(one, other) and (not stat.S_ISREG(one.mode) or self._same(was, now))
        return Kind.SAME if same else Kind.CHANGED

    def has_below(self, pair: Pair, kinds: Collection[Kind], limit: int | None = None) -> bool:
        """Whether there is a name of one of these kinds below a directory. True, too, if `limit`
        names were looked at in vain."""
        looked = 0
        waiting = [pair]
        while waiting:
            pair = waiting.pop()
            if pair.is_same_below and Kind.SAME not in kinds:
                continue
            for inner in self._inside(pair, same=Kind.SAME in kinds):
                looked += 1
                if self.kind(inner) in kinds or looked == limit:
                    return True
                if inner.is_dir:
                    waiting.append(inner)
        return False

    def _inside(self, pair: Pair, *, same: bool) -> Iterator[Pair]:
        """What is in a directory; without `same` not the files that are seen to be no others."""
        for name, helds in self.names(pair).items():
            if same or helds[0] != helds[1] or isinstance(helds[0], tuple):
                yield self.pair(pair, name, helds)


def bounded(view: View) -> Same:
    """Compares contents as `view` does, but does not read large files. What cannot be read is like
    no other."""

    def same(one: Node, other: Node) -> bool:
        layer = view.stack.layers[one.layer]
        if layer.digest(one.row) is None and layer.sizes[one.row] > _READ:
            return False
        try:
            return view.same(one, other)
        except (OSError, FuseOverlayError):
            return False

    return same


def _names(stack: Stack | None, node: Node | None) -> Mapping[bytes, Held]:
    return {} if stack is None or node is None or not node.is_dir else stack.names(node)


def _named(stack: Stack | None, parent: Node | None, name: bytes, held: Held | None) -> Node | None:
    if stack is None or parent is None or held is None:
        return None
    # The path of a deep directory is long: nobody keeps it for each name.
    return stack.named(Node((), parent.layer, parent.row, parent.dirs), name, held)
