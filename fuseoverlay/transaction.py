"""A change of the upper happens or it does not.

What is prepared on disk is noted here with how to take it back, and taken back when an exception
leaves. The call that makes the change visible comes last; memory and indexes follow it, in code
that cannot fail, and then what is only tidying.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import ParamSpec

log = logging.getLogger("fuseoverlay")

P = ParamSpec("P")


class Transaction:
    """One change that is being made."""

    def __init__(self, undo: contextlib.ExitStack) -> None:
        self._undo = undo

    def on_error(self, call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Make this call if the change fails, the last one noted first. Its own errors are
        logged: nobody can do more."""
        self._undo.callback(functools.partial(tidy, call, *args, **kwargs))


@contextlib.contextmanager
def begin() -> Iterator[Transaction]:
    """A change, made by the end of the block; what an exception leaves half done is taken back."""
    with contextlib.ExitStack() as undo:
        yield Transaction(undo)
        undo.pop_all()


def tidy(call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Make a call that no longer decides whether the change has happened: its error is logged,
    and nobody is told that the change failed."""
    try:
        call(*args, **kwargs)
    except OSError as exc:
        log.warning("tidying up after a change: %s", exc)
