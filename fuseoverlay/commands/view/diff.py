"""`fuseoverlay diff`: what differs between two images, or between two layers of one."""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Iterator
from typing import Any, Final

from fuseoverlay.commands import output
from fuseoverlay.commands.parser import Parser
from fuseoverlay.commands.show import units
from fuseoverlay.commands.view import ls, subject
from fuseoverlay.errors import FuseOverlayError, UsageError, escaped, printable
from fuseoverlay.view.building import nothing
from fuseoverlay.view.changes import Kind
from fuseoverlay.view.compare import Difference, Side, compare
from fuseoverlay.view.layerindex import Entry
from fuseoverlay.view.opened import View
from fuseoverlay.view.stack import Node, Stack

#: As `docker diff` has them.
_LETTERS: Final = {Kind.ADDED: "A", Kind.CHANGED: "C", Kind.REMOVED: "D"}
#: Of a larger file no content is compared line by line.
_MOST: Final = 4 << 20
#: The exit code of diff(1) for errors.
_TROUBLE: Final = 2


def command(argv: list[str], prog: str) -> int:
    """Compare; returns the exit code: 0 if nothing differs, 1 if something does."""
    args = parser(prog).parse_intermixed_args(argv)
    subjects: list[str | None] = [*args.images, *([None] if args.options else [])]
    if len(subjects) != (1 if args.layers else 2):
        what = "--layers wants one image" if args.layers else "two images are wanted"
        hint = f"write {prog} IMAGE IMAGE, or {prog} IMAGE --layers N M"
        raise UsageError(what, hint=hint)
    args.image = None
    differs = False
    with contextlib.ExitStack() as stack:
        views = [stack.enter_context(subject.look(args, image)) for image in subjects]
        one, other = _sides(views, args.layers)

        def lines() -> Iterator[str]:
            nonlocal differs
            for found in compare(one, other, times=args.times):
                differs = True
                if args.json:
                    yield json.dumps(_as_json(one, other, found))
                    continue
                yield _line(one, other, found)
                if args.content:
                    yield from _content(one, other, found)

        try:
            output.say_all(lines())
        except FuseOverlayError as exc:
            # 1 would say that they differ, and nothing else.
            exc.exit_code = max(exc.exit_code, _TROUBLE)
            raise
        # What cannot be read may differ, or not.
        return subject.code_of(*views) or (1 if differs else 0)


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = subject.parser(
        prog, "Show what differs between two images, or two layers of one: A added, C changed, D "
        "removed.",
        f"{prog} debian:11 debian:12", f"{prog} mine:1 --layers 2 4",
        f"{prog} --content mine:1 mine:2", image=False,
    )  # fmt: skip
    made.add_argument("images", nargs="*", metavar="IMAGE|MNT", help=subject.WHAT)
    made.add_argument("--layers", nargs=2, type=int, metavar=("N", "M"),
                      help="compare the image as of layer N, from 1 at the bottom, with that as of "
                      "layer M; 0 is nothing")  # fmt: skip
    made.add_argument("--content", action="store_true", help="show what changed in texts, too")
    made.add_argument("--times", action="store_true", help="compare modification times, too")
    made.add_argument("--json", action="store_true", help="a line of JSON for each path")
    return made


def _sides(views: list[View], layers: list[int] | None) -> tuple[Side, Side]:
    if layers is None:
        one, other = views
        return Side(one, one.stack), Side(other, other.stack)
    (view,) = views
    first, second = (Side(view, _as_of(view, layer)) for layer in layers)
    return first, second


def _as_of(view: View, layer: int) -> Stack:
    return Stack([nothing()]) if layer == 0 else subject.as_of(view, layer)


def _line(one: Side, other: Side, found: Difference) -> str:
    line = f"{_LETTERS[found.kind]} {subject.shown(found.path)}"
    if found.before is None or found.after is None:
        return line + _about(one if found.after is None else other, found.before or found.after)
    was, now = one.stack.entry(found.before), other.stack.entry(found.after)
    return f"{line}  ({', '.join(_change(field, was, now) for field in found.fields)})"


def _change(field: str, was: Entry, now: Entry) -> str:
    """What became of a field of `compare.Difference`."""
    match field:
        case "type":
            return f"{ls.type_of(was)} -> {ls.type_of(now)}"
        case "mode":
            return f"mode {was.mode & 0o7777:04o} -> {now.mode & 0o7777:04o}"
        case "owner":
            return f"owner {was.uid}:{was.gid} -> {now.uid}:{now.gid}"
        case "size":
            return f"size {was.size} -> {now.size}"
        case "target":
            return f"target {output.named(was.link)} -> {output.named(now.link)}"
        case "xattrs":
            return "xattrs " + ", ".join(
                output.named(key) for key in sorted(was.xattrs.keys() | now.xattrs.keys())
                if was.xattrs.get(key) != now.xattrs.get(key)
            )  # fmt: skip
        case "time":
            return f"time {_time(was.mtime)} -> {_time(now.mtime)}"
        case "device":
            return "device number"
        case _:
            return field


def _time(ns: int) -> str:
    """A time of a file in full."""
    seconds, fraction = divmod(ns, 10**9)
    return f"{ls.when(ns)}:{seconds % 60:02}" + (f".{fraction:09}".rstrip("0") if fraction else "")


def _about(side: Side, node: Node | None) -> str:
    if node is None or node.is_dir:
        return ""
    entry = side.stack.entry(node)
    return f" -> {output.named(entry.link)}" if entry.link else f"  ({units.size(entry.size)})"


def _as_json(one: Side, other: Side, found: Difference) -> dict[str, Any]:
    item: dict[str, Any] = {"path": subject.raw(found.path), "kind": str(found.kind)}
    if found.fields:
        item["fields"] = list(found.fields)
    if found.before is not None:
        item["before"] = ls.facts(one.stack.entry(found.before))
    if found.after is not None:
        item["after"] = ls.facts(other.stack.entry(found.after))
    return item


def _content(one: Side, other: Side, found: Difference) -> Iterator[str]:
    """A unified diff of two texts."""
    if found.fields and "content" not in found.fields and "type" not in found.fields:
        return
    texts = [_lines(one, found.before), _lines(other, found.after)]
    if None in texts:
        yield "  (binary, or larger than 4 MiB)"
        return
    name = subject.shown(found.path)
    names = [name if texts[0] else "/dev/null", name if texts[1] else "/dev/null"]
    before, after = (text or [] for text in texts)
    for line in difflib.unified_diff(before, after, names[0], names[1], lineterm=""):
        # All but tabs may move a terminal's cursor.
        yield "\t".join(escaped(printable(part)) for part in line.split("\t"))


def _lines(side: Side, node: Node | None) -> list[str] | None:
    """The lines of a text; none of what is no regular file; None for a binary, or a large one."""
    if node is None or not side.stack.layers[node.layer].is_file(node.row):
        return []
    if side.stack.layers[node.layer].sizes[node.row] > _MOST:
        return None
    with side.view.content(node.layer, node.row) as file:
        data = b"".join(iter(lambda: file.read(_MOST), b""))
    return None if b"\0" in data else data.decode("utf-8", "surrogateescape").splitlines()
