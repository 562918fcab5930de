"""Owners that the user namespace of a mount does not map: root of the first one prepares layers,
root of another mounts them, here and with kernel overlayfs."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.mounts import Space, fails, fuse_only, is_whiteout, root_only
from tests.helpers.namespaces import FIRST, UserNamespace, user_namespace
from tests.helpers.tree import record

pytestmark = [root_only, fuse_only]

#: Root, and two users of the first namespace.
STRANGER, NOBODY = 7000, 65_534
#: How many ids the namespace has. The last has an id of its own for whom others are shown as.
ALONE, FEW, MANY = 1, 1000, 70_000
OWNERS = {
    "both": (STRANGER, STRANGER),
    "user": (STRANGER, FIRST),
    "group": (FIRST, STRANGER),
    "root": (0, 0),
}
KINDS = {
    "file": stat.S_IFREG | 0o644,
    "writable": stat.S_IFREG | 0o666,
    "setuid": stat.S_IFREG | 0o6755,
    "grouped": stat.S_IFREG | 0o674,
    "open": stat.S_IFDIR | 0o2775,
    "directory": stat.S_IFDIR | 0o755,
    "shared": stat.S_IFDIR | 0o3777,
    "link": stat.S_IFLNK | 0o777,
    "fifo": stat.S_IFIFO | 0o644,
}
OBJECTS = [f"{kind}-{owner}" for kind in KINDS for owner in OWNERS]
FILES = [name for name in OBJECTS if stat.S_ISREG(KINDS[name.split("-")[0]])]
DIRECTORIES = [name for name in OBJECTS if stat.S_ISDIR(KINDS[name.split("-")[0]])]


def mode_of(name: str) -> int:
    """Type and permission bits of an object in the lower."""
    return KINDS[name.split("-", maxsplit=1)[0]]


def make(path: Path, mode: int, owner: tuple[int, int]) -> None:
    """An object of that mode and owner."""
    if stat.S_ISDIR(mode):
        path.mkdir()
    elif stat.S_ISLNK(mode):
        path.symlink_to("nowhere")
    elif stat.S_ISFIFO(mode):
        os.mkfifo(path)
    else:
        path.write_bytes(b"content")
    os.chown(path, *owner, follow_symlinks=False)
    if not stat.S_ISLNK(mode):
        path.chmod(stat.S_IMODE(mode))


def populate(space: Space, *, full: bool = False) -> None:
    """All `OBJECTS` in the lower; with `full` the directories hold a file."""
    for name in OBJECTS:
        make(space.lower / name, mode_of(name), OWNERS[name.split("-")[1]])
        if full and name in DIRECTORIES:
            make(space.lower / name / "in", stat.S_IFREG | 0o644, (STRANGER, STRANGER))


@contextlib.contextmanager
def mounted(space: Space, length: int, impl: str = "fuse") -> Iterator[UserNamespace]:
    """The space in a namespace of so many ids; afterwards its lower is what it was."""
    os.chown(space.lower, FIRST, FIRST)
    before = record(str(space.lower))
    with user_namespace(length) as inside:
        try:
            inside.mount(space, impl)
            yield inside
            inside.unmount(space)
        finally:
            space.drop()
    assert record(str(space.lower)) == before


def owner(path: Path) -> tuple[int, int]:
    """User and group."""
    st = path.lstat()
    return st.st_uid, st.st_gid


def about(path: Path) -> tuple[int, int, int]:
    """Owner and mode."""
    st = path.lstat()
    return st.st_uid, st.st_gid, st.st_mode


def limited(name: str) -> int:
    """The mode of an object that root stands in for: it gives nothing of root's away."""
    mode = mode_of(name)
    if not stat.S_ISDIR(mode):
        mode &= ~(stat.S_ISUID | stat.S_ISGID)
    if OWNERS[name.split("-")[1]][1] != FIRST:
        mode &= ~0o070 | (mode & 0o007) << 3
    return mode


def shown(name: str, length: int) -> tuple[int, int, int]:
    """What is shown of an object: what cannot be shown belongs to root."""
    if length == MANY:
        ids = [0 if number == FIRST else NOBODY for number in OWNERS[name.split("-")[1]]]
        return ids[0], ids[1], mode_of(name)
    return 0, 0, limited(name)


