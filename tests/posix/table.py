"""The table of behaviours, and what its functions are made of.

A function of the table takes a directory with the objects of `populate` and shows one
behaviour: it asserts what POSIX and Linux require and returns what else it saw, which must
be the same on every filesystem. What it returns holds no time of day and no inode number.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import fcntl
import os
import pickle
import resource
import signal
import stat
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.mounts import MODE
from tests.ops import conftest as ops
from tests.ops.conftest import ATIME, CONTENT, MTIME

__all__ = ["ATIME", "CONTENT", "MTIME", "TABLE", "behaviour"]

#: Other users and a group, in mode root.
ALICE, BOB, STAFF = 4001, 4002, 5000

#: One object of each kind; devices in mode root only.
KINDS = {
    "file": "f",
    "dir": "d",
    "link": "s",
    "fifo": "p",
    "socket": "k",
    "char": "c",
    "block": "b",
}
#: CLOCK_REALTIME_COARSE, the clock that filesystems read.
_COARSE = 5
#: Bytes of f.
SIZE = len(CONTENT)


@dataclass(frozen=True)
class Row:
    """A function and the marks that say where it cannot run.

    `answers` is what it must answer on a plain directory, if the function itself does not
    assert that because one of the overlays differs.
    """

    function: Callable[[Path], object]
    marks: tuple[pytest.MarkDecorator, ...]
    answers: object = None


TABLE: dict[str, Row] = {}


def behaviour(*marks: pytest.MarkDecorator, answers: object = None) -> Callable:
    """Put a function into the table, as a `Row`."""

    def add(function: Callable[[Path], object]) -> Callable[[Path], object]:
        assert function.__name__ not in TABLE, f"two functions {function.__name__}"
        TABLE[function.__name__] = Row(function, marks, answers)
        return function

    return add


def populate(base: Path) -> None:
    """The objects of tests/ops, as root also a character device c and a block device b."""
    ops.populate(base)
    if MODE == "root":
        os.mknod(base / "c", stat.S_IFCHR | 0o660, os.makedev(1, 3))
        os.mknod(base / "b", stat.S_IFBLK | 0o660, os.makedev(7, 250))
        for name in ("c", "b"):
            os.utime(base / name, ns=(ATIME, MTIME))


# What was seen


def name_of(code: int | None) -> str:
    """An errno's name; of two names the one that manuals use."""
    name = errno.errorcode.get(code or 0, str(code))
    return {"ENOTSUP": "EOPNOTSUPP", "EDEADLOCK": "EDEADLK"}.get(name, name)


def seen(call: Callable, *args: Any, **kwargs: Any) -> Any:
    """What a call answers: its value, or the name of the errno."""
    try:
        return call(*args, **kwargs)
    except OSError as exc:
        return name_of(exc.errno)


def on_each_kind(d: Path, call: Callable[[Path], object]) -> dict[str, Any]:
    """What a call answers for an object of each kind."""
    return {kind: seen(call, d / name) for kind, name in KINDS.items() if os.path.lexists(d / name)}


def expect(got: dict[str, Any], /, *, others: object = None, **wanted: object) -> dict[str, Any]:
    """Assert the answer for every kind, where `wanted` is silent: `others`."""
    expected = {kind: wanted.get(kind, others) for kind in got}
    assert got == expected
    return got


def opens(path: Path | str | bytes, flags: int, mode: int = 0o644) -> None:
    """Open and close; O_NONBLOCK, for it may be a fifo."""
    os.close(os.open(path, flags | os.O_NONBLOCK, mode))


@contextlib.contextmanager
def opened(path: Path | str | bytes, flags: int = os.O_RDONLY, mode: int = 0o644) -> Iterator[int]:
    """A descriptor for a block."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def mode_of(path: Path) -> int:
    """Permission bits, of a link itself."""
    return stat.S_IMODE(os.lstat(path).st_mode)


def kind_of(path: Path) -> str:
    """The kind of object, of a link itself; ENOENT where there is none."""
    st = seen(os.lstat, path)
    if isinstance(st, str):
        return st
    return {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "dir",
        stat.S_IFLNK: "link",
        stat.S_IFIFO: "fifo",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "char",
        stat.S_IFBLK: "block",
    }[stat.S_IFMT(st.st_mode)]


def same(one: os.stat_result, two: os.stat_result) -> bool:
    """Whether both are of one inode."""
    return (one.st_dev, one.st_ino) == (two.st_dev, two.st_ino)


def tick() -> None:
    """Wait until the clock of filesystems has moved on."""
    start = time.clock_gettime_ns(_COARSE)
    # A jiffy is at most 10 ms; one tick may be lost to rounding.
    while time.clock_gettime_ns(_COARSE) - start < 11_000_000:
        time.sleep(0.005)


def moved(path: Path, act: Callable[[], object]) -> set[str]:
    """Which of mtime and ctime of `path` the act changes."""
    before = os.lstat(path)
    tick()
    seen(act)
    after = os.lstat(path)
    return {
        name
        for name in ("mtime", "ctime")
        if getattr(before, f"st_{name}_ns") != getattr(after, f"st_{name}_ns")
    }


# Other processes


class Child:
    """A forked process that does some work and reports the answer.

    `uid` stands for a user with a group of the same number, `groups` are further ones.
    The process ends by itself after `limit` seconds.
    """

    def __init__(
        self,
        work: Callable[[], object],
        *,
        uid: int | None = None,
        groups: tuple[int, ...] = (),
        limit: int = 20,
    ) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reader)
            self._run(work, uid, groups, limit, writer)
        os.close(writer)
        self._reader = reader

    def _run(
        self,
        work: Callable[[], object],
        uid: int | None,
        groups: tuple[int, ...],
        limit: int,
        writer: int,
    ) -> None:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(limit)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            faulthandler.disable()
            os.umask(0o022)
            if uid is not None:
                os.setgroups(groups)
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            report = ("answer", seen(work))
        except BaseException:
            report = ("failure", traceback.format_exc())
        try:
            os.write(writer, pickle.dumps(report))
        finally:
            os._exit(0)

    def answer(self) -> Any:
        """Wait; what the work answered, an errno by its name, a signal by its name."""
        with open(self._reader, "rb") as pipe:
            data = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if code < 0:
            assert -code != signal.SIGALRM, "the child took too long"
            return signal.Signals(-code).name
        kind, value = pickle.loads(data)
        assert kind == "answer", f"in the child:\n{value}"
        return value


def in_child(work: Callable[[], object]) -> Any:
    """What some work answers in another process."""
    return Child(work).answer()


def as_user(uid: int, work: Callable[[], object], *groups: int) -> Any:
    """What some work answers another user."""
    return Child(work, uid=uid, groups=groups).answer()


def in_directory(path: Path, work: Callable[[], object]) -> Any:
    """What some work answers a process whose working directory is `path`."""

    def inside() -> object:
        os.chdir(path)
        return work()

    return in_child(inside)


def lock(kind: int, start: int = 0, length: int = 0, *, pid: int = 0) -> bytes:
    """A struct flock."""
    return struct.pack("hhlli4x", kind, os.SEEK_SET, start, length, pid)


def try_lock(fd: int, kind: int, start: int = 0, length: int = 0) -> None:
    """Take a POSIX lock or fail."""
    fcntl.fcntl(fd, fcntl.F_SETLK, lock(kind, start, length))
