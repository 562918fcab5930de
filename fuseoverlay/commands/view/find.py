"""`fuseoverlay find`: names in all layers, also those that do not show."""

from __future__ import annotations

import argparse
import json
import stat
from collections.abc import Iterator
from typing import Any, Final

from fuseoverlay.commands import output
from fuseoverlay.commands.parser import Parser
from fuseoverlay.commands.show import units
from fuseoverlay.commands.view import ls, subject
from fuseoverlay.errors import UsageError
from fuseoverlay.view import finding
from fuseoverlay.view.bytecount import size_of
from fuseoverlay.view.finding import Hit
from fuseoverlay.view.layerindex import OPAQUE, LayerIndex
from fuseoverlay.view.opened import View
from fuseoverlay.view.said import Event

#: As find(1) has them; `w` is a whiteout.
_TYPES: Final = {
    "f": stat.S_IFREG,
    "d": stat.S_IFDIR,
    "l": stat.S_IFLNK,
    "b": stat.S_IFBLK,
    "c": stat.S_IFCHR,
    "p": stat.S_IFIFO,
    "w": 0,
}
#: What stands for opaque directories among the types.
_OPAQUE: Final = "o"
#: How a layer hides what is below a directory; `{}` is the directory.
_ABOVE: Final = {
    Event.DELETES: "which deletes {}",
    Event.COVERS: "which has a file at {}",
    Event.OPAQUE: "which makes {} opaque",
    Event.RENAMES: "which has another directory at {}",
}


def command(argv: list[str], prog: str) -> int:
    """Find names; returns the exit code: 1 if there is none."""
    args = subject.parsed(parser(prog), argv)
    least = None if args.larger_than is None else _bytes(args.larger_than)
    any_hit = False
    with subject.look(args) as view:

        def lines() -> Iterator[str]:
            nonlocal any_hit
            for hit in _hits(view, args, least):
                any_hit = True
                yield json.dumps(_as_json(view, hit)) if args.json else _line(view, hit)

        output.say_all(lines())
    return 0 if any_hit else 1


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = subject.parser(
        prog, "Find files by a shell pattern in all layers, also those that are hidden: the layer, "
        "the size, and what hides it. A pattern with a slash is one for whole paths, where only ** "
        "fits a slash.",
        f"{prog} debian:12 '*.pyc'", f"{prog} --larger-than 10MB mine:1 '*'",
        f"{prog} --layer 2 --type w mine:1 '*'",
    )  # fmt: skip
    made.add_argument("pattern", metavar="PATTERN", help="such as '*.log', or '/var/**/*.log'")
    made.add_argument(
        "--layer", type=int, metavar="N", help="only in layer N, from 1 at the bottom"
    )
    made.add_argument("--type", choices=(*_TYPES, _OPAQUE),
                      help="file, directory, link, block or character device, pipe, whiteout, "
                      "opaque directory")  # fmt: skip
    made.add_argument(
        "--larger-than", metavar="SIZE", help="only files with more bytes: 10MB, 4KiB"
    )
    made.add_argument("--hidden", action="store_true", help="only what does not show")
    made.add_argument("--json", action="store_true", help="a line of JSON for each")
    return made


def _hits(view: View, args: argparse.Namespace, least: int | None) -> Iterator[Hit]:
    layers = range(len(view.stack.layers))
    if args.layer is not None:
        number = subject.number_of(view, args.layer)
        layers = range(number, number + 1)
    kind = _TYPES.get(args.type)

    def wanted(layer: LayerIndex, row: int) -> bool:
        mode = layer.mode[row]
        if args.type == _OPAQUE and not layer.flags[row] & OPAQUE:
            return False
        if kind is not None and stat.S_IFMT(mode) != kind:
            return False
        return least is None or (stat.S_ISREG(mode) and layer.sizes[row] > least)

    for hit in finding.find(view.stack, args.pattern, layers, wanted):
        if not args.hidden or hit.hidden is not None or hit.whiteout:
            yield hit


def _line(view: View, hit: Hit) -> str:
    node = hit.node
    entry = view.stack.layers[node.layer].entry(node.row)
    size = "" if hit.whiteout or not stat.S_ISREG(entry.mode) else units.size(entry.size)
    mode = "whiteout" if hit.whiteout else stat.filemode(entry.mode)
    target = f" -> {output.named(entry.link)}" if entry.link else ""
    opaque = view.stack.layers[node.layer].flags[node.row] & OPAQUE
    state = f"{'  [opaque]' if opaque else ''}{_state(hit)}"
    return f"{node.layer + 1:>3} {mode:10} {size:>7} {subject.shown(node.path)}{target}{state}"


def _state(hit: Hit) -> str:
    if hit.moved is not None:
        return f"  [shows as {subject.shown(hit.moved)}]"
    if hit.hidden is None:
        return ""
    number, event, at = hit.hidden
    if event is Event.CHANGES:
        return f"  [replaced by layer {number + 1}]"
    if at == hit.node.path and event is Event.DELETES:
        return f"  [deleted by layer {number + 1}]"
    return f"  [hidden by layer {number + 1}, {_ABOVE[event].format(subject.shown(at))}]"


def _as_json(view: View, hit: Hit) -> dict[str, Any]:
    node = hit.node
    found: dict[str, Any] = {"layer": node.layer + 1, "path": subject.raw(node.path)}
    if hit.whiteout:
        return {**found, "whiteout": True}
    found |= ls.facts(view.stack.layers[node.layer].entry(node.row))
    if view.stack.layers[node.layer].flags[node.row] & OPAQUE:
        found["opaque"] = True
    if hit.moved is not None:
        found["shownAs"] = subject.raw(hit.moved)
    if hit.hidden is not None:
        number, event, at = hit.hidden
        found["hiddenBy"] = {"layer": number + 1, "how": str(event), "at": subject.raw(at)}
    return found


def _bytes(text: str) -> int:
    """A size as people write it. UsageError."""
    try:
        return size_of(text)
    except ValueError as exc:
        hint = "write 10MB, 4KiB, or bytes"
        raise UsageError(f"--larger-than {text}: {exc}", hint=hint) from None
