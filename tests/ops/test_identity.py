"""Owners that are not shown as stored: `uidmapping`, `squash_to_uid` and the like. Some tests
compare with the C program `fuse-overlayfs`."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers.libc import AT_SYMLINK_FOLLOW, linkat, map_ids
from tests.helpers.mounts import (
    MODE,
    NATIVE,
    Daemon,
    Space,
    command,
    daemon_env,
    fails,
    fuse_only,
    mounts_at,
    root_only,
    scratch,
    unmount,
)
from tests.ops.conftest import make_socket
from tests.ops.test_attributes import getfacl, setfacl, without_dont_mask
from tests.ops.test_users import may, may_not, run_as

pytestmark = fuse_only

FIRST, LENGTH = 200_000, 65_536
#: As podman writes it, see containers/storage, drivers/overlay.
PODMAN = f"uidmapping=:0:{FIRST}:{LENGTH},gidmapping=:0:{FIRST}:{LENGTH}"
NOBODY = int(Path("/proc/sys/kernel/overflowuid").read_text())


class Shift(NamedTuple):
    """Options, and the (user id, group id) that they show for each stored pair."""

    options: str
    shown: Callable[[int, int], tuple[int, int]]


def _ranges(uid: int, gid: int) -> tuple[int, int]:
    def one(number: int) -> int:
        for stored, shown, length in ((0, 1000, 10), (10, 5000, 100), (1000, 0, 1)):
            if stored <= number < stored + length:
                return shown + number - stored
        return NOBODY

    return one(uid), one(gid)


def _podman(uid: int, gid: int) -> tuple[int, int]:
    return tuple(FIRST + n if n < LENGTH else NOBODY for n in (uid, gid))


SEVERAL = "0:1000:10:10:5000:100:1000:0:1"
SHIFTS = {
    "mapped": Shift(PODMAN, _podman),
    "several ranges": Shift(f"uidmapping={SEVERAL},gidmapping={SEVERAL}", _ranges),
    "users only": Shift(f"uidmapping=0:{FIRST}:{LENGTH}", lambda u, g: (_podman(u, u)[0], g)),
    "groups only": Shift(f"gidmapping=0:{FIRST}:{LENGTH}", lambda u, g: (u, _podman(g, g)[0])),
    "root": Shift("squash_to_root", lambda u, g: (0, 0)),
    "one user": Shift("squash_to_uid=7", lambda u, g: (7, g)),
    "one group": Shift("squash_to_gid=8", lambda u, g: (u, 8)),
    "one owner": Shift("squash_to_uid=7,squash_to_gid=8", lambda u, g: (7, 8)),
    "root and a user": Shift("squash_to_uid=7,squash_to_root", lambda u, g: (7, 0)),
    "both": Shift(f"squash_to_uid=7,{PODMAN}", lambda u, g: (7, _podman(g, g)[1])),
}
#: Owners of objects in the layers, the last covered by no range.
OWNERS = ((0, 0), (5, 6), (9, 10), (12, 0), (1000, 1000), (70_000, 70_001))


def owner(path: Path | str) -> tuple[int, int]:
    """User and group of an object; symbolic links are not followed."""
    st = os.lstat(path)
    return st.st_uid, st.st_gid


def populate(base: Path) -> None:
    """A file, a directory and a symbolic link for each of `OWNERS`."""
    for uid, gid in OWNERS:
        name = f"{uid}-{gid}"
        (base / f"f{name}").write_bytes(b"content")
        (base / f"d{name}").mkdir()
        (base / f"d{name}" / "in").touch()
        os.symlink("x", base / f"s{name}")
        for kind in "fds":
            os.chown(base / f"{kind}{name}", uid, gid, follow_symlinks=False)


def listed(path: Path) -> dict[str, tuple[int, int]]:
    """The owners as a listing shows them: its entries come with their attributes."""
    with os.scandir(path) as entries:
        statuses = {e.name: e.stat(follow_symlinks=False) for e in entries}
    return {name: (st.st_uid, st.st_gid) for name, st in statuses.items()}


def mount(space: Space, options: str, impl: str = "fuse") -> Path:
    """Mount with these options, by us or by fuse-overlayfs."""
    space.kernel_reads = False
    space.extra = tuple(options.split(","))
    if impl == "fuse":
        return space.mount()
    if shutil.which(impl) is None:
        pytest.skip(f"missing tool: {impl}")
    depth = len(mounts_at(space.mnt)) + 1
    argv = [impl, "-f", "-o", space.options(), str(space.mnt)]
    space.daemon = Daemon(argv, space.mnt, space.log)
    space.daemon.wait_until_mounted(depth)
    return space.mnt


@pytest.fixture
def mapped(space: Space) -> Space:
    """A mount as podman makes it, with objects of several owners in the lower."""
    populate(space.lower)
    for path in (space.lower, space.upper):
        path.chmod(0o777)
    mount(space, PODMAN)
    return space


# What is shown


@root_only
@pytest.mark.parametrize("what", SHIFTS)
def test_shown(space: Space, what: str) -> None:
    """Listings and stat show the same, in a lower, copied up, in the upper, after a remount."""
    shift = SHIFTS[what]
    populate(space.lower)
    (space.upper / "up").mkdir()
    populate(space.upper / "up")
    before = space.evidence()
    mnt = mount(space, shift.options)

    def check() -> None:
        for base in (mnt, mnt / "up"):
            seen = listed(base)
            seen.pop("up", None)
            assert len(seen) == 3 * len(OWNERS)
            for name, shown in seen.items():
                uid, gid = map(int, name[1:].split("-"))
                assert shown == shift.shown(uid, gid), name
                assert owner(base / name) == shown, name
        assert owner(mnt) == shift.shown(0, 0)
        assert owner(mnt / "d5-6" / "in") == shift.shown(0, 0)

    check()
    for uid, gid in OWNERS:
        (mnt / f"f{uid}-{gid}").write_bytes(b"changed")
        os.setxattr(mnt / f"d{uid}-{gid}", "user.x", b"y")
        os.utime(mnt / f"s{uid}-{gid}", ns=(1, 1), follow_symlinks=False)
        for kind in "fds":
            name = f"{kind}{uid}-{gid}"
            assert owner(space.upper / name) == (uid, gid), f"{name}: the stored owner is copied"
    check()
    space.remount()
    check()
    space.unmount()
    space.check_lowers(before)


@root_only
@pytest.mark.skipif(not NATIVE, reason="needs the extension")
def test_statx(mapped: Space) -> None:
    """A request for the birth time returns the same owner."""
    for name in ("f5-6", "d9-10"):
        argv = ["stat", "-c", "%W %u %g", mapped.mnt / name]
        born = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
        assert tuple(map(int, born.stdout.split()[1:])) == owner(mapped.mnt / name)
        uid, gid = owner(mapped.lower / name)
        assert owner(mapped.mnt / name) == (FIRST + uid, FIRST + gid)


# Making things


def make_everything(base: Path) -> None:
    """One object of each kind."""
    (base / "file").write_bytes(b"x")
    os.mkdir(base / "dir")
    os.symlink("x", base / "link")
    os.mkfifo(base / "fifo")
    make_socket(base / "socket")


def make_more(base: Path) -> None:
    """Do what only the owner may, and make a file that has no name at first."""
    make_everything(base)
    os.link(base / "file", base / "hard")
    (base / "dir" / "inner").touch()
    if NATIVE:
        fd = os.open(base, os.O_TMPFILE | os.O_RDWR, 0o644)
        linkat(Path(f"/proc/self/fd/{fd}"), base / "tmpfile", AT_SYMLINK_FOLLOW)
        os.close(fd)


MADE = ("file", "dir", "link", "fifo", "socket")
MORE = (*MADE, "hard", "dir/inner", *(("tmpfile",) if NATIVE else ()))


def check_made(
    space: Space, names: Iterable[str], shown: tuple[int, int], stored: tuple[int, int]
) -> None:
    """Check who owns the objects in `new`, in the mount and on disk."""
    for name in names:
        assert owner(space.mnt / "new" / name) == shown, name
        assert owner(space.upper / "new" / name) == stored, name
    assert listed(space.mnt / "new") == {name: shown for name in names if "/" not in name}


@root_only
@pytest.mark.parametrize("user", [0, 7, LENGTH - 1])
def test_making_things(mapped: Space, user: int) -> None:
    """Objects made by a user of the container belong to that user in the mount, and on disk to the
    user's id in the container."""
    os.mkdir(mapped.mnt / "new")
    os.chmod(mapped.mnt / "new", 0o777)
    may(FIRST + user, lambda: make_more(mapped.mnt / "new"))
    for _ in range(2):
        check_made(mapped, MORE, (FIRST + user,) * 2, (user, user))
        mapped.remount()


