"""`fuseoverlay ls`: files of an image, without mounting it."""

from __future__ import annotations

import datetime
import json
import os
import stat
from collections.abc import Iterator
from typing import Any, Final

from fuseoverlay.commands import output
from fuseoverlay.commands.image import common
from fuseoverlay.commands.parser import Parser
from fuseoverlay.commands.view import subject
from fuseoverlay.errors import ImageError, escaped
from fuseoverlay.view import life
from fuseoverlay.view.layerindex import Entry
from fuseoverlay.view.opened import View
from fuseoverlay.view.stack import Node, Path, Stack

_FORMAT: Final = "%Y-%m-%d %H:%M"
_TYPES: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
}


def command(argv: list[str], prog: str) -> int:
    """List files; returns the exit code: of the first path that is not there, if any."""
    args = subject.parsed(parser(prog), argv)
    with subject.look(args) as view:
        stack = subject.as_of(view, args.layer)
        paths = args.paths or ["/"]

        first = True

        def show(text: str) -> None:
            nonlocal first
            node = _named(view, stack, text, link=args.long or args.directory)
            nodes = _listed(stack, node, directory=args.directory, recursive=args.recursive)
            if args.json:
                output.say_all(json.dumps(described(stack, inner)) for inner in nodes)
            else:
                itself = b"." if args.recursive and node.is_dir else os.fsencode(text)
                if len(paths) > 1 and node.is_dir and not args.directory:
                    output.say(f"{'' if first else chr(10)}{escaped(text)}:")
                output.say_all(_lines(stack, nodes, node, itself, long=args.long))
            first = False

        return common.each(paths, show)


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = subject.parser(
        prog, "List files of an image. Nothing is unpacked or mounted.",
        f"{prog} -l debian:12 /etc", f"{prog} --layer 2 mine:1 /", f"{prog} -lR mnt /var/log",
    )  # fmt: skip
    made.add_argument("paths", nargs="*", metavar="FILE", help="paths inside it (default: /)")
    made.add_argument("-l", "--long", action="store_true",
                      help="type and mode, names, owner, size, time; from which layer")  # fmt: skip
    made.add_argument("-d", "--directory", action="store_true", help="directories themselves")
    made.add_argument("-R", "--recursive", action="store_true", help="all that is below, too")
    made.add_argument("--layer", type=int, metavar="N", help="as of layer N, from 1 at the bottom")
    made.add_argument("--json", action="store_true", help="a line of JSON for each file")
    return made


def found(view: View, stack: Stack, path: Path) -> Node:
    """What shows at the path; links above its last name are followed. ImageError."""
    above = life.resolved(stack, path[:-1]) if path else ()
    node = None if above is None else stack.node((*above, *path[-1:]))
    if node is None:
        hint = "`fuseoverlay which` says whether a layer has it"
        raise ImageError(f"there is no {subject.shown(path)}", where=view.name, hint=hint)
    return node


def _named(view: View, stack: Stack, text: str, *, link: bool) -> Node:
    """What is listed: a link to a directory stands for that, unless the `link` itself is wanted and
    no slash follows its name. ImageError."""
    node = found(view, stack, subject.path_of(text))
    if stack.layers[node.layer].target(node.row) and (text.endswith("/") or not link):
        place = life.resolved(stack, node.path)
        target = None if place is None else stack.node(place)
        if target is not None and target.is_dir:
            return target
    return node


def _listed(stack: Stack, node: Node, *, directory: bool, recursive: bool) -> Iterator[Node]:
    if directory or not node.is_dir:
        yield node
    elif recursive:
        yield from stack.walk(node)
    else:
        yield from stack.children(node)


def _lines(
    stack: Stack, nodes: Iterator[Node], top: Node, itself: bytes, *, long: bool
) -> Iterator[str]:
    """A line for each node; `itself`: what `top` is called."""
    for node in nodes:
        name = output.named(b"/".join(node.path[len(top.path) :]) or itself)
        if not long:
            yield name
            continue
        entry = stack.entry(node)
        size = f"{os.major(entry.rdev)}, {os.minor(entry.rdev)}" if entry.rdev else entry.size
        target = f" -> {output.named(entry.link)}" if entry.link else ""
        yield (
            f"{stat.filemode(entry.mode)} {entry.nlink:>2} {entry.uid:>5} {entry.gid:>5} "
            f"{size:>10} {when(entry.mtime)} {node.layer + 1:>3} {name}{target}"
        )


def when(ns: int) -> str:
    """A time of a file, in UTC; its number of seconds where no calendar has it."""
    try:
        return datetime.datetime.fromtimestamp(ns // 10**9, datetime.UTC).strftime(_FORMAT)
    except (OverflowError, ValueError, OSError):
        return str(ns // 10**9)


def type_of(entry: Entry) -> str:
    """The type of a file in a word."""
    return _TYPES[stat.S_IFMT(entry.mode)]


def described(stack: Stack, node: Node) -> dict[str, Any]:
    """A file as JSON has it; `layer` counts from 1."""
    return {"path": subject.raw(node.path), **facts(stack.entry(node)), "layer": node.layer + 1}


def facts(entry: Entry) -> dict[str, Any]:
    """What is known of a file, as JSON has it: mode as text, time in ns, attributes in hex."""
    found: dict[str, Any] = {
        "mode": stat.filemode(entry.mode), "uid": entry.uid, "gid": entry.gid, "size": entry.size,
        "mtime": entry.mtime,
    }  # fmt: skip
    if entry.link:
        found["target"] = os.fsdecode(entry.link)
    if entry.rdev:
        found["device"] = f"{os.major(entry.rdev)}:{os.minor(entry.rdev)}"
    if entry.digest is not None:
        found["sha256"] = entry.digest.hex()
    if entry.xattrs:
        found["xattrs"] = {os.fsdecode(key): value.hex() for key, value in entry.xattrs.items()}
    return found
