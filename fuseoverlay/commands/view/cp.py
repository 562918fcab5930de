"""`fuseoverlay cp`: copy files and trees out of an image, without mounting it."""

from __future__ import annotations

import os
import pathlib
import sys

from fuseoverlay.commands import output
from fuseoverlay.commands.parser import Parser
from fuseoverlay.commands.view import ls, subject
from fuseoverlay.errors import UsageError
from fuseoverlay.view import extract
from fuseoverlay.view.opened import View
from fuseoverlay.view.stack import Node, Stack


def command(argv: list[str], prog: str) -> int:
    """Copy; returns the exit code."""
    made = parser(prog)
    args = made.parse_intermixed_args(argv)
    image, path, target = _words(args.words, directories=bool(args.options), prog=prog)
    args.image = image
    with subject.look(args) as view:
        stack = subject.as_of(view, args.layer)
        node = ls.found(view, stack, subject.path_of(path))
        if target == "-":
            _to_stdout(view, stack, node, content=_is_content(path))
        else:
            place = _place(pathlib.Path(target), node, content=_is_content(path))
            _to_disk(view, stack, node, place, owners=args.archive)
        # What cannot be read may be missing.
        return subject.code_of(view)


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = subject.parser(
        prog, "Copy a file or a tree out of an image. Nothing that exists is overwritten. A path "
        "that ends in /. means what is in the directory.",
        f"{prog} debian:12 /etc/apt .", f"{prog} debian:12:/etc/apt copy",
        f"{prog} -a mnt /var/log - | tar tv", image=False,
    )  # fmt: skip
    made.usage = f"{prog} [OPTIONS] IMAGE|MNT FILE DIR|-"
    made.add_argument("words", nargs="+", metavar="IMAGE|MNT",
                      help=f"{subject.WHAT}; then a path inside it, or IMAGE:PATH; then where to: "
                      "a directory, a new path, or - for a tar archive on standard output"
                      )  # fmt: skip
    made.add_argument("-a", "--archive", action="store_true",
                      help="owners, attributes and devices, too; an archive always has them"
                      )  # fmt: skip
    made.add_argument("--layer", type=int, metavar="N", help="as of layer N, from 1 at the bottom")
    return made


def _words(words: list[str], *, directories: bool, prog: str) -> tuple[str | None, str, str]:
    """Image, path and target. UsageError."""
    match words:
        case [path, target] if directories:
            return None, path, target
        case [joined, target] if (found := subject.JOINED.match(joined)) is not None:
            return found["image"], found["path"], target
        case [image, path, target] if not directories:
            return image, path, target
        case _:
            raise UsageError(
                "an image, a path inside it and a place to copy to are wanted",
                hint=f"write {prog} IMAGE PATH DIR",
            )


def _is_content(path: str) -> bool:
    """Whether what is in the directory is meant."""
    return path == "." or path.endswith("/.")


def _place(target: pathlib.Path, node: Node, *, content: bool) -> pathlib.Path:
    """Where the copy goes: into a directory that exists, else there."""
    if target.is_dir() and not content and node.path:
        return target / os.fsdecode(node.name)
    return target


def _to_disk(
    view: View, stack: Stack, node: Node, place: pathlib.Path, *, owners: bool
) -> None:  # fmt: skip
    if not place.parent.is_dir():
        raise UsageError("there is no such directory", where=place.parent, hint="make it")
    extract.extract(view, stack, node, place, output.warn, owners=owners)


def _to_stdout(view: View, stack: Stack, node: Node, *, content: bool) -> None:
    if sys.stdout.isatty():
        raise UsageError("an archive is nothing for a terminal", hint="redirect it, or write DIR")
    name = b"." if content or not node.path else node.name
    with output.stream() as out:
        extract.write_tar(view, stack, node, name, out, output.warn)
