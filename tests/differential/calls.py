"""What the steps of the cases are made of: calls, and what is to be seen afterwards."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fuseoverlay.system.syscalls import AT_FDCWD, renameat2
from tests.helpers import libc
from tests.helpers.libc import Dirent, Stream

_DAY = 86400 * 10**9


def fold(ns: int) -> int | str:
    """A time; the two sides run at different times, so of what they set themselves only that."""
    return "now" if abs(ns - time.time_ns()) < _DAY else ns


def attempt(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The call's result, or the name of its errno."""
    try:
        return func(*args, **kwargs)
    except OSError as exc:
        return error_name(exc)


def error_name(exc: OSError) -> str:
    """The errno as text."""
    return errno.errorcode.get(exc.errno or 0, str(exc))


def seen(st: os.stat_result) -> dict[str, object]:
    """What stat(2) says, without what no two filesystems agree on."""
    found: dict[str, object] = {
        "mode": oct(st.st_mode),
        "owner": (st.st_uid, st.st_gid),
        "mtime": fold(st.st_mtime_ns),
        "rdev": st.st_rdev,
    }
    if not stat.S_ISDIR(st.st_mode):
        found |= {"nlink": st.st_nlink, "size": st.st_size}
    return found


def look(path: Path | str | bytes) -> object:
    """Everything about a name, or the errno of looking."""
    try:
        st = os.lstat(path)
        found = seen(st)
        found["xattrs"] = xattrs(path)
        if stat.S_ISREG(st.st_mode):
            found["content"] = attempt(get, path)[:200]
        elif stat.S_ISLNK(st.st_mode):
            found["target"] = os.readlink(path)
        elif stat.S_ISDIR(st.st_mode):
            found["names"] = names(path)
    except OSError as exc:
        return error_name(exc)
    return found


def xattrs(path: Path | str | bytes) -> object:
    """All extended attributes, of a link its own."""
    return attempt(
        lambda: {
            name: attempt(os.getxattr, path, name, follow_symlinks=False)
            for name in sorted(os.listxattr(path, follow_symlinks=False))
        }
    )


def names(path: Path | str | bytes) -> object:
    """The names in a directory."""
    return attempt(lambda: sorted(os.fsencode(name) for name in os.listdir(path)))


def get(path: Path | str | bytes) -> bytes:
    """The content of a file; does not wait for a fifo."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(fd, 1 << 20)
    finally:
        os.close(fd)


def put(path: Path | str, data: bytes = b"new", flags: int = 0, mode: int = 0o644) -> int:
    """Open for writing with more `flags`, write, close."""
    with opened(path, os.O_WRONLY | os.O_NONBLOCK | flags, mode) as fd:
        return os.write(fd, data)


def create(path: Path | str, data: bytes = b"created", mode: int = 0o644) -> int:
    """Make a file that must not be there."""
    return put(path, data, os.O_CREAT | os.O_EXCL, mode)


@contextlib.contextmanager
def opened(path: Path | str | bytes, flags: int = os.O_RDONLY, mode: int = 0o644) -> Iterator[int]:
    """A descriptor for a block."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)


def rename(old: Path, new: Path, flags: int = 0) -> None:
    """renameat2(2)."""
    renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)


def remove(path: Path) -> None:
    """rm -r."""
    if stat.S_ISDIR(os.lstat(path).st_mode):
        for name in os.listdir(path):
            remove(path / name)
        os.rmdir(path)
    else:
        os.unlink(path)


def link_descriptor(fd: int, new: Path) -> None:
    """A name for what is open: linkat(2) with AT_SYMLINK_FOLLOW."""
    libc.linkat(f"/proc/self/fd/{fd}".encode(), new, libc.AT_SYMLINK_FOLLOW)


def number(path: Path | str) -> int:
    """st_ino."""
    return os.lstat(path).st_ino


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    """Another umask for a block."""
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


@contextlib.contextmanager
def user(uid: int = 1000, gid: int = 1000) -> Iterator[None]:
    """Be somebody else for a block."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def listing(path: Path | str | bytes) -> list[Dirent]:
    """All entries but . and .. by name."""
    with Stream(path) as stream:
        return sorted(entry for entry in stream if entry.name not in (b".", b".."))
