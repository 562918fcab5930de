"""Pieces that a thread makes a little ahead of who takes them.

Decompressing and hashing need no interpreter, so they go on beside the making of files.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Final

#: So many pieces may wait to be taken.
_WAITING: Final = 4


class Ahead:
    """The pieces that `make` returns, b"" being the end. The thread starts with the second one,
    since many streams have one only. Close it, or the thread may wait for ever."""

    def __init__(self, make: Callable[[], bytes]) -> None:
        self._make = make
        self._made: queue.SimpleQueue[bytes | BaseException] = queue.SimpleQueue()
        self._room = threading.Semaphore(_WAITING)
        self._thread: threading.Thread | None = None
        self._begun = self._closed = False

    def take(self) -> bytes:
        """The next piece; raises what `make` raised."""
        if not self._begun:
            self._begun = True
            return self._make()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ahead", daemon=True)
            self._thread.start()
        found = self._made.get()
        self._room.release()
        if isinstance(found, BaseException) or not found:
            # The thread has ended, and the end may be asked for again.
            self._made.put(found)
        if isinstance(found, BaseException):
            raise found
        return found

    def close(self, *, wait: bool) -> None:
        """Make nothing more. The thread ends when `make` returns; `wait` for that."""
        self._closed = True
        self._room.release()
        if self._thread is not None and wait:
            self._thread.join()

    def _run(self) -> None:
        while True:
            self._room.acquire()
            if self._closed:
                return
            try:
                found = self._make()
            except BaseException as exc:  # noqa: BLE001 - whoever takes it raises it
                self._made.put(exc)
                return
            self._made.put(found)
            if not found:
                return
