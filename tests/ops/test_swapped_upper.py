"""Objects of the upper that somebody swaps for others, by the upper's own path, under the mount.

Nobody is meant to do that; but an owner who can reach a directory of the upper must not gain access
that the kernel would deny.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.mounts import Space, fails, fuse_only

pytestmark = [fuse_only, pytest.mark.timeout(60)]

MINE, OTHER = b"mine\n", b"another's, longer\n"

OPERATIONS: dict[str, Callable[[int], object]] = {
    "read": lambda fd: os.pread(fd, 100, 0),
    "write": lambda fd: os.pwrite(fd, b"x", 0),
    "truncate": lambda fd: os.ftruncate(fd, 1),
    "chmod": lambda fd: os.fchmod(fd, 0o666),
    "chown": lambda fd: os.fchown(fd, os.getuid(), os.getgid()),
    "utime": os.utime,
    "getxattr": lambda fd: os.getxattr(fd, "user.x"),
    "setxattr": lambda fd: os.setxattr(fd, "user.y", b"y"),
    "listxattr": os.listxattr,
}
SWAPS = ("link", "file", "pipe")


def _known(space: Space) -> Path:
    """The file `d/f`, in the upper and known, but not open there."""
    (space.lower / "d").mkdir()
    mnt = space.mount()
    (mnt / "d" / "f").write_bytes(MINE)
    os.setxattr(mnt / "d" / "f", "user.x", b"mine")
    space.remount()
    path = mnt / "d" / "f"
    path.stat()
    return path


def _swap(space: Space, swap: str) -> Path:
    """Swap; returns what is then at the name in the upper, and where it leads."""
    upper, target = space.upper / "d" / "f", space.base / "target"
    target.write_bytes(OTHER)
    target.chmod(0o600)
    os.setxattr(target, "user.x", b"other")
    upper.rename(space.base / "kept")
    if swap == "link":
        upper.symlink_to(target)
    elif swap == "pipe":
        os.mkfifo(upper, 0o600)
    else:
        target.rename(upper)
        return upper
    return target


@pytest.fixture(params=SWAPS)
def swapped(request: pytest.FixtureRequest, space: Space) -> Iterator[tuple[int, Path]]:
    """A descriptor of the file, at whose name there is another object."""
    path = _known(space)
    fd = os.open(path, os.O_RDWR)
    try:
        yield fd, _swap(space, request.param)
    finally:
        os.close(fd)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_nothing_is_told_or_changed(swapped: tuple[int, Path], operation: str) -> None:
    fd, target = swapped
    before = target.lstat()
    with fails(errno.ESTALE):
        OPERATIONS[operation](fd)
    after = target.lstat()
    assert (before.st_mode, before.st_uid, before.st_size, before.st_mtime_ns) == (
        after.st_mode, after.st_uid, after.st_size, after.st_mtime_ns,
    )  # fmt: skip
    assert os.listxattr(target, follow_symlinks=False) in ([], ["user.x"])


def test_a_directory(space: Space) -> None:
    """A user who may enter the directory known to the kernel may not enter any other."""
    for name in ("d", "secret"):
        (space.upper / "h" / name).mkdir(parents=True)
        (space.upper / "h" / name / f"in {name}").write_bytes(MINE)
    for number in range(200):
        (space.lower / f"n{number}").mkdir()
    space.mount(descriptors=128)
    fd = os.open(space.mnt / "h" / "d", os.O_RDONLY)
    try:
        for number in range(200):
            assert os.listdir(space.mnt / f"n{number}") == []
        (space.upper / "h" / "d").rename(space.upper / "h" / "kept")
        (space.upper / "h" / "secret").rename(space.upper / "h" / "d")
        for name in ("in d", "in secret"):
            with fails(errno.ESTALE):
                os.stat(name, dir_fd=fd)
        with fails(errno.ESTALE):
            os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
        assert os.listdir(space.upper / "h" / "d") == ["in secret"]
    finally:
        os.close(fd)


def test_a_number_that_was_given_out_again(space: Space) -> None:
    """The number went to a file that was made in this mount."""
    (space.lower / "d").mkdir()
    mnt = space.mount()
    mine, his = mnt / "d" / "mine", mnt / "d" / "his"
    mine.write_bytes(MINE)
    space.remount()
    mine.stat()
    fd = os.open(mine, os.O_RDONLY)
    try:
        number = (space.upper / "d" / "mine").stat().st_ino
        (space.upper / "d" / "mine").unlink()
        for _ in range(5000):
            his.write_bytes(OTHER)
            if (space.upper / "d" / "his").stat().st_ino == number:
                break
            his.rename(mnt / "d" / f"not{_}")
        else:
            pytest.fail("the filesystem does not give the number out again")
        his.chmod(0o600)
        (space.upper / "d" / "his").rename(space.upper / "d" / "mine")
        with fails(errno.ESTALE):
            os.pread(fd, 100, 0)
    finally:
        os.close(fd)


@pytest.mark.parametrize("timeout", [False, True])
def test_a_pipe_in_the_place_of_a_link_stops_nobody(space: Space, timeout: bool) -> None:
    space.extra = ("timeout=0",) if timeout else ()
    layer = space.lower if timeout else space.upper
    (layer / "s").symlink_to("old")
    (layer / "f").write_bytes(MINE)
    mnt = space.mount()
    fd = os.open(mnt / "s", os.O_PATH | os.O_NOFOLLOW)
    try:
        (layer / "s").rename(space.base / "kept")
        os.mkfifo(layer / "s")
        with fails(errno.ESTALE):
            os.readlink("", dir_fd=fd)
        assert (mnt / "f").read_bytes() == MINE
        assert stat.S_ISFIFO((mnt / "s").lstat().st_mode) or not timeout
    finally:
        os.close(fd)
