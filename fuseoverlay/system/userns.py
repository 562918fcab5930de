"""Which ids the user namespace of this process maps, and what stands in for the others.

stat(2) shows an unmapped id as the overflow id. To the kernel an owner without a mapped id is no
owner at all: it lets nobody change or remove the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

#: No user and no group; chown(2), ACLs.
NO_ID = 2**32 - 1


@dataclass(frozen=True)
class MappedIds:
    """User or group ids."""

    #: (first, count) pairs.
    ranges: tuple[tuple[int, int], ...]
    #: What stat(2) shows for all other ids.
    overflow: int
    #: Id of this process.
    own: int

    def __contains__(self, number: int) -> bool:
        return any(first <= number < first + count for first, count in self.ranges)

    @cached_property
    def stranger(self) -> int:
        """The id in a status that stands for unmapped ids only. `NO_ID` if there is none: all ids
        are mapped, or the overflow id is mapped itself."""
        return NO_ID if self.overflow in self else self.overflow

    @cached_property
    def stand_in(self) -> int:
        """The id to show for unmapped ids: root's, or our own if root is not mapped. This gives
        nobody any rights."""
        return 0 if 0 in self else self.own

    @property
    def several(self) -> bool:
        """Whether more than one id is mapped."""
        return sum(count for _, count in self.ranges) > 1

    def show(self, number: int) -> int:
        """The id itself if it is mapped, else its stand-in."""
        return number if number in self else self.stand_in


def users() -> MappedIds:
    """User ids."""
    return _read("uid", os.geteuid)


def groups() -> MappedIds:
    """Group ids."""
    return _read("gid", os.getegid)


def _read(kind: str, own: Callable[[], int]) -> MappedIds:
    with open(f"/proc/self/{kind}_map", encoding="ascii") as lines:
        fields = [line.split() for line in lines]
    ranges = tuple((int(first), int(count)) for first, _, count in fields)
    return MappedIds(ranges, overflow_id(kind), own())


def overflow_id(kind: str) -> int:
    """What the kernel shows for unmapped ids; `kind` is "uid" or "gid"."""
    with open(f"/proc/sys/kernel/overflow{kind}", encoding="ascii") as file:
        return int(file.read())
