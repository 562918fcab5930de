"""How layers show together: the merged tree, as a mount has it, and any part of it.

Directories are merged by the code of the mount, `layers.merged.Merged`; an index says what there is
to merge. Layers are counted from 0 at the bottom here, and from 1 in what people read.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fuseoverlay.layers.index import Listing
from fuseoverlay.layers.merged import Merged
from fuseoverlay.view.layerindex import HIDES, IMPLIED, OPAQUE, REDIRECT, Entry, LayerIndex

Path = tuple[bytes, ...]

_TYPE: Final = 0o170000
#: To search one name costs as much as to read so many.
_FEW: Final = 8


@dataclass(frozen=True, slots=True)
class Dir:
    """A directory of one layer, by its row there."""

    layer: int
    row: int


#: Where the content of a file is that has only its metadata in its layer: layer and row; None if
#: that is not known.
Data = Callable[["Node"], tuple[int, int] | None]
#: Where directories of a name go on, top first: of those that the merged parent, its directories
#: given first, holds. Called where one of them has a redirect.
Follow = Callable[[tuple[Dir, ...], tuple[Dir, ...]], tuple[Dir, ...]]


@dataclass(frozen=True, slots=True)
class Node:
    """A name in the merged tree. `layer` and `row` say where its metadata and content are; `dirs`,
    of a directory, all that are merged, top first."""

    path: Path
    layer: int
    row: int
    dirs: tuple[Dir, ...] = ()

    @property
    def name(self) -> bytes:
        """The last name of the path; empty for the root."""
        return self.path[-1] if self.path else b""

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return bool(self.dirs)


class Stack:
    """Layers, bottom first, as they show together."""

    def __init__(
        self, layers: Sequence[LayerIndex], follow: Follow | None = None, data: Data | None = None
    ) -> None:
        """`follow`, `data`: where redirects and metacopy files lead, in layers that have such."""
        self.layers = layers
        self._follow = follow
        self.data = data

    def up_to(self, count: int) -> Stack:
        """Only the first `count` layers from the bottom."""
        return Stack(self.layers[:count], self._follow, self.data)

    # the tree

    @property
    def root(self) -> Node:
        """The root of the merged tree."""
        roots = tuple(Dir(number, 0) for number in reversed(range(len(self.layers))))
        return self._directory((), self._until_opaque(roots))

    def node(self, path: Path) -> Node | None:
        """What the stack shows at a path; links on the way are not followed."""
        found: Node | None = self.root
        for name in path:
            if found is None or not found.is_dir:
                return None
            found = self.child(found, name)
        return found

    def child(self, node: Node, name: bytes) -> Node | None:
        """What a directory shows under this name."""
        found = self.names_among(node, [name]).get(name)
        return None if found is None else self._node(node, name, found)

    def children(self, node: Node) -> list[Node]:
        """What a directory shows, sorted by name."""
        names = self.names(node)
        return [self._node(node, name, names[name]) for name in sorted(names)]

    def walk(self, node: Node) -> Iterator[Node]:
        """The node and all below it, depth first, sorted."""
        waiting = [node]
        while waiting:
            node = waiting.pop()
            yield node
            if node.is_dir:
                waiting += reversed(self.children(node))

    def below(self, parent: tuple[Dir, ...], dirs: tuple[Dir, ...]) -> tuple[Dir, ...]:
        """Those of the directories of one name, top first, that count; `parent`: the directories
        that hold them."""
        if self._follow is not None and any(self._has(one, REDIRECT) for one in dirs):
            return self._until_opaque(self._follow(parent, dirs))
        return self._until_opaque(dirs)

    def _node(self, parent: Node, name: bytes, found: Dir | tuple[Dir, ...]) -> Node:
        path = (*parent.path, name)
        if isinstance(found, Dir):
            return Node(path, found.layer, self.layers[found.layer].at(found.row, name))
        dirs = tuple(Dir(one.layer, self.layers[one.layer].at(one.row, name)) for one in found)
        return self._directory(path, self.below(parent.dirs, dirs))

    def _directory(self, path: Path, dirs: tuple[Dir, ...]) -> Node:
        """A directory that the topmost archive describes that lists it."""
        says = next((one for one in dirs if not self._has(one, IMPLIED)), dirs[-1])
        return Node(path, says.layer, says.row, dirs)

    def _has(self, one: Dir, flag: int) -> bool:
        return bool(self.layers[one.layer].flags[one.row] & flag)

    def _until_opaque(self, dirs: tuple[Dir, ...]) -> tuple[Dir, ...]:
        for at, one in enumerate(dirs, 1):
            if self._has(one, OPAQUE):
                return dirs[:at]
        return dirs

    def names(self, node: Node) -> Mapping[bytes, Dir | tuple[Dir, ...]]:
        """The names that a directory shows, in no order, for `named`."""
        merged: Merged[Dir] = Merged()
        for one in node.dirs:
            merged.add(one, self.listing(one))
        return merged.names

    def names_among(
        self, node: Node, wanted: Sequence[bytes]
    ) -> Mapping[bytes, Dir | tuple[Dir, ...]]:
        """`names`, of which only these are needed."""
        held = sum(self.layers[one.layer].count[one.row] for one in node.dirs)
        if held <= _FEW * len(wanted) * len(node.dirs):
            return self.names(node)
        found = {}
        for name in wanted:
            merged: Merged[Dir] = Merged()
            for one in node.dirs:
                merged.add(one, self._of_name(one, name))
            found.update(merged.names)
        return found

    def named(self, parent: Node, name: bytes, found: Dir | tuple[Dir, ...]) -> Node:
        """The node of a name in a directory, which `names` has found."""
        return self._node(parent, name, found)

    # one layer

    def listing(self, one: Dir) -> Listing:
        """What a directory of one layer holds."""
        layer, rows = self.layers[one.layer], self.layers[one.layer].children(one.row)
        names, modes = layer.names_in(one.row), layer.mode[rows.start : rows.stop]
        flags = bytes(layer.flags[rows.start : rows.stop])
        listing = Listing(opaque=self._has(one, OPAQUE))
        listing.entries = {
            name: mode & _TYPE == stat.S_IFDIR for name, mode in zip(names, modes, strict=True)
        }
        # Few directories have whiteouts.
        if flags.count(0) < len(flags):
            for name, mode, flag in zip(names, modes, flags, strict=True):
                if flag & HIDES:
                    (listing.wh if mode else listing.masks).add(name)
                if not mode:
                    del listing.entries[name]
        return listing

    def _of_name(self, one: Dir, name: bytes) -> Listing:
        """What a directory of one layer says of one name."""
        layer = self.layers[one.layer]
        row = layer.child(one.row, name)
        listing = Listing(opaque=self._has(one, OPAQUE))
        if row is not None:
            mode = layer.mode[row]
            if mode:
                listing.entries[name] = stat.S_ISDIR(mode)
            if layer.flags[row] & HIDES:
                (listing.wh if mode else listing.masks).add(name)
        return listing

    def entry(self, node: Node) -> Entry:
        """All that is known of a node."""
        return self.layers[node.layer].entry(node.row)