@root_only
def test_making_things_without_an_id(mapped: Space) -> None:
    """A user whose id no range shows cannot make anything: it would belong to somebody else."""
    os.mkdir(mapped.mnt / "new")
    os.chmod(mapped.mnt / "new", 0o777)
    for user in (FIRST - 1, FIRST + LENGTH, 5):
        for make in (
            lambda: (mapped.mnt / "new" / "file").touch(),
            lambda: os.mkdir(mapped.mnt / "new" / "dir"),
            lambda: os.symlink("x", mapped.mnt / "new" / "link"),
            lambda: os.mkfifo(mapped.mnt / "new" / "fifo"),
        ):
            may_not(user, make, code=errno.EOVERFLOW)
    assert os.listdir(mapped.mnt / "new") == []
    assert os.listdir(mapped.upper / "new") == []


@root_only
def test_root_prepares_a_container(mapped: Space) -> None:
    """What root outside makes belongs to root inside: podman makes mount points and copies files
    before the container has any process."""
    os.mkdir(mapped.mnt / "new")
    make_more(mapped.mnt / "new")
    os.mknod(mapped.mnt / "new" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert owner(mapped.upper / "new" / "null") == (0, 0)
    assert owner(mapped.mnt / "new" / "null") == (FIRST, FIRST)
    os.unlink(mapped.mnt / "new" / "null")
    check_made(mapped, MORE, (FIRST, FIRST), (0, 0))
    may(FIRST, (mapped.mnt / "new" / "of root").touch)


@root_only
def test_root_takes_the_mount(mapped: Space) -> None:
    """podman gives the top directory to root, whatever the mapping, before it checks what is
    mounted: the directory then belongs to root inside."""
    os.chown(mapped.mnt, FIRST + 3, FIRST + 4)
    assert owner(mapped.upper) == (3, 4)
    os.chown(mapped.mnt, 0, 0)
    assert (owner(mapped.mnt), owner(mapped.upper)) == ((FIRST, FIRST), (0, 0))
    with fails(errno.EOVERFLOW):
        os.chown(mapped.mnt, 1, 0)


@root_only
def test_root_with_an_id(space: Space) -> None:
    """If the mapping shows some stored id as root's, root's objects are stored with that id."""
    mnt = mount(space, "uidmapping=0:100:10:100:0:10,gidmapping=0:100:10:100:0:10")
    (mnt / "f").touch()
    assert owner(mnt / "f") == (0, 0)
    assert owner(space.upper / "f") == (100, 100)


@root_only
def test_setgid_directory(mapped: Space) -> None:
    """New objects inherit its group, even one that no id shows."""
    for group in (6, 70_000):
        directory = mapped.mnt / f"g{group}"
        (mapped.lower / directory.name).mkdir()
        os.chown(mapped.lower / directory.name, 0, group)
        (mapped.lower / directory.name).chmod(0o2777)
    mapped.remount()
    for group, shown in ((6, FIRST + 6), (70_000, NOBODY)):
        directory = mapped.mnt / f"g{group}"
        may(FIRST + 3, lambda base=directory: make_more(base))
        for name in MORE:
            assert owner(directory / name) == (FIRST + 3, shown)
            assert owner(mapped.upper / directory.name / name) == (3, group)
        assert os.stat(directory / "dir").st_mode & stat.S_ISGID


# Changing owners and modes


@root_only
@pytest.mark.parametrize("kind", ["f", "d", "s"])
def test_chown(mapped: Space, kind: str) -> None:
    path, up = mapped.mnt / f"{kind}5-6", mapped.upper / f"{kind}5-6"
    for uid, gid in ((FIRST - 1, -1), (-1, 6), (FIRST + LENGTH, FIRST), (0, 0)):
        with fails(errno.EOVERFLOW):
            os.chown(path, uid, gid, follow_symlinks=False)
    assert not os.path.lexists(up), "an owner that cannot be given copies nothing up"
    os.chown(path, FIRST + 10, -1, follow_symlinks=False)
    assert (owner(path), owner(up)) == ((FIRST + 10, FIRST + 6), (10, 6))
    os.chown(path, -1, FIRST, follow_symlinks=False)
    assert (owner(path), owner(up)) == ((FIRST + 10, FIRST), (10, 0))
    os.chown(path, FIRST, FIRST + 1, follow_symlinks=False)
    assert (owner(path), owner(up)) == ((FIRST, FIRST + 1), (0, 1))
    mapped.remount()
    assert owner(path) == (FIRST, FIRST + 1)


@root_only
def test_unmapped_owner(mapped: Space) -> None:
    """An owner that no range covers shows as nobody and stays as stored; root may change it."""
    path, up = mapped.mnt / "f70000-70001", mapped.upper / "f70000-70001"
    os.chmod(path, 0o4750)
    assert owner(up) == (70_000, 70_001)
    os.chown(path, -1, FIRST + 3)
    assert (owner(path), owner(up)) == ((NOBODY, FIRST + 3), (70_000, 3))
    os.chown(path, FIRST, -1)
    assert (owner(path), owner(up)) == ((FIRST, FIRST + 3), (0, 3))
    may(FIRST, lambda: os.chmod(path, 0o600))


@root_only
def test_rights_of_owners(mapped: Space) -> None:
    """The kernel checks what is shown, and what is stored follows."""
    path = mapped.mnt / "f5-6"
    os.chmod(path, 0o640)
    may(FIRST + 5, lambda: path.write_bytes(b"of the owner"))
    may(FIRST + 5, lambda: os.chmod(path, 0o660))
    may(FIRST + 4, path.read_bytes, FIRST + 6)
    for user in (5, FIRST, FIRST + 4):
        may_not(user, path.read_bytes)
    may_not(FIRST + 5, lambda: os.chown(path, FIRST + 4, -1), code=errno.EPERM)
    may(FIRST + 5, lambda: os.chown(path, -1, FIRST + 9), FIRST + 9)
    assert owner(mapped.upper / "f5-6") == (5, 9)


@root_only
def test_setuid_ends_with_a_write(mapped: Space) -> None:
    path = mapped.mnt / "f5-6"
    os.chmod(path, 0o6755)
    may(FIRST + 5, lambda: path.write_bytes(b"changed"))
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o755
    os.chmod(path, 0o6755)
    os.chown(path, FIRST + 7, -1)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o755
    assert stat.S_IMODE(os.stat(mapped.upper / "f5-6").st_mode) == 0o755


@root_only
@pytest.mark.parametrize("features", [(), ("metacopy=on", "redirect_dir=on")])
def test_copies_keep_stored_owners(space: Space, features: tuple[str, ...]) -> None:
    """Copy-up by every way, hard links and renames."""
    populate(space.lower)
    os.link(space.lower / "f9-10", space.lower / "other name")
    mnt = mount(space, ",".join([PODMAN, *features]))
    os.chmod(mnt / "f9-10", 0o600)
    os.rename(mnt / "f12-0", mnt / "moved")
    os.link(mnt / "s5-6", mnt / "link")
    if features:
        os.rename(mnt / "d5-6", mnt / "moved directory")
    else:
        (mnt / "d5-6" / "new").touch()
    for _ in range(2):
        for name, uid, gid in (
            ("f9-10", 9, 10),
            ("other name", 9, 10),
            ("moved", 12, 0),
            ("link", 5, 6),
            ("moved directory" if features else "d5-6", 5, 6),
        ):
            assert owner(mnt / name) == (FIRST + uid, FIRST + gid), name
            if os.path.lexists(space.upper / name):
                assert owner(space.upper / name) == (uid, gid), name
        space.remount()
    (mnt / "f9-10").write_bytes(b"data")
    assert owner(space.upper / "f9-10") == (9, 10)
    assert (mnt / "other name").read_bytes() == b"data"


# ACLs and capabilities


@root_only
def test_acl(mapped: Space) -> None:
    """Their ids are shown and stored as owners are, and permissions follow."""
    path, up = mapped.mnt / "f5-6", mapped.upper / "f5-6"
    os.chmod(path, 0o600)
    may_not(FIRST + 30, path.read_bytes)
    setfacl("-m", f"u:{FIRST + 30}:r,g:{FIRST + 31}:rw", path)
    shown = ["user::rw-", f"user:{FIRST + 30}:r--", "group::---", f"group:{FIRST + 31}:rw-"]
    stored = ["user::rw-", "user:30:r--", "group::---", "group:31:rw-"]
    rest = ["mask::rw-", "other::---"]
    assert getfacl(path) == shown + rest
    assert getfacl(up) == stored + rest
    may(FIRST + 30, path.read_bytes)
    may(FIRST + 29, lambda: path.write_bytes(b"x"), FIRST + 31)
    may_not(30, path.read_bytes)
    with fails(errno.EOVERFLOW):
        os.setxattr(path, "system.posix_acl_access", _acl(user=5))
    mapped.remount()
    assert getfacl(path) == shown + rest
    may(FIRST + 30, path.read_bytes)
    setfacl("-b", path)
    assert getfacl(up) == ["user::rw-", "group::---", "other::---"]


def _acl(user: int) -> bytes:
    entries = ((1, 6, -1), (2, 4, user), (4, 4, -1), (16, 4, -1), (32, 0, -1))
    return struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, bits, number & 0xFFFFFFFF) for tag, bits, number in entries
    )


