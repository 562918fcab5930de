"""Directories of a layer, without ever following one of its symbolic links."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from typing import Final

from fuseoverlay.layers import whiteout, xattrs
from fuseoverlay.oci.entries import Path
from fuseoverlay.system import syscalls
from fuseoverlay.system.syscalls import DIR_FLAGS

#: Open directories kept. A tar archive lists depth first: the last few are asked again.
_KEPT: Final = 16


class DirCache:
    """Descriptors of the directories below `root_fd` that were used last.

    A context manager; the descriptors stay its own. The directories exist: whoever
    asks knows, from `unpack`'s own list, that no component is anything else.
    """

    def __init__(self, root_fd: int) -> None:
        self.root_fd = root_fd
        self._open: dict[Path, int] = {}

    def __enter__(self) -> DirCache:
        return self

    def __exit__(self, *exc: object) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def fd(self, path: Path) -> int:
        """A descriptor of the directory `path`, good until the next but few calls."""
        if not path:
            return self.root_fd
        fd = self._open.pop(path, None)
        if fd is None:
            above = self._open.get(path[:-1])
            if above is None:
                fd = syscalls.open_beneath(self.root_fd, b"/".join(path), DIR_FLAGS)
            else:
                # A long way down is gone but once.
                fd = syscalls.open_beneath(above, path[-1], DIR_FLAGS)
            while len(self._open) >= _KEPT:
                os.close(self._open.pop(next(iter(self._open))))
        self._open[path] = fd
        return fd

    def forget(self, path: Path) -> None:
        """Close what is `path` or below it, because it goes away."""
        for known in [known for known in self._open if known[: len(path)] == path]:
            os.close(self._open.pop(known))


def find_below(lowers: Sequence[str | os.PathLike[str]], path: Path) -> tuple[int, int] | None:
    """Find `path` as the stack of layer directories `lowers`, top first, shows it.

    Returns a descriptor, the caller's to close, of the directory that has it, and its file
    type; None where there is no such name. Whiteouts and opaque directories count;
    symbolic links on the way are not followed.
    """
    for lower in lowers:
        fd = os.open(lower, DIR_FLAGS)
        try:
            found, go_on = _look(fd, path)
        finally:
            os.close(fd)
        if found is not None or not go_on:
            return found
    return None


def _look(root_fd: int, path: Path) -> tuple[tuple[int, int] | None, bool]:
    """One layer of `find_below`: what it found, else whether to look further down."""
    with contextlib.ExitStack() as stack:
        fd = root_fd
        transparent = True
        for name in path[:-1]:
            transparent = transparent and not _is_opaque(fd)
            kind = _kind(fd, name)
            if kind != stat.S_IFDIR:
                return None, transparent and kind == 0
            fd = os.open(name, DIR_FLAGS, dir_fd=fd)
            stack.callback(os.close, fd)
        kind = _kind(fd, path[-1])
        if kind == 0:
            return None, transparent and not _is_opaque(fd)
        return (None if kind == _WHITEOUT else (os.dup(fd), kind)), False


#: No file type has this number.
_WHITEOUT: Final = -1


def _kind(fd: int, name: bytes) -> int:
    """File type of `name`, `_WHITEOUT`, or 0: this layer says nothing about it."""
    try:
        st = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return _WHITEOUT if _exists(fd, whiteout.WH_PREFIX + name) else 0
    return _WHITEOUT if _is_whiteout(fd, name, st) else stat.S_IFMT(st.st_mode)


def _is_whiteout(fd: int, name: bytes, st: os.stat_result) -> bool:
    if whiteout.is_char_whiteout(st):
        return True
    empty = stat.S_ISREG(st.st_mode) and not st.st_size
    return empty and whiteout.is_xattr_whiteout(fd, name, xattrs.NAMESPACES)


def _is_opaque(fd: int) -> bool:
    marked = whiteout.is_opaque_value(whiteout.opaque_value(fd, xattrs.NAMESPACES))
    return marked or _exists(fd, whiteout.WH_OPAQUE)


def _exists(fd: int, name: bytes) -> bool:
    if len(name) > whiteout.NAME_MAX:
        return False
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
