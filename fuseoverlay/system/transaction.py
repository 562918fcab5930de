"""A change of the upper happens or it does not.

Each step prepared on disk is noted here with the call that undoes it, and undone when an exception
leaves the block. The call that makes the change visible comes last. Memory and indexes follow it in
code that cannot fail; after that, only tidying is left.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from types import TracebackType
from typing import ParamSpec, Self

log = logging.getLogger("fuseoverlay")

P = ParamSpec("P")


class Transaction:
    """One change, complete at the end of a `with` block. An exception undoes what was half done."""

    __slots__ = ("_undo",)

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def on_error(self, call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Make this call if the change fails; the last one noted goes first. Its own errors are
        only logged: nothing more can be done."""
        self._undo.append(functools.partial(tidy, call, *args, **kwargs))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if kind is not None:
            with contextlib.ExitStack() as undo:
                for call in self._undo:
                    undo.callback(call)


def tidy(call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Make a call that no longer decides whether the change has happened: its error is logged, and
    not reported as a failure of the change."""
    try:
        call(*args, **kwargs)
    except OSError as exc:
        log.warning("tidying up after a change: %s", exc)
