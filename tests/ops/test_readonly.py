"""A mount without an upper directory: everything can be read, nothing changed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

import pytest

from fuseoverlay.system.syscalls import AT_FDCWD, RENAME_EXCHANGE, renameat2
from tests.helpers.mounts import Space, differs, fails, fuse_only, make_whiteout, scratch
from tests.helpers.tree import compare, record
from tests.ops.conftest import CONTENT, populate


@pytest.fixture(scope="module")
def mounted() -> Iterator[Space]:
    """Two lowers, mounted read-only."""
    with scratch() as base:
        space = Space(base)
        bottom = space.add_lower()
        populate(bottom)
        (bottom / "gone").touch()
        make_whiteout(space.lower / "gone")
        (space.lower / "top").write_bytes(b"top")
        before = space.evidence()
        try:
            space.mount(read_only=True)
            yield space
            was = record(str(space.mnt))
            space.remount(read_only=True)
            assert compare(was, record(str(space.mnt))) == []
            space.unmount()
            space.check_lowers(before)
        finally:
            space.drop()


def test_reading(mounted: Space) -> None:
    mnt = mounted.mnt
    assert sorted(os.listdir(mnt)) == ["d", "e", "f", "g", "k", "p", "s", "top"]
    assert (mnt / "f").read_bytes() == CONTENT
    assert (mnt / "s").read_bytes() == CONTENT
    assert (mnt / "d" / "sub" / "leaf").read_bytes() == b"leaf"
    assert os.getxattr(mnt / "f", "user.colour") == b"red"
    assert stat.S_ISFIFO(os.stat(mnt / "p").st_mode)


CHANGES = {
    "create": lambda mnt: os.open(mnt / "new", os.O_WRONLY | os.O_CREAT),
    "create below": lambda mnt: os.open(mnt / "d" / "new", os.O_WRONLY | os.O_CREAT),
    "write": lambda mnt: os.open(mnt / "f", os.O_WRONLY),
    "append": lambda mnt: os.open(mnt / "f", os.O_WRONLY | os.O_APPEND),
    "read-write": lambda mnt: os.open(mnt / "f", os.O_RDWR),
    "truncating open": lambda mnt: os.open(mnt / "f", os.O_RDONLY | os.O_TRUNC),
    "truncate": lambda mnt: os.truncate(mnt / "f", 0),
    "mkdir": lambda mnt: os.mkdir(mnt / "new"),
    "mkfifo": lambda mnt: os.mkfifo(mnt / "new"),
    "symlink": lambda mnt: os.symlink("x", mnt / "new"),
    "link": lambda mnt: os.link(mnt / "f", mnt / "new"),
    "unlink": lambda mnt: os.unlink(mnt / "f"),
    "rmdir": lambda mnt: os.rmdir(mnt / "e"),
    "rename": lambda mnt: os.rename(mnt / "f", mnt / "new"),
    "exchange": lambda mnt: renameat2(
        AT_FDCWD, os.fsencode(mnt / "f"), AT_FDCWD, os.fsencode(mnt / "g"), RENAME_EXCHANGE
    ),
    "chmod": lambda mnt: os.chmod(mnt / "f", 0o600),
    "chown": lambda mnt: os.chown(mnt / "f", os.getuid(), os.getgid()),
    "utime": lambda mnt: os.utime(mnt / "f", ns=(1, 1)),
    "utime of the root": lambda mnt: os.utime(mnt),
    "setxattr": lambda mnt: os.setxattr(mnt / "f", "user.x", b"y"),
    "removexattr": lambda mnt: os.removexattr(mnt / "f", "user.colour"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_refused(mounted: Space, change: str) -> None:
    with fails(errno.EROFS):
        CHANGES[change](mounted.mnt)


def test_access_and_statvfs_say_so(mounted: Space) -> None:
    assert os.access(mounted.mnt / "f", os.R_OK)
    assert not os.access(mounted.mnt / "f", os.W_OK)
    assert os.statvfs(mounted.mnt).f_flag & os.ST_RDONLY


def test_opening_what_exists_with_o_creat(mounted: Space) -> None:
    fd = os.open(mounted.mnt / "f", os.O_RDONLY | os.O_CREAT)
    assert os.read(fd, 7) == CONTENT[:7]
    os.close(fd)


@differs("dialects")
def test_one_lower_is_enough(space: Space) -> None:
    """The kernel wants two without an upper."""
    (space.lower / "f").write_bytes(b"x")
    with space.mounted(read_only=True) as mnt:
        assert (mnt / "f").read_bytes() == b"x"


@fuse_only
def test_ro_with_an_upper(space: Space) -> None:
    space.extra = ("ro",)
    (space.lower / "f").write_bytes(b"x")
    (space.upper / "u").write_bytes(b"u")
    with space.mounted(settle=False) as mnt:
        assert (mnt / "u").read_bytes() == b"u"
        with fails(errno.EROFS):
            (mnt / "f").write_bytes(b"y")
        with fails(errno.EROFS):
            os.mkdir(mnt / "new")
    assert os.listdir(space.upper) == ["u"]
