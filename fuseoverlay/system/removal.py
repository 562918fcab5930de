"""Remove whole trees, whatever their modes and depth."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection, Iterator

from fuseoverlay.system import syscalls
from fuseoverlay.system.syscalls import DIR_FLAGS


def clear(fd: int, *, keep: Collection[bytes] = ()) -> None:
    """Remove everything in the directory `fd` except the names in `keep`. May block for long."""
    for name in names_in(fd):
        if name not in keep:
            remove_tree(fd, name)


def names_in(dir_fd: int) -> list[bytes]:
    """The names in the directory now. Opens it anew: Btrfs lists through a descriptor only what was
    there when it was opened."""
    fd = os.open(b".", DIR_FLAGS, dir_fd=dir_fd)
    try:
        return [os.fsencode(name) for name in os.listdir(fd)]
    finally:
        os.close(fd)


def remove_tree(dir_fd: int, name: bytes) -> None:
    """Remove `name` in `dir_fd` and everything below, even if modes forbid access.

    Uses no recursion and few descriptors: a layer may be thousands of directories deep. Nobody else
    may be working in the tree. May block for long. OSError if something cannot be removed.
    """
    try:
        os.unlink(name, dir_fd=dir_fd)
        return
    except IsADirectoryError:
        pass
    except PermissionError:
        # POSIX wants EPERM for unlink of a directory.
        if not stat.S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
            raise
    empty_tree(dir_fd, name)
    os.rmdir(name, dir_fd=dir_fd)


def empty_tree(dir_fd: int, name: bytes) -> None:
    """Remove everything in the directory `name` in `dir_fd`, in the same way."""
    todo = [name]
    found: list[bytes] = []
    while todo:
        path = todo.pop()
        found.append(path)
        with _opened(dir_fd, path) as fd:
            todo.extend(path + b"/" + child for child in _unlink_children(fd))
    for path in reversed(found[1:]):
        above, _, last = path.rpartition(b"/")
        fd = syscalls.open_beneath(dir_fd, above, os.O_PATH | os.O_DIRECTORY)
        try:
            os.rmdir(last, dir_fd=fd)
        finally:
            os.close(fd)


@contextlib.contextmanager
def _opened(dir_fd: int, path: bytes) -> Iterator[int]:
    """Open a directory to empty it, after giving its owner all permissions."""
    handle = syscalls.open_beneath(dir_fd, path, os.O_PATH | os.O_DIRECTORY)
    try:
        if os.fstat(handle).st_mode & 0o700 != 0o700:
            os.chmod(syscalls.fd_path(handle), 0o700)
        fd = os.open(b".", DIR_FLAGS, dir_fd=handle)
    finally:
        os.close(handle)
    try:
        yield fd
    finally:
        os.close(fd)


def _unlink_children(fd: int) -> list[bytes]:
    """Remove everything but directories; returns the names of those."""
    directories = []
    with os.scandir(fd) as children:
        listed = [
            (os.fsencode(child.name), child.is_dir(follow_symlinks=False)) for child in children
        ]
    for child, is_dir in listed:
        if is_dir:
            directories.append(child)
        else:
            os.unlink(child, dir_fd=fd)
    return directories
