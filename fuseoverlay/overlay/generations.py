"""Generations of inode numbers: they tell a file handle that its number has a new file.

They are valid within one mount: a handle leads only to what the kernel knows, and after a new mount
it knows nothing.
"""

from __future__ import annotations

import os
from typing import Final

#: The most numbers of deleted files that are remembered; filesystems reuse the lowest ones first.
_MOST: Final = 65_536


class Generations:
    """Which generation goes with each inode number."""

    def __init__(self) -> None:
        # Random, since the next mount gives numbers of our own to other files.
        self._mount = int.from_bytes(os.urandom(4)) | 1
        self._gone: dict[int, int] = {}

    def of(self, ino: int, *, is_own: bool) -> int:
        """The generation for a file that becomes known now; `is_own`: its number is one of our own,
        not that of a real file."""
        return self._mount if is_own else self._gone.get(ino, 0)

    def end(self, ino: int) -> None:
        """Note that the file with this number is deleted; another file may get the number."""
        generation = self._gone.pop(ino, 0) + 1
        self._gone[ino] = generation & 0xFFFFFFFF
        if len(self._gone) > _MOST:
            del self._gone[next(iter(self._gone))]
