"""How pyfuse3 waits for requests: without a turn of trio's loop if the next one is already there.

pyfuse3 takes a lock and waits for its descriptor before every request. With trio's own lock and
wait that takes two turns of the loop and two more system calls, which cost as much as everything
else that most requests need. `Trio` stands in for the module, as pyfuse3's own `pyfuse3.asyncio`
does.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

import trio

from fuseoverlay.native import extension

# Other tasks get a turn after so many requests in a row, and after so many seconds.
_ROW: Final = 16
_ROW_SECONDS: Final = 0.002


class Lock:
    """A lock that takes no turn of the loop if it is free. It is not fair: the task that has just
    served a request may serve the next; others need to get in only while it is suspended."""

    def __init__(self) -> None:
        self._held = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self._held:
            await self._waiting.park()
        self._held = True

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._held = False
        self._waiting.unpark()


class LowLevel:
    """`trio.lowlevel` with another `wait_readable`, for one descriptor."""

    def __init__(self) -> None:
        self._is_ready: Callable[[], bool] | None = None
        self._fd = -1
        self._row = 0
        self._row_ends = 0.0
        self._before: Callable[[], None] | None = None
        self._at_end: Callable[[], None] | None = None
        # Set only without the extension, which sees the end by itself.
        self._poll: select.poll | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    def before_next(self, function: Callable[[], None]) -> None:
        """Call `function` before the next request is waited for."""
        self._before = function

    def at_end(self, function: Callable[[], None]) -> None:
        """Call `function` at once when the kernel has ended the connection."""
        self._at_end = function
        extension.at_end(function)

    async def wait_readable(self, fd: int) -> None:
        """Return once `fd` is readable; suspends only if it is not, or after many in a row."""
        if self._before is not None:
            function, self._before = self._before, None
            function()
        if self._is_ready is None:
            self._is_ready = extension.waiter() or self._poller(fd)
        self._fd = fd
        if self._row < _ROW and time.monotonic() < self._row_ends and self._is_ready():
            self._row += 1
            return
        await trio.lowlevel.wait_readable(fd)
        if self._poll is not None and self._at_end is not None and _has_ended(self._poll):
            self._at_end()
        self._row = 0
        self._row_ends = time.monotonic() + _ROW_SECONDS

    def _poller(self, fd: int) -> Callable[[], bool]:
        self._poll = poll = select.poll()
        poll.register(fd, select.POLLIN)
        return lambda: bool(poll.poll(0))

    async def wait_for_thread(self, event_fd: int) -> None:
        """Return once `event_fd` is readable, which a thread is about to write to. Suspends only if
        a request comes first, or after a millisecond."""
        poll = select.poll()
        poll.register(event_fd, select.POLLIN)
        poll.register(self._fd, select.POLLIN)
        if event_fd not in dict(poll.poll(1)):
            await trio.lowlevel.wait_readable(event_fd)


def _has_ended(poll: select.poll) -> bool:
    return any(events & select.POLLERR for _, events in poll.poll(0))


class Trio:
    """The module `trio` as pyfuse3 sees it."""

    Lock = Lock

    def __init__(self) -> None:
        self.lowlevel = LowLevel()

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)
