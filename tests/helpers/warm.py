"""Daemons and commands from a warm interpreter.

Python takes 0.1 s of CPU to import trio and pyfuse3, and the tests start thousands of daemons and
commands. So one process imports everything once and forks: each child runs the command line as
`python -m fuseoverlay` would, with its own arguments, environment, directory, umask, input and
output. Tests of the start itself start Python as usual.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

_LARGEST = 1 << 20
_PREFIX = [sys.executable, "-m", "fuseoverlay"]


class Warm:
    """A child of the warm interpreter; offers what the tests use of `subprocess.Popen`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.pid = int(connection.recv(64))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, or minus the number of the signal that ended it; None if it still runs."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code; raises `subprocess.TimeoutExpired`."""
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("fuseoverlay", timeout or 0)
        return code

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self._connection.settimeout(timeout)
            with contextlib.suppress(BlockingIOError, TimeoutError):
                self.returncode = int(self._connection.recv(64))
                self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process is known to have ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def can_start(argv: Sequence[str]) -> bool:
    """Whether this command line runs fuseoverlay directly, without another program in front."""
    return list(argv[: len(_PREFIX)]) == _PREFIX


def start(argv: Sequence[str], output: int, cwd: Path | str, env: dict[str, str]) -> Warm:
    """Run this command line in a session of its own; `output` is a descriptor."""
    with open(os.devnull, "rb") as nothing:
        return _start(argv, (nothing.fileno(), output, output), cwd, env)


def _start(
    argv: Sequence[str],
    streams: tuple[int, int, int],
    cwd: Path | str,
    env: dict[str, str],
    comm: str = "fuseoverlay",
) -> Warm:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    umask = os.umask(0)
    os.umask(umask)
    with theirs:
        request = pickle.dumps((list(argv[len(_PREFIX) :]), os.fspath(cwd), env, umask, comm))
        server = _server(env.get("LD_PRELOAD", ""))
        socket.send_fds(server, [request], [*streams, theirs.fileno()])
    return Warm(ours)


