"""How large an unpacked layer is."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Final

from fuseoverlay.system import syscalls
from fuseoverlay.system.syscalls import DIR_FLAGS

#: What st_blocks counts in; stat(2).
_BLOCK: Final = 512


def disk_usage(path: str | os.PathLike[str]) -> int:
    """The bytes on disk of a directory and everything below, of a file with several names once.
    Directories that may not be read count for themselves. OSError."""
    return sum(st.st_blocks * _BLOCK for st in _objects(path))


def content_size(path: str | os.PathLike[str]) -> int:
    """The bytes in the regular files of a directory, as `disk_usage` counts them: what docker shows
    as the size of a layer. OSError."""
    return sum(st.st_size for st in _objects(path) if stat.S_ISREG(st.st_mode))


def _objects(path: str | os.PathLike[str]) -> Iterator[os.stat_result]:
    """The status of a directory and everything below, each object once."""
    root = os.open(path, DIR_FLAGS)
    try:
        yield os.fstat(root)
        seen: set[int] = set()
        todo = [b"."]
        while todo:
            for name, st in _children(root, todo.pop()):
                if stat.S_ISDIR(st.st_mode):
                    todo.append(name)
                elif st.st_nlink > 1:
                    if st.st_ino in seen:
                        continue
                    seen.add(st.st_ino)
                yield st
    finally:
        os.close(root)


def _children(root: int, path: bytes) -> list[tuple[bytes, os.stat_result]]:
    """What the directory `path` below `root` holds, as paths below it, too."""
    try:
        fd = syscalls.open_beneath(root, path, DIR_FLAGS)
    except PermissionError:
        return []
    try:
        with os.scandir(fd) as entries:
            return [
                (path + b"/" + os.fsencode(entry.name), entry.stat(follow_symlinks=False))
                for entry in entries
            ]
    finally:
        os.close(fd)
