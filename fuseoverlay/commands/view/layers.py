"""`fuseoverlay layers`: the layers of an image, and what each of them does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from fuseoverlay.commands import output
from fuseoverlay.commands.image import common
from fuseoverlay.commands.parser import Parser
from fuseoverlay.commands.show import units
from fuseoverlay.commands.view import reasons, subject
from fuseoverlay.view import kept
from fuseoverlay.view.opened import Layer, View

_HEADINGS: Final = {
    "Number": "LAYER",
    "ID": "DIFF ID",
    "Digest": "DIGEST",
    "Compressed": "COMPRESSED",
    "Size": "SIZE",
    "Entries": "ENTRIES",
    "Added": "ADDED",
    "Changed": "CHANGED",
    "Removed": "REMOVED",
    "Reclaimable": "RECLAIMABLE",
    "CreatedBy": "CREATED BY",
    "Problem": "PROBLEM",
}
_COLUMNS: Final = ("Number", "ID", "Compressed", "Size", "Entries", "Added", "Changed", "Removed",
                   "Reclaimable", "CreatedBy")  # fmt: skip
#: Digits of a digest.
_DIGITS: Final = 12


def command(argv: list[str], prog: str) -> int:
    """List the layers; returns the exit code."""
    args = subject.parsed(parser(prog), argv)
    with subject.look(args) as view:
        if args.json:
            output.say_all(map(json.dumps, _as_json(view)))
            return 0
        rows = list(_rows(view, whole=args.no_trunc, human=args.human))
    common.show(rows, _HEADINGS, args.format, _COLUMNS)
    return 0


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = subject.parser(
        prog, "List the layers, the bottom one first, and what each does to those below it: "
        "entries added, changed, removed; RECLAIMABLE: bytes of it that the layers above hide.",
        f"{prog} debian:12", f"{prog} -o lowerdir=top:bottom", f"{prog} mnt",
    )  # fmt: skip
    made.add_argument("--no-trunc", action="store_true", help="whole digests and commands")
    common.add_switch(made, "-H", "--human", default=True,
                      help="sizes as 1.2MB, as by default; --human=false: in bytes")  # fmt: skip
    made.add_argument("--json", action="store_true",
                      help="a line of JSON for each, with numbers of bytes")  # fmt: skip
    made.add_argument("--format", metavar="FORM",
                      help="table, json, a template, or table TEMPLATE; fields: "
                      + " ".join(_HEADINGS))  # fmt: skip
    return made


def _rows(view: View, *, whole: bool, human: bool) -> Iterator[dict[str, Any]]:
    found = kept.found(view)
    size = units.size if human else str
    for layer, index, effect in zip(view.layers, view.stack.layers, found.effects, strict=False):
        yield {
            "Number": str(layer.number),
            "ID": _short(layer.name, whole=whole),
            "Digest": _short(layer.digest or "", whole=whole),
            "Compressed": "" if layer.compressed is None else size(layer.compressed),
            "Size": size(index.size),
            "Entries": str(len(index) - 1),
            "Added": str(effect.added),
            "Changed": str(effect.changed),
            "Removed": str(effect.removed),
            "Reclaimable": size(effect.wasted),
            "CreatedBy": _made_by(layer, whole=whole),
            "Problem": layer.problem or "",
        }


def _made_by(layer: Layer, *, whole: bool) -> str:
    if layer.problem:
        return "(cannot be read)"
    return reasons.step(layer) if whole else reasons.short_step(layer)


def _as_json(view: View) -> Iterator[dict[str, Any]]:
    """The same in numbers."""
    found = kept.found(view)
    for layer, index, effect in zip(view.layers, view.stack.layers, found.effects, strict=False):
        yield {
            "layer": layer.number,
            "name": layer.name,
            "digest": layer.digest,
            "compressed": layer.compressed,
            "size": index.size,
            "entries": len(index) - 1,
            "added": effect.added,
            "changed": effect.changed,
            "removed": effect.removed,
            "reclaimable": effect.wasted,
            "command": layer.step.created_by,
            "problem": layer.problem,
        }


def _short(name: str, *, whole: bool) -> str:
    algorithm, colon, digits = name.partition(":")
    if whole or not colon or "/" in algorithm:
        return name
    return digits[:_DIGITS]
