"""Immutable and append-only objects of a lower: what chattr(1) forbids stays forbidden."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.mounts import NATIVE, Space, fails, root_only

pytestmark = root_only  # to set the flags

# linux/fs.h
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
APPEND, IMMUTABLE = 0x20, 0x10


def set_flags(path: Path, add: int, remove: int = 0) -> None:
    """chattr(1)."""
    fd = os.open(path, os.O_RDONLY)
    try:
        flags = struct.unpack("L", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8)))[0]
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("L", flags & ~remove | add))
    finally:
        os.close(fd)


@pytest.fixture
def protected(space: Space) -> Iterator[Space]:
    """`i` and `id/` are immutable, `a` and `ad/` append-only; `f` is a file anyone may change."""
    flags = {"i": IMMUTABLE, "id": IMMUTABLE, "a": APPEND, "ad": APPEND}
    for name in ("id", "ad"):
        (space.lower / name).mkdir()
        (space.lower / name / "f").write_bytes(b"inside")
    for name in ("i", "a", "f"):
        (space.lower / name).write_bytes(b"lower\n")
        os.setxattr(space.lower / name, "user.x", b"y")
    for name, flag in flags.items():
        set_flags(space.lower / name, flag)
    try:
        yield space
    finally:
        space.drop()
        for name in flags:
            set_flags(space.lower / name, 0, IMMUTABLE | APPEND)


def _write(path: Path, flags: int) -> None:
    fd = os.open(path, os.O_WRONLY | flags, 0o644)
    try:
        os.write(fd, b"more\n")
    finally:
        os.close(fd)


Action = Callable[[Path, Path], object]

#: Changes that neither kind allows, as functions of (object, a file that may be changed).
CHANGES: dict[str, Action] = {
    "write": lambda path, _: _write(path, 0),
    "open": lambda path, _: os.close(os.open(path, os.O_RDWR)),
    "replace": lambda path, _: _write(path, os.O_TRUNC),
    "replace appending": lambda path, _: _write(path, os.O_TRUNC | os.O_APPEND),
    "truncate": lambda path, _: os.truncate(path, 0),
    "link": lambda path, other: os.link(path, other.parent / "new"),
}
#: The same for directories too.
CHANGES_OF_ALL: dict[str, Action] = {
    "chmod": lambda path, _: os.chmod(path, 0o600),
    "chown": lambda path, _: os.chown(path, 1, 1),
    "utime": lambda path, _: os.utime(path, (1, 1)),
    "setxattr": lambda path, _: os.setxattr(path, "user.y", b"z"),
    "removexattr": lambda path, _: os.removexattr(path, "user.x"),
    "rename": lambda path, other: os.rename(path, other.parent / "new"),
}
REMOVALS: dict[str, Action] = {
    "rename over": lambda path, other: os.rename(other, path),
    "unlink": lambda path, _: os.unlink(path),
}


@pytest.mark.parametrize("name", ["i", "a"])
@pytest.mark.parametrize("action", CHANGES | CHANGES_OF_ALL | REMOVALS)
def test_file_refuses(protected: Space, name: str, action: str) -> None:
    with protected.mounted() as mnt:
        # With the extension the kernel opens files without asking.
        if action == "open" and NATIVE:
            CHANGES[action](mnt / name, mnt / "f")
        else:
            with fails(errno.EPERM):
                (CHANGES | CHANGES_OF_ALL | REMOVALS)[action](mnt / name, mnt / "f")
        assert (mnt / name).read_bytes() == b"lower\n"
        assert sorted(os.listdir(protected.upper)) == []


@pytest.mark.parametrize("name", ["id", "ad"])
@pytest.mark.parametrize("action", CHANGES_OF_ALL)
def test_directory_refuses(protected: Space, name: str, action: str) -> None:
    with protected.mounted() as mnt:
        with fails(errno.EPERM):
            CHANGES_OF_ALL[action](mnt / name, mnt / "f")
        with fails(errno.EPERM):
            os.rmdir(mnt / name)
        assert sorted(os.listdir(protected.upper)) == []


def test_append_only_file_takes_appends_for_ever(protected: Space) -> None:
    with protected.mounted() as mnt:
        _write(mnt / "a", os.O_APPEND)
        assert (mnt / "a").read_bytes() == b"lower\nmore\n"
        with fails(errno.EPERM):
            os.truncate(mnt / "a", 0)
        protected.remount()
        _write(mnt / "a", os.O_APPEND)
        with fails(errno.EPERM):
            _write(mnt / "a", 0)
        with fails(errno.EPERM):
            os.unlink(mnt / "a")
        assert (mnt / "a").read_bytes() == b"lower\nmore\nmore\n"


def test_names_in_an_immutable_directory_stay(protected: Space) -> None:
    with protected.mounted() as mnt:
        # The file is not immutable, and its copy-up brings the directory up.
        _write(mnt / "id" / "f", os.O_TRUNC)
        for _ in range(2):
            assert (mnt / "id" / "f").read_bytes() == b"more\n"
            for change in (
                lambda: (mnt / "id" / "new").mkdir(),
                lambda: (mnt / "id" / "new").write_bytes(b""),
                lambda: os.symlink("f", mnt / "id" / "new"),
                lambda: os.link(mnt / "f", mnt / "id" / "new"),
                lambda: os.rename(mnt / "f", mnt / "id" / "new"),
                lambda: os.rename(mnt / "id" / "f", mnt / "new"),
                lambda: os.rename(mnt / "id" / "f", mnt / "id" / "new"),
                lambda: os.unlink(mnt / "id" / "f"),
            ):
                with fails(errno.EPERM):
                    change()
            assert os.listdir(mnt / "id") == ["f"]
            protected.remount()


def test_append_only_directory_takes_new_names_only(protected: Space) -> None:
    with protected.mounted() as mnt:
        (mnt / "ad" / "new").write_bytes(b"new")
        os.rename(mnt / "f", mnt / "ad" / "moved")
        for _ in range(2):
            for change in (
                lambda: os.unlink(mnt / "ad" / "f"),
                lambda: os.unlink(mnt / "ad" / "new"),
                lambda: os.rename(mnt / "ad" / "f", mnt / "f"),
                lambda: os.rename(mnt / "ad" / "new", mnt / "ad" / "newer"),
                lambda: os.chmod(mnt / "ad", 0o700),
            ):
                with fails(errno.EPERM):
                    change()
            assert sorted(os.listdir(mnt / "ad")) == ["f", "moved", "new"]
            protected.remount()
