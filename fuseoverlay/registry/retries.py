"""What may pass is tried again: a bounded number of times, and later each time."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import trio

from fuseoverlay.errors import RegistryError
from fuseoverlay.registry.settings import Patience

_T = TypeVar("_T")


class Passing(Exception):  # it becomes an error only if it does not pass
    """Something that may pass.

    `error` is raised if it does not. `wait`: seconds after which the registry wants to be asked
    again. `once`: one more try is all that is polite.
    """

    def __init__(
        self, error: RegistryError, *, wait: float | None = None, once: bool = False
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait = wait
        self.once = once


class Tries:
    """Counts the failures of one operation, and waits after each."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._failures = 0
        self._asked_once = False

    def progress(self) -> None:
        """Something was got: failures before do not count any more."""
        self._failures = 0

    async def failed(self, passing: Passing) -> None:
        """Wait until it is time for another try; raise the error if there shall be none."""
        self._failures += 1
        wait = self._delay() if passing.wait is None else passing.wait
        if self._given_up(passing, wait):
            raise passing.error from passing
        self._asked_once = self._asked_once or passing.once
        await trio.sleep(wait)

    def _given_up(self, passing: Passing, wait: float) -> bool:
        patience = self._patience
        longest = patience.longest_quota_wait if passing.once else patience.longest_wait
        if passing.once and (self._asked_once or passing.wait is None):
            return True
        return self._failures >= patience.tries or wait > longest

    def _delay(self) -> float:
        patience = self._patience
        delay = min(patience.first_delay * 2.0 ** (self._failures - 1), patience.longest_delay)
        return delay * random.uniform(0.5, 1.5)  # noqa: S311  # spreads load, hides nothing


async def retried(patience: Patience, operation: Callable[[], Awaitable[_T]]) -> _T:
    """The result of `operation`, which is called again after each `Passing`."""
    tries = Tries(patience)
    while True:
        try:
            return await operation()
        except Passing as passing:
            await tries.failed(passing)


def retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a Retry-After header asks to wait (RFC 9110 10.2.3); None if it says nothing."""
    if not value:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - (now or datetime.now(UTC))).total_seconds())
