"""Copy-up: what it preserves, what it does not touch, and where it puts things."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.mounts import IMPL, MODE, Space, fails, file_handles, is_whiteout, wait_for
from tests.helpers.tree import record
from tests.ops.conftest import ATIME, CONTENT, MTIME, Case


def append(path: Path) -> None:
    """Write a byte."""
    with open(path, "ab") as stream:
        stream.write(b"!")


TRIGGERS: dict[str, Callable[[Path], object]] = {
    "append": append,
    "chmod": lambda path: os.chmod(path, 0o604),
    "utime": lambda path: os.utime(path, ns=(1, 1)),
    "setxattr": lambda path: os.setxattr(path, "user.new", b"x"),
    "removexattr": lambda path: os.removexattr(path, "user.colour"),
    "truncate": lambda path: os.truncate(path, 5),
    "link": lambda path: os.link(path, path.parent / "hard"),
    "rename": lambda path: os.rename(path, path.parent / "renamed"),
}
CHANGED = {
    "append": {"size", "digest", "mtime_ns"},
    "chmod": {"mode"},
    "utime": {"mtime_ns"},
    "setxattr": {"xattrs"},
    "removexattr": {"xattrs"},
    "truncate": {"size", "digest", "mtime_ns"},
    "link": {"nlink", "same_as"},
    "rename": set(),
}


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_only_what_was_changed_changes(case: Case, trigger: str) -> None:
    before = record(str(case.path))
    TRIGGERS[trigger](case.path / "f")
    after = record(str(case.path))
    if trigger == "rename":
        after[b"f"] = after.pop(b"renamed")
    if trigger == "link":
        after.pop(b"hard")
    before.pop(b"."), after.pop(b".")
    changed = {
        field
        for field in vars(before[b"f"])
        if getattr(before[b"f"], field) != getattr(after[b"f"], field)
    }
    assert changed == CHANGED[trigger]
    before.pop(b"f"), after.pop(b"f")
    assert before == after


@pytest.mark.parametrize("trigger", sorted(set(TRIGGERS) - {"link", "rename"}))
def test_parents_keep_their_times(case: Case, trigger: str) -> None:
    """Programs compare directories by their times: copying up a file must not change them."""
    os.setxattr(case.path / "d", "user.before", b"x")
    os.utime(case.path / "d" / "sub", ns=(ATIME, MTIME))
    os.utime(case.path / "d", ns=(ATIME, MTIME))
    leaf = case.path / "d" / "sub" / "leaf"
    if trigger == "removexattr":
        trigger = "setxattr"
    TRIGGERS[trigger](leaf)
    for path in (case.path / "d", case.path / "d" / "sub"):
        assert os.stat(path).st_mtime_ns == MTIME
    for path in (case.upper / "d", case.upper / "d" / "sub"):
        assert os.stat(path).st_mtime_ns == MTIME


def test_ancestors_are_copied_whole(space: Space) -> None:
    for depth, mode in enumerate((0o711, 0o750, 0o1777, 0o2775)):
        path = space.lower.joinpath(*(f"d{index}" for index in range(depth + 1)))
        path.mkdir()
        path.chmod(mode)
        os.setxattr(path, "user.depth", b"%d" % depth)
    leaf = path / "leaf"
    leaf.write_bytes(b"x")
    while path != space.lower:
        os.utime(path, ns=(ATIME, MTIME))
        path = path.parent
    before = record(str(space.lower))
    with space.mounted() as mnt:
        (mnt / leaf.relative_to(space.lower)).write_bytes(b"changed")
        for where in (mnt, space.upper):
            after = record(str(where))
            for name in (b"d0", b"d0/d1", b"d0/d1/d2", b"d0/d1/d2/d3"):
                assert after[name].mode == before[name].mode, (where, name)
                assert after[name].mtime_ns == MTIME, (where, name)
                assert before[name].xattrs.items() <= after[name].xattrs.items()


def test_upper_holds_only_what_changed(space: Space) -> None:
    for index in range(10):
        (space.lower / f"d{index}").mkdir()
        (space.lower / f"d{index}" / "a").write_bytes(b"a")
        (space.lower / f"d{index}" / "b").write_bytes(b"b")
    with space.mounted() as mnt:
        subprocess.run(["find", str(mnt), "-ls"], check=True, stdout=subprocess.DEVNULL)
        assert os.listdir(space.upper) == []
        append(mnt / "d3" / "a")
        assert os.listdir(space.upper) == ["d3"]
        assert os.listdir(space.upper / "d3") == ["a"]


def test_metadata_of_a_directory_copies_no_children(case: Case) -> None:
    os.chmod(case.path / "d", 0o700)
    assert os.listdir(case.upper / "d") == []
    assert set(os.listdir(case.path / "d")) == {"child", "sub"}


def test_work_directory_is_left_empty(space: Space) -> None:
    for index in range(20):
        (space.lower / f"f{index}").write_bytes(b"x")
    with space.mounted() as mnt:
        for index in range(0, 20, 2):
            append(mnt / f"f{index}")
            os.unlink(mnt / f"f{index + 1}")
        if IMPL == "fuse":
            # The whiteout to which the next ones will be links.
            assert [is_whiteout(path) for path in _files(space.work)] == [True]
    if IMPL == "fuse":
        assert _files(space.work) == []


def _files(directory: Path) -> list[Path]:
    return [Path(top, name) for top, _, names in os.walk(directory) for name in names]


@file_handles
@pytest.mark.parametrize("name", ["f", "d", "s", "p", "k"])
def test_inode_number_survives_copy_up(case: Case, name: str) -> None:
    before = os.lstat(case.path / name).st_ino
    with os.scandir(case.path) as entries:
        assert {entry.name: entry.inode() for entry in entries}[name] == before
    os.utime(case.path / name, ns=(1, 1), follow_symlinks=False)
    assert case.is_up(name)
    assert os.lstat(case.path / name).st_ino == before
    with os.scandir(case.path) as entries:
        assert {entry.name: entry.inode() for entry in entries}[name] == before


@file_handles
def test_inode_number_through_an_open_descriptor(case: Case) -> None:
    fd = os.open(case.path / "f", os.O_RDWR)
    before = os.fstat(fd).st_ino
    os.write(fd, b"changed")
    assert os.fstat(fd).st_ino == before == os.stat(case.path / "f").st_ino
    os.close(fd)


def test_inode_numbers_are_unique(case: Case, where: str) -> None:
    numbers = [os.lstat(path).st_ino for path in case.path.rglob("*")]
    numbers += [os.stat(case.path).st_ino, os.stat(case.space.mnt).st_ino]
    if IMPL == "fuse":
        assert len(set(numbers)) == len(numbers)


def test_lower_access_times_do_not_move(space: Space) -> None:
    """Reads everything twice; `mounted` compares all other times as well.

    Symbolic links are checked only as root: on Linux only a mount without access times, which only
    root can make, keeps reading one from changing its access time.
    """
    (space.lower / "f").write_bytes(CONTENT)
    (space.lower / "d").mkdir()
    (space.lower / "d" / "g").write_bytes(b"x")
    os.symlink("f", space.lower / "s")
    for name in ("f", "d/g", "d", "s", "."):
        os.utime(space.lower / name, ns=(ATIME, MTIME), follow_symlinks=False)
    mnt = space.mount()
    for _ in range(2):
        (mnt / "f").read_bytes()
        (mnt / "d" / "g").read_bytes()
        os.listdir(mnt)
        os.listdir(mnt / "d")
        os.readlink(mnt / "s")
        append(mnt / "f")
    space.unmount()
    moved = [
        name
        for name in ("f", "d/g", "d", ".", *(["s"] if MODE == "root" else []))
        if os.lstat(space.lower / name).st_atime_ns != ATIME
    ]
    assert moved == []


@pytest.mark.skipif(MODE != "root", reason="needs other users' ids")
def test_owner_is_kept(space: Space) -> None:
    (space.lower / "d").mkdir()
    (space.lower / "d" / "f").write_bytes(b"x")
    os.symlink("f", space.lower / "d" / "s")
    for name, owner in (("d", 1001), ("d/f", 1002), ("d/s", 1003)):
        os.chown(space.lower / name, owner, owner + 1000, follow_symlinks=False)
    (space.lower / "d" / "f").chmod(0o4751)
    with space.mounted() as mnt:
        os.utime(mnt / "d" / "f", ns=(1, 1))
        os.utime(mnt / "d" / "s", ns=(1, 1), follow_symlinks=False)
        for where in (mnt, space.upper):
            for name, owner in (("d", 1001), ("d/f", 1002), ("d/s", 1003)):
                st = os.lstat(where / name)
                assert (st.st_uid, st.st_gid) == (owner, owner + 1000)
            assert stat.S_IMODE(os.stat(where / "d" / "f").st_mode) == 0o4751


UNREADABLE = pytest.mark.skipif(
    MODE == "user", reason="the daemon may not read what its user may not"
)


@pytest.mark.parametrize("mode", [0o400, 0o444, pytest.param(0o200, marks=UNREADABLE)])
def test_files_that_may_not_be_written_change_their_attributes(space: Space, mode: int) -> None:
    (space.lower / "f").write_bytes(CONTENT)
    (space.lower / "f").chmod(mode)
    with space.mounted() as mnt:
        os.utime(mnt / "f", ns=(ATIME, MTIME))
        os.chmod(mnt / "f", 0o600)
        assert (mnt / "f").read_bytes() == CONTENT
        assert os.stat(space.upper / "f").st_mtime_ns == MTIME


@pytest.mark.parametrize("mode", [0, 0o100, 0o244])
def test_files_that_may_not_be_read_are_there_after_a_remount(space: Space, mode: int) -> None:
    """Reading the overlay's own attributes of them takes read permission too."""
    for name in ("f", "linked"):
        (space.lower / name).write_bytes(CONTENT)
    os.link(space.lower / "linked", space.lower / "twin")
    with space.mounted(settle=False) as mnt:
        numbers = {name: os.stat(mnt / name).st_ino for name in ("f", "linked")}
        for name in numbers:
            os.chmod(mnt / name, mode)
        space.remount()
        for name, number in numbers.items():
            st = os.stat(mnt / name)
            assert (stat.S_IMODE(st.st_mode), st.st_size) == (mode, len(CONTENT))
            # The kernel gives a copy of one of two hard links a new inode number.
            assert st.st_ino == number or IMPL == "kernel"
            os.chmod(mnt / name, 0o600)
            assert (mnt / name).read_bytes() == CONTENT
            os.unlink(mnt / name)
            assert not os.path.lexists(mnt / name)


