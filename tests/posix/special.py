"""Fifos, sockets, programs, notification: files that are more than data."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers import libc
from tests.helpers.mounts import fails
from tests.posix.table import Child, behaviour, in_child, in_directory, kind_of, opened, opens, seen


@behaviour()
def fifo_carries_data(d: Path) -> object:
    with opened(d / "p", os.O_RDONLY | os.O_NONBLOCK) as reader:
        assert os.read(reader, 5) == b""
        with opened(d / "p", os.O_WRONLY | os.O_NONBLOCK) as writer:
            with fails(errno.EAGAIN):
                os.read(reader, 5)
            os.write(writer, b"through the fifo")
            assert os.read(reader, 7) == b"through"
        assert os.read(reader, 99) == b" the fifo"
        assert os.read(reader, 99) == b""
    return os.stat(d / "p").st_size


@behaviour()
def fifo_between_processes(d: Path) -> object:
    """Each end waits for the other."""
    child = Child(lambda: (d / "p").read_bytes())
    (d / "p").write_bytes(b"x" * 100_000)
    assert child.answer() == b"x" * 100_000


@behaviour()
def fifo_without_reader(d: Path) -> object:
    with fails(errno.ENXIO):
        opens(d / "p", os.O_WRONLY)
    reader = os.open(d / "p", os.O_RDONLY | os.O_NONBLOCK)
    with opened(d / "p", os.O_WRONLY) as writer:
        os.close(reader)
        with fails(errno.EPIPE):
            os.write(writer, b"x")


@behaviour()
def fifo_that_was_renamed(d: Path) -> object:
    with opened(d / "p", os.O_RDWR) as one:
        os.rename(d / "p", d / "e" / "p")
        os.chmod(d / "e" / "p", 0o600)
        with opened(d / "e" / "p", os.O_RDWR | os.O_NONBLOCK) as two:
            os.write(one, b"through")
            return os.read(two, 20)


@behaviour()
def fifo_keeps_its_pipe_while_attributes_change(d: Path) -> object:
    with opened(d / "p", os.O_RDWR) as one:
        os.chmod(d / "p", 0o606)
        os.utime(d / "p", ns=(1, 2))
        with opened(d / "p", os.O_RDWR) as two:
            os.write(two, b"through")
            assert select.select([one], [], [], 5)[0] == [one]
            return os.read(one, 20)


@contextmanager
def _sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        one.settimeout(10)
        two.settimeout(10)
        yield one, two


@behaviour()
def socket_connects(d: Path) -> object:
    def work() -> bytes:
        with _sockets() as (server, client):
            server.bind("new")
            server.listen()
            client.connect("new")
            peer, _ = server.accept()
            client.sendall(b"through the socket")
            with peer:
                return peer.recv(99)

    assert in_directory(d / "e", work) == b"through the socket"
    return kind_of(d / "e" / "new")


@behaviour()
def socket_that_nobody_listens_to(d: Path) -> object:
    def work() -> list:
        with _sockets() as (one, two):
            return [
                seen(one.connect, "k"),
                seen(one.connect, "f"),
                seen(one.connect, "missing"),
                seen(one.connect, "d"),
                seen(two.bind, "k"),
                seen(two.bind, "f"),
                seen(two.bind, "missing/x"),
                seen(two.bind, "f/x"),
            ]

    got = in_directory(d, work)
    assert got == [
        "ECONNREFUSED", "ECONNREFUSED", "ENOENT", "ECONNREFUSED",
        "EADDRINUSE", "EADDRINUSE", "ENOENT", "ENOTDIR",
    ]  # fmt: skip


@behaviour()
def socket_that_was_renamed(d: Path) -> object:
    """A server goes on under the new name, also after its attributes changed."""

    def work() -> list:
        with _sockets() as (server, client):
            server.bind("one")
            server.listen()
            os.chmod("one", 0o600)
            os.rename("one", "two")
            gone = seen(client.connect, "one")
            client.connect("two")
            os.unlink("two")
            return [gone, seen(client.connect, "two"), client.getpeername()]

    return in_directory(d / "e", work)


@behaviour()
def datagrams(d: Path) -> object:
    def work() -> tuple:
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as two,
        ):
            one.bind("one")
            two.bind("two")
            two.sendto(b"datagram", "one")
            return one.recvfrom(99)

    return in_directory(d / "e", work)


def _run(*argv: object) -> tuple[int, bytes]:
    done = subprocess.run([str(arg) for arg in argv], capture_output=True, timeout=20)
    return done.returncode, done.stdout


@behaviour()
def run_a_program(d: Path) -> object:
    shutil.copy("/bin/echo", d / "program")
    return _run(d / "program", "hello")


@behaviour()
def run_a_script(d: Path) -> object:
    (d / "f").write_text("#!/bin/sh\necho $1 $(basename $0)\nexit 3\n")
    os.chmod(d / "f", 0o755)
    return _run(d / "f", "hello"), _run(d / "s", "hello")


@behaviour()
def run_with_an_interpreter_from_here(d: Path) -> object:
    shutil.copy("/bin/echo", d / "interpreter")
    (d / "f").write_text(f"#!{d}/interpreter -n\n")
    os.chmod(d / "f", 0o755)
    code, text = _run(d / "f")
    assert text == os.fsencode(d / "f")
    return code


@behaviour()
def run_errors(d: Path) -> object:
    os.chmod(d / "f", 0o644)
    assert seen(_run, d / "f") == "EACCES"
    assert seen(_run, d / "d") == "EACCES"
    assert seen(_run, d / "missing") == "ENOENT"
    assert seen(_run, d / "g" / "x") == "ENOTDIR"
    os.chmod(d / "f", 0o755)
    assert seen(_run, d / "f") == "ENOEXEC"
    (d / "f").write_text(f"#!{d}/missing\n")
    assert seen(_run, d / "f") == "ENOENT"
    os.truncate(d / "f", 0)
    assert seen(_run, d / "f") == "ENOEXEC"


@behaviour()
def running_program_is_not_written(d: Path) -> object:
    shutil.copy("/bin/sleep", d / "program")
    with subprocess.Popen([d / "program", "30"]) as process:
        answers = {
            "write": seen(opens, d / "program", os.O_WRONLY),
            "truncate": seen(os.truncate, d / "program", 0),
            "read": seen(opens, d / "program", os.O_RDONLY),
            "unlink": seen(os.unlink, d / "program"),
        }
        process.kill()
    assert answers["unlink"] is None
    return answers


@behaviour()
def file_open_for_writing_is_not_run(d: Path) -> object:
    shutil.copy("/bin/true", d / "program")
    with opened(d / "program", os.O_WRONLY):
        assert seen(_run, d / "program") == "ETXTBSY"
    return _run(d / "program")


@behaviour()
def run_a_replaced_program(d: Path) -> object:
    """A package upgrade: the running one goes on, the next one is new."""
    shutil.copy("/bin/sleep", d / "program")
    with subprocess.Popen([d / "program", "30"]) as process:
        shutil.copy("/bin/echo", d / "new")
        os.rename(d / "new", d / "program")
        assert process.poll() is None
        answer = _run(d / "program", "new")
        process.kill()
    return answer


@behaviour()
def load_a_library(d: Path) -> object:
    """The dynamic linker maps it."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    source = next(line.split()[-1] for line in maps if "/libc.so" in line or "/libc-" in line)
    shutil.copy(source, d / "lib.so")

    def load() -> int:
        library = ctypes.CDLL(str(d / "lib.so"))
        return library.abs(-7)

    return in_child(load)