@root_only
@pytest.mark.parametrize("umask", [0o000, pytest.param(0o022, marks=without_dont_mask)])
def test_default_acl(mapped: Space, umask: int) -> None:
    """New objects inherit the stored ids."""
    directory = mapped.mnt / "d5-6"
    os.chmod(directory, 0o777)
    setfacl("-d", "-m", f"u:{FIRST + 30}:rwx", directory)
    assert "default:user:30:rwx" in getfacl(mapped.upper / "d5-6")
    assert f"default:user:{FIRST + 30}:rwx" in getfacl(directory)

    def make() -> None:
        os.umask(umask)
        (directory / "file").touch()
        os.mkdir(directory / "dir")

    may(FIRST + 7, make)
    for name in ("file", "dir"):
        assert f"user:{FIRST + 30}:rwx" in " ".join(getfacl(directory / name))
        assert "user:30:rwx" in " ".join(getfacl(mapped.upper / "d5-6" / name))
    may(FIRST + 30, (directory / "dir" / "theirs").touch)


@root_only
def test_acl_of_a_lower(space: Space) -> None:
    """It is shown mapped, copied up as it is stored, and an id that nothing shows is nobody's."""
    (space.lower / "f").write_bytes(b"x")
    setfacl("-m", "u:5:r,u:70000:rwx", space.lower / "f")
    mnt = mount(space, PODMAN)
    shown = getfacl(mnt / "f")
    assert f"user:{FIRST + 5}:r--" in shown
    assert f"user:{NOBODY}:rwx" in shown
    may_not(70_000, lambda: (mnt / "f").write_bytes(b"x"))
    os.utime(mnt / "f", ns=(1, 1))
    assert getfacl(space.upper / "f") == getfacl(space.lower / "f")
    assert getfacl(mnt / "f") == shown


