"""A progress bar on a terminal; elsewhere nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

from fuseoverlay.commands import output


class Report(Protocol):
    """A report of progress: bytes done and in all; layers are counted from 1."""

    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def layer(self) -> int: ...
    @property
    def layers(self) -> int: ...


@contextlib.contextmanager
def shown(what: str, *, quiet: bool = False) -> Iterator[Callable[[Report], None] | None]:
    """Yields a function that takes reports; None where there is no screen, or if
    `quiet`."""
    if quiet or not output.is_screen():
        yield None
        return
    from fuseoverlay.commands.bars import Bars, remaining

    bars = Bars(remaining, transient=True)

    def report(now: Report) -> None:
        text = f"{what} layer {now.layer} of {now.layers}"
        bars.show("", text, now.done, now.total)

    try:
        yield report
    finally:
        bars.stop()
