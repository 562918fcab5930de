"""`fuseoverlay logout`: the account for a registry is forgotten."""

from __future__ import annotations

import functools

import trio

from fuseoverlay.commands import output
from fuseoverlay.commands.image import fetching
from fuseoverlay.commands.image.login import parser_of
from fuseoverlay.commands.parser import Parser
from fuseoverlay.registry.login import logout


def command(argv: list[str], prog: str) -> int:
    """Log out; returns the exit code."""
    args = parser(prog).parse_args(argv)
    places = trio.run(functools.partial(logout, args.server, fetching.settings_of(args)))
    for place in places:
        output.note(f"removed from {place}")
    what = "Removed login credentials for" if places else "Not logged in to"
    output.say(f"{what} {args.server}")
    return 0


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    return parser_of(prog, "Log out of a registry.", f"{prog} quay.io")
