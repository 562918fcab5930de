"""Descriptors and data: what they see before, during and after copy-up and removal."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.differential import calls
from tests.differential.calls import attempt, create, look, names, opened, put
from tests.differential.designs import FRESH, FUSE_MODES, LATE, NO_NAMES, OPENED, PYFUSE3
from tests.differential.layers import FS_APPEND, get_flags, set_flags
from tests.differential.table import Steps, Topic
from tests.helpers import libc

TOPIC = Topic("open")

FLAGS = {
    "read": os.O_RDONLY,
    "write": os.O_WRONLY,
    "both": os.O_RDWR,
    "append": os.O_WRONLY | os.O_APPEND,
    "truncate": os.O_WRONLY | os.O_TRUNC,
    "read-truncate": os.O_RDONLY | os.O_TRUNC,
    "create": os.O_WRONLY | os.O_CREAT,
    "exclusive": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    "directory": os.O_RDONLY | os.O_DIRECTORY,
    "create-directory": os.O_RDWR | os.O_CREAT | os.O_DIRECTORY,
    "nofollow": os.O_RDONLY | os.O_NOFOLLOW,
    "path": os.O_PATH,
    "sync": os.O_WRONLY | os.O_SYNC,
    "noatime": os.O_RDONLY | os.O_NOATIME,
}
KINDS = ("file", "ufile", "dir", "udir", "link", "white", "uwhite", "nothing", "noaccess")


def _open(kind: str, flags: int) -> Steps:
    def steps(path: Path) -> Iterator[object]:
        fd = attempt(os.open, path / kind, flags | os.O_NONBLOCK, 0o640)
        if not isinstance(fd, int):
            yield fd
            return
        try:
            yield calls.seen(os.fstat(fd))
            yield attempt(os.read, fd, 10)
            if flags & (os.O_WRONLY | os.O_RDWR) and kind != "dir":
                yield attempt(os.write, fd, b"data")
        finally:
            os.close(fd)
        yield look(path / kind)

    return steps


for _kind in KINDS:
    for _name, _flags in FLAGS.items():
        _needs = "" if _kind == "nothing" else _kind
        TOPIC.add(f"{_kind}-for-{_name}", _needs, _open(_kind, _flags))


@TOPIC.case("file", LATE)
def for_writing_without_a_change(path: Path) -> Iterator[object]:
    with opened(path / "file", os.O_RDWR) as fd:
        yield os.read(fd, 10)
        yield calls.seen(os.fstat(fd))
    yield look(path / "file")


@TOPIC.case("file")
def descriptor_from_before_copy_up(path: Path) -> Iterator[object]:
    with opened(path / "file") as fd:
        yield os.read(fd, 10)
        yield put(path / "file", b"changed")
        yield os.pread(fd, 10, 0)
        yield calls.seen(os.fstat(fd))


@TOPIC.case("file", FRESH)
def mapping_from_before_copy_up(path: Path) -> Iterator[object]:
    with opened(path / "file") as fd, mmap.mmap(fd, 100, prot=mmap.PROT_READ) as memory:
        yield memory[:10]
        yield put(path / "file", b"changed")
        yield memory[:10]


@TOPIC.case("file ufile")
def shared_mapping(path: Path) -> Iterator[object]:
    for kind in ("file", "ufile"):
        with opened(path / kind, os.O_RDWR) as fd, mmap.mmap(fd, 10) as memory:
            memory[:4] = b"mmap"
            yield os.pread(fd, 8, 0)
            yield calls.get(path / kind)[:8]
            yield os.pwrite(fd, b"pwrite", 2)
            yield memory[:10]
            yield memory.flush()
        yield look(path / kind)


@TOPIC.case("file")
def private_mapping(path: Path) -> Iterator[object]:
    with opened(path / "file") as fd:
        with mmap.mmap(fd, 100, access=mmap.ACCESS_COPY) as memory:
            memory[:4] = b"mine"
            yield memory[:8]
        yield os.pread(fd, 8, 0)
    yield look(path / "file")


@TOPIC.case("file ufile hard")
def unlinked_while_open(path: Path) -> Iterator[object]:
    for kind in ("file", "ufile"):
        with opened(path / kind, os.O_RDWR) as fd:
            os.unlink(path / kind)
            yield os.fstat(fd).st_nlink
            yield os.pread(fd, 8, 0)
            yield os.pwrite(fd, b"still here", 0)
            yield os.pread(fd, 12, 0)
            yield os.ftruncate(fd, 4)
            yield os.fstat(fd).st_size
            yield attempt(os.fchmod, fd, 0o600)
            yield attempt(os.utime, fd, ns=(1, 2))
            yield calls.seen(os.fstat(fd))
            yield attempt(os.fsync, fd)
    yield names(path)


@TOPIC.case("file")
def unlinked_then_made_again(path: Path) -> Iterator[object]:
    with opened(path / "file", os.O_RDWR) as fd:
        os.unlink(path / "file")
        create(path / "file", b"another")
        yield os.pread(fd, 8, 0)
        yield os.pwrite(fd, b"the old one", 0)
        yield look(path / "file")
        yield os.pread(fd, 11, 0)


@TOPIC.case("file covered")
def renamed_while_open(path: Path) -> Iterator[object]:
    with opened(path / "file", os.O_RDWR) as fd:
        os.rename(path / "file", path / "new")
        yield os.pwrite(fd, b"after the rename", 0)
        yield look(path / "new")
        os.rename(path / "covered", path / "new")
        yield os.fstat(fd).st_nlink
        yield os.pwrite(fd, b"after it was replaced", 0)
        yield look(path / "new")
        yield os.pread(fd, 30, 0)


@TOPIC.case("dir")
def directory_renamed_while_a_file_in_it_is_open(path: Path) -> Iterator[object]:
    os.mkdir(path / "new")
    create(path / "new/file")
    with opened(path / "new/file", os.O_RDWR) as fd:
        os.rename(path / "new", path / "dir/moved")
        yield os.pwrite(fd, b"moved", 0)
        yield look(path / "dir/moved/file")


@TOPIC.case("file")
def two_descriptors(path: Path) -> Iterator[object]:
    with opened(path / "file", os.O_RDWR) as one, opened(path / "file", os.O_RDWR) as two:
        yield os.write(one, b"one")
        yield os.pread(two, 5, 0)
        yield os.lseek(two, 3, os.SEEK_SET)
        yield os.write(two, b"two")
        yield os.pread(one, 8, 0)
        yield os.ftruncate(two, 4)
        yield os.fstat(one).st_size


@TOPIC.case("file")
def appending_descriptors(path: Path) -> Iterator[object]:
    flags = os.O_RDWR | os.O_APPEND
    with opened(path / "file", flags) as one, opened(path / "file", flags) as two:
        for index in range(5):
            os.write(one, b"one%d " % index)
            os.write(two, b"two%d " % index)
        yield os.pread(one, 100, os.fstat(one).st_size - 50)
    yield os.stat(path / "file").st_size


@TOPIC.case("open_dir", root=True)
def made_read_only_then_written(path: Path) -> Iterator[object]:
    with calls.user():
        with opened(path / "open_dir/new", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o444) as fd:
            yield os.write(fd, b"git does this")
            yield os.fsync(fd)
            yield os.write(fd, b" twice")
        yield attempt(put, path / "open_dir/new")
        yield attempt(os.open, path / "open_dir/new", os.O_RDWR)
    yield look(path / "open_dir/new")


@TOPIC.case("owned", root=True)
def rights_are_those_of_the_open(path: Path) -> Iterator[object]:
    with calls.user(), opened(path / "owned", os.O_RDWR) as fd:
        os.chmod(path / "owned", 0)
        yield attempt(os.write, fd, b"still allowed")
        yield attempt(os.pread, fd, 20, 0)
        yield attempt(os.open, path / "owned", os.O_RDONLY)
    yield look(path / "owned")


@TOPIC.case("file empty ufile")
def lengths(path: Path) -> Iterator[object]:
    for kind in ("file", "empty", "ufile"):
        for size in (3, 0, 7, 4096, 4097, 1):
            yield attempt(os.truncate, path / kind, size)
            yield calls.get(path / kind)[:20], os.stat(path / kind).st_size
    yield attempt(os.truncate, path / "file", -1)
    yield attempt(os.truncate, path / "file", 1 << 62)
    yield attempt(os.truncate, path, 0)
    with opened(path / "file") as fd:
        yield attempt(os.ftruncate, fd, 0)
        yield attempt(os.write, fd, b"x")


@TOPIC.case("file")
def beyond_the_end(path: Path) -> Iterator[object]:
    with opened(path / "file", os.O_RDWR) as fd:
        yield os.pread(fd, 10, 5000)
        yield os.pwrite(fd, b"far", 1 << 33)
        yield os.fstat(fd).st_size
        yield os.pread(fd, 10, (1 << 33) - 5)
        yield os.ftruncate(fd, 100)
        yield os.ftruncate(fd, 2000)
        yield os.pread(fd, 10, 1000)
        yield os.pread(fd, 10, 3000)


@TOPIC.case("big")
def vectors_and_large_blocks(path: Path) -> Iterator[object]:
    with opened(path / "big", os.O_RDWR) as fd:
        yield os.pwritev(fd, [b"a" * 5000, b"b" * 200_000], 1000)
        parts = [bytearray(10), bytearray(300_000)]
        yield os.preadv(fd, parts, 5995)
        yield bytes(parts[0]), bytes(parts[1][-10:])
        yield os.lseek(fd, -5, os.SEEK_END)
        yield os.read(fd, 100)
        yield attempt(os.lseek, fd, -1, os.SEEK_SET)


@TOPIC.case("file ufile", LATE)
def whole_file_locks(path: Path) -> Iterator[object]:
    for kind in ("file", "ufile"):
        with opened(path / kind, os.O_RDWR) as one, opened(path / kind) as two:
            yield attempt(fcntl.flock, one, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield attempt(fcntl.flock, two, fcntl.LOCK_SH | fcntl.LOCK_NB)
            yield attempt(fcntl.flock, one, fcntl.LOCK_UN)
            yield attempt(fcntl.flock, two, fcntl.LOCK_SH | fcntl.LOCK_NB)
            yield attempt(fcntl.flock, one, fcntl.LOCK_SH | fcntl.LOCK_NB)
            yield attempt(fcntl.flock, one, fcntl.LOCK_EX | fcntl.LOCK_NB)


@TOPIC.case("ufile")
def record_locks(path: Path) -> Iterator[object]:
    script = (
        "import fcntl, sys\n"
        "with open(sys.argv[1], 'r+b') as stream:\n"
        "    for length, start in ((10, 0), (10, 20)):\n"
        "        try:\n"
        "            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)\n"
        "            print('locked')\n"
        "        except OSError as exc:\n"
        "            print(exc.errno)\n"
    )
    with opened(path / "ufile", os.O_RDWR) as fd:
        yield attempt(fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)
        argv = ["/usr/bin/python3", "-c", script, str(path / "ufile")]
        yield subprocess.run(argv, capture_output=True, text=True, timeout=20).stdout


@TOPIC.case("file")
def lease(path: Path) -> Iterator[object]:
    with opened(path / "file") as fd:
        yield attempt(fcntl.fcntl, fd, fcntl.F_GETLEASE)


@TOPIC.case("file dir")
def syncs(path: Path) -> Iterator[object]:
    put(path / "file", b"data")
    with opened(path / "file") as fd:
        yield attempt(os.fsync, fd)
        yield attempt(os.fdatasync, fd)
    with opened(path / "dir", os.O_DIRECTORY) as fd:
        yield attempt(os.fsync, fd)
        yield attempt(os.fdatasync, fd)


@TOPIC.case("fifo")
def fifos(path: Path) -> Iterator[object]:
    yield attempt(os.open, path / "fifo", os.O_WRONLY | os.O_NONBLOCK)
    reader = os.open(path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield put(path / "fifo", b"through the fifo")
        yield os.read(reader, 100)
        os.chmod(path / "fifo", 0o600)
        yield put(path / "fifo", b"and after copy-up")
        yield os.read(reader, 100)
    finally:
        os.close(reader)


@TOPIC.case("suid", sets=("off", "on"))
def executed(path: Path) -> Iterator[object]:
    create(path / "script", b"#!/bin/sh\necho ran $1\n", 0o755)
    for _ in range(2):
        done = subprocess.run(
            [str(path / "script"), "x"], capture_output=True, text=True, timeout=20
        )
        yield done.returncode, done.stdout
        os.chmod(path / "script", 0o700)
    os.chmod(path / "script", 0o600)
    yield attempt(subprocess.run, [str(path / "script")], capture_output=True)


@TOPIC.case("")
def busy_program(path: Path) -> Iterator[object]:
    with open("/bin/sleep", "rb") as stream:
        create(path / "sleep", stream.read(), 0o755)
    with subprocess.Popen([str(path / "sleep"), "30"]) as process:
        yield attempt(os.open, path / "sleep", os.O_WRONLY)
        yield attempt(os.truncate, path / "sleep", 0)
        process.kill()
    yield put(path / "sleep", b"free again", os.O_TRUNC)
    with opened(path / "sleep", os.O_WRONLY):
        yield attempt(subprocess.run, [str(path / "sleep")], capture_output=True)


@TOPIC.case("file")
def direct_io(path: Path) -> Iterator[object]:
    with opened(path / "file", os.O_RDWR | os.O_DIRECT) as fd, mmap.mmap(-1, 4096) as memory:
        memory[:4096] = b"d" * 4096
        yield attempt(os.pwritev, fd, [memory], 0)
        yield attempt(os.preadv, fd, [memory], 0)
        yield memory[:10]
    yield os.stat(path / "file").st_size


@TOPIC.case("big")
def copied_within_the_mount(path: Path) -> Iterator[object]:
    create(path / "copy", b"")
    with opened(path / "big") as source, opened(path / "copy", os.O_RDWR) as target:
        left = 307_200
        while left and (count := os.copy_file_range(source, target, left)):
            left -= count
        yield left
        os.lseek(source, 0, os.SEEK_SET)
        yield os.sendfile(target, source, None, 100) == 100
    yield os.stat(path / "copy").st_size


@TOPIC.case("file", NO_NAMES)
def read_of_a_renamed_over_file(path: Path) -> Iterator[object]:
    create(path / "new", b"the new one")
    with opened(path / "file") as fd:
        os.rename(path / "new", path / "file")
        yield os.read(fd, 12)
        yield os.fstat(fd).st_nlink
        yield look(path / "file")


@TOPIC.case("immutable append", OPENED, root=True)
def protected_files(path: Path) -> Iterator[object]:
    for kind in ("immutable", "append"):
        fd = attempt(os.open, path / kind, os.O_RDWR)
        yield "opened" if isinstance(fd, int) else fd
        if isinstance(fd, int):
            os.close(fd)
        yield look(path / kind)


# What pyfuse3 has no handler for


def _tmpfile(path: Path) -> object:
    flags = os.O_TMPFILE | os.O_RDWR
    with opened(path / "udir", flags, 0o600) as fd:
        os.write(fd, b"made without a name")
        calls.link_descriptor(fd, path / "udir/named")
    return "works"


def _holes(path: Path) -> object:
    with opened(path / "sparse") as fd:
        return [os.lseek(fd, 0, how) for how in (os.SEEK_DATA, os.SEEK_HOLE)]


def _birth(path: Path) -> object:
    """Whether statx(2) gives a time of birth."""
    return bool(libc.statx_mask(path / "ufile", libc.STATX_BTIME))


def _fallocate(mode: int) -> object:
    def call(path: Path) -> object:
        with opened(path / "ufile", os.O_RDWR) as fd:
            libc.fallocate(fd, mode, 0, 8192)
        return os.stat(path / "ufile").st_size

    return call


def _insert(path: Path) -> object:
    with opened(path / "ufile", os.O_RDWR) as fd:
        libc.fallocate(fd, 0x20, 0, os.fstat(fd).st_blksize)
        return os.fstat(fd).st_size - os.fstat(fd).st_blksize


def _set_append_only(path: Path) -> object:
    set_flags(path / "ufile", FS_APPEND)
    try:
        return errno.errorcode.get(attempt(os.truncate, path / "ufile", 0), "protected")
    finally:
        set_flags(path / "ufile", 0)


#: What needs the extension, or cannot be had: name in the report, objects, call.
MISSING = {
    "open(O_TMPFILE)": ("tmpfile", "udir", _tmpfile),
    "lseek(SEEK_DATA, SEEK_HOLE)": ("seek-hole", "sparse", _holes),
    "statx(STATX_BTIME)": ("birth-time", "ufile", _birth),
    "fallocate(0)": ("fallocate", "ufile", _fallocate(0)),
    "fallocate(FALLOC_FL_KEEP_SIZE)": ("fallocate-keep-size", "ufile", _fallocate(1)),
    "fallocate(FALLOC_FL_PUNCH_HOLE)": ("punch-hole", "ufile", _fallocate(3)),
    "fallocate(FALLOC_FL_ZERO_RANGE)": ("zero-range", "ufile", _fallocate(0x10)),
    "fallocate(FALLOC_FL_INSERT_RANGE)": ("insert-range", "ufile", _insert),
    "ioctl(FS_IOC_GETFLAGS)": ("get-flags", "ufile", lambda path: get_flags(path / "ufile")),
    "ioctl(FS_IOC_SETFLAGS)": ("set-flags", "ufile", _set_append_only),
}


def _missing(call: object) -> Steps:
    def steps(path: Path) -> Iterator[object]:
        yield attempt(call, path)  # type: ignore[arg-type]

    return steps


for _slug, _needs, _call in MISSING.values():
    _design = FUSE_MODES if _slug == "insert-range" else PYFUSE3
    TOPIC.add(_slug, _needs, _missing(_call), _design, root=_slug == "set-flags")
