"""Reading and writing: offsets, ends, holes, limits, several descriptors."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import termios
from pathlib import Path

from tests.helpers import libc
from tests.helpers.mounts import fails
from tests.posix.table import (
    CONTENT,
    SIZE,
    Child,
    behaviour,
    expect,
    in_child,
    on_each_kind,
    opened,
    seen,
)

_BOTH = os.O_RDWR
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL


@behaviour()
def read_at_offsets(d: Path) -> object:
    with opened(d / "f") as fd:
        for offset in (0, 1, 13, SIZE - 1):
            assert os.pread(fd, 20, offset) == CONTENT[offset : offset + 20]
        assert os.pread(fd, 10, SIZE) == b""
        assert os.pread(fd, 10, 1 << 40) == b""
        with fails(errno.EINVAL):
            os.pread(fd, 1, -1)


@behaviour()
def reading_moves_the_offset(d: Path) -> object:
    with opened(d / "f") as fd:
        assert os.read(fd, 13) + os.read(fd, 13) == CONTENT[:26]
        assert os.lseek(fd, 0, os.SEEK_CUR) == 26
        os.pread(fd, 100, 500)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 26
        os.lseek(fd, SIZE, os.SEEK_SET)
        assert os.read(fd, 1) == b""


@behaviour()
def writing_moves_the_offset(d: Path) -> object:
    with opened(d / "f", _BOTH) as fd:
        os.write(fd, b"one")
        os.pwrite(fd, b"THREE", 100)
        os.write(fd, b"two")
        assert os.lseek(fd, 0, os.SEEK_CUR) == 6
    expected = b"onetwo" + CONTENT[6:100] + b"THREE" + CONTENT[105:]
    assert (d / "f").read_bytes() == expected


@behaviour()
def write_beyond_the_end(d: Path) -> object:
    with opened(d / "f", _BOTH) as fd:
        os.pwrite(fd, b"far", 10_000)
    assert (d / "f").read_bytes() == CONTENT.ljust(10_000, b"\0") + b"far"


@behaviour()
def seek_on_a_file(d: Path) -> object:
    with opened(d / "f") as fd:
        assert os.lseek(fd, 5, os.SEEK_SET) == 5
        assert os.lseek(fd, 5, os.SEEK_CUR) == 10
        assert os.lseek(fd, -10, os.SEEK_END) == SIZE - 10
        assert os.lseek(fd, 1 << 40, os.SEEK_SET) == 1 << 40
        assert os.read(fd, 1) == b""
        with fails(errno.EINVAL):
            os.lseek(fd, -1, os.SEEK_SET)
        with fails(errno.EINVAL):
            os.lseek(fd, 0, 99)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 1 << 40


@behaviour()
def seek_sees_the_end_move(d: Path) -> object:
    with opened(d / "f") as fd:
        ends = [os.lseek(fd, 0, os.SEEK_END)]
        with open(d / "f", "ab") as stream:
            stream.write(b"more")
        ends.append(os.lseek(fd, 0, os.SEEK_END))
        os.truncate(d / "f", 7)
        ends.append(os.lseek(fd, 0, os.SEEK_END))
    assert ends == [SIZE, SIZE + 4, 7]


@behaviour()
def seek_on_a_fifo(d: Path) -> object:
    with opened(d / "p", _BOTH) as fd, fails(errno.ESPIPE):
        os.lseek(fd, 0, os.SEEK_SET)


@behaviour()
def vectors(d: Path) -> object:
    with opened(d / "new", _NEW) as fd:
        assert os.writev(fd, [b"one", b"", b"two" * 3000]) == 9003
        assert os.pwritev(fd, [b"O", b"N"], 0) == 2
        buffers = [bytearray(4), bytearray(2)]
        assert os.preadv(fd, buffers, 0) == 6
        assert os.lseek(fd, 0, os.SEEK_SET) == 0
        assert os.readv(fd, [bytearray(2), bytearray(9001)]) == 9003
    return [bytes(buffer) for buffer in buffers]


@behaviour()
def flagged_append(d: Path) -> object:
    """RWF_APPEND appends whatever the offset."""
    with opened(d / "f", _BOTH) as fd:
        os.pwritev(fd, [b"end"], 0, os.RWF_APPEND)
    assert (d / "f").read_bytes() == CONTENT + b"end"


@behaviour()
def write_nothing(d: Path) -> object:
    was = os.stat(d / "f")
    with opened(d / "f", _BOTH) as fd:
        assert os.write(fd, b"") == 0
        assert os.pwrite(fd, b"", 1 << 30) == 0
    now = os.stat(d / "f")
    assert (now.st_size, now.st_mtime_ns) == (was.st_size, was.st_mtime_ns)


@behaviour()
def wrong_access_mode(d: Path) -> object:
    with opened(d / "f") as reader, opened(d / "f", os.O_WRONLY) as writer:
        return expect(
            {
                "write": seen(os.write, reader, b"x"),
                "pwrite": seen(os.pwrite, reader, b"x", 0),
                "read": seen(os.read, writer, 1),
                "pread": seen(os.pread, writer, 1, 0),
                "ftruncate": seen(os.ftruncate, reader, 0),
                "copy_file_range": seen(os.copy_file_range, writer, reader, 1),
                "sendfile": seen(os.sendfile, reader, reader, 0, 1),
            },
            others="EBADF",
            ftruncate="EINVAL",
        )


@behaviour()
def append(d: Path) -> object:
    with opened(d / "f", os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b"one")
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"two")
        assert os.lseek(fd, 0, os.SEEK_CUR) == SIZE + 6
    assert (d / "f").read_bytes() == CONTENT + b"onetwo"


@behaviour()
def append_by_two(d: Path) -> object:
    flags = os.O_WRONLY | os.O_APPEND
    with opened(d / "f", flags) as one, opened(d / "f", flags) as two:
        for index in range(10):
            os.write(one if index % 2 else two, b"%d" % index)
    assert (d / "f").read_bytes() == CONTENT + b"0123456789"


@behaviour()
def append_by_two_processes(d: Path) -> object:
    """No line is lost or torn."""

    def write() -> None:
        with opened(d / "g", os.O_WRONLY | os.O_APPEND) as fd:
            for index in range(50):
                os.write(fd, b"%08d\n" % index)

    os.truncate(d / "g", 0)
    children = [Child(write), Child(write)]
    assert [child.answer() for child in children] == [None, None]
    lines = (d / "g").read_bytes().split(b"\n")
    assert sorted(lines) == sorted([b"%08d" % index for index in range(50)] * 2 + [b""])


@behaviour()
def append_after_truncation(d: Path) -> object:
    with opened(d / "f", os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b"x")
        os.truncate(d / "f", 3)
        os.write(fd, b"new")
    assert (d / "f").read_bytes() == CONTENT[:3] + b"new"


@behaviour()
def positioned_write_appends(d: Path) -> object:
    """Linux: pwrite(2) to O_APPEND appends, whatever POSIX says."""
    with opened(d / "f", os.O_WRONLY | os.O_APPEND) as fd:
        os.pwrite(fd, b"end", 0)
    assert (d / "f").read_bytes() == CONTENT + b"end"


@behaviour()
def truncate_each_kind(d: Path) -> object:
    return expect(
        on_each_kind(d, lambda p: os.truncate(p, 10)), others="EINVAL", file=None, link=None,
        dir="EISDIR",
    )  # fmt: skip


@behaviour()
def truncate_errors(d: Path) -> object:
    with fails(errno.EINVAL):
        os.truncate(d / "f", -1)
    with fails(errno.ENOENT):
        os.truncate(d / "missing", 1)
    with fails(errno.ENOTDIR):
        os.truncate(d / "f" / "x", 1)
    assert os.stat(d / "f").st_size == SIZE


@behaviour()
def truncate_to_sizes(d: Path) -> object:
    for size in (SIZE, 1000, 4096, 0, 4097, 1, 100_000):
        os.truncate(d / "f", size)
        assert os.stat(d / "f").st_size == size
        assert len((d / "f").read_bytes()) == size
    return (d / "f").read_bytes() == CONTENT[:0].ljust(100_000, b"\0")


@behaviour()
def truncated_bytes_come_back_as_zeros(d: Path) -> object:
    with opened(d / "f", _BOTH) as fd:
        os.ftruncate(fd, 100)
        os.ftruncate(fd, SIZE)
        assert os.pread(fd, SIZE, 0) == CONTENT[:100].ljust(SIZE, b"\0")
        os.ftruncate(fd, 50)
        os.pwrite(fd, b"x", 200)
        assert os.pread(fd, 999, 0) == CONTENT[:50].ljust(200, b"\0") + b"x"


@behaviour()
def truncation_leaves_the_offset(d: Path) -> object:
    with opened(d / "f", _BOTH) as fd:
        os.lseek(fd, 500, os.SEEK_SET)
        os.ftruncate(fd, 10)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 500
        os.write(fd, b"x")
    assert (d / "f").read_bytes() == CONTENT[:10].ljust(500, b"\0") + b"x"


@behaviour()
def sparse_file(d: Path) -> object:
    with opened(d / "new", _NEW) as fd:
        os.pwrite(fd, b"end", 1 << 36)
        os.fsync(fd)
        st = os.fstat(fd)
        assert st.st_size == (1 << 36) + 3
        assert 0 < st.st_blocks < 1000
        assert os.pread(fd, 4, 1 << 35) == bytes(4)
        assert os.pread(fd, 9, 1 << 36) == b"end"
        os.ftruncate(fd, 0)


@behaviour()
def blocks_of_files(d: Path) -> object:
    """A file of holes has no blocks, one with data has."""
    with opened(d / "new", _NEW) as fd:
        os.ftruncate(fd, 1 << 20)
        os.fsync(fd)
        assert os.fstat(fd).st_blocks == 0
        os.pwrite(fd, b"x" * 65536, 0)
        os.fsync(fd)
        assert os.fstat(fd).st_blocks * 512 >= 65536
        assert os.stat(d / "new").st_blocks == os.fstat(fd).st_blocks


@behaviour()
def offsets_without_end(d: Path) -> object:
    """No filesystem holds 2^63 - 1 bytes."""
    with opened(d / "new", _NEW) as fd:
        assert seen(os.pwrite, fd, b"x", (1 << 63) - 1) in ("EFBIG", "EINVAL")
        assert seen(os.ftruncate, fd, (1 << 63) - 1) in ("EFBIG", "EINVAL")
        return os.fstat(fd).st_size


def _limited(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@behaviour()
def file_size_limit(d: Path) -> object:
    def write() -> object:
        _limited(2000)
        with opened(d / "f", os.O_WRONLY) as fd:
            return [
                os.pwrite(fd, b"x" * 100, 1950),
                seen(os.pwrite, fd, b"x", 2000),
                seen(os.ftruncate, fd, 2001),
                seen(os.truncate, d / "g", 5000),
                os.pwrite(fd, b"x" * 100, 0),
            ]

    assert in_child(write) == [50, "EFBIG", "EFBIG", "EFBIG", 100]
    assert os.stat(d / "f").st_size == 2000


@behaviour()
def file_size_limit_signals(d: Path) -> object:
    def write() -> object:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        with opened(d / "f", os.O_WRONLY) as fd:
            return os.pwrite(fd, b"x", 100)

    assert in_child(write) == "SIGXFSZ"
    assert (d / "f").read_bytes() == CONTENT


@behaviour()
def send_a_file(d: Path) -> object:
    with opened(d / "f") as source, opened(d / "new", _NEW) as sink:
        assert os.sendfile(sink, source, 13, 26) == 26
        assert os.lseek(source, 0, os.SEEK_CUR) == 0
        assert os.sendfile(sink, source, SIZE, 26) == 0
    assert (d / "new").read_bytes() == CONTENT[13:39]


@behaviour()
def copy_a_range(d: Path) -> object:
    with opened(d / "f") as source, opened(d / "g", _BOTH) as sink:
        assert os.copy_file_range(source, sink, 100, 13, 50) == 100
        assert os.copy_file_range(source, sink, 100, SIZE, 0) == 0
        assert os.copy_file_range(source, sink, 5000, SIZE - 5, 0) == 5
    expected = CONTENT[-5:] + b"content of g\n"[5:].ljust(45, b"\0") + CONTENT[13:113]
    assert (d / "g").read_bytes() == expected


@behaviour()
def copy_a_range_within_a_file(d: Path) -> object:
    with opened(d / "f", _BOTH) as fd:
        assert os.copy_file_range(fd, fd, 13, 0, 2000) == 13
        with fails(errno.EINVAL):
            os.copy_file_range(fd, fd, 100, 0, 50)
    assert os.stat(d / "f").st_size == 2013


@behaviour()
def copy_a_range_errors(d: Path) -> object:
    with opened(d / "f") as fd, opened(d / "d") as folder, opened(d / "p", _BOTH) as fifo:
        with opened(d / "g", os.O_WRONLY | os.O_APPEND) as end, fails(errno.EBADF):
            os.copy_file_range(fd, end, 10)
        with opened(d / "g", os.O_WRONLY) as sink:
            with fails(errno.EISDIR):
                os.copy_file_range(folder, sink, 10)
            with fails(errno.EINVAL):
                os.copy_file_range(fifo, sink, 10)


@behaviour()
def splice_through_a_pipe(d: Path) -> object:
    reader, writer = os.pipe()
    try:
        with opened(d / "f") as source, opened(d / "new", _NEW) as sink:
            assert os.splice(source, writer, 500, offset_src=13) == 500
            done = 0
            while done < 500:
                done += os.splice(reader, sink, 500 - done)
    finally:
        os.close(reader)
        os.close(writer)
    assert (d / "new").read_bytes() == CONTENT[13:513]


@behaviour()
def duplicates_share_the_offset(d: Path) -> object:
    with opened(d / "f") as fd, opened(d / "f") as other:
        twin = os.dup(fd)
        os.read(fd, 10)
        assert os.lseek(twin, 0, os.SEEK_CUR) == 10
        assert os.lseek(other, 0, os.SEEK_CUR) == 0
        os.close(twin)
        assert os.read(fd, 3) == CONTENT[10:13]


@behaviour()
def sync_each_kind(d: Path) -> object:
    def sync(call, path: Path) -> None:
        with opened(path, os.O_RDONLY | os.O_NONBLOCK) as fd:
            call(fd)

    both = [
        on_each_kind(d, lambda p, call=call: sync(call, p)) for call in (os.fsync, os.fdatasync)
    ]
    for got in both:
        expect(got, fifo="EINVAL", socket="ENXIO", char=got.get("char"), block=got.get("block"))
    return both


@behaviour()
def sync_after_writing(d: Path) -> object:
    with opened(d / "new", _NEW) as fd:
        for index in range(3):
            os.write(fd, b"%d" % index)
            os.fsync(fd)
            os.fdatasync(fd)
        with opened(d) as folder:
            os.fsync(folder)
    return (d / "new").read_bytes()


@behaviour()
def sync_for_reading(d: Path) -> object:
    """fsync(2) needs no write access."""
    with opened(d / "f") as fd:
        os.fsync(fd)
        os.fdatasync(fd)


@behaviour()
def big_writes(d: Path) -> object:
    text = b"".join(b"%07d\n" % index for index in range(200_000))
    with opened(d / "new", _NEW) as fd:
        assert os.write(fd, text) == len(text)
        assert os.pwrite(fd, text[:1_000_001], 1_234_567) == 1_000_001
    expected = bytearray(text)
    expected[1_234_567 : 1_234_567 + 1_000_001] = text[:1_000_001]
    expected = expected[: max(len(text), 1_234_567 + 1_000_001)]
    assert (d / "new").read_bytes() == bytes(expected)
    os.truncate(d / "new", 0)


@behaviour()
def many_small_writes(d: Path) -> object:
    with opened(d / "new", _NEW) as fd:
        for index in range(300):
            os.write(fd, b"%d," % index)
    assert (d / "new").read_bytes() == b"".join(b"%d," % index for index in range(300))


@behaviour()
def one_descriptor_sees_anothers_write(d: Path) -> object:
    with opened(d / "f") as reader, opened(d / "f", _BOTH) as writer:
        assert os.pread(reader, 5, 0) == CONTENT[:5]
        os.pwrite(writer, b"HELLO", 0)
        os.pwrite(writer, b"end", SIZE)
        return os.pread(reader, 5, 0), os.fstat(reader).st_size


@behaviour()
def another_process_sees_the_write(d: Path) -> object:
    with opened(d / "f", _BOTH) as fd:
        os.pwrite(fd, b"HELLO", 0)
        assert in_child(lambda: (d / "f").read_bytes()[:7]) == b"HELLO" + CONTENT[5:7]
        assert in_child(lambda: (d / "f").write_bytes(b"child")) == 5
        assert os.fstat(fd).st_size == 5
        assert os.pread(fd, 99, 0) == b"child"


@behaviour()
def inherited_descriptor_shares_the_offset(d: Path) -> object:
    with opened(d / "f", _BOTH) as fd:
        assert in_child(lambda: os.write(fd, b"child")) == 5
        assert os.lseek(fd, 0, os.SEEK_CUR) == 5
        os.write(fd, b"parent")
    assert (d / "f").read_bytes()[:13] == b"childparent" + CONTENT[11:13]


@behaviour()
def advice(d: Path) -> object:
    with opened(d / "f", _BOTH) as fd:
        for what in (os.POSIX_FADV_SEQUENTIAL, os.POSIX_FADV_WILLNEED, os.POSIX_FADV_DONTNEED):
            os.posix_fadvise(fd, 0, 0, what)
        assert os.pread(fd, 10, 0) == CONTENT[:10]


@behaviour()
def emulated_allocation(d: Path) -> object:
    """posix_fallocate(3) is emulated where the filesystem cannot."""
    with opened(d / "f", _BOTH) as fd:
        os.posix_fallocate(fd, 0, 10_000)
        assert os.fstat(fd).st_size == 10_000
    assert (d / "f").read_bytes() == CONTENT.ljust(10_000, b"\0")


@behaviour()
def unknown_ioctl(d: Path) -> object:
    def ask(path: Path) -> None:
        with opened(path, os.O_RDONLY | os.O_NONBLOCK) as fd:
            fcntl.ioctl(fd, termios.TCGETS, bytes(64))

    got = on_each_kind(d, ask)
    return expect(got, others="ENOTTY", socket="ENXIO", block=got.get("block"))


@behaviour()
def bytes_to_read(d: Path) -> object:
    with opened(d / "f") as fd:
        os.lseek(fd, 300, os.SEEK_SET)
        left = bytearray(4)
        fcntl.ioctl(fd, termios.FIONREAD, left)
    return int.from_bytes(left, "little")


@behaviour()
def allocate(d: Path) -> object:
    with opened(d / "f", _BOTH) as fd:
        libc.fallocate(fd, 0, 0, 10_000)
        return os.fstat(fd).st_size


@behaviour()
def allocate_beyond_the_end(d: Path) -> object:
    with opened(d / "f", _BOTH) as fd:
        libc.fallocate(fd, libc.FALLOC_FL_KEEP_SIZE, 0, 1 << 20)
        assert os.fstat(fd).st_size == SIZE


@behaviour()
def punch_a_hole(d: Path) -> object:
    with opened(d / "f", _BOTH) as fd:
        libc.fallocate(fd, libc.FALLOC_FL_PUNCH_HOLE | libc.FALLOC_FL_KEEP_SIZE, 100, 50)
    return (d / "f").read_bytes() == CONTENT[:100] + bytes(50) + CONTENT[150:]


@behaviour()
def allocate_errors(d: Path) -> object:
    with opened(d / "f") as fd, fails(errno.EBADF):
        libc.fallocate(fd, 0, 0, 1)
    with opened(d / "f", _BOTH) as fd:
        with fails(errno.EINVAL):
            libc.fallocate(fd, 0, 0, 0)
        with fails(errno.EINVAL):
            libc.fallocate(fd, 0, -1, 5)


@behaviour()
def seek_to_data_and_holes(d: Path) -> object:
    """Every filesystem may say that all is data, up to the end."""
    with opened(d / "f") as fd:
        assert os.lseek(fd, 0, os.SEEK_DATA) == 0
        assert os.lseek(fd, 10, os.SEEK_DATA) == 10
        assert os.lseek(fd, 0, os.SEEK_HOLE) == SIZE
        with fails(errno.ENXIO):
            os.lseek(fd, SIZE, os.SEEK_DATA)
        with fails(errno.ENXIO):
            os.lseek(fd, SIZE + 1, os.SEEK_HOLE)


@behaviour()
def seek_finds_holes(d: Path) -> object:
    with opened(d / "new", _NEW) as fd:
        os.pwrite(fd, b"x" * 4096, 1 << 20)
        os.ftruncate(fd, 2 << 20)
        return [os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 0, os.SEEK_HOLE)]


@behaviour()
def inode_flags(d: Path) -> object:
    """FS_IOC_GETFLAGS, what lsattr(1) shows."""
    with opened(d / "f") as fd:
        fcntl.ioctl(fd, libc.FS_IOC_GETFLAGS, bytes(8))
