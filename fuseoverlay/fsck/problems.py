"""The problems that a check finds, and what became of them."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fuseoverlay.errors import describe, printable


class Kind(enum.Enum):
    """What is wrong."""

    DANGLING = "whiteout that hides nothing"
    UNMARKED = "xattr whiteout in a directory that is not marked for them"
    OPAQUE = "opaque mark with an unknown value"
    REDIRECT = "redirect that leads nowhere"
    TWICE = "lower directory in two places"
    DATA = "metacopy file without data"
    ORIGIN = "origin without target"
    INDEX = "index entry that is wrong or of no use"
    NLINK = "wrong link count"
    OWNER = "directory about another upper"
    NOTE = "note on hidden names that is of no use"
    UNCOUNTED = "attributes that do not count"
    MIXED = "two dialects in one upper"
    JUNK = "left in the work directory by a crash"
    FOREIGN = "not part of a work directory"
    INCOMPATIBLE = "mark that refuses a mount"
    MISNAMED = "`.wh.` name that is no whiteout"
    UNREADABLE = "cannot be checked"


class Kept(Exception):
    """Raised by a repair that left something as it was; the text says why."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and its repair: a call, or in `why` the reason why there is none.

    The repair has to be called before the check goes on; it raises `OSError` or `Kept`.
    `by_lowers`: it is a problem only because the lowers lack something, so only if they are the
    right lowers.
    """

    kind: Kind
    path: bytes
    what: str
    repair: Callable[[], None] | None = None
    why: str = ""
    by_lowers: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem and what became of it; `repaired` is None if no repair was asked for."""

    kind: Kind
    path: bytes
    what: str
    repaired: bool | None
    why: str = ""

    def __str__(self) -> str:
        """One line for the user."""
        text = f"{shown(self.path)}: {self.what}"
        if self.repaired is None:
            return text
        return f"{text}; repaired" if self.repaired else f"{text}; not repaired: {self.why}"


def shown(name: bytes) -> str:
    """A name from a layer as one line of text."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in printable(name)
    )


def settle(
    problems: Iterator[Problem], *, repair: bool, doubt: str | None = None
) -> Iterator[Finding]:
    """Turn problems into findings as they come; with `repair`, try to repair each first.

    `doubt` says that the lowers may be the wrong ones: then problems `by_lowers` are not repaired,
    and `doubt` is the reason that their findings give."""
    for problem in problems:
        repaired, why = None, ""
        if repair and doubt is not None and problem.by_lowers:
            repaired, why = False, doubt
        elif repair:
            repaired, why = _repaired(problem)
        yield Finding(problem.kind, problem.path, problem.what, repaired, why)


def _repaired(problem: Problem) -> tuple[bool, str]:
    if problem.repair is None:
        return False, problem.why
    try:
        problem.repair()
    except OSError as exc:
        return False, describe(exc)
    except Kept as exc:
        return False, str(exc)
    return True, ""
