"""Errors outside a mounted filesystem, each with its exit code.

Inside the mount, `OSError` with the exact errno is the only language (see
`fuseoverlay.fuse.boundary`). The classes here are for the command line and for images: one line
that says what is wrong, where, and what to do next.

The documents and `--help` take the meaning of an exit code from the docstring of its class.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from typing import Final

#: What bytes that are not UTF-8 become in text, and what is no text at all.
_SURROGATES: Final = re.compile("[\ud800-\udfff]")


class FuseOverlayError(Exception):
    """Base class; its text is one line that a user can act on.

    `what` says what is wrong, `where` is the file, directory or option
    concerned, `hint` says what to do about it.
    """

    #: The process exit code that the command line maps this error to.
    exit_code = 1

    def __init__(self, what: str, *, where: object = None, hint: str | None = None) -> None:
        self.what = what
        self.where = where
        self.hint = hint
        super().__init__(what)

    def __str__(self) -> str:
        text = self.what if self.where is None else f"{printable(self.where)}: {self.what}"
        if self.hint:
            text = f"{text}; {self.hint}"
        return visible(text)


class UsageError(FuseOverlayError):
    """The command line or a mount option is malformed."""

    exit_code = 2


class LayerError(FuseOverlayError):
    """A lower directory is missing, unreadable or no directory."""

    exit_code = 3


class UpperError(FuseOverlayError):
    """The upper or work directory cannot be used, or is in use."""

    exit_code = 4


class MountpointError(FuseOverlayError):
    """The mount point is missing or busy, or in a layer that cannot be shown without it."""

    exit_code = 5


class FuseError(FuseOverlayError):
    """FUSE is not available, or refused to mount or unmount, or the mount answers with an error."""

    exit_code = 6


class ImageError(FuseOverlayError):
    """The image is missing, malformed, or of a kind that is not supported."""

    exit_code = 7


class DigestError(ImageError):
    """A blob or an unpacked layer has the wrong digest."""

    exit_code = 8


class StoreError(FuseOverlayError):
    """The layer store cannot be written."""

    exit_code = 9


class RegistryError(FuseOverlayError):
    """A registry cannot be reached, refuses or answers wrongly, or its configuration is wrong."""

    exit_code = 11

    #: `status` is that of HTTP, where there was an answer. `limits` are the headers of it that say
    #: how much one may ask for: "ratelimit-remaining" -> "0;w=21600".

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        hint: str | None = None,
        status: int | None = None,
        limits: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(what, where=where, hint=hint)
        self.status = status
        self.limits: Mapping[str, str] = limits or {}


#: Not an error: a check has left problems unrepaired.
PROBLEMS_LEFT: Final = 10
#: Interrupted by the user.
INTERRUPTED: Final = 130


#: The exit codes of mount(8) that its helper uses.
MOUNT_EXIT_CODES: Final = {0: "Done.", 1: "Usage.", 8: "Interrupted.", 32: "Failure."}


def exit_codes() -> dict[int, str]:
    """What each exit code means, in order."""
    codes = {
        0: "Done.",
        FuseOverlayError.exit_code: "Something unforeseen; output cannot be written.",
        PROBLEMS_LEFT: "`fsck` found problems and did not repair all of them.",
        INTERRUPTED: "Interrupted.",
    }
    kinds = FuseOverlayError.__subclasses__()
    while kinds:
        kind = kinds.pop()
        if kind.__module__ != __name__:
            # It is inside one module that it means something of its own.
            continue
        # `python -OO` strips docstrings; then only the codes are shown.
        codes[kind.exit_code] = kind.__doc__ or ""
        kinds += kind.__subclasses__()
    return dict(sorted(codes.items()))


def mount_exit_code(code: int) -> int:
    """The exit code of mount(8) that corresponds to one of ours."""
    return {0: 0, UsageError.exit_code: 1, INTERRUPTED: 8}.get(code, 32)


def printable(where: object) -> str:
    """Text of a path or other object for a message; undecodable bytes are escaped."""
    text = os.fsdecode(where) if isinstance(where, bytes) else str(where)
    return _SURROGATES.sub(lambda found: _escaped(found[0]), text)


def visible(text: str) -> str:
    """`text` on one line, with characters escaped that a terminal would act on instead of
    printing."""
    return escaped(" ".join(text.splitlines()))


def escaped(text: str) -> str:
    """The same for a name, whose line breaks are escaped, too."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    """`char` as it is written in a shell's $'...', also if it stands for a byte that is not
    UTF-8."""
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


def describe(exc: OSError) -> str:
    """The message of `exc`, without path and errno number: "No such file or directory"."""
    return exc.strerror or str(exc)


def os_error(code: int, name: object = None) -> OSError:
    """An `OSError` of the subclass for this errno, with its message; `name`: what the call was
    about."""
    return OSError(code, os.strerror(code), name)


def no_entry(name: bytes) -> OSError:
    """ENOENT for `name`."""
    return os_error(errno.ENOENT, name)
