"""ACLs in the layers of a mount that has none: nobody gets more by the mode shown than by them."""

from __future__ import annotations

import itertools
import os
import stat
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.mounts import MODE, Space, fuse_only, root_only
from tests.ops.test_attributes import getfacl, setfacl
from tests.ops.test_users import run_as

pytestmark = fuse_only

OPTIONS = ["noacl", "noxattrs=1", "xattr_permissions=2"]
if MODE == "root":
    OPTIONS += ["xattr_permissions=1", "another layer"]
#: What hides ACLs without keeping modes in an attribute.
PLAIN = ["noacl", "noxattrs=1"]

#: User ids: a member of the owning group, a member who is also named, a user who is only named, a
#: member of a named group, and anybody else.
OWNING, NAMED_GROUP = 5000, 5001
MEMBER, NAMED_MEMBER, NAMED, GROUPED, OTHER = range(4001, 4006)
SUBJECTS = {
    MEMBER: (OWNING,),
    NAMED_MEMBER: (OWNING,),
    NAMED: (),
    GROUPED: (NAMED_GROUP,),
    OTHER: (),
}
RIGHTS = ("---", "r--", "rw-")


def hide_acls(space: Space, option: str) -> None:
    """Mount without ACLs."""
    if option == "another layer":
        below = space.add_lower()
        os.setxattr(below, "security.fuseoverlayfs.override_stat", b"0:0:0755:dir")
    else:
        space.extra = (option,)


def acl(group: str, mask: str, other: str, user: str, named_group: str) -> bytes:
    """An access ACL of a file of root's."""
    entries = (
        (0x01, "rw-", -1),
        *((0x02, user, uid) for uid in (NAMED_MEMBER, NAMED)),
        (0x04, group, -1), (0x08, named_group, NAMED_GROUP), (0x10, mask, -1), (0x20, other, -1),
    )  # fmt: skip
    return struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, 4 * ("r" in rights) + 2 * ("w" in rights), number & 0xFFFFFFFF)
        for tag, rights, number in entries
    )


def permissions(path: Path) -> str:
    return f"{stat.S_IMODE(os.stat(path).st_mode):o}"


def rights_of(uid: int, tree: Path, names: list[str]) -> dict[str, int]:
    """What the user may do with each file of the tree, as bits of access(2)."""
    ours, theirs = os.pipe()

    def ask() -> None:
        found = []
        for name in names:
            found.append(sum(bit for bit in (4, 2, 1) if os.access(tree / name, bit)))
        os.write(theirs, bytes(found))

    assert run_as(uid, ask, *SUBJECTS[uid]) == 0
    os.close(theirs)
    with open(ours, "rb") as stream:
        return dict(zip(names, stream.read(), strict=True))


@root_only
@pytest.mark.parametrize("option", OPTIONS)
def test_nobody_gains(space: Space, option: str) -> None:
    """Whatever the ACL, and whoever asks: in a lower, after a copy-up, and in the next mount."""
    names = []
    for group, mask, other, *named in itertools.product(RIGHTS, RIGHTS, RIGHTS, RIGHTS, RIGHTS):
        name = "".join((group, mask, other, *named))
        path = space.lower / name
        path.touch()
        os.chown(path, 0, OWNING)
        os.setxattr(path, "system.posix_acl_access", acl(group, mask, other, *named))
        names.append(name)
    hide_acls(space, option)
    mnt = space.mount()
    allowed = {uid: rights_of(uid, space.lower, names) for uid in SUBJECTS}

    def gains() -> list[tuple[int, str]]:
        return [
            (uid, name)
            for uid in SUBJECTS
            for name, rights in rights_of(uid, mnt, names).items()
            if rights & ~allowed[uid][name]
        ]

    assert gains() == []
    shown = {name: permissions(mnt / name) for name in names}
    # A class keeps the rights that the ACL gives to all of it.
    assert shown["rw-rw-r--rw-rw-"] == "664"
    assert shown["r--rw-r--rw-rw-"] == "644"
    assert shown["rw-r--rw-rw-rw-"] == "644"
    assert shown["---rw----rw-rw-"] == "600"
    for name in names:
        os.utime(mnt / name, ns=(1, 1))
    assert {name: permissions(mnt / name) for name in names} == shown
    assert gains() == []
    space.remount()
    assert {entry.name: permissions(mnt / entry.name) for entry in os.scandir(mnt)} == shown
    assert gains() == []


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("seen_by", [os.listdir, os.stat])
def test_mode_shown(space: Space, option: str, seen_by: Callable[[Path], object]) -> None:
    """The mode shown of files and directories, looked up or listed first; in the upper too."""
    expected = {}
    for layer in (space.lower, space.upper):
        for kind, mode in (("file", "600"), ("dir", "700")):
            path = layer / f"{layer.name}-{kind}"
            path.touch() if kind == "file" else path.mkdir()
            path.chmod(int(mode, 8))
            setfacl("-m", f"u:{os.geteuid()}:rwx", path)
            assert permissions(path)[1] == "7"
            expected[path.name] = mode
    (space.lower / "plain").touch()
    (space.lower / "plain").chmod(0o664)
    hide_acls(space, option)
    mnt = space.mount()
    seen_by(mnt)
    for name, mode in expected.items():
        assert permissions(mnt / name) == mode, name
    assert permissions(mnt / "plain") == "664"


