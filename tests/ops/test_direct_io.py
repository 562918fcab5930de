"""Data that bypassed the page cache, or changed below it, is what everybody reads next."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers import libc
from tests.helpers.aio import Writer
from tests.helpers.mounts import IMPL, NATIVE, Space

SIZE = 64 << 10
PARTS = 4
ROUNDS = 150

extension = pytest.mark.skipif(
    IMPL == "fuse" and not NATIVE, reason="the kernel is told so by the extension"
)


@contextlib.contextmanager
def readers(fd: int) -> Iterator[None]:
    """Have another process read the file all the time, through the page cache."""
    pid = os.fork()
    if pid == 0:
        try:
            while True:
                os.pread(fd, SIZE * PARTS, 0)
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture(params=["lower", "upper"])
def file(request: pytest.FixtureRequest, space: Space) -> Path:
    """A file to change, which nobody has changed yet."""
    layer = space.lower if request.param == "lower" else space.upper
    (layer / "f").write_bytes(b"\0" * SIZE * PARTS)
    path = space.mount() / "f"
    if IMPL == "kernel":
        # There, a descriptor opened before copy-up always shows the lower's data.
        os.close(os.open(path, os.O_RDWR))
    return path


Change = Callable[[int, mmap.mmap, int], None]


def _asynchronous(fd: int, data: mmap.mmap, offset: int) -> None:
    with Writer() as writer:
        assert writer.write(fd, data, offset) == len(data)


def _synchronous(fd: int, data: mmap.mmap, offset: int) -> None:
    assert os.pwrite(fd, data, offset) == len(data)


@pytest.mark.parametrize(
    "change", [pytest.param(_asynchronous, marks=extension, id="io_submit"), _synchronous]
)
def test_writing_with_o_direct_while_others_read(file: Path, change: Change) -> None:
    """A read after the end of the write returns its data: by pread(2), and in a mapping."""
    page = mmap.mmap(-1, SIZE)
    buffered, direct = os.open(file, os.O_RDONLY), os.open(file, os.O_RDWR | os.O_DIRECT)
    mapped = mmap.mmap(buffered, SIZE * PARTS, prot=mmap.PROT_READ)
    old = []
    with readers(buffered):
        for number in range(1, ROUNDS + 1):
            page[:] = bytes([number]) * SIZE
            offset = number % PARTS * SIZE
            change(direct, page, offset)
            if os.pread(buffered, SIZE, offset) != page[:]:
                old.append(("read", number))
            if mapped[offset : offset + SIZE] != page[:]:
                old.append(("mapped", number))
    mapped.close()
    for fd in (buffered, direct):
        os.close(fd)
    assert not old, f"old data in {len(old)} of {ROUNDS} rounds: {old[:10]}"


def test_reading_with_o_direct_what_was_just_written(file: Path) -> None:
    """Written by write(2), and to a mapping."""
    page = mmap.mmap(-1, SIZE)
    buffered, direct = os.open(file, os.O_RDWR), os.open(file, os.O_RDONLY | os.O_DIRECT)
    os.pwrite(buffered, b"x", 0)
    mapped = mmap.mmap(buffered, SIZE * PARTS)
    for number in range(1, 50):
        offset = number % PARTS * SIZE
        os.pwrite(buffered, bytes([number]) * SIZE, offset)
        assert os.preadv(direct, [page], offset) == SIZE
        assert page[:] == bytes([number]) * SIZE
        mapped[offset : offset + SIZE] = bytes([number + 100]) * SIZE
        assert os.preadv(direct, [page], offset) == SIZE
        assert page[:] == bytes([number + 100]) * SIZE
    mapped.close()
    for fd in (buffered, direct):
        os.close(fd)


def _punch(fd: int, offset: int) -> bytes:
    mode = libc.FALLOC_FL_PUNCH_HOLE | libc.FALLOC_FL_KEEP_SIZE
    libc.fallocate(fd, mode, offset, SIZE)
    return b"\0" * SIZE


def _zero(fd: int, offset: int) -> bytes:
    libc.fallocate(fd, 0x10, offset, SIZE)
    return b"\0" * SIZE


def _copy(fd: int, offset: int) -> bytes:
    other = (offset + SIZE) % (SIZE * PARTS)
    assert os.copy_file_range(fd, fd, SIZE, other, offset) == SIZE
    return os.pread(fd, SIZE, other)


@extension
@pytest.mark.parametrize("change", [_punch, _zero, _copy])
def test_changes_below_the_page_cache(file: Path, change: Callable[[int, int], bytes]) -> None:
    """Including changes to pages that are dirty in a shared mapping."""
    fd = os.open(file, os.O_RDWR)
    mapped = mmap.mmap(fd, SIZE * PARTS)
    with readers(fd):
        for number in range(1, 60):
            offset = number % PARTS * SIZE
            mapped[offset : offset + SIZE] = bytes([number]) * SIZE
            expected = change(fd, offset)
            assert os.pread(fd, SIZE, offset) == expected
            assert mapped[offset : offset + SIZE] == expected
    mapped.close()
    os.close(fd)
