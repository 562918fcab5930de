"""flock(2), POSIX locks, open file description locks, leases."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from pathlib import Path

from tests.helpers.mounts import fails
from tests.posix.table import Child, behaviour, in_child, lock, opened, seen, try_lock

_EX, _SH, _UN, _NB = fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_UN, fcntl.LOCK_NB
_READ, _WRITE, _FREE = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK


def _flock(path: Path, how: int) -> object:
    with opened(path, os.O_RDWR if path.is_file() else os.O_RDONLY) as fd:
        return seen(fcntl.flock, fd, how | _NB)


def _try(path: Path, kind: int, start: int = 0, length: int = 0) -> object:
    """Try a POSIX lock from another process."""

    def attempt() -> None:
        with opened(path, os.O_RDWR) as fd:
            try_lock(fd, kind, start, length)

    return in_child(attempt)


@behaviour()
def flock_excludes(d: Path) -> object:
    with opened(d / "f") as fd:
        fcntl.flock(fd, _EX)
        assert _flock(d / "f", _EX) == _flock(d / "f", _SH) == "EAGAIN"
        assert in_child(lambda: _flock(d / "f", _SH)) == "EAGAIN"
        fcntl.flock(fd, _SH)
        assert _flock(d / "f", _SH) is None
        assert _flock(d / "f", _EX) == "EAGAIN"
        fcntl.flock(fd, _UN)
        assert _flock(d / "f", _EX) is None


@behaviour()
def flock_ends_with_the_last_descriptor(d: Path) -> object:
    with opened(d / "f") as fd:
        fcntl.flock(fd, _EX)
        twin = os.dup(fd)
    assert _flock(d / "f", _EX) == "EAGAIN"
    os.close(twin)
    assert _flock(d / "f", _EX) is None


@behaviour()
def flock_of_a_directory(d: Path) -> object:
    with opened(d / "d") as fd:
        fcntl.flock(fd, _EX)
        assert in_child(lambda: _flock(d / "d", _EX)) == "EAGAIN"
        assert _flock(d / "e", _EX) is None


@behaviour()
def flock_is_of_the_file_not_the_name(d: Path) -> object:
    os.link(d / "f", d / "twin")
    with opened(d / "f") as fd:
        fcntl.flock(fd, _EX)
        assert _flock(d / "twin", _EX) == "EAGAIN"
        os.rename(d / "f", d / "e" / "moved")
        assert _flock(d / "e" / "moved", _EX) == "EAGAIN"
        os.rename(d / "g", d / "e" / "moved")
        assert _flock(d / "e" / "moved", _EX) is None


@behaviour()
def flock_holds_while_the_file_changes(d: Path) -> object:
    """Taken before the first change."""
    with opened(d / "f", os.O_RDWR) as fd:
        fcntl.flock(fd, _EX)
        os.pwrite(fd, b"changed", 0)
        os.chmod(d / "f", 0o600)
        assert in_child(lambda: _flock(d / "f", _EX)) == "EAGAIN"


@behaviour()
def flock_of_a_reader_holds_while_another_writes(d: Path) -> object:
    with opened(d / "f") as fd:
        fcntl.flock(fd, _EX)
        (d / "f").write_bytes(b"changed")
        return in_child(lambda: _flock(d / "f", _EX))


@behaviour()
def flock_waits(d: Path) -> object:
    with opened(d / "f") as fd:
        fcntl.flock(fd, _EX)

        def wait() -> str:
            with opened(d / "f") as own:
                fcntl.flock(own, _EX)
                return (d / "g").read_text()

        child = Child(wait)
        time.sleep(0.05)
        (d / "g").write_text("written under the lock")
        fcntl.flock(fd, _UN)
        return child.answer()


@behaviour()
def posix_lock_excludes(d: Path) -> object:
    with opened(d / "f", os.O_RDWR) as fd:
        try_lock(fd, _WRITE)
        assert _try(d / "f", _READ) == _try(d / "f", _WRITE) == "EAGAIN"
        try_lock(fd, _READ)
        assert _try(d / "f", _READ) is None
        assert _try(d / "f", _WRITE) == "EAGAIN"
        try_lock(fd, _FREE)
        assert _try(d / "f", _WRITE) is None


@behaviour()
def posix_locks_are_of_ranges(d: Path) -> object:
    with opened(d / "f", os.O_RDWR) as fd:
        try_lock(fd, _WRITE, 100, 100)
        assert _try(d / "f", _WRITE, 0, 100) is None
        assert _try(d / "f", _WRITE, 200, 100) is None
        assert _try(d / "f", _WRITE, 199, 1) == "EAGAIN"
        assert _try(d / "f", _WRITE, 0, 0) == "EAGAIN"
        try_lock(fd, _FREE, 120, 10)
        assert _try(d / "f", _WRITE, 120, 10) is None
        assert _try(d / "f", _WRITE, 119, 2) == "EAGAIN"
        assert _try(d / "f", _WRITE, 1 << 40, 0) is None


@behaviour()
def posix_lock_to_the_end_of_time(d: Path) -> object:
    """Length 0, also beyond the end of the file."""
    with opened(d / "f", os.O_RDWR) as fd:
        try_lock(fd, _WRITE, 1000, 0)
        assert _try(d / "f", _WRITE, 1 << 60, 1) == "EAGAIN"
        assert _try(d / "f", _WRITE, 0, 1000) is None


@behaviour()
def who_holds_a_posix_lock(d: Path) -> object:
    with opened(d / "f", os.O_RDWR) as fd:
        try_lock(fd, _WRITE, 10, 20)

        def ask() -> tuple:
            with opened(d / "f") as own:
                found = fcntl.fcntl(own, fcntl.F_GETLK, lock(_READ, 0, 100))
                return struct.unpack("hhlli4x", found)

        kind, _, start, length, pid = in_child(ask)
        assert pid == os.getpid()
        assert struct.unpack("hhlli4x", fcntl.fcntl(fd, fcntl.F_GETLK, lock(_WRITE)))[0] == _FREE
        return kind == _WRITE, start, length


@behaviour()
def posix_locks_end_with_any_close(d: Path) -> object:
    with opened(d / "f", os.O_RDWR) as fd:
        try_lock(fd, _WRITE)
        assert _try(d / "f", _WRITE) == "EAGAIN"
        with opened(d / "f"):
            pass
        assert _try(d / "f", _WRITE) is None
        os.fstat(fd)


@behaviour()
def posix_locks_end_with_the_process(d: Path) -> object:
    assert _try(d / "f", _WRITE) is None
    assert _try(d / "f", _WRITE) is None


@behaviour()
def posix_locks_are_not_inherited(d: Path) -> object:
    with opened(d / "f", os.O_RDWR) as fd:
        try_lock(fd, _WRITE)
        assert in_child(lambda: try_lock(fd, _WRITE)) == "EAGAIN"


@behaviour()
def posix_locks_need_the_access(d: Path) -> object:
    with opened(d / "f") as reader, fails(errno.EBADF):
        try_lock(reader, _WRITE)
    with opened(d / "f", os.O_WRONLY) as writer, fails(errno.EBADF):
        try_lock(writer, _READ)
    with opened(d / "f", os.O_RDWR) as fd, fails(errno.EINVAL):
        try_lock(fd, 77)


@behaviour()
def posix_locks_wait_and_deadlock(d: Path) -> object:
    """Two processes that would wait for each other: one is told EDEADLK."""
    reader, writer = os.pipe()

    def second() -> object:
        with opened(d / "f", os.O_RDWR) as own:
            fcntl.fcntl(own, fcntl.F_SETLKW, lock(_WRITE, 1, 1))
            os.write(writer, b"x")
            return seen(fcntl.fcntl, own, fcntl.F_SETLKW, lock(_WRITE, 0, 1)) != "EDEADLK"

    with opened(d / "f", os.O_RDWR) as fd:
        try_lock(fd, _WRITE, 0, 1)
        child = Child(second)
        os.read(reader, 1)
        first = seen(fcntl.fcntl, fd, fcntl.F_SETLKW, lock(_WRITE, 1, 1)) != "EDEADLK"
        try_lock(fd, _FREE)
        answers = [first, child.answer()]
    os.close(reader)
    os.close(writer)
    assert sorted(answers) == [False, True]


@behaviour()
def posix_lock_survives_a_rename(d: Path) -> object:
    with opened(d / "f", os.O_RDWR) as fd:
        try_lock(fd, _WRITE)
        os.rename(d / "f", d / "e" / "moved")
        assert _try(d / "e" / "moved", _WRITE) == "EAGAIN"


@behaviour()
def posix_lock_holds_while_the_file_changes(d: Path) -> object:
    with opened(d / "f", os.O_RDWR) as fd:
        try_lock(fd, _WRITE)
        os.pwrite(fd, b"x", 0)
        os.ftruncate(fd, 5)
        assert _try(d / "f", _WRITE) == "EAGAIN"


@behaviour()
def lockf_works(d: Path) -> object:
    with opened(d / "f", os.O_RDWR) as fd:
        os.lseek(fd, 100, os.SEEK_SET)
        os.lockf(fd, os.F_TLOCK, 10)
        assert _try(d / "f", _WRITE, 100, 10) == "EAGAIN"
        assert _try(d / "f", _WRITE, 110, 10) is None
        os.lockf(fd, os.F_ULOCK, 10)
        assert _try(d / "f", _WRITE) is None


@behaviour()
def description_locks(d: Path) -> object:
    """They exclude within one process, and are shared by duplicates."""
    with opened(d / "f", os.O_RDWR) as one, opened(d / "f", os.O_RDWR) as two:
        fcntl.fcntl(one, fcntl.F_OFD_SETLK, lock(_WRITE, 0, 10))
        with fails(errno.EAGAIN):
            fcntl.fcntl(two, fcntl.F_OFD_SETLK, lock(_WRITE, 5, 10))
        fcntl.fcntl(two, fcntl.F_OFD_SETLK, lock(_WRITE, 10, 10))
        assert _try(d / "f", _READ, 0, 5) == "EAGAIN"
        found = struct.unpack("hhlli4x", fcntl.fcntl(two, fcntl.F_OFD_GETLK, lock(_WRITE, 0, 5)))
        twin = os.dup(one)
        fcntl.fcntl(twin, fcntl.F_OFD_SETLK, lock(_FREE, 0, 10))
        fcntl.fcntl(two, fcntl.F_OFD_SETLK, lock(_WRITE, 5, 10))
        os.close(twin)
    assert found[4] == -1
    return found[:4]


@behaviour()
def description_locks_outlive_other_closes(d: Path) -> object:
    with opened(d / "f", os.O_RDWR) as fd:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock(_WRITE))
        with opened(d / "f"):
            pass
        assert _try(d / "f", _WRITE) == "EAGAIN"


@behaviour()
def flock_and_posix_locks_ignore_each_other(d: Path) -> object:
    with opened(d / "f", os.O_RDWR) as fd:
        fcntl.flock(fd, _EX)
        assert _try(d / "f", _WRITE) is None
        fcntl.flock(fd, _UN)
        try_lock(fd, _WRITE)
        assert in_child(lambda: _flock(d / "f", _EX)) is None


@behaviour()
def locks_do_not_bind(d: Path) -> object:
    """They are advice."""
    with opened(d / "f", os.O_RDWR) as fd:
        try_lock(fd, _WRITE)
        fcntl.flock(fd, _EX)
        assert in_child(lambda: (d / "f").write_bytes(b"all the same")) == 12


@behaviour()
def leases(d: Path) -> object:
    with opened(d / "f") as fd:
        answer = seen(fcntl.fcntl, fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        if answer == 0:
            assert fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return answer