# What is seen


@pytest.mark.parametrize("length", [ALONE, FEW, MANY])
@pytest.mark.parametrize("options", [(), ("timeout=0",)])
def test_shown(space: Space, length: int, options: tuple[str, ...]) -> None:
    """By listings, look-ups, and when the kernel asks once more; in lowers and in the upper."""
    space.extra = options
    populate(space)
    for name in OBJECTS:
        make(space.upper / f"upper-{name}", mode_of(name), OWNERS[name.split("-")[1]])
    deep = space.upper / "deep"
    make(deep, stat.S_IFDIR | 0o755, (STRANGER, STRANGER))
    make(deep / "file", stat.S_IFREG | 0o6755, (STRANGER, STRANGER))

    def see() -> list[dict[str, tuple[int, int, int]]]:
        names = [*OBJECTS, *(f"upper-{name}" for name in OBJECTS)]
        looked_up = {name: about(space.mnt / name) for name in names[::2]}
        os.listdir(space.mnt)
        listed = {name: about(space.mnt / name) for name in names}
        for name in names:
            if stat.S_ISREG(listed[name][2]):
                (space.mnt / name).read_bytes()
        again = {name: about(space.mnt / name) for name in names}
        below = {name: about(space.mnt / "deep" / name) for name in (".", "file")}
        return [looked_up, listed, again, below]

    with mounted(space, length) as inside:
        *seen, below = inside.run(see)
    for found in seen:
        for name, status in found.items():
            assert status == shown(name.removeprefix("upper-"), length), name
    everybody = 0 if length != MANY else NOBODY
    assert below["."] == (everybody, everybody, stat.S_IFDIR | 0o755)
    assert below["file"] == shown("setuid-both", length)


def test_the_kernel_shows_nobody(space: Space) -> None:
    """Which a FUSE file system cannot: the kernel takes it for no owner, and changes nothing."""
    populate(space)
    with mounted(space, ALONE, "kernel") as inside:
        assert inside.run(lambda: owner(space.mnt / "file-both")) == (NOBODY, NOBODY)


# What the kernel's overlay allows


@pytest.mark.parametrize("length", [ALONE, MANY])
@pytest.mark.parametrize("impl", ["fuse", "kernel"])
def test_removed(space: Space, length: int, impl: str) -> None:
    populate(space)

    def remove() -> None:
        for name in OBJECTS:
            path = space.mnt / name
            (path.rmdir if name in DIRECTORIES else path.unlink)()
        assert os.listdir(space.mnt) == []

    with mounted(space, length, impl) as inside:
        inside.run(remove)
    assert sorted(os.listdir(space.upper)) == sorted(OBJECTS)
    assert all(is_whiteout(space.upper / name) for name in OBJECTS)


@pytest.mark.parametrize("length", [ALONE, MANY])
@pytest.mark.parametrize("impl", ["fuse", "kernel"])
def test_replaced(space: Space, length: int, impl: str) -> None:
    populate(space)

    def replace() -> None:
        for name in OBJECTS:
            new = space.mnt / "new"
            (new.mkdir if name in DIRECTORIES else new.touch)()
            new.rename(space.mnt / name)

    with mounted(space, length, impl) as inside:
        inside.run(replace)
    for name in OBJECTS:
        assert owner(space.upper / name) == (FIRST, FIRST)


# What it does not


CHANGES: dict[str, Callable[[Path], object]] = {
    "chmod": lambda path: path.chmod(0o640),
    "chown": lambda path: os.chown(path, 0, 0),
    "chgrp": lambda path: os.chown(path, -1, 0),
    "times": lambda path: os.utime(path, (1, 1)),
    "touch": os.utime,
    "truncate": lambda path: os.truncate(path, 1),
    "write": lambda path: path.write_bytes(b"more"),
    "link": lambda path: os.link(path, path.with_name(f"l-{path.name}")),
    "set": lambda path: os.setxattr(path, "user.x", b"1"),
    "rename": lambda path: path.rename(path.with_name(f"r-{path.name}")),
}


