"""Who can access a mount: every way to mount and to keep owners, with a second user who tries.

These tests need root, who can act as any user. The plain user mounts with fusermount3, which
/etc/fuse.conf allows to let others in; the user namespace has several ids.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.mounts import Daemon, Space, command, fuse_only, mounts_at, root_only, wait_for
from tests.helpers.namespaces import FIRST, user_namespace

pytestmark = [root_only, fuse_only]

#: The plain user who mounts (fusermount3 wants a name), and the second one.
MOUNTER, OTHER = pwd.getpwnam("daemon").pw_uid, 4002
CONTAINERS = "user.containers.override_stat"
MAPPING = "uidmapping=0:5000:4900,gidmapping=0:5000:4900"
AS = "setpriv --reuid={0} --regid={0} --clear-groups --"


@dataclass
class Side:
    """The user who mounts and the other ones, as beginnings of command lines."""

    mounter: list[str]
    other: list[str]
    #: The id outside of the user namespace that the layers belong to.
    owner: int

    def mount(self, space: Space, options: str, *, fails: bool = False) -> None:
        """Mount the space's layers, or check that this is refused."""
        space.extra = tuple(filter(None, options.split(",")))
        argv = [*self.mounter, *command("mount", "-f", "-o", space.options(), space.mnt)]
        space.daemon = Daemon(argv, space.mnt, space.log)
        pid = space.daemon.process.pid
        wait_for(lambda: not space.alive() or mounts_at(space.mnt, pid), 20, "mounting")
        assert space.alive() != fails, space.daemon.text()

    def may(self, who: list[str], *args: object) -> bool:
        """Whether a command of this user succeeds."""
        argv = [*who, *(str(arg) for arg in args)]
        return not subprocess.run(argv, capture_output=True, timeout=30, cwd="/").returncode


@contextlib.contextmanager
def _others_allowed(base: Path) -> Iterator[None]:
    """In our mount namespace, `user_allow_other` is in /etc/fuse.conf."""
    conf = base / "fuse.conf"
    conf.write_text("user_allow_other\n")
    subprocess.run(["mount", "--bind", conf, "/etc/fuse.conf"], check=True, timeout=30)
    try:
        yield
    finally:
        subprocess.run(["umount", "/etc/fuse.conf"], check=True, timeout=30)


@pytest.fixture
def side(request: pytest.FixtureRequest, space: Space) -> Iterator[Side]:
    """A way to mount; the space's directories belong to the user who mounts."""
    with contextlib.ExitStack() as undo:
        other = AS.format(OTHER).split()
        if request.param == "root":
            side = Side([], other, 0)
        elif request.param == "user":
            undo.enter_context(_others_allowed(space.base))
            side = Side(AS.format(MOUNTER).split(), other, MOUNTER)
        else:
            enter = undo.enter_context(user_namespace(10_000)).enter
            side = Side([*enter, *AS.format(0).split()], [*enter, *other], FIRST)
        for path in (space.lower, space.upper, space.work, space.mnt):
            os.chown(path, side.owner, side.owner)
        yield side
        space.drop()


def _populate(layer: Path, owner: int, *, override: bool) -> None:
    """Make a file for its owner and one that all may read, in a lower that keeps modes that way."""
    for name, mode in (("private", 0o600), ("open", 0o644)):
        path = layer / name
        path.write_bytes(b"content")
        if override:
            os.setxattr(path, CONTAINERS, f"0:0:0{mode:o}:file".encode())
        os.chmod(path, 0o644 if override else mode)
        os.chown(path, owner, owner)
    if override:
        os.setxattr(layer, CONTAINERS, b"0:0:0755:dir")


SIDES = pytest.mark.parametrize("side", ["root", "user", "userns"], indirect=True)


@SIDES
@pytest.mark.parametrize("allow", ["", "allow_other"])
@pytest.mark.parametrize("kept", ["", "xattr_permissions=1", "xattr_permissions=2"])
@pytest.mark.parametrize("ids", ["", "squash_to_root", MAPPING])
def test_second_user(
    request: pytest.FixtureRequest, space: Space, side: Side, allow: str, kept: str, ids: str
) -> None:
    """The second user gets what the modes shown allow, or nothing at all."""
    mounting = request.node.callspec.params["side"]
    if kept.endswith("1") and mounting != "root":
        pytest.skip("takes the superuser")
    _populate(space.lower, side.owner, override=bool(kept))
    if ids.startswith("uid") and mounting == "user":
        ids = ids.replace("0:5000", f"{0 if kept else MOUNTER}:5000")
    side.mount(space, ",".join(filter(None, [allow, kept, ids])))
    private, public = space.mnt / "private", space.mnt / "open"
    # The kernel knows what the mounting user has looked up.
    side.may(side.mounter, "cat", private, public)
    gets_in = bool(allow) or mounting != "user"
    assert side.may(side.other, "cat", public) == gets_in
    assert not side.may(side.other, "cat", private)
    assert not side.may(side.other, "sh", "-c", f"echo x >>{public}")
    assert not side.may(side.other, "rm", "-f", public)
    assert not side.may(side.other, "touch", space.mnt / "new")
    assert not side.may(side.other, "chmod", "666", private)
    if not gets_in and kept:
        # Nobody else can get in: the user who mounts may do anything, whatever owner is shown.
        assert side.may(side.mounter, "cat", private)


@SIDES
@pytest.mark.parametrize("kept", ["", "xattr_permissions=2"])
def test_allow_root(request: pytest.FixtureRequest, space: Space, side: Side, kept: str) -> None:
    """It admits root alone, or is refused: the kernel can only let everybody in, and caches answers
    for all."""
    _populate(space.lower, side.owner, override=bool(kept))
    by_user = request.node.callspec.params["side"] == "user"
    side.mount(space, ",".join(filter(None, ["allow_root", kept])), fails=by_user)
    if by_user:
        assert "allow_root" in space.daemon.text()
        return
    assert side.may(side.mounter, "cat", space.mnt / "open")
    assert not side.may(side.other, "cat", space.mnt / "open")
