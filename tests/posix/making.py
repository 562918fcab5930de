"""mkdir, mknod, mkfifo, symlink: what is made, and where nothing can be."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.helpers.mounts import MODE, fails, needs_root_ids, root_only
from tests.posix.table import (
    ALICE,
    KINDS,
    as_user,
    behaviour,
    expect,
    in_child,
    kind_of,
    mode_of,
    on_each_kind,
    seen,
)

_MAKERS = {
    "file": lambda path: os.mknod(path, stat.S_IFREG | 0o644),
    "dir": os.mkdir,
    "link": lambda path: os.symlink("target", path),
    "fifo": os.mkfifo,
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o644),
}


@behaviour()
def make_over_each_kind(d: Path) -> object:
    for make in _MAKERS.values():
        expect(on_each_kind(d, make), others="EEXIST")


@behaviour()
def make_over_dangling_link(d: Path) -> object:
    os.symlink("nowhere", d / "dangling")
    expect({kind: seen(make, d / "dangling") for kind, make in _MAKERS.items()}, others="EEXIST")
    assert kind_of(d / "nowhere") == "ENOENT"


@behaviour()
def make_each_kind(d: Path) -> object:
    for kind, make in _MAKERS.items():
        make(d / "e" / kind)
        assert kind_of(d / "e" / kind) == kind
        assert os.lstat(d / "e" / kind).st_nlink == (2 if kind == "dir" else 1)
    return {kind: oct(mode_of(d / "e" / kind)) for kind in _MAKERS}


@behaviour()
def make_below_nothing(d: Path) -> object:
    for make in _MAKERS.values():
        with fails(errno.ENOENT):
            make(d / "missing" / "new")
        with fails(errno.ENOTDIR):
            make(d / "f" / "new")
        with fails(errno.ENOTDIR):
            make(d / "p" / "new")


@behaviour()
def make_in_a_linked_directory(d: Path) -> object:
    os.symlink("e", d / "to-e")
    for kind, make in _MAKERS.items():
        make(d / "to-e" / kind)
    return sorted(os.listdir(d / "e"))


@behaviour()
def make_where_another_kind_was(d: Path) -> object:
    """A removed name is free for any kind."""
    for old, name in KINDS.items():
        for new, make in _MAKERS.items():
            if not os.path.lexists(d / name):
                continue
            os.rename(d / name, d / "e" / "kept")
            make(d / name)
            assert kind_of(d / name) == new
            (os.rmdir if new == "dir" else os.unlink)(d / name)
            os.rename(d / "e" / "kept", d / name)
            assert kind_of(d / name) == old


@behaviour()
def make_with_slash(d: Path) -> object:
    """Only a directory may be made under a name with a slash behind."""
    os.mkdir(f"{d}/newdir/")
    with fails(errno.ENOENT):
        os.mkfifo(f"{d}/newfifo/")
    with fails(errno.ENOENT):
        os.symlink("x", f"{d}/newlink/")
    with fails(errno.EEXIST):
        os.mkdir(f"{d}/f/")
    os.symlink("nowhere", d / "dangling")
    with fails(errno.EEXIST):
        os.mkdir(f"{d}/dangling/")


@behaviour()
def make_dots(d: Path) -> object:
    for name in (".", "..", "d/.", "d/.."):
        for make in _MAKERS.values():
            with fails(errno.EEXIST):
                make(f"{d}/{name}")


@behaviour()
def directory_modes(d: Path) -> object:
    for mode in (0, 0o700, 0o777, 0o1777, 0o2770, 0o7777):
        os.mkdir(d / f"new{mode:o}", mode)
    got = {oct(mode): oct(mode_of(d / f"new{mode:o}")) for mode in (0, 0o700, 0o777, 0o1777)}
    assert got == {"0o0": "0o0", "0o700": "0o700", "0o777": "0o755", "0o1777": "0o1755"}
    # Linux takes the sticky bit, and not the set-id bits.
    assert mode_of(d / "new2770") == 0o750
    assert mode_of(d / "new7777") == 0o1755
    os.chmod(d / "new0", 0o700)


@behaviour()
def new_directory(d: Path) -> object:
    os.mkdir(d / "new")
    assert os.listdir(d / "new") == []
    assert kind_of(d / "new" / "x") == "ENOENT"
    os.mkdir(d / "new" / "x")
    assert os.stat(d / "new" / "..").st_ino == os.stat(d).st_ino
    return os.stat(d / "new").st_nlink


@behaviour(answers=[2, 3, 4, 3, 2])
def subdirectories_are_counted(d: Path) -> object:
    """A directory has two links and one for every directory in it."""
    counts = [os.stat(d / "e").st_nlink]
    for name in ("one", "two"):
        os.mkdir(d / "e" / name)
        counts.append(os.stat(d / "e").st_nlink)
    (d / "e" / "file").touch()
    os.rmdir(d / "e" / "one")
    counts.append(os.stat(d / "e").st_nlink)
    os.rename(d / "e" / "two", d / "two")
    counts.append(os.stat(d / "e").st_nlink)
    return counts


@behaviour()
def make_and_remove_again_and_again(d: Path) -> object:
    for index in range(20):
        os.mkdir(d / "new")
        (d / "new" / f"{index}").touch()
        assert os.listdir(d / "new") == [f"{index}"]
        os.unlink(d / "new" / f"{index}")
        os.rmdir(d / "new")
        (d / "new").touch()
        os.unlink(d / "new")


@behaviour()
def mknod_of_odd_types(d: Path) -> object:
    os.mknod(d / "new", 0o600)
    assert kind_of(d / "new") == "file"
    with fails(errno.EPERM):
        os.mknod(d / "x", stat.S_IFDIR | 0o700)
    with fails(errno.EINVAL):
        os.mknod(d / "x", stat.S_IFLNK | 0o700)
    with fails(errno.EINVAL):
        os.mknod(d / "x", 0o070000 | 0o700)


@behaviour(root_only)
def mknod_of_devices(d: Path) -> object:
    numbers = ((1, 3), (0, 1), (255, 255), (4095, 1), (10, 1_048_575))
    for major, minor in numbers:
        for kind in (stat.S_IFCHR, stat.S_IFBLK):
            path = d / f"{kind:o}-{major}-{minor}"
            os.mknod(path, kind | 0o600, os.makedev(major, minor))
            st = os.lstat(path)
            assert stat.S_IFMT(st.st_mode) == kind
            assert (os.major(st.st_rdev), os.minor(st.st_rdev)) == (major, minor)
            assert st.st_size == 0


@behaviour(pytest.mark.skipif(MODE == "root", reason="root may make devices"))
def mknod_of_devices_is_for_root(d: Path) -> object:
    for kind in (stat.S_IFCHR, stat.S_IFBLK):
        with fails(errno.EPERM):
            os.mknod(d / "x", kind | 0o600, os.makedev(1, 3))


@behaviour(needs_root_ids)
def mknod_of_devices_by_a_user(d: Path) -> object:
    os.chmod(d / "e", 0o777)
    for kind in (stat.S_IFCHR, stat.S_IFBLK):
        work = lambda kind=kind: os.mknod(d / "e" / "x", kind, os.makedev(1, 3))  # noqa: E731
        assert as_user(ALICE, work) == "EPERM"


@behaviour(root_only)
def devices_work(d: Path) -> object:
    """The null device of the populated directory, and a new zero device."""
    (d / "c").write_bytes(b"swallowed")
    assert (d / "c").read_bytes() == b""
    os.mknod(d / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    with open(d / "zero", "rb") as stream:
        assert stream.read(5) == bytes(5)


@behaviour()
def symlink_targets(d: Path) -> object:
    targets = [
        b"x",
        b"/",
        b"..",
        b"a b\n",
        b"\xff\xfe",
        "émoji 🎉".encode(),
        b"x/" * 300,
        b"./" * 2,
    ]
    for index, target in enumerate(targets):
        os.symlink(target, os.fsencode(d / f"l{index}"))
        assert os.readlink(os.fsencode(d / f"l{index}")) == target
        assert os.lstat(d / f"l{index}").st_size == len(target)


@behaviour()
def symlink_target_lengths(d: Path) -> object:
    for size in (1, 59, 60, 61, 255, 1000, 4000):
        os.symlink("t" * size, d / f"l{size}")
        assert os.readlink(d / f"l{size}") == "t" * size
    with fails(errno.ENAMETOOLONG):
        os.symlink("t" * 4096, d / "l4096")
    with fails(errno.ENOENT):
        os.symlink("", d / "empty")


@behaviour()
def longest_symlink(d: Path) -> object:
    """PATH_MAX with the final NUL."""
    os.symlink("t" * 4095, d / "l")
    assert os.readlink(d / "l") == "t" * 4095
    return os.lstat(d / "l").st_size


@behaviour()
def symlink_mode(d: Path) -> object:
    def make() -> None:
        os.umask(0o777)
        os.symlink("x", d / "new")

    in_child(make)
    assert mode_of(d / "new") == 0o777
    assert mode_of(d / "s") == 0o777


@behaviour()
def make_in_a_removed_directory(d: Path) -> object:
    fd = os.open(d / "e", os.O_DIRECTORY)
    os.rmdir(d / "e")
    got = {
        "mkdir": seen(os.mkdir, "x", dir_fd=fd),
        "mkfifo": seen(os.mkfifo, "x", dir_fd=fd),
        "symlink": seen(os.symlink, "y", "x", dir_fd=fd),
        "create": seen(os.open, "x", os.O_CREAT | os.O_WRONLY, dir_fd=fd),
        "link": seen(os.link, d / "f", "x", dst_dir_fd=fd),
        "rename": seen(os.rename, d / "f", "x", dst_dir_fd=fd),
    }
    os.close(fd)
    return expect(got, others="ENOENT")
