"""Open directories of a layer without ever following one of its symbolic links."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from typing import Final

from fuseoverlay.layers import onename, xattrs
from fuseoverlay.oci.entries import Path
from fuseoverlay.system import syscalls
from fuseoverlay.system.syscalls import DIR_FLAGS

#: How many directories are kept open. A tar archive lists depth first, so the last few are needed
#: again.
_KEPT: Final = 16


class DirCache:
    """Descriptors of the last used directories below `root_fd`.

    A context manager; the descriptors stay its own. The directories exist: callers know from the
    list in `Made` that every component is a directory.
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
        """A descriptor of the directory `path`, valid for only a few more calls."""
        if not path:
            return self.root_fd
        fd = self._open.pop(path, None)
        if fd is None:
            above = self._open.get(path[:-1])
            if above is None:
                fd = syscalls.open_beneath(self.root_fd, b"/".join(path), DIR_FLAGS)
            else:
                # A long path is walked only once.
                fd = syscalls.open_beneath(above, path[-1], DIR_FLAGS)
            while len(self._open) >= _KEPT:
                os.close(self._open.pop(next(iter(self._open))))
        self._open[path] = fd
        return fd

    def forget(self, path: Path) -> None:
        """Close `path` and directories below it, before they are removed."""
        for known in [known for known in self._open if known[: len(path)] == path]:
            os.close(self._open.pop(known))


def find_below(lowers: Sequence[str | os.PathLike[str]], path: Path) -> tuple[int, int] | None:
    """Find `path` as the stack of layer directories `lowers`, top first, shows it.

    Returns a descriptor of the directory that holds it, which the caller closes, and its file type;
    None if there is no such name. Whiteouts and opaque directories count; symbolic links on the way
    are not followed.
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
    """One layer's part of `find_below`: what was found, and whether to look further down if nothing
    was."""
    with contextlib.ExitStack() as stack:
        fd = root_fd
        transparent = not onename.is_opaque(fd, xattrs.NAMESPACES)
        for name in path[:-1]:
            kind, hides = onename.kind_of(fd, name, xattrs.NAMESPACES)
            transparent = transparent and not hides
            if kind != stat.S_IFDIR:
                return None, transparent and kind is None
            fd = os.open(name, DIR_FLAGS, dir_fd=fd)
            stack.callback(os.close, fd)
            transparent = transparent and not onename.is_opaque(fd, xattrs.NAMESPACES)
        kind, hides = onename.kind_of(fd, path[-1], xattrs.NAMESPACES)
        if kind is None:
            return None, transparent and not hides
        return (None if kind == onename.WHITEOUT else (os.dup(fd), kind)), False