@behaviour()
def poll_is_always_ready(d: Path) -> object:
    with opened(d / "f", os.O_RDWR) as fd:
        poll = select.poll()
        poll.register(fd, select.POLLIN | select.POLLOUT)
        assert poll.poll(1000) == [(fd, select.POLLIN | select.POLLOUT)]
        assert select.select([fd], [fd], [], 1)[:2] == ([fd], [fd])


@behaviour(answers="EPERM")
def epoll_takes_no_files(d: Path) -> object:
    with opened(d / "f", os.O_RDWR) as fd, select.epoll() as epoll:
        return seen(epoll.register, fd)


_libc = ctypes.CDLL(None, use_errno=True)
_EVENTS = {
    0x2: "modify", 0x4: "attrib", 0x8: "close", 0x40: "from", 0x80: "to", 0x100: "create",
    0x200: "delete",
}  # fmt: skip


@behaviour()
def notification(d: Path) -> object:
    """inotify(7) tells of what happens through this mount."""
    fd = _libc.inotify_init1(os.O_NONBLOCK)
    try:
        mask = sum(_EVENTS)
        assert _libc.inotify_add_watch(fd, os.fsencode(d), mask) >= 0
        os.mkdir(d / "new")
        os.chmod(d / "f", 0o600)
        (d / "f").write_bytes(b"x")
        os.rename(d / "f", d / "f2")
        os.unlink(d / "f2")
        os.rmdir(d / "new")
        data, events = os.read(fd, 65536), []
        while data:
            _, bits, _, size = (int.from_bytes(data[i : i + 4], "little") for i in (0, 4, 8, 12))
            name = data[16 : 16 + size].rstrip(b"\0").decode()
            events.append((_EVENTS[bits & mask], name))
            data = data[16 + size :]
    finally:
        os.close(fd)
    assert events[0] == ("create", "new")
    assert events[-1] == ("delete", "new")
    return events


