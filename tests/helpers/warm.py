"""Daemons from a warm interpreter.

Python takes 0.1 s of CPU to import trio and pyfuse3, and the tests start thousands of daemons. So
one process imports everything once and forks: each child runs the command line as
`python -m fuseoverlay` would, with its own arguments, environment, directory and output. Tests of
the start itself start Python as usual.
"""

from __future__ import annotations

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
from collections.abc import Sequence
from pathlib import Path

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
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        request = pickle.dumps((list(argv[len(_PREFIX) :]), os.fspath(cwd), env))
        server = _server(env.get("LD_PRELOAD", ""))
        socket.send_fds(server, [request], [output, theirs.fileno()])
    return Warm(ours)


def output_of(argv: Sequence[str], seconds: float = 60) -> str:
    """Run this command line; returns what it prints, its errors among it."""
    from tests.helpers.mounts import daemon_env

    with tempfile.TemporaryFile() as output:
        process = start(argv, output.fileno(), "/", daemon_env())
        try:
            process.wait(seconds)
        finally:
            process.kill()
        output.seek(0)
        return output.read().decode(errors="replace")


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
                    request, fds, _, _ = socket.recv_fds(self._requests, _LARGEST, 2)
                    if not request:
                        return
                    self._fork(request, *fds)
                else:
                    self._tell(key.fd)

    def _fork(self, request: bytes, output: int, teller: int) -> None:
        pid = os.fork()
        if pid == 0:
            self._become(request, output)
            raise _Child
        os.close(output)
        connection = socket.socket(fileno=teller)
        connection.send(b"%d" % pid)
        process = os.pidfd_open(pid)
        self._waiting.register(process, selectors.EVENT_READ)
        self._children[process] = pid, connection

    def _become(self, request: bytes, output: int) -> None:
        sys.argv[1:], cwd, env = pickle.loads(request)
        os.environ.clear()
        os.environ.update(env)
        os.chdir(cwd)
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for number, fd in enumerate((nothing, output, output)):
            os.dup2(fd, number)
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

    for module in ("commands.dispatch", "commands.imagemount", "fuse.mount"):
        importlib.import_module(f"fuseoverlay.{module}")
    gc.collect()
    gc.freeze()
    try:
        _Interpreter(socket.socket(fileno=0)).serve()
    except _Child:
        gc.unfreeze()
    else:
        return
    __main__.main()


if __name__ == "__main__":
    _main()
