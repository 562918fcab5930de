"""Find names in all layers, whether they show or not."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fuseoverlay.view import life, patterns
from fuseoverlay.view.layerindex import REDIRECT, LayerIndex
from fuseoverlay.view.said import Event, Sayings
from fuseoverlay.view.stack import Node, Path, Stack


@dataclass(frozen=True, slots=True)
class Hit:
    """A name that was found. `whiteout`: it is only deleted there. `hidden`: the layer that hides
    it, from 0, how and where; None if it shows. `moved`: the path at which it shows, if a directory
    above it was renamed."""

    node: Node
    whiteout: bool
    hidden: tuple[int, Event, Path] | None
    moved: Path | None = None


def find(
    stack: Stack, pattern: str, layers: range, wanted: Callable[[LayerIndex, int], bool]
) -> Iterator[Hit]:
    """What fits the shell pattern in these layers, and is wanted by its row. Without a slash the
    pattern is one for names. With one it is for paths; only `**` fits a slash then. Layer by layer,
    and there directory by directory."""
    text = pattern.rstrip("/")
    *_, last = text.split("/")
    by_name = re.compile(rb"(?:(?<=\0)|\A)" + patterns.expression(last) + rb"(?=\0)")
    by_path = re.compile(patterns.expression(text.strip("/"))).fullmatch if "/" in text else None
    sayings = Sayings(stack.layers)
    moved = _moved(stack)
    for number in layers:
        layer = stack.layers[number]
        for row in _rows(layer, by_name):
            path = layer.path(row)
            shown = moved.get((number, row))
            fits = by_path is None or any(by_path(b"/".join(one)) for one in (path, shown or path))
            if not row or not wanted(layer, row) or not fits:
                continue
            node = Node(path, number, row)
            whiteout = not layer.mode[row]
            hidden = None if whiteout or shown else life.hidden_by(stack, sayings, node)
            yield Hit(node, whiteout, hidden, shown)


def _moved(stack: Stack) -> dict[tuple[int, int], Path]:
    """What shows at another path than it has in its layer; no image has such."""
    if not any(flags & REDIRECT for layer in stack.layers for flags in layer.flags):
        return {}
    return {
        (node.layer, node.row): node.path
        for node in stack.walk(stack.root)
        if stack.layers[node.layer].path(node.row) != node.path
    }


def _rows(layer: LayerIndex, expression: re.Pattern[bytes]) -> Iterator[int]:
    """Rows whose names fit. All names are searched at once; each ends with a zero byte."""
    for match in expression.finditer(layer.names):
        yield bisect_right(layer.name_at, match.start(), hi=len(layer)) - 1
