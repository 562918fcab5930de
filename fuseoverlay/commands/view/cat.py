"""`fuseoverlay cat`: the content of files of an image, without mounting it."""

from __future__ import annotations

from typing import Final

from fuseoverlay.commands import output
from fuseoverlay.commands.image import common
from fuseoverlay.commands.parser import Parser
from fuseoverlay.commands.view import ls, subject
from fuseoverlay.errors import ImageError, UsageError
from fuseoverlay.view import life
from fuseoverlay.view.opened import View
from fuseoverlay.view.stack import Node, Path, Stack

_PIECE: Final = 1 << 20


def command(argv: list[str], prog: str) -> int:
    """Print files; returns the exit code: of the first path that is not there, if any."""
    args = subject.parsed(parser(prog), argv)
    if not args.paths and args.image is not None and (joined := subject.JOINED.match(args.image)):
        args.image, args.paths = joined["image"], [joined["path"]]
    if not args.paths:
        raise UsageError("no file is named", hint=f"write {prog} IMAGE FILE")
    with subject.look(args) as view:
        stack = subject.as_of(view, args.layer)
        return common.each(args.paths, lambda text: _print(view, stack, subject.path_of(text)))


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = subject.parser(
        prog, "Print files of an image. Nothing is unpacked or mounted.",
        f"{prog} debian:12 /etc/os-release", f"{prog} --layer 1 mine:1 /etc/passwd",
    )  # fmt: skip
    made.add_argument("paths", nargs="*", metavar="FILE",
                      help="paths inside it; also IMAGE:FILE")  # fmt: skip
    made.add_argument("--layer", type=int, metavar="N", help="as of layer N, from 1 at the bottom")
    return made


def _print(view: View, stack: Stack, path: Path) -> None:
    node = regular(view, stack, path)
    with view.content(node.layer, node.row) as file:
        while data := file.read(_PIECE):
            output.write(data)


def regular(view: View, stack: Stack, path: Path) -> Node:
    """The regular file at the path, links followed. ImageError."""
    place = life.resolved(stack, path)
    if place is None:
        node = ls.found(view, stack, path)
        what = f"{subject.shown(node.path)} is a link that leads nowhere"
        raise ImageError(what, where=view.name, hint="see fuseoverlay ls -l")
    node = ls.found(view, stack, place)
    if not stack.layers[node.layer].is_file(node.row):
        what = f"{subject.shown(node.path)} is no regular file"
        raise ImageError(what, where=view.name, hint="see fuseoverlay ls -l")
    return node