def test_special_files_stay_what_they_are(case: Case) -> None:
    for name, kind in (("p", stat.S_ISFIFO), ("k", stat.S_ISSOCK), ("s", stat.S_ISLNK)):
        os.utime(case.path / name, ns=(1, 2), follow_symlinks=False)
        assert kind(os.lstat(case.upper / name).st_mode), name
        assert kind(os.lstat(case.path / name).st_mode), name


def test_layers_on_another_filesystem(space: Space) -> None:
    """Copy-up across filesystems, and numbers that do not collide."""
    if MODE == "user":
        other = Path(tempfile.mkdtemp(prefix="fuseoverlay-test-", dir="/dev/shm"))
    else:
        other = space.base / "tmpfs"
        other.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(other)], check=True, timeout=30)
    try:
        lower = other / "lower"
        lower.mkdir()
        (lower / "f").write_bytes(b"from another filesystem" * 1000)
        (lower / "d").mkdir()
        (lower / "d" / "g").write_bytes(b"g")
        (space.lower / "here").write_bytes(b"here")
        (space.lower / "d").mkdir()
        (space.lower / "d" / "h").write_bytes(b"h")
        space.lowers.append(lower)
        with space.mounted() as mnt:
            append(mnt / "f")
            append(mnt / "d" / "g")
            assert (mnt / "f").read_bytes() == b"from another filesystem" * 1000 + b"!"
            assert sorted(os.listdir(mnt / "d")) == ["g", "h"]
            if IMPL == "fuse":
                paths = [mnt, *mnt.rglob("*")]
                assert len({os.lstat(path).st_ino for path in paths}) == len(paths)
    finally:
        if MODE != "user":
            subprocess.run(["umount", "-l", str(other)], check=False, timeout=30)
        else:
            subprocess.run(["rm", "-r", str(other)], check=False, timeout=30)