NET_RAW = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


def _rooted(root: int) -> bytes:
    return struct.pack("<I", 0x03000001) + NET_RAW[4:] + struct.pack("<I", root)


@root_only
def test_capabilities(mapped: Space) -> None:
    """They count for root of the container, as with an idmapped mount."""
    name = "security.capability"
    os.setxattr(mapped.lower / "f0-0", name, NET_RAW)
    os.setxattr(mapped.lower / "f70000-70001", name, _rooted(70_000))
    mapped.remount()
    assert os.getxattr(mapped.mnt / "f0-0", name) == _rooted(FIRST)
    with fails(errno.ENODATA):
        os.getxattr(mapped.mnt / "f70000-70001", name)
    os.removexattr(mapped.mnt / "f70000-70001", name)
    assert os.listxattr(mapped.upper / "f70000-70001").count(name) == 0
    os.setxattr(mapped.mnt / "f5-6", name, _rooted(FIRST))
    assert os.getxattr(mapped.upper / "f5-6", name) == NET_RAW
    os.setxattr(mapped.mnt / "f5-6", name, _rooted(FIRST + 7))
    assert os.getxattr(mapped.upper / "f5-6", name) == _rooted(7)
    assert os.getxattr(mapped.mnt / "f5-6", name) == _rooted(FIRST + 7)
    with fails(errno.EOVERFLOW):
        os.setxattr(mapped.mnt / "f5-6", name, _rooted(7))
    os.setxattr(mapped.mnt / "f9-10", name, NET_RAW)
    assert os.getxattr(mapped.upper / "f9-10", name) == NET_RAW
    os.utime(mapped.mnt / "f0-0")
    assert os.getxattr(mapped.upper / "f0-0", name) == NET_RAW, "copied as it is stored"


