"""What `rm` and `prune` say of what they removed: Docker's lines, and what stayed."""

from __future__ import annotations

from collections.abc import Iterator

from fuseoverlay.commands import output
from fuseoverlay.commands.image import common
from fuseoverlay.commands.show import units
from fuseoverlay.store.garbage import Removed


def lines(removed: Removed, untagged: str, deleted: str) -> Iterator[str]:
    """A line for each name and image."""
    for name in removed.untagged:
        yield f"{untagged}: {common.familiar(name)}"
    for digest in removed.images:
        yield f"{deleted}: {digest}"


def complain(removed: Removed) -> None:
    """Say why something stayed."""
    if removed.in_use:
        what = f"{removed.in_use[0]} and {len(removed.in_use) - 1} more"
        output.warn(
            f"{what if removed.in_use[1:] else removed.in_use[0]}: in use, so not removed; "
            "image prune does it when nothing uses them"
        )
    for problem in removed.problems:
        output.warn(f"{problem}; so only names were removed")


def freed(removed: Removed) -> str:
    """How much was freed."""
    return units.size(removed.freed)
