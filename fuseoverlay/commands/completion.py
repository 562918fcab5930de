"""`fuseoverlay completion`: prints the script that a shell reads, `fuseoverlay/completion/*`."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from typing import Final

from fuseoverlay.commands import output
from fuseoverlay.commands.parser import Parser

#: The file for each shell, called as the shell looks for it.
_FILES: Final[Mapping[str, str]] = {
    "bash": "fuseoverlay",
    "zsh": "_fuseoverlay",
    "fish": "fuseoverlay.fish",
}


def command(argv: list[str]) -> int:
    """Print the script for a shell; return the exit code."""
    shell = parser("fuseoverlay completion").parse_args(argv).shell
    file = importlib.resources.files("fuseoverlay") / "completion" / _FILES[shell]
    output.say(file.read_text(encoding="utf-8").removesuffix("\n"))
    return 0


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = Parser(
        prog=prog,
        description="Print a script that completes the words of fuseoverlay: for bash, put "
        'eval "$(fuseoverlay completion bash)" into ~/.bashrc.',
    )
    made.add_argument("shell", metavar="SHELL", choices=tuple(_FILES), help="bash, zsh or fish")
    return made
