"""`fuseoverlay export`: the merged tree of an image or a mount as a tar archive."""

from __future__ import annotations

import contextlib
import pathlib
import sys
from collections.abc import Iterator
from typing import IO

from fuseoverlay.commands import output
from fuseoverlay.commands.parser import Parser
from fuseoverlay.commands.view import subject
from fuseoverlay.errors import UsageError
from fuseoverlay.store import targets
from fuseoverlay.view import extract


def command(argv: list[str], prog: str) -> int:
    """Write the archive; returns the exit code."""
    args = subject.parsed(parser(prog), argv)
    path = None if args.output in (None, "-") else pathlib.Path(args.output)
    if path is None and sys.stdout.isatty():
        raise UsageError("an archive is nothing for a terminal", hint="write -o FILE")
    with subject.look(args) as view:
        stack = subject.as_of(view, args.layer)
        with _opened(path) as file:
            extract.write_tar(view, stack, stack.root, b"", file, output.warn)
        # What cannot be read is missing.
        return subject.code_of(view)


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = subject.parser(
        prog, "Write all files of an image or a mount, as its layers show them together, as a tar "
        "archive. Nothing is unpacked or mounted.",
        f"{prog} -O debian.tar debian:12", f"{prog} mnt | ssh host tar -xpf - -C root",
        f"{prog} mine:1 | fuseoverlay import - flat:1",
    )  # fmt: skip
    made.add_argument("-O", "--output", metavar="FILE",
                      help="where to (default, and -: standard output)")  # fmt: skip
    made.add_argument("--layer", type=int, metavar="N", help="as of layer N, from 1 at the bottom")
    return made


@contextlib.contextmanager
def _opened(path: pathlib.Path | None) -> Iterator[IO[bytes]]:
    if path is None:
        with output.stream() as file:
            yield file
        return
    with targets.saving(path), targets.replaced(path) as file:
        yield file