@pytest.mark.skipif(MODE == "user", reason="needs mount(2)")
def test_full_disk(space: Space) -> None:
    """Copy-up that does not fit fails in the writer's call, and leaves the old file and nothing
    else."""
    small = space.base / "small"
    small.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(small)]
    subprocess.run(argv, check=True, timeout=30)
    space.upper, space.work = small / "upper", small / "work"
    for path in (space.upper, space.work):
        path.mkdir()
    content = os.urandom(1 << 20) * 8
    (space.lower / "big").write_bytes(content)
    (space.lower / "f").write_bytes(b"small")
    try:
        with space.mounted(settle=False) as mnt:
            with fails(errno.ENOSPC), open(mnt / "big", "r+b") as stream:
                stream.write(b"does not fit")
                stream.flush()
                os.fsync(stream.fileno())
            assert (mnt / "big").read_bytes() == content
            assert os.listdir(space.upper) == []
            left = [name for _, _, files in os.walk(space.work) for name in files]
            if IMPL == "fuse":
                assert left == []
            append(mnt / "f")
            assert (mnt / "f").read_bytes() == b"small!"
            if IMPL == "fuse":  # the kernel copies the whole file first
                os.truncate(mnt / "big", 1 << 20)
                assert (mnt / "big").read_bytes() == content[: 1 << 20]
            with fails(errno.ENOSPC), open(mnt / "new", "wb") as stream:
                stream.write(bytes(6 << 20))
                stream.flush()
                os.fsync(stream.fileno())
            os.unlink(mnt / "new")
            # The kernel may release a closed file later.
            wait_for(lambda: os.statvfs(small).f_bavail * 4096 > 1 << 20, 10, "freeing the space")
            (mnt / "fits").write_bytes(bytes(1 << 20))
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False, timeout=30)


