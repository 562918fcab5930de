"""`fuseoverlay explore`: look into an image on the whole screen."""

from __future__ import annotations

import importlib.util
import os
import sys

from fuseoverlay.commands.parser import Parser
from fuseoverlay.commands.view import subject
from fuseoverlay.errors import FuseOverlayError, UsageError

_INSTEAD = "use fuseoverlay layers, tree or efficiency"


def command(argv: list[str], prog: str) -> int:
    """Show layers, files and waste until the user quits; returns the exit code."""
    args = subject.parsed(parser(prog), argv)
    _check_terminal()
    if importlib.util.find_spec("textual") is None:
        hint = "install it: pip install 'fuseoverlay[explore]'"
        raise FuseOverlayError("explore needs the Python package textual", hint=hint)
    with subject.look(args) as view:
        if not view.layers:
            raise UsageError(f"{view.name} has no layers")
        from fuseoverlay.commands.explore.app import Explorer

        app = Explorer(view)
        app.run()
        return app.return_code or 0


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    return subject.parser(
        prog, "Look into an image on the whole screen: its layers, what each of them does to the "
        "files, and what is wasted. ? shows the keys, q quits.",
        f"{prog} debian:12", f"{prog} -o lowerdir=top:bottom", f"{prog} mnt",
    )  # fmt: skip


def _check_terminal() -> None:
    """UsageError without a terminal that can be painted on."""
    # textual paints on stderr.
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise UsageError("explore needs a terminal", hint=_INSTEAD)
    if os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        raise UsageError("explore needs a terminal that can be painted on", hint=_INSTEAD)
