"""Find names in all layers, whether they show or not."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from fuseoverlay.view import life
from fuseoverlay.view.layerindex import REDIRECT, LayerIndex
from fuseoverlay.view.said import Event, Sayings
from fuseoverlay.view.stack import Node, Path, Stack

#: What is special in a pattern, and any other character.
_PIECES: Final = re.compile(rb"\*\*+|\*|\?|\[(!?)(\]?[^]]*)\]|\\?(.)", re.DOTALL)
_ANY: Final = rb"[^/\0]"
#: One character of UTF-8, or a byte that is none.
_CHARACTER: Final = rb"(?:[\xc0-\xff][\x80-\xbf]+|[^/\0])"


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
    text = os.fsencode(pattern).rstrip(b"/")
    *_, last = text.split(b"/")
    by_name = re.compile(rb"(?:(?<=\0)|\A)" + _expression(last) + rb"(?=\0)")
    by_path = re.compile(_expression(text.strip(b"/"))).fullmatch if b"/" in text else None
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


def _expression(pattern: bytes) -> bytes:
    """A regular expression that fits what the shell pattern fits: `*`, `?`, `[...]`, `[!...]`, and
    a character after a backslash, as it is."""
    return _PIECES.sub(_piece, pattern)


def _piece(match: re.Match[bytes]) -> bytes:
    whole = match[0]
    if whole == b"*":
        return _ANY + b"*"
    if whole.startswith(b"**"):
        return rb"[^\0]*"
    if whole == b"?":
        return _CHARACTER
    if match[2] is not None:
        inside = re.sub(rb"([\\\[\]^&~|])", rb"\\\1", match[2])
        return (rb"[^/\0" if match[1] else b"[") + inside + b"]"
    return re.escape(match[3])
