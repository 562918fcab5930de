"""Work of a pull or push that goes on at the same time: threads for what blocks, one error."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import trio

from fuseoverlay.store.arriving import StoppedError

_T = TypeVar("_T")


@contextlib.asynccontextmanager
async def nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery that raises one error, not a group: the first that tells why it ended."""
    try:
        async with trio.open_nursery() as opened:
            yield opened
    except BaseExceptionGroup as group:
        raise _cause(group) from None


def _cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    cancelled, others = group.split(trio.Cancelled)
    stopped, causes = others.split(StoppedError) if others else (None, None)
    found: BaseException = causes or cancelled or stopped or group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


async def in_thread(function: Callable[..., _T], *args: Any) -> _T:
    """The result of a call that may block. It is waited for also if the caller is cancelled."""
    return await trio.to_thread.run_sync(function, *args)