@pytest.mark.parametrize("length", [ALONE, FEW])
@pytest.mark.parametrize("features", [(), ("metacopy=on", "redirect_dir=on")])
def test_changed(space: Space, length: int, features: tuple[str, ...]) -> None:
    """Copies belong to root of the namespace, since nobody can be given what he is not known by;
    they are neither setuid nor setgid."""
    space.features = features
    for what in CHANGES:
        for name in FILES:
            make(space.lower / f"{what}-{name}", mode_of(name), OWNERS[name.split("-")[1]])

    def work() -> dict[str, tuple[int, int, int]]:
        for what, change in CHANGES.items():
            for name in FILES:
                change(space.mnt / f"{what}-{name}")
        return {name: about(space.mnt / name) for name in os.listdir(space.mnt)}

    with mounted(space, length) as inside:
        seen = inside.run(work)
    for name in FILES:
        for what in CHANGES:
            path = space.upper / (f"r-rename-{name}" if what == "rename" else f"{what}-{name}")
            mode = stat.S_IFREG | 0o640 if what == "chmod" else limited(name)
            assert about(path) == (FIRST, FIRST, mode), path.name
            assert seen[path.name] == (0, 0, mode)


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_others_changed(space: Space, kind: str) -> None:
    populate(space)

    def work() -> None:
        for who in OWNERS:
            path = space.mnt / f"{kind}-{who}"
            os.utime(path, (1, 1), follow_symlinks=False)
            os.link(path, space.mnt / f"linked-{who}", follow_symlinks=False)
            path.rename(space.mnt / f"renamed-{who}")

    with mounted(space, ALONE) as inside:
        inside.run(work)
    for who in OWNERS:
        assert about(space.upper / f"renamed-{who}") == (FIRST, FIRST, KINDS[kind])


@pytest.mark.parametrize("length", [ALONE, MANY])
def test_directories(space: Space, length: int) -> None:
    """Something is made in them, and the tree is removed."""
    populate(space, full=True)

    def work() -> list[str]:
        for name in DIRECTORIES:
            (space.mnt / name / "new").touch()
            (space.mnt / name / "below").mkdir()
            (space.mnt / name / "in").unlink()
            (space.mnt / name).chmod(0o700)
        seen = [*map(owner, (space.mnt / name / "new" for name in DIRECTORIES))]
        assert {uid for uid, _ in seen} == {0}
        done = subprocess.run(
            ["rm", "-rf", *(space.mnt / name for name in OBJECTS)], capture_output=True, timeout=30
        )
        assert not done.returncode, done.stderr
        return os.listdir(space.mnt)

    with mounted(space, length) as inside:
        assert inside.run(work) == []


@pytest.mark.parametrize("uid", [0, 500])
def test_made_in_a_directory_that_hands_down_a_strange_group(space: Space, uid: int) -> None:
    """What is made belongs to who is shown as its owner, and has the mode that was asked for."""
    team = space.upper / "team"
    make(team, stat.S_IFDIR | 0o2777, (FIRST, STRANGER))
    modes = {
        "file": stat.S_IFREG | 0o664,
        "setuid": stat.S_IFREG | 0o4755,
        "fifo": stat.S_IFIFO | 0o660,
    }

    def work() -> dict[str, tuple[int, int, int]]:
        os.umask(0)
        for name, mode in modes.items():
            os.mknod(space.mnt / "team" / name, mode)
        (space.mnt / "team" / "directory").mkdir(0o770)
        (space.mnt / "team" / "directory" / "below").mkdir()
        (space.mnt / "team" / "link").symlink_to("nowhere")
        os.chmod(space.mnt / "team" / "directory", 0o775)
        return {path.name: about(path) for path in (space.mnt / "team").iterdir()}

    with mounted(space, FEW) as inside:
        seen = inside.run(work, uid=uid)
    modes |= {"directory": stat.S_IFDIR | 0o775, "link": stat.S_IFLNK | 0o777}
    assert seen == {name: (uid, 0, mode) for name, mode in modes.items()}
    for name, mode in modes.items():
        assert about(team / name) == (FIRST + uid, FIRST, mode), name


# Nobody gains by it


