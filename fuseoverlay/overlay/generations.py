"""Generations of inode numbers, by which a file handle knows another file with its number.

They count within a mount: a handle leads to what the kernel knows, and a new mount begins with
nothing.
"""

from __future__ import annotations

import os
from typing import Final

#: So many numbers of files that are gone are remembered; filesystems give the lowest ones again.
_MOST: Final = 65_536


class Generations:
    """What is told with each number."""

    def __init__(self) -> None:
        # The next mount gives numbers of our own to other files.
        self._mount = int.from_bytes(os.urandom(4)) | 1
        self._gone: dict[int, int] = {}

    def of(self, ino: int, *, is_own: bool) -> int:
        """For a file that becomes known now; `is_own`: its number is none of a real file."""
        return self._mount if is_own else self._gone.get(ino, 0)

    def end(self, ino: int) -> None:
        """Nothing is left of the file with this number, which may come back for another one."""
        generation = self._gone.pop(ino, 0) + 1
        self._gone[ino] = generation & 0xFFFFFFFF
        if len(self._gone) > _MOST:
            del self._gone[next(iter(self._gone))]
