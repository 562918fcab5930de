"""`fuseoverlay save`: images into a file, a directory or standard output."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import IO, Final

from fuseoverlay.commands.image import common
from fuseoverlay.commands.parser import Parser
from fuseoverlay.errors import UsageError
from fuseoverlay.store import save, targets

_ARCHIVES: Final = {"docker-archive": save.save_docker, "oci-archive": save.save_archive}


def command(argv: list[str], prog: str) -> int:
    """Save images; returns the exit code."""
    args = parser(prog).parse_args(argv)
    platform = common.platform(args.platform)
    output = None if args.output == "-" else args.output
    if output is None:
        _check_stdout(args.format)
    images = common.images_at(args.root)
    if args.format == "oci":
        save.save_layout(images, args.images, args.output, platform=platform)
        return 0
    with targets.saving(output or "standard output"), _opened(output) as file:
        _ARCHIVES[args.format](images, args.images, file, platform=platform)
    return 0


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = common.parser(
        prog, "Save images, so that others can load them.",
        f"{prog} -o debian.tar debian:12", f"{prog} debian:12 mine:1 | ssh host docker load",
        f"{prog} --format oci -o layout debian:12",
    )  # fmt: skip
    made.add_argument("images", nargs="+", metavar="IMAGE", help="a name, an id, its beginning")
    made.add_argument("-o", "--output", metavar="FILE",
                      help="where to (default, and -: standard output)")  # fmt: skip
    made.add_argument("--format", choices=(*_ARCHIVES, "oci"), default="docker-archive",
                      help="docker-archive (the default): plain layers, one platform; oci-archive: "
                      "bit for bit; oci: the same as a directory, which may be a layout already"
                      )  # fmt: skip
    made.add_argument("--platform", metavar="OS/ARCH[/VARIANT]",
                      help="only this one of a multi-platform image")  # fmt: skip
    return made


def _check_stdout(form: str) -> None:
    if form == "oci":
        raise UsageError("a directory has to be named", hint="write -o DIR")
    if sys.stdout.isatty():
        raise UsageError(
            "an archive is nothing for a terminal", hint="write -o FILE, or redirect the output"
        )


@contextlib.contextmanager
def _opened(output: str | None) -> Iterator[IO[bytes]]:
    if output is not None:
        with targets.replaced(pathlib.Path(output)) as file:
            yield file
        return
    # What cannot be written is known when this is closed.
    with open(os.dup(sys.stdout.fileno()), "wb") as file:
        yield file