@pytest.mark.parametrize("gid", [5, 0])
def test_rights(space: Space, gid: int) -> None:
    """Only root of the namespace, who could replace the files as well, may change them: not
    whoever is in his group."""
    populate(space)

    def try_all() -> None:
        for name in OBJECTS:
            path = space.mnt / name
            if gid == 0 and OWNERS[name.split("-")[1]][1] == FIRST:
                continue
            for code, change in (
                (errno.EPERM, lambda path=path: os.chown(path, 5, 5, follow_symlinks=False)),
                (errno.EPERM, lambda path=path: os.utime(path, (1, 1), follow_symlinks=False)),
                (errno.EACCES, lambda path=path: os.rename(path, space.mnt / "mine")),
            ):
                with fails(code):
                    change()
            if name in FILES and not mode_of(name) & 0o2:
                with fails(errno.EACCES):
                    path.write_bytes(b"mine")
            if name in DIRECTORIES and not mode_of(name) & 0o2:
                with fails(errno.EACCES):
                    (path / "mine").touch()

    with mounted(space, FEW) as inside:
        inside.run(try_all, uid=5, gid=gid)
    assert os.listdir(space.upper) == []


@pytest.mark.parametrize("features", [(), ("metacopy=on",)])
def test_unreadable(space: Space, features: tuple[str, ...]) -> None:
    """What root of the namespace may not read stays so, whatever he does to it."""
    space.features = features
    make(space.lower / "secret", stat.S_IFREG | 0o600, (STRANGER, STRANGER))
    make(space.lower / "closed", stat.S_IFDIR | 0o700, (STRANGER, STRANGER))

    def work() -> None:
        with fails(errno.EACCES):
            (space.mnt / "secret").read_bytes()
        with contextlib.suppress(PermissionError):
            (space.mnt / "secret").chmod(0o666)
        with fails(errno.EACCES):
            (space.mnt / "secret").read_bytes()
        with fails(errno.EACCES):
            os.listdir(space.mnt / "closed")
        (space.mnt / "secret").unlink()

    with mounted(space, ALONE) as inside:
        inside.run(work)


@pytest.mark.parametrize("impl", ["fuse", "kernel"])
@pytest.mark.parametrize("who", [name for name in OWNERS if name != "group"])
def test_setuid_programs(space: Space, impl: str, who: str) -> None:
    """A stranger's setuid program gives nobody any rights, before or after a copy-up."""
    shutil.copy("/usr/bin/id", space.lower / "id")
    os.chown(space.lower / "id", *OWNERS[who])
    (space.lower / "id").chmod(0o6755)

    def ids() -> list[str]:
        argv = [space.mnt / "id"]
        done = subprocess.run([*argv, "-u"], capture_output=True, timeout=30, text=True)
        group = subprocess.run([*argv, "-g"], capture_output=True, timeout=30, text=True)
        return [done.stdout.strip(), group.stdout.strip()]

    with mounted(space, FEW, impl) as inside:
        assert inside.run(ids, uid=5) == ["5", "5"]
        if impl == "fuse":
            inside.run(lambda: os.utime(space.mnt / "id", (1, 1)))
            assert inside.run(ids, uid=5) == ["5", "5"]


# Owners that are kept in an attribute, mapped or squashed


OVERRIDE = "user.containers.override_stat"


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("length", [ALONE, FEW])
def test_kept_in_attributes(space: Space, upper: bool, length: int) -> None:
    """Owners that only an attribute can have, and the namespace has no id for. Where there is only
    root an image shows its modes."""
    os.setxattr(space.lower, OVERRIDE, b"0:0:0755:dir")
    for name, value in (("stranger", b"5000:5000:06775:file"), ("known", b"5:6:06775:file")):
        make(space.lower / name, stat.S_IFREG | 0o755, (FIRST, FIRST))
        os.setxattr(space.lower / name, OVERRIDE, value)
    if upper:
        space.extra = ("xattr_permissions=2",)

    def work() -> list[tuple[int, int, int]]:
        paths = [space.mnt / name for name in ("stranger", "known")]
        before = [about(path) for path in paths]
        for path in paths:
            os.utime(path, (1, 1))
        return [*before, *(about(path) for path in paths)]

    with mounted(space, length) as inside:
        seen = inside.run(work)
    setuid = stat.S_IFREG | 0o6775
    stranger = setuid if length == ALONE else stat.S_IFREG | 0o755
    known = (0, 0) if length == ALONE else (5, 6)
    assert seen == [(0, 0, stranger), (*known, setuid)] * 2
    if upper:
        assert os.getxattr(space.upper / "stranger", OVERRIDE) == b"5000:5000:06775:file"
    else:
        assert about(space.upper / "stranger") == (FIRST, FIRST, stranger)


