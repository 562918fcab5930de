"""`fuseoverlay tree`: the files of an image as a tree, and what a layer did to each."""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from fuseoverlay.commands import output
from fuseoverlay.commands.parser import Parser
from fuseoverlay.commands.show import units
from fuseoverlay.commands.view import ls, subject
from fuseoverlay.errors import UsageError
from fuseoverlay.view.changes import Kind, changes
from fuseoverlay.view.opened import View
from fuseoverlay.view.stack import Node, Path, Stack

#: A letter for what a layer did, and its colour as SGR has it.
LETTERS: Final = {Kind.ADDED: "A", Kind.CHANGED: "M", Kind.REMOVED: "D", Kind.SAME: "="}
_COLOURS: Final = {Kind.ADDED: "32", Kind.CHANGED: "33", Kind.REMOVED: "31"}
_GUIDES: Final = {False: ("├── ", "│   "), True: ("└── ", "    ")}


@dataclass(slots=True)
class _Marks:
    """What a layer did to paths; and what it removed, by directory."""

    kinds: dict[Path, Kind] = field(default_factory=dict)
    removed: dict[Path, list[Node]] = field(default_factory=dict)
    #: Directories with changes in them.
    inside: set[Path] = field(default_factory=set)


@dataclass(slots=True)
class _Count:
    directories: int = 0
    files: int = 0
    removed: int = 0

    def text(self) -> str:
        """The last line."""
        directories = "1 directory" if self.directories == 1 else f"{self.directories} directories"
        files = "1 file" if self.files == 1 else f"{self.files} files"
        removed = f", {self.removed} removed" if self.removed else ""
        return f"{directories}, {files}{removed}"


def command(argv: list[str], prog: str) -> int:
    """Show the tree; returns the exit code."""
    args = subject.parsed(parser(prog), argv)
    if args.changes and args.layer is None:
        raise UsageError("--changes is for one layer", hint="write --layer N, too")
    if args.level is not None and args.level < 1:
        raise UsageError(f"-L {args.level} shows nothing", hint="write a number from 1 on")
    with subject.look(args) as view:
        stack = subject.as_of(view, args.layer)
        top = ls.found(view, stack, subject.path_of(args.path))
        marks = None if args.layer is None else _marks(view, subject.number_of(view, args.layer))
        if args.json:
            output.say_all(json.dumps(ls.described(stack, node)) for node in stack.walk(top))
            return 0
        output.say_all(_lines(stack, top, marks, args))
    return 0


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = subject.parser(
        prog, "Show the files of an image as a tree. With --layer: what that layer added (A), "
        "changed (M), removed (D), or has again as it was (=), in colour on a terminal.",
        f"{prog} -L 2 debian:12", f"{prog} --layer 3 --changes mine:1", f"{prog} mnt /etc",
    )  # fmt: skip
    made.add_argument("path", nargs="?", default="/", metavar="FILE", help="only what is below")
    made.add_argument("--layer", type=int, metavar="N", help="as of layer N, from 1 at the bottom")
    made.add_argument("--changes", action="store_true",
                      help="with --layer: only what that layer did")  # fmt: skip
    made.add_argument("-L", "--level", type=int, metavar="DEPTH", help="so many directories deep")
    made.add_argument("-s", "--size", action="store_true", help="the size of each file")
    made.add_argument("-p", "--perm", action="store_true", help="type and mode, and owner")
    made.add_argument("--json", action="store_true", help="a line of JSON for each file")
    return made


def _marks(view: View, number: int) -> _Marks:
    found = _Marks()
    for change in changes(view.stack, number, view.same):
        found.kinds[change.path] = change.kind
        if change.kind is Kind.REMOVED and change.before is not None:
            found.removed.setdefault(change.path[:-1], []).append(change.before)
        above = change.path[:-1]
        while above not in found.inside:
            found.inside.add(above)
            above = above[:-1]
    return found


def _lines(
    stack: Stack, top: Node, marks: _Marks | None, args: argparse.Namespace
) -> Iterator[str]:
    count = _Count(files=0 if top.is_dir else 1)
    yield _label(stack, top, marks, args, subject.shown(top.path))
    # (node, what stands before its name, what stands before names in it)
    waiting = [*reversed(_inside(stack, top, marks, args, ""))]
    while waiting:
        node, begin, indent = waiting.pop()
        yield begin + _label(stack, node, marks, args, output.named(node.name))
        if marks is not None and marks.kinds.get(node.path) is Kind.REMOVED:
            count.removed += 1
        elif node.is_dir:
            count.directories += 1
        else:
            count.files += 1
        if not node.is_dir:
            continue
        if args.level is None or len(node.path) - len(top.path) < args.level:
            waiting += reversed(_inside(stack, node, marks, args, indent))
    yield ""
    yield count.text()


def _inside(
    stack: Stack, node: Node, marks: _Marks | None, args: argparse.Namespace, indent: str
) -> list[tuple[Node, str, str]]:
    children = _children(stack, node, marks)
    if args.changes and marks is not None:
        children = [one for one in children if one.path in marks.kinds or one.path in marks.inside]
    last = len(children) - 1
    return [
        (child, indent + _GUIDES[at == last][0], indent + _GUIDES[at == last][1])
        for at, child in enumerate(children)
    ]


def _children(stack: Stack, node: Node, marks: _Marks | None) -> list[Node]:
    """What shows in the directory, and what the layer removed from it."""
    if not node.is_dir:
        return []
    removed = marks.removed.get(node.path, []) if marks is not None else []
    if marks is not None and marks.kinds.get(node.path) is Kind.REMOVED:
        return removed
    shown = stack.children(node)
    names = {child.name for child in shown}
    gone = [one for one in removed if one.name not in names]
    return sorted([*shown, *gone], key=lambda one: one.name) if gone else shown


def _label(
    stack: Stack, node: Node, marks: _Marks | None, args: argparse.Namespace, name: str
) -> str:
    entry = stack.entry(node)
    if args.perm or args.size:
        size = units.size(entry.size) if stat.S_ISREG(entry.mode) else ""
        owner = f" {entry.uid:>5} {entry.gid:>5}" if args.perm else ""
        mode = stat.filemode(entry.mode) if args.perm else ""
        name = f"[{mode}{owner}{f'{size:>7}' if args.size else ''}]  {name}"
    if entry.link:
        name += f" -> {output.named(entry.link)}"
    if marks is None:
        return name
    kind = marks.kinds.get(node.path)
    letter = LETTERS[kind] if kind else " "
    return _coloured(f"{letter} {name}", kind)


def _coloured(text: str, kind: Kind | None) -> str:
    if kind not in _COLOURS or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{_COLOURS[kind]}m{text}\x1b[0m"
