"""`fuseoverlay import`: an image from an archive of a root file system."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import IO, Any

from fuseoverlay.commands import output
from fuseoverlay.commands.image import common
from fuseoverlay.commands.parser import Parser
from fuseoverlay.errors import ImageError, UsageError, describe
from fuseoverlay.oci.reference import Reference
from fuseoverlay.store import instructions
from fuseoverlay.store.importing import import_archive


def command(argv: list[str], prog: str) -> int:
    """Import an image; returns the exit code."""
    args = parser(prog).parse_args(argv)
    platform = common.platform(args.platform)
    name = None if args.name is None else Reference.parse(args.name)
    if name is not None and name.digest is not None:
        raise UsageError("a name with a digest cannot be given", hint="write NAME[:TAG]")
    config: dict[str, Any] = {}
    instructions.apply(config, args.change)
    images = common.images_at(args.root)
    with _opened(args.file) as file:
        imported = import_archive(
            images.store, file, "standard input" if args.file == "-" else args.file,
            name=None if name is None else str(name), platform=platform, message=args.message,
            config=config, warn=output.warn,
        )  # fmt: skip
    output.say(imported.id)
    return 0


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = common.parser(
        prog, "Make an image of a tar archive of a root file system.",
        f"{prog} rootfs.tar.gz mine:1",
        f"debootstrap stable root && tar -cC root . | {prog} -c 'CMD [\"bash\"]' - debian:mine",
    )  # fmt: skip
    made.add_argument("file", metavar="FILE|-", help="the archive; -: standard input")
    made.add_argument("name", nargs="?", metavar="NAME[:TAG]", help="what the image is called")
    made.add_argument("-c", "--change", action="append", default=[], metavar="INSTRUCTION",
                      help="CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME "
                      "or WORKDIR, as in a Dockerfile; may be given several times")  # fmt: skip
    made.add_argument("-m", "--message", metavar="TEXT", help="the comment in the history")
    made.add_argument("--platform", metavar="OS/ARCH[/VARIANT]",
                      help="what it is for (default: this machine)")  # fmt: skip
    return made


@contextlib.contextmanager
def _opened(file: str) -> Iterator[IO[bytes]]:
    if file == "-" and sys.stdin.isatty():
        raise UsageError("an archive does not come from a terminal", hint="pipe one in")
    if "://" in file and not os.path.lexists(file):
        raise UsageError(f"{file} is a URL", hint=f"write curl -fL {file} | fuseoverlay import -")
    try:
        what = os.dup(sys.stdin.fileno()) if file == "-" else file
        opened = open(what, "rb", buffering=0)  # noqa: SIM115  # closed below
    except OSError as exc:
        hint = "name a file that you may read"
        raise ImageError(f"cannot open: {describe(exc)}", where=file, hint=hint) from exc
    with opened:
        yield opened