# Squashing


@root_only
@pytest.mark.parametrize("what", ["root", "one owner"])
def test_squash(space: Space, what: str) -> None:
    """Everything always shows the one owner, and the disk holds who made it."""
    shift = SHIFTS[what]
    shown = shift.shown(0, 0)
    populate(space.lower)
    mnt = mount(space, shift.options)
    os.mkdir(mnt / "new")
    os.chmod(mnt / "new", 0o777)
    may(3000, lambda: make_everything(mnt / "new"))
    check_made(space, MADE, shown, (3000, 3000))
    for uid, gid in ((5, 6), (70_000, 0), (3000, -1)):
        os.chown(mnt / "f9-10", uid, gid)
        os.chown(mnt / "s9-10", uid, gid, follow_symlinks=False)
        assert owner(mnt / "f9-10") == owner(mnt / "s9-10") == shown
    assert owner(space.upper / "f9-10") == owner(space.upper / "s9-10") == (3000, 0)
    setfacl("-m", "u:40:rw", mnt / "f5-6")
    assert "user:40:rw-" in getfacl(mnt / "f5-6")
    assert "user:40:rw-" in getfacl(space.upper / "f5-6")
    space.remount()
    assert set(listed(mnt).values()) == {shown}


@root_only
def test_squash_and_mapping(space: Space) -> None:
    """The squash determines what is shown, the mapping what is stored. Ids that it does not cover
    are stored unchanged, since they are not shown."""
    mnt = mount(space, f"squash_to_uid=7,squash_to_gid=8,{PODMAN}")
    (mnt / "f").touch()
    os.chown(mnt / "f", FIRST + 5, FIRST + 6)
    assert (owner(mnt / "f"), owner(space.upper / "f")) == ((7, 8), (5, 6))
    os.chown(mnt / "f", 7, 8)
    assert (owner(mnt / "f"), owner(space.upper / "f")) == ((7, 8), (7, 8))


