"""What hides nothing is made, linked and removed in its place, as by kernel overlayfs: also where
the filesystem lets nothing be moved to from elsewhere, and with what the directory hands down."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fuseoverlay.system import syscalls
from fuseoverlay.system.credentials import acting_as
from tests.helpers import libc
from tests.helpers.disks import disk
from tests.helpers.mounts import NATIVE, Daemon, Space, command, fuse_only, root_only
from tests.helpers.tree import Entry, record

pytestmark = fuse_only

SOMEBODY = 1000
NOATIME, DIRSYNC, NODUMP, NOCOW = 0x80, 0x10000, 0x40, 0x800000
#: An ACL of user::rwx user:5:rwx group::r-x mask::rwx other::r-x.
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, bits, number)
    for tag, bits, number in (
        (1, 7, 2**32 - 1), (2, 7, 5), (4, 5, 2**32 - 1), (16, 7, 2**32 - 1), (32, 5, 2**32 - 1),
    )
)  # fmt: skip


class Kind(NamedTuple):
    """A filesystem, and what is special about a directory in it."""

    filesystem: str
    make: Callable[[Path], None]
    flags: int


def _make_subvolume(path: Path) -> None:
    tool = shutil.which("btrfs")
    if tool is None:
        pytest.skip("missing tool: btrfs")
    subprocess.run([tool, "-q", "subvolume", "create", path], check=True, timeout=60)


def _make_project(path: Path) -> None:
    """A directory whose project what is made in it inherits."""
    path.mkdir()
    fd = os.open(path, os.O_RDONLY)
    value = bytearray(fcntl.ioctl(fd, syscalls.FS_IOC_FSGETXATTR, bytes(28)))
    # struct fsxattr: xflags with FS_XFLAG_PROJINHERIT, extsize, nextents, projid
    struct.pack_into("=I", value, 0, struct.unpack_from("=I", value)[0] | 0x200)
    struct.pack_into("=I", value, 12, 7)
    fcntl.ioctl(fd, syscalls.FS_IOC_FSSETXATTR, bytes(value))
    os.close(fd)


KINDS = {
    "subvolume": Kind("btrfs", _make_subvolume, NOCOW),
    "project": Kind("xfs", _make_project, NODUMP | NOATIME),
    "flags": Kind("ext4", Path.mkdir, DIRSYNC | NODUMP | NOATIME | syscalls.FS_SYNC_FL),
}
Maker = Callable[[str, int], object]


def _open_nameless(name: str, directory: int) -> None:
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o640, dir_fd=directory)
    try:
        here = Path(f"/proc/self/fd/{directory}/{name}")
        libc.linkat(f"/proc/self/fd/{fd}".encode(), here, libc.AT_SYMLINK_FOLLOW)
    finally:
        os.close(fd)


MAKERS: dict[str, Maker] = {
    "file": lambda name, fd: os.close(os.open(name, os.O_CREAT | os.O_EXCL, 0o640, dir_fd=fd)),
    "setuid": lambda name, fd: os.mknod(name, 0o4750, dir_fd=fd),
    "dir": lambda name, fd: os.mkdir(name, 0o750, dir_fd=fd),
    "sticky": lambda name, fd: os.mkdir(name, 0o1777, dir_fd=fd),
    "symlink": lambda name, fd: os.symlink("target", name, dir_fd=fd),
    "fifo": lambda name, fd: os.mkfifo(name, 0o620, dir_fd=fd),
}
if NATIVE:
    MAKERS["nameless"] = _open_nameless


def _change(path: Path, *, acls: bool) -> None:
    """All sorts of changes in a directory."""
    home = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    for name, make in MAKERS.items():
        make(name, home)
    os.link("file", "link", src_dir_fd=home, dst_dir_fd=home)
    os.rmdir("old", dir_fd=home)
    os.mkdir("passing", dir_fd=home)
    os.rename("passing", "moved", src_dir_fd=home, dst_dir_fd=home)
    os.rmdir("moved", dir_fd=home)
    os.unlink("setuid", dir_fd=home)
    os.chmod(home, 0o3777)
    os.chown(home, 0, 33)
    os.mkdir("of the group", dir_fd=home)
    with acting_as(SOMEBODY, SOMEBODY):
        os.mkdir("of somebody", dir_fd=home)
        os.symlink("x", "of somebody/link", dir_fd=home)
        os.mknod("of somebody/file", 0o600, dir_fd=home)
        os.mkfifo("of somebody/fifo", dir_fd=home)
    if acls:
        os.setxattr(path, "system.posix_acl_default", ACL)
        for name, make in MAKERS.items():
            make(f"{name} with an ACL", home)
    os.close(home)


def _seen(tree: dict[bytes, Entry]) -> dict[bytes, tuple]:
    """Without the attributes that say what an overlay did."""
    return {
        name: (entry.kind, entry.uid, entry.gid, entry.mode, entry.nlink, entry.target, entry.size,
               {k: v for k, v in entry.xattrs.items() if b"overlay" not in k})
        for name, entry in tree.items()
    }  # fmt: skip


def _flags(path: Path) -> dict[str, tuple[int, int]]:
    """Flags and project of all files and directories below a real directory."""
    found = {}
    for top, _, names in os.walk(path):
        for full in (Path(top), *(Path(top, name) for name in names)):
            if not stat.S_ISREG(mode := full.lstat().st_mode) and not stat.S_ISDIR(mode):
                continue
            fd = os.open(full, os.O_RDONLY)
            value = fcntl.ioctl(fd, syscalls.FS_IOC_FSGETXATTR, bytes(28))
            flags = syscalls.file_flags(fd) & syscalls.FS_INHERITED_FL
            found[str(full.relative_to(path))] = flags, struct.unpack_from("=I", value, 12)[0]
            os.close(fd)
    return found


@contextlib.contextmanager
def _layers(base: Path, kind: Kind) -> Iterator[Space]:
    """With an upper that has such a directory, `home`."""
    base.mkdir()
    space = Space(base)
    home = space.upper / "home"
    kind.make(home)
    (home / "old").mkdir()
    fd = os.open(home, os.O_RDONLY)
    syscalls.set_file_flags(fd, syscalls.file_flags(fd) | kind.flags)
    os.close(fd)
    try:
        yield space
    finally:
        space.drop()


def _outcome(space: Space, impl: str, *, acls: bool) -> tuple[dict, dict]:
    """What is seen after the changes, and what the upper has inherited."""
    mnt = space.mount(impl=impl)
    # Without the extension the kernel applies it, ACL or not.
    mask = os.umask(0)
    try:
        _change(mnt / "home", acls=acls)
    finally:
        os.umask(mask)
    seen = _seen(record(str(mnt)))
    space.unmount()
    assert os.listdir(space.work / "work") == []
    return seen, _flags(space.upper)


def test_flags_are_handed_down(space: Space) -> None:
    """As in any directory of the same filesystem, whoever mounts."""
    plain = space.base / "plain"
    for home in (plain, space.upper / "home"):
        home.mkdir()
        fd = os.open(home, os.O_RDONLY)
        try:
            syscalls.set_file_flags(fd, syscalls.file_flags(fd) | NODUMP | NOATIME)
        except OSError as exc:
            pytest.skip(f"no flags here: {exc}")
        finally:
            os.close(fd)
    mnt = space.mount()
    for home in (plain, mnt / "home"):
        fd = os.open(home, os.O_RDONLY)
        for name, make in MAKERS.items():
            make(name, fd)
        os.close(fd)
    space.unmount()
    assert _flags(space.upper / "home") == _flags(plain)


@root_only
@pytest.mark.parametrize("capability", ["setpcap", "setuid", "setgid"])
def test_a_daemon_that_cannot_act_as_others(space: Space, capability: str) -> None:
    """What they make belongs to them all the same."""
    argv = ["setpriv", f"--bounding-set=-{capability}", f"--inh-caps=-{capability}"]
    argv += command("mount", "-f", "-o", space.options(), space.mnt)
    space.daemon = Daemon(argv, space.mnt, space.log)
    space.daemon.wait_until_mounted(1)
    os.chmod(space.mnt, 0o777)
    fd = os.open(space.mnt, os.O_RDONLY)
    for number in range(2):
        with acting_as(SOMEBODY, SOMEBODY):
            for name, make in MAKERS.items():
                make(f"{name}{number}", fd)
        for name in MAKERS:
            st = os.stat(f"{name}{number}", dir_fd=fd, follow_symlinks=False)
            assert (st.st_uid, st.st_gid) == (SOMEBODY, SOMEBODY), name
    os.close(fd)
    space.unmount()


@root_only
@pytest.mark.parametrize("name", KINDS)
def test_as_by_the_kernel(space: Space, name: str) -> None:
    kind = KINDS[name]
    with disk(space.base, kind.filesystem) as base:
        with _layers(base / "kernel", kind) as theirs:
            expected = _outcome(theirs, "kernel", acls=True)
        with _layers(base / "ours", kind) as ours:
            assert _outcome(ours, "fuse", acls=True) == expected


@root_only
@pytest.mark.parametrize("name", KINDS)
def test_where_an_attribute_keeps_owners(space: Space, name: str) -> None:
    """The same, but for ACLs, which such mounts have not."""
    kind = KINDS[name]
    with disk(space.base, kind.filesystem) as base:
        with _layers(base / "kernel", kind) as theirs:
            expected, inherited = _outcome(theirs, "kernel", acls=False)
        with _layers(base / "ours", kind) as ours:
            ours.extra = ("xattr_permissions=2",)
            seen, found = _outcome(ours, "fuse", acls=False)
            assert seen == expected
            # Symbolic links and pipes are files there.
            assert {path: found[path] for path in inherited} == inherited
            assert _seen(record(str(ours.mount()))) == seen
            ours.unmount()


@root_only
def test_more_without_a_name_than_may_be_held(space: Space) -> None:
    """What the work directory takes no name of is held by descriptors all the same."""
    with disk(space.base, "btrfs") as base, _layers(base / "ours", KINDS["subvolume"]) as ours:
        mnt = ours.mount(descriptors=96)
        directories, files = [], []
        for number in range(20):
            path = mnt / "home" / f"d{number}"
            path.mkdir()
            directories.append(os.open(path, os.O_RDONLY))
            path.rmdir()
            if NATIVE:
                files.append(os.open(mnt / "home", os.O_TMPFILE | os.O_RDWR, 0o600))
        for fd in directories:
            assert os.listdir(fd) == []
            os.close(fd)
        for number, fd in enumerate(files):
            path = mnt / "home" / f"f{number}"
            os.write(fd, b"%d" % number)
            libc.linkat(f"/proc/self/fd/{fd}".encode(), path, libc.AT_SYMLINK_FOLLOW)
            os.close(fd)
            assert (path.read_bytes(), path.stat().st_nlink) == (b"%d" % number, 1)
        ours.unmount()