def run(
    argv: Sequence[str],
    *,
    cwd: Path | str,
    env: dict[str, str],
    input: str = "",
    timeout: float = 60,
    errors: str = "strict",
    comm: str = "fuseoverlay",
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` of this command line with its output captured as text: a process that keeps
    the pipes open is waited for. A daemon that it leaves has this name, proc_pid_comm(5), since the
    warm interpreter's command line is not ours."""
    if not can_start(argv) or _own_interpreter(env):
        return subprocess.run(
            argv, cwd=cwd, env=env, input=input, capture_output=True, text=True, errors=errors,
            timeout=timeout, check=False,
        )  # fmt: skip
    with tempfile.TemporaryFile() as source:
        source.write(input.encode())
        source.seek(0)
        pipes = os.pipe(), os.pipe()
        try:
            process = _start(argv, (source.fileno(), pipes[0][1], pipes[1][1]), cwd, env, comm)
        finally:
            for _, end in pipes:
                os.close(end)
    try:
        out, err = (text.decode(errors=errors) for text in _read(pipes, timeout))
        return subprocess.CompletedProcess(argv, process.wait(timeout), out, err)
    finally:
        process.kill()
        for end, _ in pipes:
            os.close(end)


def _own_interpreter(env: dict[str, str]) -> bool:
    """Whether one of these variables makes Python start otherwise than the warm one did."""
    from tests.helpers.mounts import daemon_env

    warm = daemon_env()
    decisive = ("PYTHON", "LANG", "LC_", "LD_", "FUSEOVERLAY_NATIVE")
    return any(name.startswith(decisive) and warm.get(name) != env[name] for name in env)


def _read(pipes: Sequence[tuple[int, int]], seconds: float) -> list[bytes]:
    """What comes out of the pipes until nobody can write to them any more."""
    read = {end: b"" for end, _ in pipes}
    limit = time.monotonic() + seconds
    with selectors.DefaultSelector() as waiting:
        for end in read:
            waiting.register(end, selectors.EVENT_READ)
        while waiting.get_map():
            for key, _ in (ready := waiting.select(max(0, limit - time.monotonic()))):
                data = os.read(key.fd, 1 << 16)
                read[key.fd] += data
                if not data:
                    waiting.unregister(key.fd)
            if not ready:
                raise subprocess.TimeoutExpired("fuseoverlay", seconds)
    return list(read.values())


@functools.cache
def _server(preloaded: str) -> socket.socket:
    """The connection to the interpreter with this library, or none, preloaded. It ends when the
    connection is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    from tests.helpers.mounts import daemon_env

    more = {"LD_PRELOAD": preloaded} if preloaded else {}
    with theirs:
        subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.warm"],
            stdin=theirs.fileno(), stdout=subprocess.DEVNULL, cwd="/", env=daemon_env(**more),
        )  # fmt: skip
    return ours


class _Child(Exception):
    """Raised in the child to leave the loop."""


class _Interpreter:
    """Forks on request, and reports how each child ended."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._waiting = selectors.DefaultSelector()
        self._waiting.register(requests, selectors.EVENT_READ)
        #: By process descriptor: the process id and the connection that is told of its end.
        self._children: dict[int, tuple[int, socket.socket]] = {}

    def serve(self) -> None:
        """Returns when the connection is closed; raises `_Child` in the children."""
        while True:
            for key, _ in self._waiting.select():
                if key.fileobj is self._requests:
                    request, fds, _, _ = socket.recv_fds(self._requests, _LARGEST, 4)
                    if not request:
                        return
                    *streams, teller = fds
                    self._fork(request, streams, teller)
                else:
                    self._tell(key.fd)

    def _fork(self, request: bytes, streams: list[int], teller: int) -> None:
        pid = os.fork()
        if pid == 0:
            self._become(request, streams)
            raise _Child
        for fd in streams:
            os.close(fd)
        connection = socket.socket(fileno=teller)
        connection.send(b"%d" % pid)
        process = os.pidfd_open(pid)
        self._waiting.register(process, selectors.EVENT_READ)
        self._children[process] = pid, connection

    def _become(self, request: bytes, streams: list[int]) -> None:
        sys.argv[1:], cwd, env, umask, comm = pickle.loads(request)
        Path("/proc/self/comm").write_text(comm)
        os.environ.clear()
        os.environ.update(env)
        os.chdir(cwd)
        os.umask(umask)
        os.setsid()
        for number, fd in enumerate(streams):
            os.dup2(fd, number)
        # The streams remember what their descriptors were connected to.
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(number, stream.mode, closefd=False, errors=stream.errors, buffering=buffering)
            for number, stream, buffering in (
                *((0, sys.stdin, -1), (1, sys.stdout, -1)),
                (2, sys.stderr, 1),
            )
        )
        # Descriptors closed below must not be closed again by their owners.
        self._requests.detach()
        for _, connection in self._children.values():
            connection.detach()
        self._waiting.close()
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))

    def _tell(self, process: int) -> None:
        self._waiting.unregister(process)
        os.close(process)
        pid, connection = self._children.pop(process)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with connection, contextlib.suppress(BrokenPipeError):
            connection.send(b"%d" % code)


def _main() -> None:
    from fuseoverlay import __main__

    for module in (
        *("commands.dispatch", "commands.imagemount", "commands.mount", "commands.fsck"),
        *("commands.progress", "commands.unmount", "commands.image.words"),
        *("fuse.mount", "store.pull", "store.push", "store.load", "store.save"),
    ):
        importlib.import_module(f"fuseoverlay.{module}")
    gc.collect()
    gc.freeze()
    try:
        _Interpreter(socket.socket(fileno=0)).serve()
    except _Child:
        _exit_of(__main__.main)


def _exit_of(main: Callable[[], None]) -> NoReturn:
    """Run it and exit as it says. The interpreter is not taken apart, which would take longer than
    most commands: all its memory is shared with the warm one until it is touched."""
    code: object = None
    try:
        main()
    except SystemExit as exc:
        code = exc.code
    except BaseException:
        traceback.print_exc()
        code = 1
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    _main()
