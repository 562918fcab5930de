"""How a difference between two trees is printed."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, Final

from fuseoverlay.commands import output
from fuseoverlay.commands.show import units
from fuseoverlay.commands.view import ls, subject
from fuseoverlay.errors import escaped, printable
from fuseoverlay.view.changes import Kind
from fuseoverlay.view.compare import Difference, Side
from fuseoverlay.view.layerindex import Entry
from fuseoverlay.view.stack import Node

#: As `docker diff` has them.
LETTERS: Final = {Kind.ADDED: "A", Kind.CHANGED: "C", Kind.REMOVED: "D"}
#: Of a larger file no content is compared line by line.
_MOST: Final = 4 << 20


def line(one: Side, other: Side, found: Difference) -> str:
    """A difference in a line, with all that differs."""
    line = f"{LETTERS[found.kind]} {subject.shown(found.path)}"
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


def as_json(one: Side, other: Side, found: Difference) -> dict[str, Any]:
    """The same as JSON has it."""
    item: dict[str, Any] = {"path": subject.raw(found.path), "kind": str(found.kind)}
    if found.fields:
        item["fields"] = list(found.fields)
    if found.before is not None:
        item["before"] = ls.facts(one.stack.entry(found.before))
    if found.after is not None:
        item["after"] = ls.facts(other.stack.entry(found.after))
    return item


def content(one: Side, other: Side, found: Difference) -> Iterator[str]:
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