@pytest.mark.parametrize("option", PLAIN)
def test_acl_is_kept_in_copies(space: Space, option: str) -> None:
    """A mount with ACLs shows it as it was."""
    path = space.lower / "file"
    path.touch()
    path.chmod(0o600)
    setfacl("-m", f"u:{os.geteuid()}:rw", path)
    was = getfacl(path)
    space.extra = (option,)
    os.utime(space.mount() / "file", ns=(1, 1))
    assert getfacl(space.upper / "file") == was
    assert permissions(space.mnt / "file") == "600"
    space.extra = ()
    assert getfacl(space.remount() / "file") == was


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("where", ["lower", "upper"])
def test_below_a_default_acl(space: Space, option: str, where: str) -> None:
    """New objects grant no more than with the ACL; nor do objects made in new directories."""
    above = getattr(space, where) / "dir"
    above.mkdir()
    setfacl("-m", f"d:u::rwx,d:u:{os.geteuid()}:rw,d:g::---,d:m::rwx,d:o::r", above)
    hide_acls(space, option)
    mnt = space.mount()
    umask = os.umask(0)
    try:
        (mnt / "dir" / "sub").mkdir()
        for place in (mnt / "dir", mnt / "dir" / "sub"):
            os.close(os.open(place / "new", os.O_CREAT | os.O_WRONLY, 0o666))
            os.mkfifo(place / "pipe", 0o666)
            os.umask(0o077)
            os.close(os.open(place / "masked", os.O_CREAT | os.O_WRONLY, 0o666))
            os.umask(0)
    finally:
        os.umask(umask)
    for _ in range(2):
        assert permissions(mnt / "dir" / "sub") == "704"
        for place in (mnt / "dir", mnt / "dir" / "sub"):
            assert permissions(place / "new") == "604"
            assert permissions(place / "pipe") == "604"
            assert permissions(place / "masked") == "600"
        space.remount()


@pytest.mark.parametrize("option", ["", *OPTIONS])
def test_default_acl_of_the_work_directory(space: Space, option: str) -> None:
    """It has no effect on what the mount creates and copies, as in the kernel."""
    (space.lower / "dir").mkdir()
    (space.lower / "file").write_bytes(b"x")
    setfacl("-m", f"d:u:{os.geteuid()}:rwx", space.work)
    if option:
        hide_acls(space, option)
    mnt = space.mount()
    (mnt / "dir" / "new").touch()
    (mnt / "dir" / "sub").mkdir()
    os.mkfifo(mnt / "dir" / "pipe")
    os.utime(mnt / "file", ns=(1, 1))
    for name in ("dir", "dir/new", "dir/sub", "dir/pipe", "file"):
        assert len(getfacl(space.upper / name)) == 3, name


@root_only
@pytest.mark.parametrize("option", ["", "noacl"])
def test_upper_without_acls(space: Space, option: str) -> None:
    """A copy that loses its ACL grants nobody what the ACL denied."""
    subprocess.run(["mount", "-t", "ramfs", "none", space.upper], check=True, timeout=30)
    try:
        space.upper, space.work = space.upper / "upper", space.upper / "work"
        space.upper.mkdir()
        space.work.mkdir()
        path = space.lower / "file"
        path.touch()
        path.chmod(0o604)
        setfacl("-m", f"u:{NAMED}:rw", path)
        space.extra = tuple(filter(None, [option]))
        mnt = space.mount()
        assert permissions(mnt / "file") == ("604" if option else "664")
        os.utime(mnt / "file", ns=(1, 1))
        assert permissions(mnt / "file") == "604"
        assert permissions(space.upper / "file") == "604"
    finally:
        space.drop()
        subprocess.run(["umount", "-l", space.upper.parent], check=True, timeout=30)
