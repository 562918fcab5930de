"""Read-ahead of small files: on read-only mounts only, and never the wrong data.

mincore(2) tells whether the kernel has a file's data without having asked for it.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseoverlay.fuse.readahead import FIRST, LARGEST, MOST
from tests.helpers.libc import cached_pages, mapped
from tests.helpers.mounts import IMPL, Daemon, Space, detach, make_whiteout, scratch, wait_for
from tests.helpers.requests import counted
from tests.ops.test_concurrent import together

pytestmark = [
    pytest.mark.timeout(90),
    pytest.mark.skipif(IMPL == "kernel", reason="the kernel shows the layers' own page cache"),
]

PAGE = mmap.PAGESIZE
SIZES = (0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE - 1, 2 * PAGE, LARGEST - 1, LARGEST)
READERS = 4
#: Errors that readers get when the daemon or its mount is gone.
ENDED = (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENOENT)


@pytest.fixture
def space() -> Iterator[Space]:
    """Layers of the test's own; at the end the lowers must be unchanged."""
    with scratch() as base:
        space = Space(base)
        space.extra = ("readahead=on",)
        try:
            yield space
        finally:
            space.drop()


def _data(name: str, size: int) -> bytes:
    return random.Random(f"{name} {size}").randbytes(size)


def _fill(directory: Path, count: int, *, size: int = 3000) -> dict[str, bytes]:
    """Make files; their data by name."""
    contents = {f"f{number:03}": _data(f"{number}", size) for number in range(count)}
    _write(directory, contents)
    return contents


def _write(directory: Path, contents: dict[str, bytes]) -> None:
    directory.mkdir(exist_ok=True)
    for name, data in contents.items():
        (directory / name).write_bytes(data)


def _listed(directory: Path) -> list[Path]:
    """The entries in the order of the listing, after which the kernel knows all of them."""
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries]
    for name in names:
        os.lstat(directory / name)
    return [directory / name for name in names]


