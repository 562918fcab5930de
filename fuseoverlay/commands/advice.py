"""Checks of the command line that refuse what cannot be meant and say what to write instead."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from fuseoverlay.errors import UsageError

#: Docker's commands for images, which `image` has, too.
FOR_IMAGES = (
    *("images", "pull", "push", "load", "save", "import", "inspect", "history", "tag", "rmi"),
    *("info", "login", "logout"),
)
#: Those that look into layers.
FOR_LAYERS = (
    *(
        "layers",
        "tree",
        "ls",
        "cat",
        "cp",
        "export",
        "which",
        "find",
        "diff",
        "efficiency",
        "explore",
    ),
)
COMMANDS = (
    *("mount", "unmount", "umount", "fsck", "mounts", "image", *FOR_IMAGES, *FOR_LAYERS),
    "completion",
    *("help", "version"),
)
#: Words of docker and podman for what is not done here.
_NOT_OURS: Final = frozenset(
    ("attach", "build", "builder", "buildx", "commit", "compose", "container", "create",
     "events", "exec", "generate", "init", "kill", "kube", "logs", "machine",
     "manifest", "network", "pause", "play", "pod", "port", "ps", "rename", "restart", "rm", "run",
     "search", "secret", "service", "stack", "start", "stats", "stop", "swarm", "system", "top",
     "unpause", "unshare", "update", "volume", "wait")
)  # fmt: skip
#: What to write for some of them.
_INSTEAD: Final = {
    "system df": "write fuseoverlay image df",
    "system prune": "write fuseoverlay image prune",
    "system info": "write fuseoverlay info",
}

_HOW = "fuseoverlay mount -o lowerdir=A:B MNT, or fuseoverlay mount IMAGE MNT"


def check_first(words: Sequence[str]) -> None:
    """Refuse a beginning that is a mistyped command, or one of other tools: it would be taken for a
    SOURCE, which may be any word."""
    first = words[0]
    _check_root(words)
    if os.path.lexists(first):
        return
    if meant := slip_of(first, COMMANDS):
        raise UsageError(
            f"{first} is not a command; did you mean {meant}?",
            hint=f"if it is the SOURCE of a mount, write fuseoverlay mount {first} ...",
        )
    # Neither docker nor podman has -o for these words; who mounts directories needs it.
    if first in _NOT_OURS and not any(word.startswith("-o") for word in words):
        hint = _INSTEAD.get(" ".join(words[:2]), f"the commands are {', '.join(COMMANDS)}")
        raise UsageError(f"{first} is not a command", hint=hint)


def _check_root(words: Sequence[str]) -> None:
    """Refuse `--root DIR COMMAND`, which is podman's order."""
    option, equals, _ = words[0].partition("=")
    count = 1 if equals else 2
    if option == "--root" and len(words) > count and words[count] in COMMANDS:
        given = " ".join(words[:count])
        raise UsageError(
            "--root stands before the command",
            hint=f"write fuseoverlay {words[count]} {given} ...",
        )


def slip_of(word: str, commands: Iterable[str]) -> str | None:
    """The command that is mistyped; None if it is none."""
    return next((command for command in commands if _is_slip(word, command)), None)


def check_given(words: Mapping[str, str | None]) -> None:
    """Refuse an empty word, and call it by its name in --help. The shell makes one from a variable
    that is not set; as a path it would be the current directory, or nowhere."""
    for name, word in words.items():
        if word == "":
            raise UsageError(f"{name} is empty", hint="write it out; a variable may not be set")


def check_paths(paths: Sequence[str], *, directories: bool, image: bool, command: bool) -> None:
    """Refuse all but `[SOURCE] MNT` with lower directories and `IMAGE MNT` without them.

    `directories`: lowerdir= is given; `image`: an option for images is given; `command`: the word
    `mount` is given.
    """
    check_given({"MNT": paths[-1] if paths else None})
    if len(paths) > 1 and not directories:
        check_given({"IMAGE": paths[0]})
    match paths:
        case []:
            raise UsageError("no mount point given", hint=f"write {_HOW}")
        case [only] if not directories and (image or _is_image(only) or _is_missing(only, command)):
            raise UsageError("no mount point given", hint=f"write fuseoverlay mount {only} MNT")
        case [only] if not directories and not command and not os.path.lexists(only):
            raise UsageError(
                f"{only} is not a command",
                hint=f"the commands are {', '.join(COMMANDS)}; to mount write {_HOW}",
            )
        case [_] if not directories:
            raise UsageError("no lowerdir= and no image given", hint=f"write {_HOW}")
        case [first, _] if not (directories or command or _is_file(first)):
            # Docker's words, such as `build .`, must not fetch an image of that name.
            raise UsageError(
                f"{first} is not a command",
                hint=f"to mount an image write fuseoverlay mount {first} MNT",
            )
        case [source, _] if directories and _is_image(source):
            raise UsageError(
                f"lowerdir= is given, and the image {source}",
                hint="leave one of the two out: a mount shows directories or an image",
            )
        case [_, _, extra, *_]:
            raise UsageError(f"too many arguments: {extra}", hint=f"write {_HOW}")


def check_fsck(what: str, *, directories: bool, kept: str | None) -> None:
    """Refuse all but an upper with its lower directories and an image with `--upper`."""
    if kept is not None and directories:
        raise UsageError(
            "--upper is for the changes of an image, lowerdir= for directories",
            hint="leave one of the two out",
        )
    if kept is None and not directories and _is_image(what):
        raise UsageError(
            "this is an image", where=what, hint=f"write fuseoverlay fsck --upper DIR {what}"
        )


def _is_missing(text: str, command: bool) -> bool:
    """Whether the only word after `mount` is nothing that is here: hardly a mount point."""
    return command and not os.path.lexists(text)


def _is_file(text: str) -> bool:
    from fuseoverlay.oci import names

    return names.is_image(text) or names.is_path(text) or os.path.islink(text)


def _is_image(text: str) -> bool:
    # Mounting directories must import nothing that only images need.
    from fuseoverlay.oci import names

    return names.is_image(text)


def _is_slip(word: str, command: str) -> bool:
    """Whether `word` is `command` with one letter wrong, missing or too many, or two letters
    swapped."""
    if word == command:
        return False
    shorter = min(len(word), len(command))
    same = next((at for at in range(shorter) if word[at] != command[at]), shorter)
    was, meant = word[same:], command[same:]
    return (
        was[1:] == meant[1:]
        or was[1:] == meant
        or was == meant[1:]
        or (was[:2] == meant[1::-1] and was[2:] == meant[2:])
    )
