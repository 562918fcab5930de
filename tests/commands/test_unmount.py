"""`unmount IMAGE`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.conftest import Cli
from tests.helpers.mounts import detach, fuse_only, mounts_at, root_only

pytestmark = fuse_only

DEBIAN = "docker.io/library/debian:12"


@pytest.fixture
def named(cli: Cli, layout: Path) -> Iterator[Cli]:
    """A store with the images `debian:12` and `two:1`."""
    cli.add(layout, "one", DEBIAN)
    cli.add(layout, "two", "docker.io/library/two:1")
    places = [cli.base / name for name in ("other", "debian:12")]
    for path in places:
        path.mkdir()
    try:
        yield cli
    finally:
        for path in places:
            detach(path)


def test_by_name_and_id(named: Cli) -> None:
    id_ = named.said("inspect", "-f", "{{.Id}}", "debian:12").strip()
    named.said("mount", "two:1", named.base / "other")
    (named.base / "debian:12").rmdir()
    for word in ("debian:12", DEBIAN, f"docker://{DEBIAN}", id_, id_[7:19], id_[:10]):
        named.said("mount", "debian:12", named.mnt)
        named.said("unmount", word)
        assert mounts_at(named.mnt) == [], word
        assert len(mounts_at(named.base / "other")) == 1
    named.refused(5, "debian:12: is neither a mount point nor an image", "unmount", "debian:12")


def test_by_path_of_the_image(named: Cli, layout: Path) -> None:
    for word in ("layout:one", f"{layout}:one", "./layout:one", "oci:layout:one"):
        named.said("mount", word, named.mnt)
        named.said("umount", word)
        assert mounts_at(named.mnt) == [], word
    named.refused(5, "no FUSE filesystem is mounted here", "unmount", layout)


def test_name_that_moved(named: Cli) -> None:
    """The mount goes by the name that it was given, and by the id of what it shows."""
    id_ = named.said("inspect", "-f", "{{.Id}}", "debian:12").strip()
    named.said("mount", DEBIAN, named.mnt)
    named.said("tag", "two:1", "debian:12")
    named.said("unmount", DEBIAN)
    named.said("mount", id_, named.mnt)
    named.refused(5, "is neither a mount point", "unmount", DEBIAN)
    named.said("unmount", id_)
    assert mounts_at(named.mnt) == []


def test_several(named: Cli) -> None:
    other = named.base / "other"
    named.said("mount", DEBIAN, named.mnt)
    named.said("mount", "--layer", "1", "debian:12", other)
    says = f"{DEBIAN}: is mounted at {named.mnt} and {other}; name the mount point"
    named.refused(5, says, "unmount", DEBIAN)
    assert [len(mounts_at(path)) for path in (named.mnt, other)] == [1, 1]
    named.said("unmount", other)
    named.said("unmount", DEBIAN)
    assert mounts_at(named.mnt) == []


def test_path_goes_first(named: Cli) -> None:
    """And what could be both is said."""
    named.said("mount", "two:1", "./debian:12")
    named.said("mount", "docker://debian:12", named.mnt)
    done = named.run("unmount", "debian:12")
    assert done.returncode == 0
    assert f"it may be an image, too, mounted at {named.mnt}" in done.stderr
    assert [len(mounts_at(path)) for path in (named.mnt, named.base / "debian:12")] == [1, 0]
    # A directory where nothing is mounted is no mount point.
    named.said("unmount", "debian:12")
    assert mounts_at(named.mnt) == []
    named.said("mount", "two:1", "./debian:12")
    done = named.run("unmount", "./debian:12")
    assert (done.returncode, done.stderr) == (0, "")


@root_only
def test_mount_that_is_covered(named: Cli) -> None:
    """What lies on top of it stays."""
    named.said("mount", "debian:12", named.mnt)
    (lower := named.base / "lower").mkdir()
    inner = named.mnt / "etc"
    named.said("mount", "-o", f"lowerdir={lower}", inner)
    try:
        done = named.run("unmount", DEBIAN)
        assert done.returncode == 6 and str(named.mnt) in done.stderr
        assert os.listdir(inner) == []
    finally:
        detach(inner)
    named.said("unmount", DEBIAN)
