"""How many requests the kernel sends: it does not ask again for what it caches, and the cache is
never wrong."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.mounts import IMPL, NATIVE, Space, scratch, unmount
from tests.helpers.requests import counted

pytestmark = pytest.mark.skipif(IMPL == "kernel", reason="the kernel asks nobody")
needs_extension = pytest.mark.skipif(not NATIVE, reason="needs the extension")

FILES = 12
SIZE = 5000
PAGE = os.sysconf("SC_PAGESIZE")

#: Requests without an answer; they may arrive later than those they belong to.
ASYNCHRONOUS = {"RELEASE", "RELEASEDIR"}
#: Requests that are answered ENOSYS, which the kernel remembers.
ONCE = {"FLUSH", "OPEN", "OPENDIR"} if NATIVE else {"FLUSH"}


def _asked(mnt: Path, work: Callable[..., object], *args: object) -> Counter[str]:
    """The requests that the kernel sends and waits for while `work` runs."""
    with counted(mnt) as requests:
        work(*args)
    for name in list(requests):
        if name in ASYNCHRONOUS or (name in ONCE and requests[name] == 1):
            del requests[name]
    return requests


def _asked_at_least(mnt: Path, work: Callable[..., object], *args: object) -> Counter[str]:
    """The fewest of three runs: the kernel may drop cached data at any time."""
    return min((_asked(mnt, work, *args) for _ in range(3)), key=Counter.total)


def _grow(space: Space, layers: int) -> dict[str, bytes]:
    """Make a tree in several lowers, with directories that they share and that they do not; returns
    the content of its files."""
    for _ in range(layers - 1):
        space.add_lower()
    contents = {}
    for index, lower in enumerate(space.lowers):
        for directory in ("shared", "shared/deep", f"own{index}", f"own{index}/deep"):
            (lower / directory).mkdir()
            for number in range(FILES):
                name = f"{directory}/f{index}-{number}"
                contents[name] = name.encode().ljust(SIZE, b".")
                (lower / name).write_bytes(contents[name])
    return contents


def _walk(directory: Path) -> int:
    """List and stat everything below; returns the number of objects."""
    with os.scandir(directory) as entries:
        found = [entry.name for entry in entries]
    count = len(found)
    for name in found:
        path = directory / name
        if stat.S_ISDIR(os.lstat(path).st_mode):
            count += _walk(path)
    return count


def _read(path: Path) -> bytes:
    """The file's data; Python's `open` would also check for a terminal."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 1 << 20)
    finally:
        os.close(fd)


def _check(mnt: Path, contents: dict[str, bytes]) -> None:
    for name, data in contents.items():
        assert _read(mnt / name) == data, name


