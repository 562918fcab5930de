"""Find paths in a comparison: all of them, whether or not their directories are open."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from fuseoverlay.commands.explore.comparing import Comparison, Pair
from fuseoverlay.view import patterns
from fuseoverlay.view.changes import Kind

#: More paths are not listed.
MOST: Final = 20_000


class Shown(dict[bytes, "Shown | None"]):
    """The names in a directory that are shown; None: with all below it."""


@dataclass(frozen=True, slots=True)
class Found:
    """`count` paths, and whether these are all."""

    shown: Shown
    count: int
    complete: bool


def matcher(text: str) -> Callable[[str], bool]:
    """Whether a text or shell pattern is anywhere in a path; `^` and `$` are its ends. Small
    letters match large ones, too. (A regular expression may take years for one name.)"""
    flags = re.IGNORECASE if text == text.lower() else 0
    begin = "" if text.startswith("^") else "**"
    end = "" if text.endswith("$") else "**"
    inner = text.removeprefix("^").removesuffix("$")
    fits = re.compile(patterns.expression(f"{begin}{inner}{end}"), flags).fullmatch
    return lambda path: fits(os.fsencode(path)) is not None


def search(
    comparison: Comparison,
    matches: Callable[[str], bool],
    kinds: Collection[Kind],
    wanted: Callable[[], bool] = lambda: True,
) -> Found:
    """Find the paths that match, as long as they are wanted. What is below one that does is not
    searched."""
    root = _Trail(None, b"")
    count = 0
    waiting: list[tuple[Pair, str, _Trail]] = [(comparison.root(), "", root)]
    while waiting and wanted():
        above, path, trail = waiting.pop()
        for name, helds in comparison.names(above).items():
            inner = f"{path}/{os.fsdecode(name)}"
            is_dir = any(isinstance(held, tuple) for held in helds)
            if matches(inner):
                if _counts(comparison, comparison.pair(above, name, helds), kinds):
                    trail.found()[name] = None
                    count += 1
            elif is_dir:
                pair = comparison.pair(above, name, helds)
                waiting.append((pair, inner, _Trail(trail, name)))
            if count == MOST:
                return Found(root.found(), count, complete=False)
    return Found(root.found(), count, complete=not waiting)


def _counts(comparison: Comparison, pair: Pair, kinds: Collection[Kind]) -> bool:
    if len(kinds) == len(Kind) or comparison.kind(pair) in kinds:
        return True
    return pair.is_dir and comparison.has_below(pair, kinds)


class _Trail:
    """The way to a directory, which is shown only once something is found in it."""

    __slots__ = ("name", "parent", "shown")

    def __init__(self, parent: _Trail | None, name: bytes) -> None:
        self.parent, self.name = parent, name
        self.shown = None if parent else Shown()

    def found(self) -> Shown:
        """What is shown of the directory."""
        missing: list[_Trail] = []
        trail = self
        while trail.shown is None and trail.parent is not None:
            missing.append(trail)
            trail = trail.parent
        shown = trail.shown if trail.shown is not None else Shown()
        for step in reversed(missing):
            step.shown = shown[step.name] = Shown()
            shown = step.shown
        return shown
