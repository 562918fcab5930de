"""Work in several processes at a time, all of which end with the one that starts them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import selectors
import signal
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)
#: linux/prctl.h
_PR_SET_PDEATHSIG: Final = 1
#: The number of an item, and the length of a result.
_NUMBER: Final = struct.Struct("=I")
#: So many numbers fit into a pipe.
_MOST: Final = 4096
_PIECE: Final = 1 << 16
#: Those that end us in an orderly way.
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def each(count: int, items: Sequence[int], work: Callable[[int], T]) -> Iterator[tuple[int, T]]:
    """Each item with what `work` makes of it, as they are finished, `count` at a time.

    Results and exceptions are pickled; an exception is raised here. ChildProcessError if a process
    is killed; OSError. If the iterator is closed, the processes end.
    """
    for start in range(0, len(items), _MOST):
        with _Processes(count, items[start : start + _MOST], work) as processes:
            yield from processes.results()


class _Processes:
    """Some processes, each of which takes one item after the other from a pipe."""

    def __init__(self, count: int, items: Sequence[int], work: Callable[[int], Any]) -> None:
        self._items, self._work = items, work
        self._undo = contextlib.ExitStack()
        self._pids: list[int] = []
        #: Where results come from, by descriptor.
        self._readers: list[int] = []
        self._count = count

    def __enter__(self) -> _Processes:
        with self._undo as undo:
            undo.callback(self._end)
            tasks, writer = os.pipe()
            undo.callback(os.close, tasks)
            os.write(writer, b"".join(map(_NUMBER.pack, range(len(self._items)))))
            os.close(writer)
            for _ in range(min(self._count, len(self._items))):
                self._start(tasks)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _end(self) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for fd in self._readers:
            os.close(fd)

    def _start(self, tasks: int) -> None:
        reader, writer = os.pipe()
        self._readers.append(reader)
        parent = os.getpid()
        # An exception of a handler would be lost while modules prepare for the fork.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
            if not pid:
                _child(parent, before, lambda: self._serve(tasks, writer))
            os.close(writer)
            self._pids.append(pid)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _serve(self, tasks: int, writer: int) -> None:
        """What a process does."""
        while data := os.read(tasks, _NUMBER.size):
            (number,) = _NUMBER.unpack(data)
            try:
                result: object = self._work(self._items[number])
            except Exception as exc:  # noqa: BLE001 - the parent raises it
                result = _Raised(exc)
            text = pickle.dumps((number, result))
            view = memoryview(_NUMBER.pack(len(text)) + text)
            while view:
                view = view[os.write(writer, view) :]

    def results(self) -> Iterator[tuple[int, Any]]:
        """The items and results of all."""
        held = {fd: bytearray() for fd in self._readers}
        left = len(self._items)
        with selectors.DefaultSelector() as selector:
            for fd in self._readers:
                selector.register(fd, selectors.EVENT_READ)
            while left:
                for key, _ in selector.select():
                    data = os.read(key.fd, _PIECE)
                    if not data:
                        selector.unregister(key.fd)
                        if held[key.fd] or not selector.get_map():
                            raise ChildProcessError("a process that worked for this one has ended")
                    held[key.fd] += data
                    for number, result in _complete(held[key.fd]):
                        left -= 1
                        if isinstance(result, _Raised):
                            raise result.exc
                        yield self._items[number], result


class _Raised:
    def __init__(self, exc: Exception) -> None:
        self.exc = exc


def _complete(data: bytearray) -> Iterator[tuple[int, Any]]:
    """The results that `data` begins with, which it loses."""
    while len(data) >= _NUMBER.size:
        end = _NUMBER.size + _NUMBER.unpack_from(data)[0]
        if len(data) < end:
            return
        # Of our own child.
        found: tuple[int, Any] = pickle.loads(data[_NUMBER.size : end])  # noqa: S301
        del data[:end]
        yield found


def _child(parent: int, mask: set[int], work: Callable[[], None]) -> None:
    """Work, and end, whatever happens; also when the parent ends. `mask`: the signals that are
    blocked."""
    code = 1
    try:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == parent:
            work()
            code = 0
    finally:
        os._exit(code)