@root_only
@pytest.mark.parametrize(
    ("what", "kept"),
    [
        ("root", {(0, 0): 0o6755, (12, 0): 0o2755}),
        ("one owner", {}),
        ("mapped", {(uid, gid): 0o6755 for uid, gid in OWNERS if uid < LENGTH}),
        ("both", {(uid, gid): 0o2755 for uid, gid in OWNERS if gid < LENGTH}),
    ],
)
def test_nobodys_program_is_another_ones(
    space: Space, what: str, kept: dict[tuple[int, int], int]
) -> None:
    """setuid and setgid show only if the owner shown is the one on disk or the number that stands
    for it."""
    populate(space.lower)
    names = {ids: f"{ids[0]}-{ids[1]}" for ids in OWNERS}
    for name in names.values():
        os.chmod(space.lower / f"f{name}", 0o6755)
        os.chmod(space.lower / f"d{name}", 0o2755)
    mnt = mount(space, SHIFTS[what].options)
    for step in ("in the lower", "copied up"):
        shown = {ids: (mnt / f"f{name}").stat().st_mode & 0o7777 for ids, name in names.items()}
        assert shown == {ids: kept.get(ids, 0o755) for ids in OWNERS}, step
        for name in names.values():
            assert (mnt / f"d{name}").stat().st_mode & 0o7777 == 0o2755
            os.utime(mnt / f"f{name}")


@root_only
def test_setuid_given_through_a_squashed_mount(space: Space) -> None:
    mnt = mount(space, "squash_to_root")
    (mnt / "f").touch()
    os.chmod(mnt / "f", 0o6755)
    assert (mnt / "f").stat().st_mode & 0o7777 == 0o6755
    os.chown(mnt / "f", 5, 6)
    os.chmod(mnt / "f", 0o6755)
    assert (mnt / "f").stat().st_mode & 0o7777 == 0o755


@root_only
@pytest.mark.parametrize("options", ["squash_to_uid=3000", "squash_to_uid=3000,squash_to_gid=3000"])
def test_who_is_shown_as_owner_makes_nobodys_program(space: Space, options: str) -> None:
    """The file belongs to root on disk, and in the view of another mount."""
    (space.lower / "prog").write_bytes(b"root's")
    os.chmod(space.lower / "prog", 0o644)
    mnt = mount(space, options)

    def forge() -> None:
        (mnt / "prog").write_bytes(b"the user's")
        os.chmod(mnt / "prog", 0o6755)

    may(3000, forge)
    (mnt / "own").touch()
    os.chown(mnt / "own", 3000, 3000)
    may(3000, lambda: os.chmod(mnt / "own", 0o4711))
    os.chmod(mnt / "prog", 0o4755)
    assert (space.upper / "prog").stat().st_mode & 0o7777 == 0o4755, "root may"
    may(3000, lambda: os.chmod(mnt / "prog", 0o6755))
    squashed_group = "gid" in options
    assert (space.upper / "prog").stat().st_mode & stat.S_ISUID == 0
    assert (space.upper / "prog").stat().st_mode & stat.S_ISGID == 0 or not squashed_group
    assert (space.upper / "own").stat().st_mode & 0o7777 == 0o4711
    space.unmount()
    space.extra = ()
    mnt = space.mount()
    assert (mnt / "prog").stat().st_mode & stat.S_ISUID == 0
    assert (mnt / "prog").read_bytes() == b"the user's"


@pytest.mark.skipif(MODE == "root", reason="root may give everything away")
def test_squash_what_is_not_ours(space: Space) -> None:
    """Files of a lower whose owners we cannot set are copied up all the same."""
    space.lowers = [Path("/etc/skel")]
    names = [p.name for p in space.lower.iterdir() if p.is_file()]
    assert names, "no file to copy up"
    me = (os.geteuid(), os.getegid())
    mnt = mount(space, f"squash_to_uid={me[0]},squash_to_gid={me[1]}")
    assert set(listed(mnt).values()) == {me}
    for name in names:
        content = (space.lower / name).read_bytes()
        os.chmod(mnt / name, 0o600)
        with (mnt / name).open("ab") as file:
            file.write(b"more")
        os.chown(mnt / name, *me)
        assert (space.upper / name).read_bytes() == content + b"more"
        assert owner(mnt / name) == owner(space.upper / name) == me
    (mnt / "new").touch()
    space.remount()
    assert set(listed(mnt).values()) == {me}
    space.unmount()


