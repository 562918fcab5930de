"""`fuseoverlay tag`: a further name for an image."""

from __future__ import annotations

from fuseoverlay.commands.image import common
from fuseoverlay.commands.parser import Parser


def command(argv: list[str], prog: str) -> int:
    """Give an image a name; returns the exit code."""
    args = parser(prog).parse_args(argv)
    common.images_at(args.root).tag(args.image, args.name)
    return 0


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = common.parser(prog, "Give an image a further name.", f"{prog} debian:12 mine:1")
    made.add_argument("image", metavar="IMAGE", help="a name, an id, or its beginning")
    made.add_argument("name", metavar="NAME[:TAG]", help="the name that it gets")
    return made