@behaviour()
def pipes_of_the_shell(d: Path) -> object:
    """A few commands as people type them."""
    script = """
        set -e
        cd "$1"
        echo one > new; echo two >> new
        cat new f | wc -l
        mv new e/; cp -a e copy; ls copy
        ln copy/new hard; ln -s copy/new soft; cat soft hard | sort | uniq -c | tr -s ' '
        rm -r d copy; ls | tr '\\n' ' '
        sed -i s/content/CONTENT/ g; cat g
        touch -d @1234567890 g; stat -c %Y g
        mktemp -d -p . XXX | wc -c; rmdir ???; test -S k; test -p p
    """
    done = subprocess.run(["sh", "-c", script, "sh", d], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


@behaviour()
def archive_and_back(d: Path) -> object:
    """tar keeps what there is."""
    with opened(d / "d" / "sub" / "hole", os.O_RDWR | os.O_CREAT) as fd:
        os.pwrite(fd, b"end", 1 << 20)
    script = 'cd "$1" && tar -cSf - --xattrs d s p g f | tar -xf - --xattrs -C e && ls -AR e'
    done = subprocess.run(["sh", "-c", script, "sh", d], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    for name in ("f", "g", "d", "s", "p"):
        one, two = os.lstat(d / name), os.lstat(d / "e" / name)
        assert one.st_mode == two.st_mode
        assert one.st_mtime_ns // 10**9 == two.st_mtime_ns // 10**9 or name in ("d", "s")
    assert os.getxattr(d / "e" / "f", "user.colour") == b"red"
    return done.stdout


@behaviour()
def database_file(d: Path) -> object:
    """sqlite: locks, a journal, a shared memory file."""
    for journal in ("delete", "wal"):
        with sqlite3.connect(d / "e" / f"{journal}.db") as db:
            assert db.execute(f"pragma journal_mode={journal}").fetchone() == (journal,)
            db.execute("create table t (x)")
            db.executemany("insert into t values (?)", [(x,) for x in range(100)])
            db.commit()
        work = lambda journal=journal: _sum(d / "e" / f"{journal}.db")  # noqa: E731
        assert in_child(work) == 4950
        db.close()
    return sorted(os.listdir(d / "e"))


def _sum(path: Path) -> int:
    with sqlite3.connect(path) as db:
        return db.execute("select sum(x) from t").fetchone()[0]


@behaviour()
def lock_file_protocol(d: Path) -> object:
    """Exclusive creation, the way to lock without locks, by several processes."""

    def work() -> None:
        for _ in range(20):
            while seen(opens, d / "e" / "lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY) == "EEXIST":
                time.sleep(0.0005)
            count = int((d / "g").read_text())
            (d / "g").write_text(str(count + 1))
            os.unlink(d / "e" / "lock")

    (d / "g").write_text("0")
    children = [Child(work), Child(work)]
    assert [child.answer() for child in children] == [None, None]
    assert (d / "g").read_text() == "40"


@behaviour()
def temporary_file(d: Path) -> object:
    """O_TMPFILE: a file without a name, which gets one later."""
    with opened(d, os.O_TMPFILE | os.O_RDWR) as fd:
        os.write(fd, b"nameless")
        libc.linkat(Path(f"/proc/self/fd/{fd}"), d / "named", libc.AT_SYMLINK_FOLLOW)
    return (d / "named").read_bytes()


@behaviour()
def size_of_a_pipe(d: Path) -> object:
    with opened(d / "p", os.O_RDWR) as fd:
        return fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 8192), fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
