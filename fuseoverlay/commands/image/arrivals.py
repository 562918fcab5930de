"""The progress of a pull or push: a bar for each blob on a terminal, a line for each elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Final, Generic, Protocol, TypeVar

from fuseoverlay.commands import output
from fuseoverlay.commands.image import common
from fuseoverlay.oci.model import Descriptor, Digest
from fuseoverlay.store.pull import Arrival
from fuseoverlay.store.push import Departure


class Step(Protocol):
    """How far a blob is."""

    @property
    def blob(self) -> Descriptor: ...
    @property
    def done(self) -> int: ...


_S = TypeVar("_S", bound=Step)

#: What only goes on; elsewhere than on a terminal nothing is said of it.
_GOING_ON: Final = ("Downloading", "Pushing")


def _nothing(_step: object) -> None:
    pass


@contextlib.contextmanager
def shown(state: Callable[[_S], str], *, quiet: bool) -> Iterator[Callable[[_S], None]]:
    """Yields a function that takes reports, all from one thread. `state` says in words how it is:
    `coming` or `going`."""
    if quiet:
        yield _nothing
    elif sys.stderr.isatty():
        with _bars(state) as report:
            yield report
    else:
        yield _Lines(state).report


def coming(arrival: Arrival) -> str:
    """How a blob of a pull is."""
    if arrival.waiting:
        return "Waiting for another process"
    if arrival.before == arrival.blob.size:
        return "Already exists"
    return "Download complete" if arrival.complete else "Downloading"


def going(departure: Departure) -> str:
    """How a blob of a push is, in Docker's words."""
    if departure.source is not None:
        return f"Mounted from {departure.source}"
    if departure.there:
        return "Pushed" if departure.done == departure.blob.size else "Layer already exists"
    return "Pushing"


class _Lines(Generic[_S]):
    """A line when a blob begins to be there, and none for what only goes on."""

    def __init__(self, state: Callable[[_S], str]) -> None:
        self._state = state
        self._told: dict[Digest, str] = {}

    def report(self, step: _S) -> None:
        """Say what is new."""
        digest, state = step.blob.digest, self._state(step)
        if self._told.get(digest) != state and state not in _GOING_ON:
            output.note(f"{common.short(digest)}: {state}")
        self._told[digest] = state


@contextlib.contextmanager
def _bars(state: Callable[[_S], str]) -> Iterator[Callable[[_S], None]]:
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

        def report(step: _S) -> None:
            digest, total = step.blob.digest, step.blob.size
            if digest not in tasks:
                tasks[digest] = bars.add_task(common.short(digest), total=total, state="")
            bars.update(tasks[digest], completed=step.done, state=state(step))

        yield report
