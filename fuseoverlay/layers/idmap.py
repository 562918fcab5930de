"""Translate user or group ids between what the layers store and what the mount shows.

Options `uidmapping`, `gidmapping`, `squash_to_root`, `squash_to_uid`, `squash_to_gid` of
fuse-overlayfs. Ids outside all ranges are treated as in idmapped mounts, mount_setattr(2).
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from fuseoverlay.errors import os_error
from fuseoverlay.system import userns

#: The greatest id. One more means "none" in chown(2).
MOST: Final = 2**32 - 2
_DIGITS: Final = 10


class IdRange(NamedTuple):
    """`length` ids from `stored` on in the layers are shown as ids from `shown` on."""

    stored: int
    shown: int
    length: int


@dataclass(frozen=True, slots=True)
class IdMap:
    """A mapping in both directions. Without ranges every id is shown as it is stored."""

    ranges: tuple[IdRange, ...] = ()
    #: If not None, every object shows this owner, whoever owns it.
    squash: int | None = None

    def __bool__(self) -> bool:
        """Whether any id is shown differently from how it is stored."""
        return bool(self.ranges) or self.squash is not None

    def owner(self, stored: int) -> int:
        """The id that stat(2) shows for an object's stored owner."""
        return self.shown(stored) if self.squash is None else self.squash

    def shown(self, stored: int) -> int:
        """The shown id regardless of squashing, as in ACLs."""
        if not self.ranges:
            return stored
        for first, shown, length in self.ranges:
            if first <= stored < first + length:
                return shown + stored - first
        return _nobody()

    def stands_for(self, stored: int) -> bool:
        """Whether the owner that is shown means the stored one, perhaps by another number."""
        return self.covers(stored) if self.squash is None else self.squash == self.shown(stored)

    def covers(self, stored: int) -> bool:
        """Whether a stored id is mapped to a shown one."""
        return not self.ranges or any(
            first <= stored < first + length for first, _, length in self.ranges
        )

    def shows(self, shown: int) -> bool:
        """Whether some stored id is shown as this one."""
        return not self.ranges or any(
            first <= shown < first + length for _, first, length in self.ranges
        )

    def stored(self, shown: int) -> int:
        """The id to store for one that a process gives. EOVERFLOW if no stored id is shown so; but
        if ids are squashed, it is stored as given, since nobody sees it."""
        if not self.ranges:
            return shown
        for stored, first, length in self.ranges:
            if first <= shown < first + length:
                return stored + shown - first
        if self.squash is not None:
            return shown
        raise os_error(errno.EOVERFLOW)

    def maker(self, shown: int) -> int:
        """The id to store for the creator of an object. Root outside the mapping is stored as root
        of the layers: whoever sets up a container prepares its files this way."""
        return 0 if not shown and self.covers(0) and not self.shows(0) else self.stored(shown)


#: Shows every id as it is stored.
NOTHING: Final = IdMap()


def parse_ranges(value: str) -> tuple[IdRange, ...]:
    """Parse `container:host:length` triples, several in a row, perhaps after a colon. The
    container's ids are stored, the host's are shown. Raises `ValueError`."""
    fields = value.removeprefix(":").split(":")
    if len(fields) % 3:
        raise ValueError("is not made of container:host:length triples")
    numbers = [_number(field) for field in fields]
    ranges = tuple(IdRange(*numbers[at : at + 3]) for at in range(0, len(numbers), 3))
    for stored, shown, length in ranges:
        if not length:
            raise ValueError(f"has a range without ids at {stored}:{shown}")
        if max(stored, shown) + length - 1 > MOST:
            raise ValueError(f"has a range at {stored}:{shown} that ends after {MOST}")
    _refuse_overlap([(one.stored, one.length) for one in ranges], "in the container")
    _refuse_overlap([(one.shown, one.length) for one in ranges], "on the host")
    return ranges


def _refuse_overlap(ranges: Sequence[tuple[int, int]], where: str) -> None:
    end = 0
    for first, length in sorted(ranges):
        if first < end:
            raise ValueError(f"covers the id {first} twice {where}")
        end = first + length


def parse_id(text: str) -> int:
    """Parse a user or group id. Raises `ValueError`."""
    number = _number(text)
    if number > MOST:
        raise ValueError(f"is above {MOST}")
    return number


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"holds {text!r}, which is no number" if text else "lacks a number")
    if len(text) > _DIGITS:
        raise ValueError(f"holds {text}, which is no id")
    return int(text)


@functools.cache
def _nobody() -> int:
    return userns.overflow_id("uid")
