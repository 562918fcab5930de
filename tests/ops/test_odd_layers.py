"""Lowers on filesystems that lack extended attributes or other features."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

import pytest

from fuseoverlay.errors import PROBLEMS_LEFT
from tests.helpers import oddfs
from tests.helpers.mounts import (
    Daemon,
    Space,
    detach,
    fails,
    fuse_only,
    mounts_at,
    overlay_xattr,
    unmount,
)
from tests.mount.conftest import Cli

pytestmark = fuse_only

ATTRIBUTES = [errno.ENODATA, errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS]


@pytest.fixture(params=ATTRIBUTES, ids=lambda code: errno.errorcode[code])
def odd(request: pytest.FixtureRequest, space: Space) -> Iterator[Space]:
    """A space whose top lower is such a filesystem."""
    with odd_lower(space, request.param):
        yield space


@contextlib.contextmanager
def odd_lower(space: Space, code: int, *more: object) -> Iterator[None]:
    """The space's top lower; calls about attributes fail there with this errno."""
    argv = [sys.executable, oddfs.__file__, str(space.lower), str(code)]
    bottom = space.add_lower()
    (bottom / "dir").mkdir()
    (bottom / "dir" / "below").write_bytes(b"below")
    argv += [str(errno.ENOSYS), *map(str, more)]
    daemon = Daemon(argv, space.lower, space.base / "odd-log")
    try:
        daemon.wait_until_mounted(1)
        yield
        space.drop()
        unmount(space.lower)
        daemon.finish()
    finally:
        space.drop()
        detach(space.lower)
        daemon.kill()


def test_reading(odd: Space) -> None:
    mnt = odd.mount(read_only=True)
    assert sorted(os.listdir(mnt)) == ["dir", "file", "link"]
    assert sorted(os.listdir(mnt / "dir")) == ["below", "inside"]
    for _ in range(2):
        assert (mnt / "file").read_bytes() == oddfs.CONTENTS[oddfs.FILE]
        assert (mnt / "dir" / "inside").read_bytes() == b"inside\n"
    assert os.readlink(mnt / "link") == "file"
    assert os.listxattr(mnt / "file") == []
    os.statvfs(mnt)
    odd.unmount()


def test_changing(odd: Space) -> None:
    mnt = odd.mount()
    with open(mnt / "file", "ab") as stream:
        stream.write(b"more")
    os.chmod(mnt / "dir" / "inside", 0o600)
    os.rename(mnt / "link", mnt / "moved")
    os.unlink(mnt / "dir" / "below")
    odd.remount()
    assert (mnt / "file").read_bytes() == b"content of file\nmore"
    assert os.stat(mnt / "dir" / "inside").st_mode & 0o777 == 0o600
    assert os.readlink(mnt / "moved") == "file"
    assert sorted(os.listdir(mnt)) == ["dir", "file", "moved"]
    assert os.listdir(mnt / "dir") == ["inside"]
    os.setxattr(mnt / "file", "user.colour", b"red")
    assert os.getxattr(mnt / "file", "user.colour") == b"red"
    odd.unmount()


def test_a_warning_names_the_layer(odd: Space, request: pytest.FixtureRequest) -> None:
    """There is none if the filesystem simply has no attributes: then no marks were lost."""
    odd.mount()
    text = odd.daemon.text()
    code = request.node.callspec.params["odd"]
    expected = code not in (errno.EOPNOTSUPP, errno.ENOSYS)
    assert (f"{odd.lower}: extended attributes cannot be listed" in text) == expected
    odd.unmount()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ETIMEDOUT, errno.E2BIG])
def test_unreadable_attributes(space: Space, code: int) -> None:
    """There may be marks, and what they hide would show: mount and fsck are refused."""
    lower = 3
    with odd_lower(space, code):
        for command in (("-o", space.options(), space.mnt), ("fsck", space.upper, "-o")):
            if command[0] == "fsck":
                command += (space.options(),)
            done = Cli(space).run(*command)
            assert done.returncode == lower
            (line,) = done.stderr.splitlines()
            assert f"{space.lower}: extended attributes cannot be read: {os.strerror(code)}" in line
        assert not mounts_at(space.mnt)


def _renamed(space: Space) -> None:
    """Rename `dir` of the odd lower in the upper."""
    space.features = ("redirect_dir=on",)
    mnt = space.mount()
    os.rename(mnt / "dir", mnt / "renamed")
    space.unmount()


def test_an_error_is_not_absence(space: Space) -> None:
    """If a lower returns errors, the target of a redirect is neither searched for elsewhere nor
    taken as missing: a directory shown as empty could be removed."""
    broken = space.base / "broken"
    with odd_lower(space, errno.EOPNOTSUPP, broken):
        _renamed(space)
        broken.touch()
        mnt = space.mount()
        for call in (os.listdir, os.rmdir):
            with fails(errno.EIO):
                call(mnt / "renamed")
        with fails(errno.EIO):
            os.stat(mnt / "renamed" / "inside")
        broken.unlink()
        assert sorted(os.listdir(mnt / "renamed")) == ["below", "inside"]
        with fails(errno.ENOTEMPTY):
            os.rmdir(mnt / "renamed")
        space.unmount()


def test_a_check_does_not_repair_what_a_lower_does_not_tell(space: Space) -> None:
    """A redirect that cannot be followed now is not replaced by an opaque mark."""
    broken = space.base / "broken"
    with odd_lower(space, errno.EOPNOTSUPP, broken):
        _renamed(space)
        broken.touch()
        done = Cli(space).run("fsck", space.upper, "--repair", "-o", space.options())
        assert done.returncode == PROBLEMS_LEFT
        assert os.strerror(errno.EIO) in done.stdout
        broken.unlink()
        assert overlay_xattr(space.upper / "renamed", "redirect") == b"dir"
        mnt = space.mount()
        assert sorted(os.listdir(mnt / "renamed")) == ["below", "inside"]
        space.unmount()


@pytest.mark.parametrize("read_only", [True, False])
def test_a_directory_that_a_layer_cannot_read(space: Space, read_only: bool) -> None:
    """Its parent can still be listed, and objects beside it can be read and changed."""
    broken = space.base / "broken"
    with odd_lower(space, errno.EOPNOTSUPP, broken):
        (space.base / "broken.list").touch()
        mnt = space.mount(read_only=read_only)
        assert sorted(os.listdir(mnt)) == ["dir", "file", "link"]
        assert os.stat(mnt / "dir").st_nlink == 1
        assert (mnt / "file").read_bytes() == oddfs.CONTENTS[oddfs.FILE]
        with fails(errno.EIO):
            os.listdir(mnt / "dir")
        if not read_only:
            (mnt / "new").mkdir()
            os.rename(mnt / "file", mnt / "new" / "file")
            with fails(errno.EIO):
                os.rmdir(mnt / "dir")
            assert sorted(os.listdir(mnt)) == ["dir", "link", "new"]
