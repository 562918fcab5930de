"""More files and directories without a name than the daemon may hold descriptors."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.helpers import libc
from tests.helpers.mounts import MODE, NATIVE, Space, detach, fails, fuse_only

pytestmark = fuse_only

#: The daemon's descriptors, and the objects, each of which would take one.
LIMIT, MANY = 96, 300


@pytest.fixture
def few(space: Space) -> Space:
    """A mount whose daemon may hold few descriptors."""
    bottom = space.lower
    for number in range(MANY):
        (bottom / f"file{number}").write_bytes(b"lower %d" % number)
        (bottom / f"linked{number}").write_bytes(b"linked %d" % number)
        os.link(bottom / f"linked{number}", bottom / f"other{number}")
        (bottom / f"dir{number}").mkdir()
    space.mount(descriptors=LIMIT)
    return space


def _everything_works(mnt: Path) -> None:
    (mnt / "made").mkdir()
    (mnt / "made" / "new").write_bytes(b"new")
    os.rename(mnt / "made" / "new", mnt / "made" / "renamed")
    assert (mnt / "made" / "renamed").read_bytes() == b"new"
    assert sorted(os.listdir(mnt / "made")) == ["renamed"]
    os.unlink(mnt / "made" / "renamed")
    os.rmdir(mnt / "made")


def _ends_empty(space: Space) -> None:
    """Unmount; nothing is left in the work directory, and the lower is as it was."""
    space.unmount()
    assert os.listdir(space.work / "work") == []
    for number in range(MANY):
        assert (space.lower / f"file{number}").read_bytes() == b"lower %d" % number
        assert (space.lower / f"linked{number}").read_bytes() == b"linked %d" % number


@pytest.mark.parametrize("origin", ["new", "copied"])
def test_files_unlinked_while_open(few: Space, origin: str) -> None:
    mnt = few.mnt
    descriptors = []
    for number in range(MANY):
        path = mnt / (f"new{number}" if origin == "new" else f"file{number}")
        fd = os.open(path, os.O_RDWR | (os.O_CREAT if origin == "new" else 0))
        os.pwrite(fd, b"mine %d" % number, 0)
        os.unlink(path)
        descriptors.append(fd)
    _everything_works(mnt)
    for number, fd in enumerate(descriptors):
        text = b"mine %d" % number
        assert os.pread(fd, len(text), 0) == text
        assert os.fstat(fd).st_nlink == 0
        os.pwrite(fd, b"more", 100)
        os.ftruncate(fd, 4)
        assert os.fstat(fd).st_size == 4
    before = len(os.listdir(few.work / "work"))
    assert before > 50
    for fd in descriptors:
        os.close(fd)
    # The kernel forgets them soon; one more request makes sure that it has said so.
    _everything_works(mnt)
    assert len(os.listdir(few.work / "work")) < before
    _ends_empty(few)


def test_files_of_the_lower_unlinked_while_open(few: Space) -> None:
    """They are copied up only after their last name is gone."""
    descriptors = []
    for number in range(MANY):
        descriptors.append(os.open(few.mnt / f"file{number}", os.O_RDWR))
        os.unlink(few.mnt / f"file{number}")
    for number, fd in enumerate(descriptors):
        os.pwrite(fd, b"L", 0)
        assert os.pread(fd, 100, 0) == b"Lower %d" % number
        assert os.fstat(fd).st_nlink == 0
    _everything_works(few.mnt)
    for fd in descriptors:
        os.close(fd)
    _ends_empty(few)


def test_files_replaced_while_open(few: Space) -> None:
    descriptors = []
    for number in range(MANY):
        path = few.mnt / f"file{number}"
        fd = os.open(path, os.O_RDWR)
        os.pwrite(fd, b"old", 0)
        descriptors.append(fd)
        (few.mnt / "replacement").write_bytes(b"replacement")
        os.rename(few.mnt / "replacement", path)
    for number, fd in enumerate(descriptors):
        assert os.pread(fd, 3, 0) == b"old"
        assert (few.mnt / f"file{number}").read_bytes() == b"replacement"
        os.close(fd)
    _ends_empty(few)


@pytest.mark.parametrize("origin", ["new", "lower", "copied", "replaced"])
def test_directories_removed_while_open(few: Space, origin: str) -> None:
    mnt = few.mnt
    descriptors = []
    for number in range(MANY):
        path = mnt / (f"new{number}" if origin == "new" else f"dir{number}")
        if origin == "new":
            path.mkdir()
        if origin == "copied":
            path.chmod(0o711)
        descriptors.append(os.open(path, os.O_RDONLY))
        if origin == "replaced":
            path.chmod(0o711)
            (mnt / "replacement").mkdir()
            os.rename(mnt / "replacement", path)
        else:
            path.rmdir()
    _everything_works(mnt)
    for fd in descriptors:
        os.fchmod(fd, 0o750)
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o750
        assert os.listdir(fd) == []
        with fails(errno.ENOENT):
            os.open("new", os.O_CREAT, dir_fd=fd)
        os.close(fd)
    _ends_empty(few)


@pytest.mark.skipif(not NATIVE, reason="O_TMPFILE takes the extension")
def test_files_made_without_a_name(few: Space) -> None:
    descriptors = []
    for number in range(MANY):
        fd = os.open(few.mnt, os.O_TMPFILE | os.O_RDWR, 0o600)
        os.pwrite(fd, b"%d" % number, 0)
        assert os.fstat(fd).st_nlink == 0
        descriptors.append(fd)
    _everything_works(few.mnt)
    for number, fd in enumerate(descriptors):
        assert os.pread(fd, 10, 0) == b"%d" % number
        path = few.mnt / f"named{number}"
        libc.linkat(f"/proc/self/fd/{fd}".encode(), path, libc.AT_SYMLINK_FOLLOW)
        assert os.fstat(fd).st_nlink == 1
        os.close(fd)
        assert path.read_bytes() == b"%d" % number
        assert path.stat().st_nlink == 1
    _ends_empty(few)


def test_names_that_lead_to_copies_by_the_index(few: Space) -> None:
    for number in range(MANY):
        with open(few.mnt / f"linked{number}", "r+b") as stream:
            stream.write(b"LINKED")
    few.unmount()
    few.mount()
    for number in range(MANY):
        assert (few.mnt / f"other{number}").read_bytes() == b"LINKED %d" % number
        assert os.stat(few.mnt / f"other{number}").st_nlink == 2
    _everything_works(few.mnt)
    few.unmount()


def test_other_names_of_files_that_are_held(few: Space) -> None:
    """Their link count is their own."""
    descriptors = []
    for number in range(MANY):
        descriptors.append(os.open(few.mnt / f"new{number}", os.O_CREAT | os.O_RDWR))
        os.link(few.mnt / f"new{number}", few.mnt / f"kept{number}")
        os.unlink(few.mnt / f"new{number}")
    for _ in range(2):
        os.listdir(few.mnt)
        wrong = [n for n in range(MANY) if os.stat(few.mnt / f"kept{n}").st_nlink != 1]
        assert wrong == []
        assert [fd for fd in descriptors if os.fstat(fd).st_nlink != 1] == []
    for fd in descriptors:
        os.close(fd)
    few.unmount()


@pytest.mark.skipif(MODE == "user", reason="a plain user cannot mount filesystems")
def test_removing_where_there_is_no_room(space: Space) -> None:
    """Removing works though many files are held and the filesystem has no free inode."""
    small = space.base / "small"
    small.mkdir()
    options = ["-o", "nr_inodes=400,size=4m"]
    subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(small)], check=True, timeout=30)
    try:
        space.upper, space.work = small / "upper", small / "work"
        space.upper.mkdir()
        space.work.mkdir()
        space.mount(descriptors=512)
        made = [
            os.open(space.mnt / f"new{number}", os.O_CREAT | os.O_RDWR) for number in range(150)
        ]
        with fails(errno.ENOSPC):
            for number in range(400):
                (space.mnt / f"filler{number}").touch()
        for number in range(150):
            os.unlink(space.mnt / f"new{number}")
        for name in os.listdir(space.mnt):
            os.unlink(space.mnt / name)
        for number, fd in enumerate(made):
            os.pwrite(fd, b"%d" % number, 0)
            assert os.pread(fd, 10, 0) == b"%d" % number
            os.close(fd)
        space.unmount()
    finally:
        space.drop()
        detach(small)
