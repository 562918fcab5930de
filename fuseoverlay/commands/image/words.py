"""Which words name a command for images, and how each of them is run.

The modules are imported only when they are needed: most of them take longer to load than to run.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Final

from fuseoverlay.commands import advice, output
from fuseoverlay.errors import UsageError

#: After `image`: the word, which is mostly that of the module, and what it does.
COMMANDS: Final[Mapping[str, str]] = {
    "ls": "list the images",
    "pull": "get an image from a registry",
    "push": "put an image into a registry",
    "load": "get images from a file or directory",
    "save": "write images into a file or directory",
    "import": "make an image of a root file system",
    "inspect": "show details of images",
    "history": "show how an image was made",
    "tag": "give an image a further name",
    "rm": "remove images",
    "prune": "remove what is not needed",
    "verify": "verify everything, and repair it",
    "df": "show what the store takes up",
    "info": "show the store and the storage driver",
    "login": "log in to a registry",
    "logout": "log out of a registry",
}
#: Modules that cannot be called like the word.
_MODULES: Final = {"import": "importing"}
_HELP: Final = "fuseoverlay image --help"
#: Other words for them after `image`.
_ALSO: Final = {"list": "ls", "remove": "rm"}
#: What Docker's users write without `image`.
SPELLINGS: Final = {
    "images": "ls",
    "pull": "pull",
    "push": "push",
    "load": "load",
    "save": "save",
    "import": "import",
    "inspect": "inspect",
    "history": "history",
    "tag": "tag",
    "rmi": "rm",
    "info": "info",
    "login": "login",
    "logout": "logout",
}


def command(argv: list[str]) -> int:
    """`fuseoverlay image COMMAND ...`."""
    word, *rest = argv or ["--help"]
    if word in ("--help", "-h", "help"):
        output.say("usage: fuseoverlay image COMMAND [OPTIONS] [ARGUMENTS]\n")
        for each, what in COMMANDS.items():
            output.say(f"  {each:8} {what}")
        output.say("\nfuseoverlay image COMMAND --help says more.")
        return 0
    name = name_of(word)
    if name is None:
        what = f"image {word} is not a command"
        meant = SPELLINGS.get(word) or advice.slip_of(word, COMMANDS)
        if meant:
            raise UsageError(f"{what}; did you mean image {meant}?", hint=f"see {_HELP}")
        raise UsageError(what, hint=f"the commands are {', '.join(COMMANDS)}")
    return run(name, rest, f"fuseoverlay image {word}")


def name_of(word: str) -> str | None:
    """The command that a word after `image` means; None if it is none."""
    name = _ALSO.get(word, word)
    return name if name in COMMANDS else None


def run(name: str, argv: list[str], prog: str) -> int:
    """Run one of `COMMANDS`; `prog` is how it was called."""
    found: int = module(name).command(argv, prog)
    return found


def module(name: str) -> ModuleType:
    """The module of one of `COMMANDS`."""
    return importlib.import_module(f"fuseoverlay.commands.image.{_MODULES.get(name, name)}")
