"""Several threads and processes at work at once."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.helpers.mounts import Space, differs
from tests.ops.conftest import CONTENT, Case

THREADS = 8


def together(work: Callable[[int], object], count: int = THREADS) -> list:
    """Run `work(index)` in threads that start at the same moment; raises what they raise."""
    gate = threading.Barrier(count)

    def start(index: int) -> object:
        gate.wait(30)
        return work(index)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(start, range(count)))


def test_everyone_creates(case: Case) -> None:
    def work(index: int) -> None:
        for number in range(40):
            (case.path / f"t{index}-{number}").write_bytes(b"%d %d" % (index, number))

    together(work)
    for index in range(THREADS):
        for number in range(40):
            assert (case.path / f"t{index}-{number}").read_bytes() == b"%d %d" % (index, number)


def test_one_wins_an_exclusive_create(case: Case) -> None:
    def work(index: int) -> int:
        try:
            fd = os.open(case.path / "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return 0
        os.close(fd)
        return 1

    for _ in range(10):
        assert sum(together(work)) == 1
        os.unlink(case.path / "new")


def test_one_wins_an_unlink(case: Case, where: str) -> None:
    def work(index: int) -> int:
        try:
            os.unlink(case.path / "f")
        except FileNotFoundError:
            return 0
        return 1

    assert sum(together(work)) == 1


def test_simultaneous_copy_up_of_one_file(space: Space) -> None:
    """Every writer's byte arrives, whichever of them copies the file up."""
    (space.lower / "big").write_bytes(bytes(8 << 20))
    with space.mounted() as mnt:

        def work(index: int) -> None:
            fd = os.open(mnt / "big", os.O_RDWR)
            os.pwrite(fd, b"%02d" % index, index << 20)
            os.close(fd)

        together(work)
        data = (mnt / "big").read_bytes()
        assert len(data) == 8 << 20
        for index in range(THREADS):
            assert data[index << 20 : (index << 20) + 2] == b"%02d" % index


def test_simultaneous_copy_up_of_one_directory(case: Case) -> None:
    """All writers need the same ancestors copied up first."""

    def work(index: int) -> None:
        (case.path / "d" / "sub" / f"new{index}").write_bytes(b"x")
        os.setxattr(case.path / "d", f"user.t{index}", b"x")

    together(work)
    assert len(os.listdir(case.path / "d" / "sub")) == THREADS + 1
    assert len(os.listxattr(case.path / "d")) == THREADS


def test_reading_while_copying_up(space: Space) -> None:
    content = b"".join(b"%07d\n" % index for index in range(1 << 19))
    for index in range(4):
        (space.lower / f"f{index}").write_bytes(content)
    with space.mounted(settle=False) as mnt:
        stop = threading.Event()

        def reader(path: Path) -> int:
            rounds = 0
            while not stop.is_set():
                data = path.read_bytes()
                assert data[8:] == content[8:]
                rounds += 1
            return rounds

        with ThreadPoolExecutor(4) as pool:
            readers = [pool.submit(reader, mnt / f"f{index}") for index in range(4)]
            for index in range(4):
                with open(mnt / f"f{index}", "r+b") as stream:
                    stream.write(b"WRITTEN\n")
            stop.set()
            assert all(future.result(60) for future in readers)
        for index in range(4):
            assert (mnt / f"f{index}").read_bytes() == b"WRITTEN\n" + content[8:]


@differs("fresh-descriptors")
def test_change_of_a_file_during_its_copy_up(space: Space) -> None:
    """Rename, unlink and attribute changes while its data is being copied: nothing is lost."""
    size = 64 << 20
    for name in ("moved", "deleted", "changed"):
        (space.lower / name).write_bytes(os.urandom(1 << 20) * 64)
    with space.mounted() as mnt:

        def start(name: str) -> int:
            fd = os.open(mnt / name, os.O_RDWR)
            os.pwrite(fd, b"WRITE", 10)
            return fd

        with ThreadPoolExecutor(3) as pool:
            writers = [pool.submit(start, name) for name in ("moved", "deleted", "changed")]
            os.rename(mnt / "moved", mnt / "moved2")
            os.unlink(mnt / "deleted")
            os.chmod(mnt / "changed", 0o600)
            fds = []
            for future in writers:
                with contextlib.suppress(FileNotFoundError):
                    fds.append(future.result(60))
        for fd in fds:
            assert os.pread(fd, 5, 10) == b"WRITE"
            assert os.fstat(fd).st_size == size
            os.close(fd)
        assert sorted(os.listdir(mnt)) == ["changed", "moved2"]
        assert os.stat(mnt / "changed").st_mode & 0o777 == 0o600
        assert os.stat(mnt / "moved2").st_size == size


def test_rename_storm(case: Case) -> None:
    """Four files, eight threads that move them about: none is lost or doubled."""
    for index in range(4):
        (case.path / "d" / f"file{index}").write_bytes(b"%d" % index)
    places = [case.path / "d", case.path / "e", case.path / "d" / "sub"]

    def work(index: int) -> None:
        for turn in range(60):
            name = f"file{(index + turn) % 4}"
            source, target = places[turn % 3], places[(turn + index) % 3]
            try:
                os.rename(source / name, target / name)
            except OSError as exc:
                assert exc.errno == errno.ENOENT, exc

    together(work)
    found = sorted(name for place in places for name in os.listdir(place) if name[:4] == "file")
    assert found == [f"file{index}" for index in range(4)]
    for place in places:
        for name in os.listdir(place):
            if name.startswith("file"):
                assert (place / name).read_bytes() == name[4:].encode()


def test_create_and_remove_directories(case: Case) -> None:
    def work(index: int) -> None:
        for _ in range(30):
            with contextlib.suppress(FileExistsError):
                os.mkdir(case.path / "shared")
            with contextlib.suppress(FileNotFoundError):
                (case.path / "shared" / f"t{index}").touch()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(case.path / "shared" / f"t{index}")
            try:
                os.rmdir(case.path / "shared")
            except OSError as exc:
                assert exc.errno in (errno.ENOENT, errno.ENOTEMPTY), exc

    together(work)
    left = os.listdir(case.path / "shared") if (case.path / "shared").exists() else []
    assert left == []


def test_a_slow_reader_does_not_hold_up_others(space: Space) -> None:
    """While others read a fifo and a big file, stat(2) is answered."""
    (space.lower / "big").write_bytes(bytes(32 << 20))
    os.mkfifo(space.lower / "fifo")
    with space.mounted(settle=False) as mnt:
        waiting = threading.Thread(target=lambda: (mnt / "fifo").read_bytes(), daemon=True)
        waiting.start()
        with ThreadPoolExecutor(2) as pool:
            reading = pool.submit((mnt / "big").read_bytes)
            for index in range(50):
                (mnt / f"new{index}").write_bytes(CONTENT)
                assert os.stat(mnt / f"new{index}").st_size == len(CONTENT)
            assert len(reading.result(60)) == 32 << 20
        (mnt / "fifo").write_bytes(b"done")
        waiting.join(30)
        assert not waiting.is_alive()
