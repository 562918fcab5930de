"""Requests that pyfuse3 has no handlers for: ranges, holes, chattr(1), files without a name."""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fuseoverlay.system import syscalls
from tests.helpers import libc
from tests.helpers.libc import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from tests.helpers.mounts import (
    IMPL,
    NATIVE,
    Space,
    differs,
    fails,
    fuse_only,
    overlay_xattr,
    root_only,
    wait_for,
)
from tests.ops.conftest import CONTENT, Case

pytestmark = pytest.mark.skipif(IMPL == "fuse" and not NATIVE, reason="needs the extension")

HOLE = 1 << 20


@pytest.fixture
def sparse(space: Space) -> Iterator[Space]:
    """`s` in the lower: a hole, data, a hole, of a MiB each; `t` the same in the upper."""
    for path in (space.lower / "s", space.upper / "t"):
        with open(path, "wb") as stream:
            stream.seek(HOLE)
            stream.write(b"data" * (HOLE // 4))
            stream.truncate(3 * HOLE)
    yield space


def _holes(path: Path) -> list[tuple[int, int]]:
    """(start, end) of each stretch of data."""
    found = []
    with open(path, "rb") as stream:
        end = 0
        while True:
            try:
                start = os.lseek(stream.fileno(), end, os.SEEK_DATA)
            except OSError as exc:
                assert exc.errno == errno.ENXIO
                return found
            end = os.lseek(stream.fileno(), start, os.SEEK_HOLE)
            found.append((start, end))


def test_looking_for_holes_copies_nothing(sparse: Space) -> None:
    with sparse.mounted() as mnt:
        for name in ("s", "t"):
            assert _holes(mnt / name) == [(HOLE, 2 * HOLE)]
        assert sorted(os.listdir(sparse.upper)) == ["t"]


def test_looking_for_holes_read_only(sparse: Space) -> None:
    with sparse.mounted(read_only=True) as mnt:
        assert _holes(mnt / "s") == [(HOLE, 2 * HOLE)]


def test_cp_keeps_holes(sparse: Space) -> None:
    with sparse.mounted() as mnt:
        for name in ("s", "t"):
            copy = mnt / f"copy-of-{name}"
            subprocess.run(["cp", "--sparse=auto", str(mnt / name), str(copy)], check=True)
            assert copy.read_bytes() == (mnt / name).read_bytes()
            assert _holes(copy) == [(HOLE, 2 * HOLE)]
            assert copy.stat().st_blocks * 512 < 2 * HOLE


@pytest.mark.parametrize("name", ["s", "t"])
def test_data_in_a_shared_mapping_is_no_hole(sparse: Space, name: str) -> None:
    """Data that has not been written back yet counts as data."""
    with sparse.mounted() as mnt:
        fd = os.open(mnt / name, os.O_RDWR)
        with mmap.mmap(fd, 3 * HOLE) as shared:
            shared[0:5] = b"first"
            shared[2 * HOLE + 8192 : 2 * HOLE + 8192 + 6] = b"second"
            block = 4096
            assert _holes(mnt / name) == [
                (0, block),
                (HOLE, 2 * HOLE),
                (2 * HOLE + 2 * block, 2 * HOLE + 3 * block),
            ]
            shared[0:5] = b"third"
            assert shared[2 * HOLE + 8192 : 2 * HOLE + 8192 + 6] == b"second"
        os.close(fd)
        data = (mnt / name).read_bytes()
        assert data[:5] == b"third"
        assert data[2 * HOLE + 8192 : 2 * HOLE + 8192 + 6] == b"second"


def _write_mapping_and_seek(path: Path) -> None:
    """Run in a process of its own until the daemon is gone."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, HOLE)
    with mmap.mmap(fd, HOLE) as shared:
        for index in itertools.count():
            shared[index * 40961 % HOLE] = 1
            os.lseek(fd, 0, os.SEEK_HOLE)


@fuse_only
def test_ending_while_holes_are_sought(space: Space) -> None:
    """The daemon still serves what the kernel writes back meanwhile."""
    space.mount()
    assert space.daemon is not None
    workers = []
    for index in range(4):
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                _write_mapping_and_seek(space.mnt / f"f{index}")
            os._exit(0)
        workers.append(pid)
    wait_for(lambda: len(os.listdir(space.upper)) == 4, 10, "making four files")
    space.daemon.process.send_signal(signal.SIGTERM)
    assert space.daemon.process.wait(30) == 0
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    space.drop()
    with space.mounted() as mnt:
        assert len(os.listdir(mnt)) == 4


def test_fallocate_reserves(case: Case, where: str) -> None:
    fd = os.open(case.path / "f", os.O_RDWR)
    libc.fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 1 << 20)
    assert os.fstat(fd).st_size == len(CONTENT)
    assert os.stat(case.upper / "f").st_blocks * 512 >= 1 << 20
    assert os.fstat(fd).st_blocks == os.stat(case.upper / "f").st_blocks
    libc.fallocate(fd, 0, 0, 1 << 20)
    assert os.fstat(fd).st_size == 1 << 20
    assert os.pread(fd, 2 << 20, 0) == CONTENT.ljust(1 << 20, b"\0")
    os.close(fd)


def test_fallocate_punches_what_is_cached(case: Case, where: str) -> None:
    fd = os.open(case.path / "f", os.O_RDWR)
    assert os.pread(fd, 5000, 0) == CONTENT
    os.pwrite(fd, b"x" * 50, 100)
    libc.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 90, 100)
    expected = CONTENT[:90] + bytes(100) + CONTENT[190:]
    assert os.pread(fd, 5000, 0) == expected
    assert (case.upper / "f").read_bytes() == expected
    os.close(fd)


def test_copy_a_range_of_a_lower_file(sparse: Space) -> None:
    with sparse.mounted() as mnt:
        source, target = os.open(mnt / "s", os.O_RDONLY), os.open(mnt / "t", os.O_RDWR)
        done = 0
        while done < 3 * HOLE:
            done += os.copy_file_range(source, target, 3 * HOLE - done, done, done + 100)
        os.close(source)
        os.close(target)
        assert sorted(os.listdir(sparse.upper)) == ["t"]
        assert (mnt / "t").read_bytes()[100:] == (mnt / "s").read_bytes()


def test_read_only(space: Space) -> None:
    (space.lower / "d").mkdir()
    (space.lower / "f").write_bytes(b"lower")
    with space.mounted(read_only=True) as mnt:
        with fails(errno.EROFS):
            os.open(mnt / "d", os.O_TMPFILE | os.O_RDWR)
        for name in ("d", "f"):
            fd = os.open(mnt / name, os.O_RDONLY)
            flags = syscalls.file_flags(fd)
            with fails(errno.EROFS):
                syscalls.set_file_flags(fd, flags | syscalls.FS_NOATIME_FL)
            assert syscalls.file_flags(fd) == flags
            os.close(fd)


# Files without a name


def _nameless(path: Path, data: bytes, mode: int = 0o640) -> int:
    fd = os.open(path, os.O_TMPFILE | os.O_RDWR, mode)
    os.write(fd, data)
    return fd


def _name(fd: int, path: Path) -> None:
    libc.linkat(f"/proc/self/fd/{fd}".encode(), path, libc.AT_SYMLINK_FOLLOW)


def _staged(space: Space) -> list[str]:
    return [name for name in os.listdir(space.work / "work") if name != "incompat"]


def test_nameless_file_gets_a_name(case: Case, where: str) -> None:
    data = bytes(range(256)) * 2000
    fd = _nameless(case.path / "d", data)
    assert os.fstat(fd).st_nlink == 0
    assert sorted(os.listdir(case.path / "d")) == ["child", "sub"]
    assert _staged(case.space) == []
    _name(fd, case.path / "d" / "named")
    assert os.fstat(fd).st_nlink == 1
    assert os.fstat(fd).st_ino == os.stat(case.path / "d" / "named").st_ino
    os.write(fd, b"more")
    os.fsync(fd)
    os.close(fd)
    assert (case.path / "d" / "named").read_bytes() == data + b"more"
    assert (case.upper / "d" / "named").read_bytes() == data + b"more"


def test_nameless_file_leaves_nothing(case: Case, where: str) -> None:
    fd = _nameless(case.path / "d", b"nobody will see this")
    assert _staged(case.space) == []
    os.close(fd)
    assert sorted(os.listdir(case.path / "d")) == ["child", "sub"]


@pytest.mark.parametrize("mode", [0, 0o200, 0o444, 0o755])
def test_modes_of_nameless_files(case: Case, mode: int) -> None:
    fd = _nameless(case.path, b"text", mode)
    assert os.fstat(fd).st_mode & 0o7777 == mode
    assert os.pread(fd, 10, 0) == b"text"
    _name(fd, case.path / "new")
    os.close(fd)
    assert os.stat(case.path / "new").st_mode & 0o7777 == mode
    assert os.stat(case.path / "new").st_size == 4


@fuse_only
def test_killed_daemon_leaves_no_nameless_file(space: Space) -> None:
    space.mount()
    fds = [_nameless(space.mnt, b"x" * 10000) for _ in range(3)]
    assert space.daemon is not None
    space.daemon.process.send_signal(signal.SIGKILL)
    space.daemon.process.wait()
    for fd in fds:
        with fails(errno.ENOTCONN):
            os.write(fd, b"more")
        with contextlib.suppress(OSError):
            os.close(fd)
    space.drop()
    assert _staged(space) == []
    assert os.listdir(space.upper) == []
    with space.mounted() as mnt:
        assert os.listdir(mnt) == []


@fuse_only
def test_nameless_files_do_not_pile_up(space: Space) -> None:
    with space.mounted() as mnt:
        assert space.daemon is not None
        descriptors = Path(f"/proc/{space.daemon.process.pid}/fd")

        def make(count: int) -> int:
            for _ in range(count):
                os.close(_nameless(mnt, b"x"))
            return len(os.listdir(descriptors))

        few = make(20)
        make(500)
        # The kernel may send FORGET requests later.
        wait_for(lambda: make(1) <= few + 20, 10, "closing descriptors")


def test_nameless_file_keeps_its_place_among_many_users(space: Space) -> None:
    """Each worker creates, writes, links and reads its own file."""
    with space.mounted() as mnt:

        def work(number: int) -> None:
            for index in range(20):
                data = b"%d-%d" % (number, index) * 100
                fd = _nameless(mnt, data)
                assert os.fstat(fd).st_nlink == 0
                _name(fd, mnt / f"{number}-{index}")
                assert os.pread(fd, 10000, 0) == data
                os.close(fd)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        for number in range(8):
            for index in range(20):
                assert (mnt / f"{number}-{index}").read_bytes() == b"%d-%d" % (number, index) * 100


# chattr(1)


def _flags(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return syscalls.file_flags(fd)
    finally:
        os.close(fd)


def _chattr(change: str, path: Path) -> None:
    subprocess.run(["chattr", change, str(path)], check=True, capture_output=True)


PROTECTING = syscalls.FS_IMMUTABLE_FL | syscalls.FS_APPEND_FL


@root_only
@pytest.mark.parametrize("name", ["f", "d"])
@pytest.mark.parametrize("letter", ["i", "a"])
def test_protection_is_never_real(case: Case, where: str, name: str, letter: str) -> None:
    flag = {"i": syscalls.FS_IMMUTABLE_FL, "a": syscalls.FS_APPEND_FL}[letter]
    _chattr(f"+{letter}", case.path / name)
    assert _flags(case.path / name) & PROTECTING == flag
    assert _flags(case.upper / name) & PROTECTING == 0
    assert overlay_xattr(case.upper / name, "protattr") == letter.encode()
    with fails(errno.EPERM):
        os.chmod(case.path / name, 0o700)
    _chattr(f"-{letter}", case.path / name)
    assert _flags(case.path / name) & PROTECTING == 0
    assert overlay_xattr(case.upper / name, "protattr") is None
    os.chmod(case.path / name, 0o700)


@root_only
@pytest.mark.skipif(IMPL == "kernel", reason="asks about protection only at open")
def test_protection_ends_writing_through_open_descriptors(case: Case, where: str) -> None:
    fd = os.open(case.path / "f", os.O_RDWR)
    for _ in range(3):  # now it is known how to write it
        assert os.pwrite(fd, b"free", 0) == 4
    _chattr("+i", case.path / "f")
    with fails(errno.EPERM):
        os.pwrite(fd, b"not free", 0)
    with fails(errno.EPERM):
        libc.fallocate(fd, 0, 0, 100)
    _chattr("-i", case.path / "f")
    assert os.pwrite(fd, b"free", 4) == 4
    os.close(fd)
    assert (case.path / "f").read_bytes()[:13] == b"freefree" + CONTENT[8:13]


@pytest.mark.parametrize("name", ["f", "d"])
def test_other_flags_are_real(case: Case, where: str, name: str) -> None:
    before = os.stat(case.path / name)
    _chattr("+A", case.path / name)
    assert _flags(case.path / name) & syscalls.FS_NOATIME_FL
    assert _flags(case.upper / name) & syscalls.FS_NOATIME_FL
    after = os.stat(case.path / name)
    assert after.st_ctime_ns >= before.st_ctime_ns
    assert after.st_mtime_ns == before.st_mtime_ns
    _chattr("-A", case.path / name)
    assert not _flags(case.upper / name) & syscalls.FS_NOATIME_FL


@differs("late-copy-up")
def test_asking_for_flags_copies_nothing(case: Case) -> None:
    for name in ("f", "d"):
        assert _flags(case.path / name) == _flags(case.lower / name)
        assert not case.is_up(name)


@root_only
def test_append_only_file_may_be_touched(case: Case, where: str) -> None:
    _chattr("+a", case.path / "f")
    before = os.stat(case.path / "f").st_mtime_ns
    os.utime(case.path / "f")
    assert os.stat(case.path / "f").st_mtime_ns > before
    with fails(errno.EPERM):
        os.utime(case.path / "f", (1, 1))
    now, omit = (0, libc.UTIME_NOW), (0, libc.UTIME_OMIT)
    libc.utimensat(case.path / "f", now, now)
    with fails(errno.EPERM):
        libc.utimensat(case.path / "f", now, omit)
    _chattr("-a", case.path / "f")
