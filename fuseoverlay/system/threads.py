"""Run calls that may take long in threads: the event loop waits for nothing longer than a metadata
system call.

Threads get descriptors and bytes, never inodes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from typing import Any, Final, ParamSpec, TypeVar

import trio

P = ParamSpec("P")
T = TypeVar("T")

#: Waits until a descriptor that a thread will write to is readable.
Wait = Callable[[int], Awaitable[None]]

_MOST: Final = 16


class Worker:
    """A thread that makes one call after another. Going through trio's threads would double the
    time of many calls, such as fsync(2) of a small file."""

    def __init__(self, wait: Wait) -> None:
        self._wait = wait
        self._calls: SimpleQueue[Callable[[], Any]] = SimpleQueue()
        self._result: Any = None
        self._error: BaseException | None = None
        # An eventfd(2) that counts calls that have returned; -1 before the first call.
        self._done = -1
        self.is_busy = False

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of the call, or its error. Not while `is_busy`."""
        if self._done < 0:
            self._done = os.eventfd(0, os.EFD_CLOEXEC)
            threading.Thread(target=self._serve, daemon=True).start()
        self.is_busy = True
        self._calls.put(lambda: function(*args, **kwargs))
        try:
            # The thread works on what the caller owns, so cancelling must wait for it.
            with trio.CancelScope(shield=True):
                await self._wait(self._done)
            os.eventfd_read(self._done)
        finally:
            self.is_busy = False
        result, error = self._result, self._error
        self._result = self._error = None
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def _serve(self) -> None:
        while True:
            call = self._calls.get()
            try:
                self._result = call()
            except BaseException as exc:  # noqa: BLE001  # raised in the caller
                self._error = exc
            del call
            os.eventfd_write(self._done, 1)


class Threads:
    """A worker for one caller; while it is busy, other callers get trio's threads."""

    def __init__(self, wait: Wait = trio.lowlevel.wait_readable) -> None:
        self._worker = Worker(wait)
        self._limiter = trio.CapacityLimiter(_MOST)

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """The result of the call, or its error. A cancelled caller waits for the call, too."""
        if self._worker.is_busy:
            return await trio.to_thread.run_sync(function, *args, limiter=self._limiter)
        return await self._worker.run(function, *args)