def _is_cached(path: Path) -> bool:
    pages = -(-path.stat().st_size // PAGE)
    found = cached_pages(path)
    assert found in (0, pages), f"{found} of {pages} pages of {path.name} are cached"
    return found == pages


def _cached(paths: list[Path]) -> list[bool]:
    return [_is_cached(path) for path in paths]


def _check(paths: list[Path], contents: dict[str, bytes]) -> None:
    for path in paths:
        assert path.read_bytes() == contents[path.name], path.name


def test_the_second_file_brings_the_next_ones(space: Space) -> None:
    contents = _fill(space.lower / "d", 60)
    with space.mounted(read_only=True) as mnt:
        files = _listed(mnt / "d")
        files = files[5:] + files[:5]
        _check(files[:1], contents)
        assert _cached(files) == [True] + [False] * 59
        _check(files[1:2], contents)
        assert _cached(files) == [True] * (2 + FIRST) + [False] * (58 - FIRST)
        _check(files[: 3 + FIRST], contents)
        assert _cached(files) == [True] * (3 + FIRST + 2 * FIRST) + [False] * (57 - 3 * FIRST)
        _check(files, contents)


def test_the_first_of_a_listing_brings_the_next_ones(space: Space) -> None:
    """Directories do not count."""
    contents = _fill(space.lower / "d", 40)
    for number in range(20):
        (space.lower / "d" / f"sub{number}").mkdir()
    with space.mounted(read_only=True) as mnt:
        files = [path for path in _listed(mnt / "d") if path.name in contents]
        _check(files[:1], contents)
        assert _cached(files) == [True] * (1 + FIRST) + [False] * (39 - FIRST)
        _check(files, contents)


def test_what_is_given_is_not_asked_for(space: Space) -> None:
    contents = _fill(space.lower / "d", 120)
    with space.mounted(read_only=True) as mnt:
        files = _listed(mnt / "d")
        with counted(mnt) as requests:
            _check(files, contents)
        assert 1 <= requests["READ"] <= 5


@pytest.mark.parametrize("size", SIZES)
def test_every_byte_of_every_size(space: Space, size: int) -> None:
    contents = _fill(space.lower / "d", 6, size=size)
    with space.mounted(read_only=True) as mnt:
        files = _listed(mnt / "d")
        for path in files[:2]:
            path.read_bytes()
        assert _cached(files) == [True] * 6
        for path in files:
            with path.open("rb") as stream:
                # More than the file has: nothing is cached behind its end.
                assert stream.read(size + 2 * PAGE) == contents[path.name]
            assert path.stat().st_size == size


def test_the_rest_of_the_last_page_is_zero(space: Space) -> None:
    contents = _fill(space.lower / "d", 4, size=100)
    with space.mounted(read_only=True) as mnt:
        files = _listed(mnt / "d")
        for path in files[:2]:
            path.read_bytes()
        for path in files:
            assert _is_cached(path)
            with mapped(path) as start:
                assert ctypes.string_at(start, PAGE) == contents[path.name] + bytes(PAGE - 100)


def test_large_and_special_files_are_left_alone(space: Space) -> None:
    contents = _fill(space.lower / "d", 4)
    directory = space.lower / "d"
    contents["large"] = _data("large", LARGEST + 1)
    contents["linked"] = contents["other"] = b"several names"
    contents["link"] = contents["f000"]
    contents["sparse"] = bytes(PAGE) + b"island" + bytes(2 * PAGE - 6)
    (directory / "large").write_bytes(contents["large"])
    (directory / "linked").write_bytes(contents["linked"])
    os.link(directory / "linked", directory / "other")
    os.mkfifo(directory / "fifo")
    os.symlink("f000", directory / "link")
    _fill(directory / "sub", 3)
    with (directory / "sparse").open("wb") as stream:
        stream.truncate(3 * PAGE)
        stream.seek(PAGE)
        stream.write(b"island")
    with space.mounted(read_only=True) as mnt:
        _listed(mnt / "d" / "sub")
        listed = {path.name: path for path in _listed(mnt / "d")}
        files = [listed[f"f{number:03}"] for number in range(4)]
        _check(files[:2], contents)
        assert _cached(files) == [True] * 4
        assert _is_cached(listed["sparse"])
        for name in ("large", "linked", "other"):
            assert not _is_cached(listed[name])
        assert _cached(_listed(mnt / "d" / "sub")) == [False] * 3
        _check([listed[name] for name in contents], contents)
        assert stat.S_ISFIFO(listed["fifo"].lstat().st_mode)


def test_files_that_cannot_be_read(space: Space) -> None:
    """A plain user's daemon may not open them, and goes on with the others."""
    contents = _fill(space.lower / "d", 30)
    closed = space.lower / "d" / "f007"
    closed.chmod(0)
    with space.mounted(read_only=True, settle=False) as mnt:
        files = [path for path in _listed(mnt / "d") if path.name != closed.name]
        _check(files, contents)


def test_many_layers(space: Space) -> None:
    """Each name's data is from the layer that counts, though others have the name too."""
    lowers = [space.lower, *(space.add_lower() for _ in range(6))]
    names = [f"f{number:03}" for number in range(90)]
    dice = random.Random(4)
    expected: dict[str, bytes | None] = {}
    for depth, lower in enumerate(lowers):
        contents = {name: _data(f"{depth}", dice.choice(SIZES[:7])) for name in names}
        contents = dict(dice.sample(sorted(contents.items()), 40))
        _write(lower / "d", contents)
        for name in dice.sample(names, 5):
            (lower / "d" / name).unlink(missing_ok=True)
            make_whiteout(lower / "d" / name)
            contents[name] = None
        expected = contents | expected
    visible = {name: data for name, data in expected.items() if data is not None}
    with space.mounted(read_only=True) as mnt:
        files = _listed(mnt / "d")
        assert {path.name for path in files} == visible.keys()
        # An empty file causes no READ.
        for path in [path for path in files if visible[path.name]][:2]:
            path.read_bytes()
        assert _cached(files[: 1 + FIRST]) == [True] * (1 + FIRST)
        _check(files, visible)


def test_layers_that_are_not_in_memory(space: Space) -> None:
    contents = _fill(space.lower / "d", 200)
    for name in contents:
        with (space.lower / "d" / name).open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with space.mounted(read_only=True) as mnt:
        files = _listed(mnt / "d")
        _check(files, contents)
        # The kernel may drop pages at any time.
        assert sum(_cached(files)) > 190


def test_reading_backwards(space: Space) -> None:
    """In a directory of usual size the order does not matter."""
    contents = _fill(space.lower / "d", 100)
    with space.mounted(read_only=True) as mnt:
        files = _listed(mnt / "d")
        asked = 0
        for path in reversed(files):
            asked += not _is_cached(path)
            path.read_bytes()
        assert asked < 8
        _check(files, contents)


def test_two_files_of_a_huge_directory(space: Space) -> None:
    _fill(space.lower / "d", 3000, size=10)
    with space.mounted(read_only=True, settle=False) as mnt:
        files = _listed(mnt / "d")
        files[10].read_bytes()
        files[2500].read_bytes()
        assert sum(_cached(files)) == 2 + FIRST


def test_jumping_about_in_a_huge_directory(space: Space) -> None:
    """A reader of every hundredth file is given less and less unwanted data; one that then reads on
    in order is given more again."""
    contents = _fill(space.lower / "d", 3000, size=10)
    with space.mounted(read_only=True, settle=False) as mnt:
        files = _listed(mnt / "d")
        for path in files[:2000:100]:
            path.read_bytes()
        assert sum(_cached(files)) < 20 + 2 * FIRST + 20
        asked = 0
        for path in files[2000:]:
            asked += not _is_cached(path)
            path.read_bytes()
        assert asked < 2 * 1000 / MOST
        _check(files, contents)


def test_data_that_the_kernel_dropped_comes_again(space: Space) -> None:
    contents = _fill(space.lower / "d", 30)
    with space.mounted(read_only=True) as mnt:
        files = _listed(mnt / "d")
        for _ in range(3):
            asked = 0
            for path in files:
                asked += not _is_cached(path)
                _check([path], contents)
            # Requests sent before the extension answers by itself: a few more each time.
            assert 2 <= asked <= 10
            for path in files:
                with path.open("rb") as stream:
                    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert _cached(files) == [False] * 30


def test_never_with_an_upper(space: Space) -> None:
    """The data given could replace data just written through a mapping."""
    _fill(space.lower / "d", 20)
    _fill(space.upper / "d", 10, size=500)
    space.mount()
    try:
        files = _listed(space.mnt / "d")
        with files[9].open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as mapped:
            mapped[:5] = b"dirty"
            for path in files[:9]:
                path.read_bytes()
            assert _cached(files[10:]) == [False] * 10
            assert mapped[:5] == b"dirty"
        assert files[9].read_bytes()[:5] == b"dirty"
        space.unmount()
    finally:
        space.drop()
    assert (space.upper / "d" / files[9].name).read_bytes()[:5] == b"dirty"


def test_never_with_an_upper_that_is_not_written(space: Space) -> None:
    contents = _fill(space.lower / "d", 6)
    space.extra = ("ro", "readahead=on")
    with space.mounted(settle=False) as mnt:
        files = _listed(mnt / "d")
        _check(files[:3], contents)
        assert _cached(files) == [True] * 3 + [False] * 3


def test_never_where_layers_are_edited(space: Space) -> None:
    """With `timeout=` the kernel must not keep what it knows."""
    contents = _fill(space.lower / "d", 6)
    space.extra = ("timeout=3600", "readahead=on")
    with space.mounted(read_only=True) as mnt:
        files = _listed(mnt / "d")
        _check(files[:3], contents)
        assert _cached(files) == [True] * 3 + [False] * 3


def test_a_file_that_was_replaced_is_not_given(space: Space) -> None:
    """Layers must not change under a mount; if they do, no inode gets the data of another one."""
    contents = _fill(space.lower / "d", 6)
    mnt = space.mount(read_only=True)
    files = _listed(mnt / "d")
    replaced, gone = (space.lower / "d" / path.name for path in files[2:4])
    (space.base / "new").write_bytes(b"another file")
    (space.base / "new").rename(replaced)
    gone.rename(space.base / "gone")
    _check(files[:2], contents)
    assert _cached(files) == [True, True, False, False, True, True]
    _check(files[4:], contents)
    space.unmount()


def _trees(space: Space) -> dict[str, bytes]:
    """Directories of many sizes; the data of every file by its path."""
    dice = random.Random(11)
    found = {}
    for directory in range(12):
        (space.lower / f"d{directory}").mkdir()
        for number in range(dice.choice((3, 30, 60))):
            name = f"d{directory}/f{number}"
            found[name] = _data(name, dice.choice((*SIZES[:7], 20_000)))
            (space.lower / name).write_bytes(found[name])
    return found


def _order(names: list[str], reader: int) -> list[str]:
    """Two readers side by side, one backwards, the others at random."""
    names = sorted(names, reverse=reader == 2)
    if reader > 2:
        random.Random(reader).shuffle(names)
    return names


def test_readers_at_once(space: Space) -> None:
    contents = _trees(space)
    with space.mounted(read_only=True, settle=False) as mnt:
        for _ in range(2):

            def work(reader: int) -> int:
                names = _order(list(contents), reader)
                return sum((mnt / name).read_bytes() == contents[name] for name in names)

            assert together(work, READERS) == [len(contents)] * READERS
            space.remount(read_only=True)


@pytest.mark.parametrize("end", ["SIGTERM", "lazy unmount"])
def test_the_end_while_files_are_given(space: Space, end: str) -> None:
    """Readers get right data or an error, and the daemon ends as always."""
    contents = _trees(space)
    for turn in range(4):
        mnt = space.mount(read_only=True)
        daemon, space.daemon = space.daemon, None
        assert daemon is not None
        try:
            _end_while_reading(daemon, mnt, contents, end, after=20 * turn)
            daemon.finish()
        finally:
            daemon.kill()
            detach(mnt)


def _end_while_reading(
    daemon: Daemon, mnt: Path, contents: dict[str, bytes], end: str, after: int
) -> None:
    done: list[str] = []

    def work(reader: int) -> None:
        if reader < READERS:
            for name in _order(list(contents), (reader + after) % READERS):
                try:
                    data = (mnt / name).read_bytes()
                except OSError as exc:
                    assert exc.errno in ENDED
                    return
                assert data == contents[name]
                done.append(name)
            return
        wait_for(lambda: len(done) > after, 20, "reading")
        if end == "SIGTERM":
            daemon.process.send_signal(signal.SIGTERM)
        else:
            detach(mnt)

    together(work, READERS + 1)