def test_truncated_data_is_not_copied(space: Space) -> None:
    """O_TRUNC would discard it anyway."""
    with open(space.lower / "big", "wb") as stream:
        for _ in range(64):
            stream.write(bytes(range(256)) * 4096)
    with space.mounted(settle=False) as mnt:
        before = _written(space)
        os.close(os.open(mnt / "big", os.O_WRONLY | os.O_TRUNC))
        assert os.stat(space.upper / "big").st_size == 0
        os.unlink(mnt / "big")
        if IMPL == "fuse":
            assert _written(space) - before < 8 << 20


def _written(space: Space) -> int:
    """Bytes the daemon has handed to write calls so far."""
    if space.daemon is None:
        return 0
    text = Path(f"/proc/{space.daemon.process.pid}/io").read_text()
    return int(text.split("wchar:")[1].split()[0])


@pytest.mark.skipif(IMPL == "kernel", reason="of the daemon")
def test_descriptors_do_not_grow(space: Space) -> None:
    for index in range(300):
        (space.lower / f"low{index}").write_bytes(b"x")
    with space.mounted(settle=False) as mnt:
        assert space.daemon is not None
        held = f"/proc/{space.daemon.process.pid}/fd"
        counts = []
        for turn in range(3):
            for index in range(100):
                name = f"low{turn * 100 + index}"
                (mnt / name).write_bytes(b"changed")
                os.unlink(mnt / name)
                (mnt / f"new{index}").write_bytes(b"new")
                os.mkdir(mnt / f"dir{index}")
                (mnt / f"dir{index}" / "x").touch()
            for index in range(100):
                os.unlink(mnt / f"new{index}")
                os.unlink(mnt / f"dir{index}" / "x")
                os.rmdir(mnt / f"dir{index}")
            counts.append(len(os.listdir(held)))
        assert counts[-1] <= counts[0] + 10, counts