def _create(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    assert os.write(fd, data) == len(data)
    os.close(fd)


def test_reading_in_order(space: Space) -> None:
    """The kernel reads half a MiB at a time once it has detected the sequence."""
    content = os.urandom((8 << 20) + 1234)
    (space.lower / "big").write_bytes(content)
    with space.mounted(settle=False) as mnt:
        fd = os.open(mnt / "big", os.O_RDONLY)
        pieces = []

        def read() -> None:
            pieces.extend(iter(lambda: os.read(fd, 64 << 10), b""))

        reads = _asked(mnt, read)["READ"]
        os.close(fd)
        assert b"".join(pieces) == content
        assert reads <= 8 * 2 + 8


layered = pytest.mark.parametrize("layers", [1, 3])
writable = pytest.mark.parametrize("read_only", [True, False], ids=["read-only", "read-write"])


@layered
@writable
def test_walking_again(space: Space, layers: int, read_only: bool) -> None:
    """Without the extension every directory is opened, and listed in two requests."""
    _grow(space, layers)
    directories = 1 + 2 + 2 * layers
    listings = {} if NATIVE else {"OPENDIR": directories, "READDIRPLUS": 2 * directories}
    with space.mounted(read_only=read_only, settle=False) as mnt:
        cold = _asked(mnt, _walk, mnt)
        assert cold.keys() <= {"OPENDIR", "READDIRPLUS"}
        warm = _asked(mnt, _walk, mnt)
        if not read_only:
            # After listing a directory the kernel assumes that its atime has changed.
            assert warm.pop("GETATTR", 0) <= directories
        assert warm.keys() <= cold.keys()
        assert _asked_at_least(mnt, _walk, mnt) == listings


@layered
@writable
def test_reading_again(space: Space, layers: int, read_only: bool) -> None:
    contents = _grow(space, layers)
    opens = {} if NATIVE else {"OPEN": len(contents)}
    with space.mounted(read_only=read_only, settle=False) as mnt:
        _walk(mnt)
        cold = _asked(mnt, _check, mnt, contents)
        assert 0 < cold["READ"] <= len(contents)
        assert cold.keys() <= {"READ", "OPEN", "GETATTR"}
        second = _asked(mnt, _check, mnt, contents)
        if not read_only:
            # After reading a file the kernel assumes that its atime has changed.
            assert second.pop("GETATTR", 0) <= len(contents)
        third = _asked(mnt, _check, mnt, contents)
        for again in (second, third):
            # The kernel may drop pages at any time, and then reads them again.
            assert again.pop("READ", 0) <= len(contents) // 10
            assert again == opens


@pytest.mark.parametrize("where", ["own0", "shared"])
def test_creating(space: Space, where: str) -> None:
    _grow(space, 2)
    with space.mounted(settle=False) as mnt:
        _walk(mnt)
        for number in range(3):
            asked = _asked(mnt, _create, mnt / where / f"new{number}", b"x" * 100)
            # The directory's attributes, which the request before has changed.
            assert asked.pop("GETATTR", 0) <= 1
            assert asked == {"LOOKUP": 1, "CREATE": 1, "GETXATTR": 1, "WRITE": 1}


def test_writing_a_lot(space: Space) -> None:
    """Only the first write requests security.capability; without the extension each one does."""
    with space.mounted() as mnt:
        fd = os.open(mnt / "new", os.O_WRONLY | os.O_CREAT)
        os.write(fd, b"x" * 8)

        def write() -> None:
            for number in range(1000):
                os.pwrite(fd, b"%08d" % number, 8 * number)

        asked = _asked(mnt, write)
        assert asked.pop("WRITE") == 1000
        if not NATIVE:
            assert asked.pop("GETXATTR") == 1000
        assert asked.total() <= 2
        os.close(fd)
        assert _read(mnt / "new") == b"".join(b"%08d" % number for number in range(1000))


@pytest.mark.skipif(not NATIVE, reason="a new mtime ends what the kernel has")
def test_reading_what_was_written(space: Space) -> None:
    """Written in whole pages: of a partial one the kernel does not know the rest."""
    data = os.urandom(16 * PAGE)
    (space.lower / "old").write_bytes(bytes(16 * PAGE))
    with space.mounted(settle=False) as mnt:
        _create(mnt / "new", data)
        _overwrite(mnt / "old", data)
        for name in ("new", "old"):

            def read(name: str = name) -> None:
                assert _read(mnt / name) == data

            asked = _asked(mnt, read)
            assert asked["READ"] == 0, name
            assert (space.upper / name).read_bytes() == data


def _overwrite(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    assert os.write(fd, data) == len(data)
    os.close(fd)


@layered
@writable
def test_absent_names(space: Space, layers: int, read_only: bool) -> None:
    _grow(space, layers)
    with space.mounted(read_only=read_only, settle=False) as mnt:
        _walk(mnt)

        def look() -> None:
            for directory in ("", "shared", "shared/deep", "own0"):
                for number in range(5):
                    assert not os.path.lexists(mnt / directory / f"absent{number}")

        asked = _asked(mnt, look)
        assert asked.pop("LOOKUP") == 20
        assert asked.keys() <= {"GETATTR"}
        assert _asked_at_least(mnt, look) == {}
        if not read_only:
            _create(mnt / "shared" / "absent0", b"there")
            assert _read(mnt / "shared" / "absent0") == b"there"


def _look_ups(space: Space, layers: int) -> Counter[str]:
    """The requests that finding 60 names by their paths takes; all layers have them."""
    for _ in range(layers - 1):
        space.add_lower()
    for lower in space.lowers:
        (lower / "a" / "b").mkdir(parents=True)
    for number in range(60):
        place = space.lowers[number % layers] / "a" / "b"
        (place / f"f{number}").write_bytes(b"%d" % number)
    with space.mounted(settle=False) as mnt:

        def look() -> None:
            for number in range(60):
                assert (mnt / "a" / "b" / f"f{number}").lstat().st_size == len(str(number))

        return _asked(mnt, look)


def test_layers_cost_no_requests(space: Space) -> None:
    few = _look_ups(space, 1)
    with scratch() as base:
        assert _look_ups(Space(base), 20) == few
    assert few == {"LOOKUP": 62}


def test_two_mounts_over_one_lower(space: Space) -> None:
    """Each kernel mount has a cache of its own; they show the same."""
    contents = _grow(space, 2)
    with scratch() as base, space.mounted(settle=False) as mnt:
        second = Space(base)
        second.lowers = space.lowers
        with second.mounted(settle=False) as other:
            for _ in range(3):
                for root in (mnt, other):
                    _walk(root)
                    _check(root, contents)
            opens = {} if NATIVE else {"OPEN": len(contents)}
            with counted(other) as requests:
                assert _asked_at_least(mnt, _check, mnt, contents) == opens
            assert requests == {}
            _overwrite(mnt / "own0" / "f0-0", b"changed here")
            assert _asked_at_least(other, _check, other, contents) == opens
            assert _read(mnt / "own0" / "f0-0")[:12] == b"changed here"


@writable
def test_timeout_0_asks_again(space: Space, read_only: bool) -> None:
    (space.lower / "f").write_bytes(b"data")
    space.extra = ("timeout=0",)
    with space.mounted(read_only=read_only, settle=False) as mnt:
        for _ in range(3):
            assert _asked(mnt, os.stat, mnt / "f").total() >= 1
            assert _asked(mnt, os.path.lexists, mnt / "absent")["LOOKUP"] == 1


@writable
def test_timeout_0_shows_changes(space: Space, read_only: bool) -> None:
    """Changes that somebody makes to files of a lower under the mount."""
    for name in ("grown", "rewritten", "chmodded"):
        (space.lower / name).write_bytes(b"old data")
        os.utime(space.lower / name, (1, 1))
    space.extra = ("timeout=0",)
    mnt = space.mount(read_only=read_only)
    for name in ("grown", "rewritten", "chmodded"):
        assert _read(mnt / name) == b"old data"
    (space.lower / "grown").write_bytes(b"data that is longer")
    _overwrite(space.lower / "rewritten", b"new data")
    (space.lower / "chmodded").chmod(0o604)
    assert (mnt / "grown").stat().st_size == 19
    assert _read(mnt / "grown") == b"data that is longer"
    assert _read(mnt / "rewritten") == b"new data"
    assert stat.S_IMODE((mnt / "chmodded").stat().st_mode) == 0o604
    space.unmount()


@writable
def test_few_descriptors(space: Space, read_only: bool) -> None:
    """More files and directories than the daemon may hold open."""
    contents = {}
    for number in range(2000):
        name = f"d{number % 100}/f{number}"
        contents[name] = b"%d" % number
        (space.lower / name).parent.mkdir(exist_ok=True)
        (space.lower / name).write_bytes(contents[name])
    space.mount(read_only=read_only, descriptors=64)
    for _ in range(2):
        assert _walk(space.mnt) == 2100
        _check(space.mnt, contents)
    if not read_only:
        for name in list(contents)[::5]:
            contents[name] += b", changed"
            _overwrite(space.mnt / name, contents[name])
        _check(space.mnt, contents)
        assert sum(path.is_file() for path in space.upper.rglob("*")) == 400
    held = [os.open(space.mnt / name, os.O_RDONLY) for name in contents]
    assert [os.pread(fd, 100, 0) for fd in held] == list(contents.values())
    for fd in held:
        os.close(fd)
    unmount(space.mnt)
    daemon, space.daemon = space.daemon, None
    daemon.finish()