@pytest.mark.skipif(MODE == "root", reason="of users without others' ids")
def test_mapping_to_oneself(space: Space) -> None:
    """A single id can be mapped, too."""
    uid, gid = os.geteuid(), os.getegid()
    (space.lower / "f").write_bytes(b"x")
    mnt = mount(space, f"uidmapping={uid}:{uid}:1,gidmapping={gid}:{gid}:1")
    (mnt / "f").write_bytes(b"changed")
    os.mkdir(mnt / "new")
    make_more(mnt / "new")
    check_made(space, MORE, (uid, gid), (uid, gid))
    space.settle()


# User namespaces


@contextlib.contextmanager
def user_namespace() -> Iterator[list[str]]:
    """A user namespace, with a mount namespace, in which ids from 0 on stand for ours from `FIRST`
    on; yields the command that enters it as its root."""
    argv = ["unshare", "--user", "--mount", "--propagation=slave", "cat"]
    holder = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(b"in\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == b"in\n"
        for which in ("uid_map", "gid_map"):
            Path(f"/proc/{holder.pid}/{which}").write_text(f"0 {FIRST} {LENGTH}\n")
        yield ["nsenter", f"--target={holder.pid}", "--user", "--mount", "-S0", "-G0"]
    finally:
        holder.communicate(timeout=30)


def as_user(uid: int, script: str) -> list[str]:
    """In a user namespace: run a shell as one of its users."""
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "sh", "-ec", script]


def run(argv: list[str]) -> str:
    """Run a program, which must succeed; its output."""
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=60, check=False, env=daemon_env()
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@root_only
def test_container_on_a_mapped_mount(mapped: Space) -> None:
    """A process in a user namespace sees the ids that the layers store, makes objects with its id
    there, and may use capabilities of files."""
    os.setxattr(mapped.lower / "f0-0", "security.capability", NET_RAW)
    mapped.remount()
    with user_namespace() as enter:
        base = mapped.mnt
        seen = run([*enter, "stat", "-c", "%u %g", base, base / "f5-6", base / "f70000-70001"])
        assert seen.split("\n") == ["0 0", "5 6", f"{NOBODY} {NOBODY}", ""]
        script = f"cd {base}; mkdir d; touch d/f; ln -s x d/s; stat -c '%u %g' d d/f d/s"
        run([*enter, "chmod", "777", base])
        assert set(run([*enter, *as_user(12, script)]).splitlines()) == {"12 12"}
        run([*enter, "chown", "13:14", base / "d" / "f"])
        assert run([*enter, "getcap", base / "f0-0"]).split()[1] == "cap_net_raw=ep"
        run([*enter, "setfacl", "-m", "u:15:r", base / "d" / "f"])
    assert owner(mapped.upper / "d") == owner(mapped.upper / "d" / "s") == (12, 12)
    assert owner(mapped.upper / "d" / "f") == (13, 14)
    assert "user:15:r--" in getfacl(mapped.upper / "d" / "f")


@root_only
def test_mounted_by_a_container(space: Space) -> None:
    """In a mount made in a user namespace, objects of its users belong to them on disk; with a
    mapping on top too."""
    if not os.stat("/dev/fuse").st_mode & stat.S_IWOTH:
        pytest.skip("/dev/fuse is closed to others")
    (space.lower / "f").touch()
    for path in (space.lower, space.lower / "f", space.upper, space.work, space.mnt):
        os.chown(path, FIRST, FIRST)
    with user_namespace() as enter:
        for mapping, stored in (("", 12), ("uidmapping=0:0:5:500:5:100", 507)):
            options = ",".join(filter(None, [space.options(), mapping]))
            run([*enter, *command("mount", "-o", options, space.mnt)])
            name = f"by {stored}"
            try:
                run([*enter, "chmod", "777", space.mnt])
                script = f"cd {space.mnt}; mkdir '{name}'; stat -c '%u %g' '{name}'"
                assert run([*enter, *as_user(12, script)]) == "12 12\n"
                script = f"chown 0:0 '{space.mnt}/{name}'; stat -c %u '{space.mnt}/{name}'"
                assert owner(space.upper / name) == (FIRST + stored, FIRST + 12)
                assert run([*enter, "sh", "-ec", script]) == "0\n"
                assert owner(space.upper / name) == (FIRST, FIRST)
            finally:
                run([*enter, "umount", space.mnt])


@contextlib.contextmanager
def mapped_twice(space: Space) -> Iterator[None]:
    """The kernel maps the lower's ids too: podman passes such a lower if root runs it."""
    populate(space.lower)
    setfacl("-m", "u:5:r", space.lower / "f5-6")
    os.setxattr(space.lower / "f0-0", "security.capability", NET_RAW)
    with user_namespace() as enter:
        (pid,) = (word.partition("=")[2] for word in enter if word.startswith("--target="))
        map_ids(space.lower, Path(f"/proc/{pid}/ns/user"))
    try:
        assert owner(space.lower / "f5-6") == (FIRST + 5, FIRST + 6)
        yield
    finally:
        space.drop()
        subprocess.run(["umount", "-l", space.lower], check=True, timeout=30)


