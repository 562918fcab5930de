"""What `rm` and `prune` say of what they removed: Docker's lines, and what stayed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fuseoverlay.commands import output
from fuseoverlay.commands.image import common
from fuseoverlay.commands.show import units
from fuseoverlay.errors import visible
from fuseoverlay.store.garbage import Removed


def lines(removed: Removed, untagged: str, deleted: str) -> Iterator[str]:
    """A line for each name and image."""
    for name in removed.untagged:
        # A name of another program may hold anything.
        yield visible(f"{untagged}: {common.familiar(name)}")
    for digest in removed.images:
        yield f"{deleted}: {digest}"


def complain(removed: Removed) -> None:
    """Say why something stayed."""
    if removed.in_use:
        output.warn(
            f"{_first(removed.in_use)}: in use, so not removed; "
            "image prune does it when nothing uses them"
        )
    if removed.new:
        output.warn(
            f"{_first(removed.new)}: not removed, since another program wrote it within the last "
            "hour and may be about to name it; image prune removes it later"
        )
    for problem in removed.problems:
        output.warn(f"{problem}; so only names were removed")


def _first(names: Sequence[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if names[1:] else names[0]


def freed(removed: Removed) -> str:
    """How much was freed."""
    return units.size(removed.freed)
