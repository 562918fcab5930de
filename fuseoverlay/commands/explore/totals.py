"""How many bytes directories hold, all that is below them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fuseoverlay.view.layerindex import REDIRECT
from fuseoverlay.view.stack import Dir, Node, Stack


class Totals:
    """Sums by directories. Those that layers share are found by `fill`, which may take long and
    may run in another thread."""

    def __init__(self, stack: Stack) -> None:
        """`stack`: all layers."""
        self._layers = stack.layers
        self._totals: dict[tuple[Dir, ...], int] = {}
        self._moved: dict[int, bool] = {}

    def of(self, node: Node) -> int | None:
        """What a directory holds, or the size of a file; None if that is not known yet."""
        if not node.is_dir:
            return self._layers[node.layer].sizes[node.row]
        known = self._totals.get(node.dirs)
        if known is None and self._is_alone(node):
            known = self._totals[node.dirs] = self._alone(node.dirs[0])
        return known

    def fill(self, stack: Stack, wanted: Callable[[], bool]) -> None:
        """Find those of all directories of the stack, as long as they are wanted."""
        # A directory, and once those in it are known what it holds itself.
        waiting: list[tuple[Node, int | None, list[Node]]] = [(stack.root, None, [])]
        while waiting and wanted():
            node, own, inside = waiting.pop()
            if own is not None:
                known = [self.of(child) or 0 for child in inside]
                self._totals[node.dirs] = own + sum(known)
            elif self.of(node) is None:
                names = stack.names(Node((), node.layer, node.row, node.dirs))
                inside = [
                    stack.named(Node((), node.layer, node.row, node.dirs), name, held)
                    for name, held in names.items()
                    if isinstance(held, tuple)
                ]
                own = sum(self._files(node, names).values())
                waiting.append((node, own, inside))
                waiting += [(child, None, []) for child in inside]

    def sizes(self, stack: Stack, node: Node) -> Mapping[bytes, int]:
        """The sizes of what a directory shows; -1 where that is not known yet."""
        names = stack.names(node)
        sizes = self._files(node, names)
        for name, held in names.items():
            if isinstance(held, tuple):
                total = self.of(stack.named(node, name, held))
                sizes[name] = -1 if total is None else total
        return sizes

    def _files(self, node: Node, names: Mapping[bytes, object]) -> dict[bytes, int]:
        """The sizes of the files: bisecting for each name would take longer."""
        sizes = {}
        for one in node.dirs:
            layer = self._layers[one.layer]
            for row in layer.children(one.row):
                name = layer.name(row)
                # That very object: a directory of several layers is in a tuple.
                if names.get(name) is one:
                    sizes[name] = layer.sizes[row]
        return sizes

    def _is_alone(self, node: Node) -> bool:
        return len(node.dirs) == 1 and not self._moves(node.dirs[0].layer)

    def _moves(self, number: int) -> bool:
        """Whether directories of this layer go on elsewhere."""
        if number not in self._moved:
            self._moved[number] = any(flag & REDIRECT for flag in self._layers[number].flags)
        return self._moved[number]

    def _alone(self, one: Dir) -> int:
        layer = self._layers[one.layer]
        rows = layer.below(one.row)
        return sum(layer.sizes[rows.start : rows.stop])