@root_only
def test_lower_that_the_kernel_maps(space: Space) -> None:
    """Its ids are mapped only once, and copied up as stored in its files."""
    with mapped_twice(space):
        mnt = mount(space, PODMAN)
        for uid, gid in OWNERS:
            for kind in "fds":
                assert owner(mnt / f"{kind}{uid}-{gid}") == _podman(uid, gid)
        assert owner(mnt) == (FIRST, FIRST)
        assert f"user:{FIRST + 5}:r--" in getfacl(mnt / "f5-6")
        assert os.getxattr(mnt / "f0-0", "security.capability") == _rooted(FIRST)
        for name in ("f0-0", "f5-6", "d12-0", "s9-10"):
            os.utime(mnt / name, ns=(1, 1), follow_symlinks=False)
        may(FIRST + 5, lambda: os.chmod(mnt / "d5-6", 0o700))
        assert owner(space.upper / "f5-6") == owner(space.upper / "d5-6") == (5, 6)
        assert (owner(space.upper / "d12-0"), owner(space.upper / "s9-10")) == ((12, 0), (9, 10))
        assert "user:5:r--" in getfacl(space.upper / "f5-6")
        assert os.getxattr(space.upper / "f0-0", "security.capability") == NET_RAW


@root_only
@pytest.mark.parametrize("where", [".", "/proc"])
def test_lower_that_the_kernel_maps_without_an_upper(space: Space, where: str) -> None:
    """The way around that mount is through the working directory; without one the mount is
    refused."""
    with mapped_twice(space):
        options = f"lowerdir={space.lower},{PODMAN}"
        argv = command("mount", "-o", options, space.mnt)
        done = subprocess.run(
            argv, cwd=space.base / where, capture_output=True, text=True, timeout=60,
            env=daemon_env(), check=False,
        )  # fmt: skip
        if where == ".":
            assert done.returncode == 0, done.stderr
            assert owner(space.mnt / "f5-6") == (FIRST + 5, FIRST + 6)
            unmount(space.mnt)
        else:
            assert done.returncode == 3
            assert "is on a mount that maps ids already" in done.stderr


# Against fuse-overlayfs


def ids(base: Path) -> dict[str, tuple[int, int]]:
    """Owners of everything below but whiteouts."""
    paths = [base, *(path for path in base.rglob("*") if not path.name.startswith(".wh."))]
    return {str(path.relative_to(base)): owner(path) for path in paths}


def work_as_a_container(mnt: Path, uids: int, gids: int) -> None:
    """What users of a container do; their ids start at the given one."""
    for user in (0, 3):
        directory = mnt / f"of {user}"
        os.mkdir(directory)
        os.chmod(directory, 0o777)
        os.chown(directory, uids + user, gids + user)
        run_as(uids + user, lambda base=directory: make_everything(base), gid=gids + user)
    os.chown(mnt / "f5-6", uids + 1, gids + 2)
    os.chown(mnt / "f9-10", -1, gids + 2)
    os.chown(mnt / "s5-6", uids + 4, gids + 6, follow_symlinks=False)
    os.chown(mnt / "f70000-70001", uids + 1, -1)
    os.chmod(mnt / "f12-0", 0o600)
    os.utime(mnt / "d9-10", ns=(1, 1))
    os.rename(mnt / "f1000-1000", mnt / "moved")
    os.link(mnt / "f0-0", mnt / "hard")


@root_only
@pytest.mark.parametrize(
    "what", ["mapped", "users only", "groups only", "root", "one user", "one owner"]
)
def test_same_as_fuse_overlayfs(what: str) -> None:
    """Owners shown and on disk are the same, after all that a container may do."""
    options = SHIFTS[what].options
    uids, gids = (FIRST if kind in options else 0 for kind in ("uidmapping", "gidmapping"))
    results = []
    for impl in ("fuse", "fuse-overlayfs"):
        with scratch() as base:
            space = Space(base)
            populate(space.lower)
            try:
                mnt = mount(space, options, impl)
                work_as_a_container(mnt, uids, gids)
                results.append((ids(mnt), ids(space.upper)))
                space.unmount()
            finally:
                space.drop()
    ours, theirs = results
    assert len(ours[0]) == 2 + 3 * len(OWNERS) + len(OWNERS) + 2 * (1 + len(MADE))
    assert ours[0] == theirs[0], "in the mount"
    assert ours[1] == theirs[1], "on disk"
