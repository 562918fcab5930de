"""Which words name a command that looks into layers, and how each of them is run."""

from __future__ import annotations

import importlib
import signal
from collections.abc import Mapping
from types import ModuleType
from typing import Final

#: The word, which is also the name of the module, and what it does.
COMMANDS: Final[Mapping[str, str]] = {
    "layers": "list the layers of an image, and what each does",
    "tree": "show the files of an image",
    "ls": "list files of an image",
    "cat": "print a file of an image",
    "cp": "copy files out of an image",
    "export": "write all files of an image as a tar archive",
    "which": "say which layer gives a file, and which hide it",
    "find": "find files in all layers",
    "diff": "compare two images, or two layers",
    "efficiency": "show what an image wastes, and why",
    "explore": "look into an image on the whole screen",
}


def run(name: str, argv: list[str], prog: str) -> int:
    """Run one of `COMMANDS`; `prog` is how it was called."""
    # So that what was begun is taken back: files that are made, processes, mounts of the screen.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)
    found: int = module(name).command(argv, prog)
    return found


def _end(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def module(name: str) -> ModuleType:
    """The module of one of `COMMANDS`, imported only when it is needed."""
    return importlib.import_module(f"fuseoverlay.commands.view.{name}")
