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
    for what in removed.in_use:
        output.warn(f"{what}: in use, so it stays; unmount, and run image prune")
    for problem in removed.problems:
        output.warn(f"{problem}; so only names were removed")


def freed(removed: Removed) -> str:
    """How much was freed."""
    return units.size(removed.freed)
