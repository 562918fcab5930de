"""Attributes that a layer's owner can forge: root does not take them for the overlay's."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers.mounts import (
    MODE,
    Space,
    command,
    daemon_env,
    differs,
    fails,
    fuse_only,
    root_only,
)
from tests.ops.test_users import ALICE, may, may_not

CONTAINERS = "user.containers.override_stat"
OVERRIDES = (CONTAINERS, "user.fuseoverlayfs.override_stat")
FORGEABLE = ["user.overlay.", "user.fuseoverlayfs."]


class Seen(NamedTuple):
    mode: int
    uid: int
    gid: int
    nlink: int
    content: bytes


def seen(base: Path) -> dict[str, Seen]:
    """What a program sees of a tree."""
    found = {}
    for path in sorted(base.rglob("*")):
        st = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        links = 0 if path.is_dir() else st.st_nlink
        found[str(path.relative_to(base))] = Seen(st.st_mode, st.st_uid, st.st_gid, links, content)
    return found


def populate(space: Space) -> None:
    """A secret in the bottom lower, and in the upper one, Alice's, names that could lead there."""
    bottom = space.add_lower()
    for name in ("secret", "d"):
        (bottom / name).mkdir(mode=0o700)
        (bottom / name / "f").write_bytes(b"the secret")
    (bottom / "data").write_bytes(b"the secret")
    for name in ("d", "goes on"):
        (space.lower / name).mkdir()
    for name in ("data", "gone", "d/empty", "linked"):
        (space.lower / name).touch()
    (space.lower / "linked").write_bytes(b"x")
    # As large as what a metacopy would show.
    os.truncate(space.lower / "data", 10)
    os.link(space.lower / "linked", space.lower / "other")
    for path in (space.lower, *space.lower.rglob("*")):
        os.chown(path, ALICE if MODE == "root" else -1, -1)


def _whiteouts(layer: Path, prefix: str) -> None:
    os.setxattr(layer / "d", prefix + "opaque", b"x")
    os.setxattr(layer / "d" / "empty", prefix + "whiteout", b"y")


#: What is forged, by what it is.
FORGED: dict[str, Callable[[Path, str], None]] = {
    "opaque": lambda top, prefix: os.setxattr(top / "d", prefix + "opaque", b"y"),
    "redirect": lambda top, prefix: os.setxattr(top / "goes on", prefix + "redirect", b"/secret"),
    "whiteout": _whiteouts,
    "metacopy": lambda top, prefix: os.setxattr(top / "data", prefix + "metacopy", b""),
}


@root_only
@pytest.mark.parametrize("prefix", FORGEABLE)
@pytest.mark.parametrize("what", FORGED)
@pytest.mark.parametrize("where", ["lower", "upper"])
def test_forged_attributes(space: Space, what: str, prefix: str, where: str) -> None:
    """They change nothing of what a mount by root shows, in a lower or in an upper."""
    populate(space)
    if where == "upper":
        space.lowers, space.upper = space.lowers[1:], space.lower
    space.features = ("metacopy=on",)
    space.mount()
    expected = seen(space.mnt)
    space.unmount()
    FORGED[what](space.upper if where == "upper" else space.lower, prefix)
    with space.mounted(settle=False) as mnt:
        assert seen(mnt) == expected
        assert sorted(os.listdir(mnt / "d")) == ["empty", "f"]
        assert os.listdir(mnt / "goes on") == []


@differs("namespaces")
@pytest.mark.parametrize("what", FORGED)
def test_attributes_that_were_asked_for(space: Space, what: str) -> None:
    """With `userxattr` they count, and always for who is not root."""
    populate(space)
    space.features = ("metacopy=on",)
    space.extra = ("userxattr",) if MODE == "root" else ()
    space.mount()
    plain = seen(space.mnt)
    space.unmount()
    FORGED[what](space.lower, "user.overlay.")
    with space.mounted(settle=False) as mnt:
        assert seen(mnt) != plain


