"""Uppers on filesystems that do not keep all they are given: mounts of other overlays, which
reserve whiteouts and overlay attributes for themselves."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.mounts import Daemon, Space, command, detach, ends, fuse_only, mounts_at, unmount
from tests.mount.conftest import Cli

pytestmark = fuse_only

UPPER = 4


@contextlib.contextmanager
def upper_on(space: Space, argv: list[str]) -> Iterator[None]:
    """Put upper and work directory in a mount by this command line, with layers added."""
    base = space.base / "below"
    for name in ("lower", "upper", "work", "mnt"):
        (base / name).mkdir(parents=True)
    options = f"lowerdir={base / 'lower'},upperdir={base / 'upper'},workdir={base / 'work'}"
    log = space.base / "below-log"
    daemon = Daemon([*argv, "-f", "-o", options, str(base / "mnt")], base / "mnt", log)
    try:
        daemon.wait_until_mounted(1)
        space.upper, space.work = base / "mnt" / "upper", base / "mnt" / "work"
        space.upper.mkdir()
        space.work.mkdir()
        yield
        space.drop()
        unmount(base / "mnt")
        assert ends(daemon.process, 30)
    finally:
        space.drop()
        detach(base / "mnt")
        daemon.kill()


def nothing_mounted(space: Space, option: str) -> str:
    """Check that the mount is refused in one line because of the upper."""
    done = Cli(space).run("-o", f"{space.options()},{option}", space.mnt)
    assert done.returncode == UPPER, done.stderr
    assert not mounts_at(space.mnt)
    (line,) = done.stderr.splitlines()
    return line


def populate(lower: Path) -> None:
    (lower / "a").write_bytes(b"a")
    (lower / "d").mkdir()
    (lower / "d" / "q").write_bytes(b"q")


OVERLAYS = {
    "fuse-overlayfs": ["fuse-overlayfs"],
    "no attributes": [*command("mount"), "-o", "noxattrs=1"],
}


@pytest.mark.parametrize("below", OVERLAYS)
def test_upper_that_keeps_no_whiteouts(space: Space, below: str) -> None:
    """Lower objects cannot be deleted, of which the mount warns at its start; all else works. If a
    dialect is requested, the mount is refused."""
    populate(space.lower)
    with upper_on(space, OVERLAYS[below]):
        for dialect in ("char", "xattr", "oci"):
            line = nothing_mounted(space, f"whiteout={dialect}")
            assert f"whiteout={dialect}" in line
            assert str(space.upper) in line
        mnt = space.mount()
        assert "cannot be deleted" in space.daemon.text()
        (mnt / "new").write_bytes(b"new")
        (mnt / "new").rename(mnt / "renamed")
        (mnt / "a").write_bytes(b"changed")
        (mnt / "d" / "own").write_bytes(b"own")
        (mnt / "d" / "own").unlink()
        (mnt / "renamed").unlink()
        for name in ("a", "d/q"):
            with pytest.raises(OSError):
                (mnt / name).unlink()
        for _ in range(2):
            assert (mnt / "a").read_bytes() == b"changed"
            assert (mnt / "d" / "q").read_bytes() == b"q"
            assert sorted(os.listdir(mnt)) == ["a", "d"]
            space.remount()


def test_upper_on_our_own_mount(space: Space) -> None:
    """It keeps attributes, escaped, and so xattr whiteouts, but no devices 0:0."""
    populate(space.lower)
    with upper_on(space, command("mount")):
        assert "use whiteout=xattr" in nothing_mounted(space, "whiteout=char")
        assert "use whiteout=xattr" in nothing_mounted(space, "whiteout=oci")
        mnt = space.mount()
        assert "cannot be deleted" not in space.daemon.text()
        (mnt / "a").unlink()
        (mnt / "d" / "q").unlink()
        (mnt / "d").rmdir()
        (mnt / "d").mkdir()
        for _ in range(2):
            assert os.listdir(mnt) == ["d"]
            assert os.listdir(mnt / "d") == []
            space.remount()


@pytest.mark.parametrize("dialect", ["char", "xattr", "oci"])
def test_probes_leave_nothing(space: Space, dialect: str) -> None:
    space.extra = (f"whiteout={dialect}",)
    space.mount()
    assert os.listdir(space.work / "work") == []
    assert os.listdir(space.upper) == []
