"""`fuseoverlay __complete WORD ...`: what the last word may become, for the shells' completion.

The first line says what files will do, too: `files`, `directories` or `none`. The others are words,
each with a tab and what it means. The parsers say which; on any error nothing is printed.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from fuseoverlay.commands import advice, output
from fuseoverlay.errors import FuseOverlayError

#: Words that need no quoting in any shell; others are not completed.
_PLAIN: Final = re.compile(r"[\w./:@+=-]+\Z", re.ASCII)
#: What each value may be, by what --help calls it: kinds of words, and of files.
VALUES: Final[Mapping[str, tuple[str, ...]]] = {
    "IMAGE": ("images",),
    "[IMAGE] MNT": ("images", "files"),
    "MNT|IMAGE": ("mounts", "directories"),
    "IMAGE|MNT": ("images", "mounts", "files"),
    "UPPER|IMAGE": ("images", "files"),
    "NAME[:TAG]": ("images",),
    "DESTINATION": ("images",),
    "NAME[:TAG|@DIGEST]": ("images",),
    "REPOSITORY[:TAG]": ("images",),
    "COMMAND": ("commands",),
    "FILE": ("files",),
    "FILE|-": ("files",),
    "PATH": ("files",),
    "DIR": ("directories",),
    **dict.fromkeys(
        ("FORM", "TEMPLATE", "KIND=VALUE", "LAYER", "OPTS", "OS/ARCH[/VARIANT]", "SHELL",
         "SERVER", "NAME", "PASSWORD", "INSTRUCTION", "TEXT"), ()
    ),
}  # fmt: skip
#: The modules of the commands that are not about images, and what each command does.
_MODULES: Final = {
    "mount": "mount",
    "unmount": "unmount",
    "umount": "unmount",
    "mounts": "mounts",
    "fsck": "fsck",
    "completion": "completion",
}
_DOES: Final = {
    "mount": "mount directories or an image",
    "unmount": "unmount",
    "umount": "unmount",
    "mounts": "list what is mounted",
    "fsck": "check kept changes",
    "image": "commands for images",
    "completion": "print a script for a shell",
    "help": "show help",
    "version": "show the version",
}


def command(argv: list[str]) -> int:
    """Print what the last word may become; return the exit code, which is always 0."""
    try:
        kind, found = candidates(argv or [""])
    except (FuseOverlayError, OSError, ValueError):
        return 0
    lines = [f"{word}\t{' '.join(what.split())}" for word, what in found if _PLAIN.match(word)]
    output.say("\n".join([kind, *dict.fromkeys(lines)]))
    return 0


def candidates(words: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    """Which files will do, and the words, each with what it means."""
    *before, current = words
    kinds, found = _possible(before, current)
    files = next((kind for kind in ("files", "directories") if kind in kinds), "none")
    return files, [(word, what) for word, what in found if word.startswith(current)]


def parser_of(words: Sequence[str]) -> tuple[argparse.ArgumentParser, int] | None:
    """The parser for a line that begins with these words, and how many of them name the command.
    None if no command is named yet, or it has no parser."""
    from fuseoverlay.commands.image import words as images

    first = words[0] if words else ""
    if first in _MODULES:
        return _parser(f"fuseoverlay.commands.{_MODULES[first]}"), 1
    if first in images.SPELLINGS:
        return images.module(images.SPELLINGS[first]).parser(""), 1
    if first in advice.FOR_LAYERS:
        from fuseoverlay.commands.view import words as looking

        return looking.module(first).parser(""), 1
    if first == "image":
        name = images.name_of(words[1]) if len(words) > 1 else None
        return (images.module(name).parser(""), 2) if name else None
    if first.startswith("-"):
        return _parser("fuseoverlay.commands.mount"), 0
    return None


def _parser(module: str) -> argparse.ArgumentParser:
    found: argparse.ArgumentParser = importlib.import_module(module).parser("")
    return found


def _possible(
    before: Sequence[str], current: str
) -> tuple[tuple[str, ...], Iterable[tuple[str, str]]]:
    """Kinds of values and words that may stand here."""
    from fuseoverlay.commands.image import words as images

    if before == ["image"]:
        return (), images.COMMANDS.items()
    if not before and not current.startswith("-"):
        return (), commands()
    known = parser_of(before or [current])
    if known is None:
        return (), commands() if before == ["help"] else ()
    parser, count = known
    actions = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    by_name = {name: action for action in actions for name in action.option_strings}
    places = [action for action in actions if not action.option_strings]
    done, pending, options = 0, None, True
    for word in before[count:]:
        if pending is not None:
            pending = None
        elif options and word == "--":
            options = False
        elif options and word.startswith("-") and word != "-":
            pending = by_name.get(word)
            # An option without a value, or whose value may be left out.
            pending = pending if pending is not None and pending.nargs is None else None
        else:
            done += 1
    if pending is not None:
        return _values(pending, before, current)
    name, equals, _ = current.partition("=")
    if options and equals and name in by_name:
        kinds, found = _values(by_name[name], before, current)
        return kinds, [(f"{name}={word}", what) for word, what in found]
    if options and current.startswith("-"):
        return (), [(name, action.help or "") for name, action in by_name.items()]
    if done < len(places):
        return _values(places[done], before, current)
    repeated = places and places[-1].nargs in ("*", "+")
    return _values(places[-1], before, current) if repeated else ((), ())


def _values(
    action: argparse.Action, before: Sequence[str], current: str
) -> tuple[tuple[str, ...], Iterable[tuple[str, str]]]:
    if action.choices is not None:
        return (), [(str(choice), "") for choice in action.choices]
    kinds = VALUES.get(str(action.metavar), ())
    found: list[tuple[str, str]] = []
    if "images" in kinds:
        found += _images(before, current)
    if "mounts" in kinds:
        found += _mounts()
    return kinds, found


def commands() -> Iterator[tuple[str, str]]:
    """All commands, and what each does."""
    from fuseoverlay.commands.image import words as images
    from fuseoverlay.commands.view import words as looking

    for name in advice.COMMANDS:
        does = _DOES.get(name) or looking.COMMANDS.get(name)
        yield name, does or images.COMMANDS[images.SPELLINGS[name]]


def _images(before: Sequence[str], current: str) -> Iterator[tuple[str, str]]:
    """The names in the store, in the form that begins like `current`. Only the index is read."""
    from fuseoverlay.commands.image import common
    from fuseoverlay.store.names import Names
    from fuseoverlay.store.root import Store, default_root

    root = next((after for word, after in itertools.pairwise(before)
                 if word == "--root"), None)  # fmt: skip
    names = [entry.name for entry in Names(Store(root or default_root())).entries() if entry.name]
    for name in sorted(names):
        familiar = common.familiar(name)
        yield familiar if familiar.startswith(current) else name, "image"


def _mounts() -> Iterator[tuple[str, str]]:
    from fuseoverlay.commands.image import common
    from fuseoverlay.fuse import mounts

    for mount in mounts.mounted():
        yield os.fsdecode(mount.path), "mount point"
        if mount.image is not None:
            yield common.familiar(mount.image.name), "image"