@root_only
@fuse_only
@pytest.mark.parametrize("name", OVERRIDES)
@pytest.mark.parametrize("owner", ["hers", "for all to write"])
def test_forged_owner(space: Space, name: str, owner: str) -> None:
    """Nobody becomes root by an attribute on a program of her own."""
    shutil.copy("/usr/bin/id", space.lower / "id")
    for path, value in ((space.lower, "0:0:0755:dir"), (space.lower / "id", "0:0:04755:file")):
        os.setxattr(path, name, value.encode())
        os.chmod(path, 0o777 if owner == "for all to write" else 0o755)
        os.chown(path, 0 if owner == "for all to write" else ALICE, -1)

    def become_root() -> None:
        done = subprocess.run([space.mnt / "id", "-u"], capture_output=True, timeout=30)
        if done.stdout != b"0\n":
            raise PermissionError(errno.EPERM, done.stdout)

    space.mount()
    assert os.stat(space.mnt / "id").st_uid == os.stat(space.lower / "id").st_uid
    may_not(ALICE, become_root, code=errno.EPERM)
    assert "user. attributes" in space.daemon.text()
    os.utime(space.mnt / "id", ns=(1, 1))
    may_not(ALICE, become_root, code=errno.EPERM)
    space.unmount()
    (space.upper / "id").unlink()
    space.extra = ("userxattr",)
    space.mount()
    os.chmod(space.mnt, 0o755)
    may(ALICE, become_root)


@root_only
@fuse_only
@pytest.mark.parametrize("name", OVERRIDES)
def test_roots_own_layer_says_so(space: Space, name: str) -> None:
    """Nobody else can have written what a directory of root's alone says of itself."""
    (space.lower / "f").touch()
    (space.lower / "d").mkdir()
    os.setxattr(space.lower, name, b"0:0:0755:dir")
    os.setxattr(space.lower / "f", name, b"5:6:04711:file")
    os.setxattr(space.lower / "d", "user.overlay.redirect", b"/secret")
    bottom = space.add_lower()
    (bottom / "secret").mkdir()
    (bottom / "secret" / "f").touch()
    with space.mounted(settle=False) as mnt:
        st = os.stat(mnt / "f")
        assert (st.st_uid, st.st_gid, st.st_mode & 0o7777) == (5, 6, 0o4711)
        # A mark is one by `trusted.` attributes alone.
        assert os.listdir(mnt / "d") == []


@root_only
@fuse_only
@pytest.mark.parametrize("name", OVERRIDES)
@pytest.mark.parametrize("owner", ["hers", "for all to write"])
def test_what_is_not_roots_in_a_layer_of_roots(space: Space, name: str, owner: str) -> None:
    """Whoever owns one file or directory in it says nothing of others, and gains nothing."""
    hers = space.lower / "hers"
    hers.mkdir()
    shutil.copy("/usr/bin/id", hers / "id")
    capability = "user.containers.override_security.capability"
    for path, value in ((space.lower, "0:0:0755:dir"), (hers / "id", "0:0:04755:file")):
        os.setxattr(path, name, value.encode())
    os.setxattr(hers, name, b"0:0:0700:dir")
    os.setxattr(hers / "id", capability, bytes.fromhex("0100000280000000000000000000000000000000"))
    for path in (hers, hers / "id"):
        os.chmod(path, 0o777 if owner == "for all to write" else 0o755)
        os.chown(path, 0 if owner == "for all to write" else ALICE, -1)
    with space.mounted(settle=False) as mnt:
        for path in ("hers", "hers/id"):
            real, shown = os.stat(space.lower / path), os.stat(mnt / path)
            assert (shown.st_uid, shown.st_mode) == (real.st_uid, real.st_mode)
        assert os.listxattr(mnt / "hers" / "id") == []
        with fails(errno.ENODATA):
            os.getxattr(mnt / "hers" / "id", "security.capability")


@root_only
@fuse_only
@pytest.mark.parametrize("asked", [False, True])
def test_fsck_reads_as_the_mount_does(space: Space, asked: bool) -> None:
    """What does not count is no fault."""
    (space.upper / "d").mkdir()
    os.setxattr(space.upper / "d", "user.overlay.redirect", b"/not there")
    os.setxattr(space.upper / "d", "user.overlay.origin", b"nonsense")
    space.extra = ("userxattr",) if asked else ()
    options = ",".join([space.options(read_only=True), f"workdir={space.work}"])
    argv = command("fsck", space.upper, "-o", options)
    done = subprocess.run(argv, capture_output=True, timeout=60, env=daemon_env())
    assert done.returncode == (10 if asked else 0), done.stdout
