"""The progress of a pull: a bar for each blob on a terminal, a line for each one elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from fuseoverlay.commands import output
from fuseoverlay.commands.image import common
from fuseoverlay.oci.model import Digest
from fuseoverlay.store.pull import Arrival

_Report = Callable[[Arrival], None]


def _nothing(_arrival: Arrival) -> None:
    pass


@contextlib.contextmanager
def shown(*, quiet: bool) -> Iterator[_Report]:
    """Yields a function that takes reports, all from one thread."""
    if quiet:
        yield _nothing
    elif sys.stderr.isatty():
        with _bars() as report:
            yield report
    else:
        yield _Lines().report


class _Lines:
    """A line when a blob begins to be there, and none for what only goes on."""

    def __init__(self) -> None:
        self._told: dict[Digest, str] = {}

    def report(self, arrival: Arrival) -> None:
        """Say what is new."""
        digest, state = arrival.blob.digest, _state(arrival)
        if self._told.get(digest) != state and state != "Downloading":
            output.note(f"{common.short(digest)}: {state}")
        self._told[digest] = state


def _state(arrival: Arrival) -> str:
    if arrival.waiting:
        return "Waiting for another process"
    if arrival.before == arrival.blob.size:
        return "Already exists"
    return "Download complete" if arrival.complete else "Downloading"


@contextlib.contextmanager
def _bars() -> Iterator[_Report]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        TextColumn("{task.fields[state]}", style="dim"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[Digest, TaskID] = {}

        def report(arrival: Arrival) -> None:
            digest, total = arrival.blob.digest, arrival.blob.size
            if digest not in tasks:
                tasks[digest] = bars.add_task(common.short(digest), total=total, state="")
            bars.update(tasks[digest], completed=arrival.done, state=_state(arrival))

        yield report
