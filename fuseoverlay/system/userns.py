"""Which ids the user namespace of this process maps, and what stands in for the others.

stat(2) tells an id that is not mapped as the overflow id. The kernel takes an owner that it
knows by no id for none at all: it lets nobody change or remove what belongs to him.
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
    #: What stat(2) says of all others.
    overflow: int
    #: Id of this process.
    own: int

    def __contains__(self, number: int) -> bool:
        return any(first <= number < first + count for first, count in self.ranges)

    @cached_property
    def stranger(self) -> int:
        """The id in a status that means nobody who is mapped; `NO_ID`: there is none, since
        all are mapped, or the overflow id is."""
        return NO_ID if self.overflow in self else self.overflow

    @cached_property
    def stand_in(self) -> int:
        """Whom to show instead of who is not mapped: root, who is not given any rights by that."""
        return 0 if 0 in self else self.own

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return sum(count for _, count in self.ranges) > 1

    def show(self, number: int) -> int:
        """The id itself where it is mapped, else the one that stands in for it."""
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
    """What the kernel shows for ids that it has no name for; `kind` is uid or gid."""
    with open(f"/proc/sys/kernel/overflow{kind}", encoding="ascii") as file:
        return int(file.read())
