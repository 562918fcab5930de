"""The progress of a pull or push: a bar for each layer on a terminal, a line for each elsewhere."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Final, Generic, Protocol, TypeVar

from fuseoverlay.commands import output
from fuseoverlay.commands.image import common
from fuseoverlay.oci.model import CONFIG_TYPES, Descriptor, Digest
from fuseoverlay.store.pull import Arrival
from fuseoverlay.store.push import Departure
from fuseoverlay.store.unpacking import Unpacking


class Step(Protocol):
    """How far a blob is."""

    @property
    def blob(self) -> Descriptor: ...
    @property
    def done(self) -> int: ...


_S = TypeVar("_S", bound=Step)

#: What only goes on, or has not begun; elsewhere than on a terminal nothing is said of it.
_GOING_ON: Final = ("Waiting", "Downloading", "Unpacking", "Pushing")
#: What was so before.
_OLD: Final = ("Waiting", "Already exists")


def coming(step: Arrival | Unpacking) -> str:
    """How a blob of a pull is, in Docker's words."""
    if isinstance(step, Unpacking):
        return "Pull complete" if step.complete else "Unpacking"
    if step.queued:
        return "Waiting"
    if step.waiting:
        return "Waiting for another process"
    if step.before == step.blob.size:
        return "Already exists"
    return "Download complete" if step.complete else "Downloading"


def going(departure: Departure) -> str:
    """How a blob of a push is, in Docker's words."""
    if departure.source is not None:
        return f"Mounted from {departure.source}"
    if departure.there:
        return "Pushed" if departure.done == departure.blob.size else "Layer already exists"
    return "Waiting" if departure.queued else "Pushing"


@contextlib.contextmanager
def shown(
    state: Callable[[_S], str],
    *,
    quiet: bool,
    heading: str | None = None,
    only_new: bool = False,
    unpack: bool = False,
) -> Iterator[Callable[[_S], None]]:
    """Yields a function that takes reports, from any thread. `state` says in words how it is:
    `coming` or `going`. The `heading` comes before the first. With `only_new`, nothing is shown
    unless something is not there yet. `unpack`: this follows the download."""
    if quiet:
        yield lambda _step: None
    elif output.is_screen():
        from fuseoverlay.commands.bars import LATER, NOW, OVER, Bars, rate

        bars = Bars(rate)

        def show(step: _S, text: str) -> None:
            size = step.blob.size
            if text == "Waiting" or (text == "Download complete" and unpack):
                work = LATER
            else:
                work = NOW if text in _GOING_ON or text.startswith("Waiting") else OVER
            done = size if work == OVER else step.done
            bars.show(common.short(step.blob.digest), text, done, size, work)

        try:
            yield _Reports(state, show, heading, silent=only_new).report
        finally:
            bars.stop()
    else:
        yield _Reports(state, _Lines().show, heading, silent=only_new).report


class _Reports(Generic[_S]):
    """Takes reports, from any thread, and shows those of layers. `silent`: they are kept as long as
    there is nothing new."""

    def __init__(
        self,
        state: Callable[[_S], str],
        show: Callable[[_S, str], None],
        heading: str | None,
        *,
        silent: bool,
    ) -> None:
        self._state = state
        self._show = show
        self._heading = heading
        self._silent = silent
        self._kept: dict[Digest, _S] = {}
        self._lock = threading.Lock()

    def report(self, step: _S) -> None:
        """Show it, and what was kept."""
        with self._lock:
            self._kept[step.blob.digest] = step
            if self._silent and self._state(step) in _OLD:
                return
            self._silent = False
            if self._heading is not None:
                output.note(self._heading)
                self._heading = None
            for kept in self._kept.values():
                if kept.blob.media_type not in CONFIG_TYPES:
                    self._show(kept, self._state(kept))
            self._kept.clear()


class _Lines:
    """A line when a blob begins to be there, and none for what only goes on."""

    def __init__(self) -> None:
        self._told: dict[Digest, str] = {}

    def show(self, step: Step, text: str) -> None:
        """Say what is new."""
        digest = step.blob.digest
        if self._told.get(digest) != text and text not in _GOING_ON:
            output.note(f"{common.short(digest)}: {text}")
        self._told[digest] = text
