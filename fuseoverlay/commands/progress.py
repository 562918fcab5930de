"""A progress bar on a terminal; elsewhere nothing."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Protocol


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
    """Yields a function that takes reports; None if stderr is no terminal, or if
    `quiet`."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with contextlib.ExitStack() as running:
        bar = Progress(*columns, console=Console(stderr=True), transient=True)
        task = bar.add_task(what, total=None)

        def report(now: Report) -> None:
            # Shown from the first report on: until then something else may be shown.
            if not bar.live.is_started:
                running.enter_context(bar)
            text = f"{what} layer {now.layer} of {now.layers}"
            bar.update(task, description=text, completed=now.done, total=now.total)

        yield report