@pytest.mark.parametrize(
    "options",
    [
        "squash_to_uid=5000,squash_to_gid=5000",
        "squash_to_uid=5000",
        "uidmapping=0:0:2",
        "uidmapping=0:0:1:1:5000:10,gidmapping=0:0:1:1:5000:10",
    ],
)
def test_shown_as_unmapped(space: Space, options: str) -> None:
    """What options show as ids that the namespace has not can be removed, too."""
    space.extra = tuple(options.split(","))
    for number in (0, 1, 5):
        make(space.lower / f"{number}", stat.S_IFREG | 0o6755, (FIRST + number, FIRST + number))
    populate(space)

    def work() -> list[str]:
        for name in os.listdir(space.mnt):
            assert max(owner(space.mnt / name)) < FEW, name
            subprocess.run(["rm", "-rf", space.mnt / name], check=True, timeout=30)
        return os.listdir(space.mnt)

    with mounted(space, FEW) as inside:
        assert inside.run(work) == []


# ACLs


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An ACL: tags, permissions, ids."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NO_ID = 2**32 - 1
KNOWN = FIRST + 5


def named(*users: tuple[int, int]) -> bytes:
    """An ACL for the owner, these users and one group of strangers."""
    return acl(
        (0x01, 6, NO_ID),
        *((0x02, permissions, uid) for uid, permissions in users),
        (0x04, 6, NO_ID), (0x08, 6, STRANGER), (0x10, 6, NO_ID), (0x20, 4, NO_ID),
    )  # fmt: skip


def told(uid: int, group: int = 6) -> bytes:
    """What is left of it for who does not know the strangers."""
    return acl(
        (0x01, 6, NO_ID), (0x02, 2, uid), (0x04, group, NO_ID), (0x10, 6, NO_ID), (0x20, 4, NO_ID)
    )


@pytest.mark.parametrize("length", [FEW, MANY])
@pytest.mark.parametrize("who", [(FIRST, FIRST), (FIRST + 7, FIRST), (STRANGER, STRANGER)])
def test_acl_of_strangers(space: Space, length: int, who: tuple[int, int]) -> None:
    """What an ACL says of who is not mapped is left out; the rest counts. Root's group gains
    nothing where it stands in for another."""
    group = 4 if length == FEW and who[1] == STRANGER else 6
    path, access = space.lower / "file", "system.posix_acl_access"
    make(path, stat.S_IFREG | 0o644, who)
    os.setxattr(path, access, named((STRANGER, 7), (KNOWN, 2)))
    below, default = space.lower / "directory", "system.posix_acl_default"
    make(below, stat.S_IFDIR | 0o755, (FIRST, FIRST))
    os.setxattr(below, default, named((STRANGER, 7), (KNOWN, 2)))

    def work() -> None:
        mnt = space.mnt / "file"
        assert mnt.read_bytes() == b"content"
        assert os.getxattr(mnt, access) == told(5, group)
        (space.mnt / "directory" / "new").touch()
        (space.mnt / "directory" / "sub").mkdir(exist_ok=True)
        assert os.getxattr(space.mnt / "directory", default) == told(5)
        assert os.getxattr(space.mnt / "directory" / "sub", default) == told(5)

    def write() -> None:
        with fails(errno.EACCES):
            (space.mnt / "file").read_bytes()
        os.close(os.open(space.mnt / "file", os.O_WRONLY))

    with mounted(space, length) as inside:
        inside.run(write, uid=5)
        assert inside.run((space.mnt / "file").read_bytes, uid=6) == b"content"
        inside.run(work)
        inside.run(lambda: os.utime(space.mnt / "file", (1, 1)))
        inside.run(write, uid=5)
        inside.run(work)
    assert os.getxattr(space.upper / "file", access) == told(KNOWN, group)
    assert os.getxattr(space.upper / "directory" / "sub", default) == told(KNOWN)
