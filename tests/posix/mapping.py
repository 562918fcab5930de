"""mmap(2): what mappings and files see of each other."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

from tests.helpers.mounts import fails
from tests.posix.table import (
    CONTENT,
    SIZE,
    behaviour,
    expect,
    in_child,
    moved,
    on_each_kind,
    opened,
)

_PAGE = mmap.PAGESIZE
_RW = mmap.PROT_READ | mmap.PROT_WRITE


def _map(fd: int, size: int = SIZE, flags: int = mmap.MAP_SHARED, prot: int = _RW) -> mmap.mmap:
    return mmap.mmap(fd, size, flags=flags, prot=prot)


@behaviour()
def map_for_reading(d: Path) -> object:
    with opened(d / "f") as fd, _map(fd, prot=mmap.PROT_READ) as view:
        assert view[:] == CONTENT


@behaviour()
def write_to_a_mapping_is_read(d: Path) -> object:
    with opened(d / "f", os.O_RDWR) as fd, _map(fd) as view:
        view[5:9] = b"here"
        assert os.pread(fd, 9, 0) == CONTENT[:5] + b"here"
        view.flush()
        assert (d / "f").read_bytes() == CONTENT[:5] + b"here" + CONTENT[9:]


@behaviour()
def write_is_seen_in_a_mapping(d: Path) -> object:
    with opened(d / "f", os.O_RDWR) as fd, _map(fd) as view:
        assert view[:5] == CONTENT[:5]
        os.pwrite(fd, b"HELLO", 0)
        assert view[:7] == b"HELLO" + CONTENT[5:7]


@behaviour(answers=b"HELLO")
def read_only_mapping_sees_later_writes(d: Path) -> object:
    """Also one made before the file was opened for writing."""
    with opened(d / "f") as fd, _map(fd, prot=mmap.PROT_READ) as view:
        assert view[:5] == CONTENT[:5]
        with opened(d / "f", os.O_WRONLY) as writer:
            os.pwrite(writer, b"HELLO", 0)
        return view[:5]


@behaviour()
def private_mapping_is_private(d: Path) -> object:
    with opened(d / "f") as fd, _map(fd, flags=mmap.MAP_PRIVATE) as view:
        view[:5] = b"HELLO"
        assert view[:5] == b"HELLO"
    assert (d / "f").read_bytes() == CONTENT


@behaviour()
def mapping_rights(d: Path) -> object:
    with opened(d / "f") as reader, opened(d / "f", os.O_WRONLY) as writer:
        with fails(errno.EACCES):
            _map(reader)
        with fails(errno.EACCES):
            _map(writer, prot=mmap.PROT_READ)
        _map(reader, flags=mmap.MAP_PRIVATE).close()


@behaviour()
def map_each_kind(d: Path) -> object:
    def run(path: Path) -> None:
        with opened(path, os.O_RDONLY | os.O_NONBLOCK) as fd:
            _map(fd, SIZE, mmap.MAP_PRIVATE, mmap.PROT_READ).close()

    got = on_each_kind(d, run)
    devices = {"char": got.get("char"), "block": got.get("block")}
    return expect(got, dir="ENODEV", fifo="ENODEV", socket="ENXIO", **devices)


@behaviour()
def pages_beyond_the_end(d: Path) -> object:
    """The rest of the last page is zeros, the next page is not there."""

    def touch(offset: int) -> object:
        with opened(d / "f", os.O_RDWR) as fd:
            os.ftruncate(fd, 3 * _PAGE)
            with _map(fd, 3 * _PAGE, prot=mmap.PROT_READ) as view:
                os.ftruncate(fd, SIZE)
                return view[offset]

    assert in_child(lambda: touch(SIZE)) == 0
    assert in_child(lambda: touch(2 * _PAGE)) == "SIGBUS"


@behaviour()
def mapping_of_a_truncated_file(d: Path) -> object:
    with opened(d / "f", os.O_RDWR) as fd, _map(fd) as view:
        os.ftruncate(fd, 10)
        assert view[:13] == CONTENT[:10] + bytes(3)
        os.ftruncate(fd, SIZE)
        assert view[:] == CONTENT[:10].ljust(SIZE, b"\0")


@behaviour()
def mapping_of_a_growing_file(d: Path) -> object:
    with opened(d / "new", os.O_RDWR | os.O_CREAT) as fd:
        os.ftruncate(fd, 10 * _PAGE)
        with _map(fd, 10 * _PAGE) as view:
            view[9 * _PAGE] = 7
            os.ftruncate(fd, 20 * _PAGE)
            view.resize(20 * _PAGE)
            view[19 * _PAGE] = 8
        text = (d / "new").read_bytes()
    assert (text[9 * _PAGE], text[19 * _PAGE], sum(text)) == (7, 8, 15)


@behaviour()
def mapping_outlives_the_descriptor(d: Path) -> object:
    with opened(d / "f", os.O_RDWR) as fd:
        view = _map(fd)
    view[:5] = b"HELLO"
    view.flush()
    assert (d / "f").read_bytes()[:5] == b"HELLO"
    view.close()


@behaviour()
def mapping_outlives_the_name(d: Path) -> object:
    with opened(d / "f", os.O_RDWR) as fd, _map(fd) as view:
        os.unlink(d / "f")
        (d / "f").write_bytes(b"another")
        view[:5] = b"HELLO"
        assert view[:13] == b"HELLO" + CONTENT[5:13]
        assert os.pread(fd, 5, 0) == b"HELLO"
    assert (d / "f").read_bytes() == b"another"


@behaviour()
def mapping_follows_a_rename(d: Path) -> object:
    with opened(d / "f", os.O_RDWR) as fd, _map(fd) as view:
        os.rename(d / "f", d / "e" / "moved")
        view[:5] = b"HELLO"
        view.flush()
    assert (d / "e" / "moved").read_bytes() == b"HELLO" + CONTENT[5:]


@behaviour()
def processes_share_a_mapping(d: Path) -> object:
    def child() -> object:
        with opened(d / "f", os.O_RDWR) as own, _map(own) as there:
            there[:5] = b"CHILD"
            return there[5:10]

    with opened(d / "f", os.O_RDWR) as fd, _map(fd) as view:
        view[5:10] = b"OTHER"
        assert in_child(child) == b"OTHER"
        assert view[:10] == b"CHILDOTHER"


@behaviour()
def mapping_marks_the_file_as_modified(d: Path) -> object:
    with opened(d / "f", os.O_RDWR) as fd, _map(fd) as view:

        def store() -> None:
            view[0] = 65
            view.flush()
            os.fsync(fd)

        changed = moved(d / "f", store)
    assert changed == {"mtime", "ctime"}
