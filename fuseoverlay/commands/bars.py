"""Bars on a terminal, a line each, which never wraps. Imported only where they are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from rich.console import Console
from rich.filesize import pick_unit_and_suffix
from rich.progress import Progress, Task, TaskID
from rich.text import Text

#: How urgent a line is where not all have room: what is going on, what waits, what is over.
NOW, LATER, OVER = range(3)

#: A bar of so many columns, as long as there is room for the least.
_WIDEST, _LEAST = 40, 8
#: Columns of the longest pace.
_PACE: Final = len("999.9 MB/s")
_UNITS: Final = ["kB", "MB", "GB", "TB"]


class _Console(Console):
    """Stderr. The cursor is never hidden: nothing has to bring it back, whatever ends us."""

    def show_cursor(self, show: bool = True) -> bool:
        """Leave it as it is."""
        return False


def rate(task: Task) -> str:
    """How fast it goes, if that is known."""
    unit, suffix = pick_unit_and_suffix(int(task.speed or 0), ["B", *_UNITS], 1000)
    return f"{task.speed / unit:.1f} {suffix}/s" if task.speed else ""


def remaining(task: Task) -> str:
    """How many minutes and seconds it takes yet, if that is known."""
    left = task.time_remaining
    return f"{int(left) // 60}:{int(left) % 60:02}" if left else ""


class Bars(Progress):
    """A line for each thing. They appear with the first, and stay unless `transient`."""

    def __init__(self, pace: Callable[[Task], str], *, transient: bool = False) -> None:
        self._pace = pace
        self._ids: dict[str, TaskID] = {}
        self._terminal = _Console(stderr=True)
        self._ended = False
        #: Columns of the longest state that there was, so that bars keep their place.
        self._state = 0
        super().__init__(console=self._terminal, transient=transient)

    def show(self, name: str, state: str, done: int, total: int, work: int = NOW) -> None:
        """Show how the thing of this name is."""
        if name not in self._ids:
            self._ids[name] = self.add_task(name, total=total, state=state, work=work)
        task = self._ids[name]
        self._state = max(self._state, len(state))
        if self.tasks[task].fields["work"] != work or done < self.tasks[task].completed:
            # What is done next goes at another rate.
            self.reset(task, completed=done, state=state, work=work)
        self.update(task, completed=done, total=total, state=state, work=work)
        # Until then something else may be shown.
        self.start()

    def stop(self) -> None:
        """Show the end, if anything was shown."""
        if self.live.is_started:
            self._ended = True
            super().stop()

    def get_renderable(self) -> Text:
        """The lines; at the end all of them, before those for which there is room."""
        size = self._terminal.size
        shown, more = list(self.tasks), []
        if not self._ended and len(shown) >= size.height:
            over = sum(task.fields["work"] == OVER for task in shown)
            more = [f"{over} of {len(shown)} layers are done"]
            urgent = sorted(shown, key=lambda task: (task.fields["work"], task.id))
            shown = sorted(urgent[: max(size.height - 2, 1)], key=lambda task: task.id)
        lines = [*_lines(shown, self._pace, size.width, self._state), *more]
        return Text("\n".join(lines), no_wrap=True, overflow="crop")


def _lines(tasks: Sequence[Task], pace: Callable[[Task], str], width: int, state: int) -> list[str]:
    """What has no room goes: first the pace, then the bar, then the end of the state."""
    names = [f"{task.description} " if task.description else "" for task in tasks]
    states = [task.fields["state"].ljust(state) for task in tasks]
    sizes = [text.rjust(_widest(_sizes(tasks))) for text in _sizes(tasks)]
    paces = [pace(task) if task.fields["work"] == NOW else "" for task in tasks]
    # Always with room for a pace, so that bars keep their length.
    left = width - sum(map(_widest, (names, states, sizes))) - 1
    with_pace = left - _PACE - 1
    if with_pace > _LEAST:
        bars = [_bar(task, min(with_pace - 1, _WIDEST)) + " " for task in tasks]
    else:
        paces = [""] * len(tasks)
        bars = [_bar(task, left - 1) + " " if left > _LEAST else "" for task in tasks]
    if left < 0:
        states = [text[: max(state + left, 0)] for text in states]
    rows = zip(names, states, bars, sizes, paces, strict=True)
    return [f"{name}{text} {bar}{size} {pace}".rstrip()
            for name, text, bar, size, pace in rows]  # fmt: skip


def _sizes(tasks: Sequence[Task]) -> list[str]:
    found = []
    for task in tasks:
        total = int(task.total or 0)
        unit, suffix = pick_unit_and_suffix(total, ["bytes", *_UNITS], 1000)
        digits = 0 if unit == 1 else 1
        found.append(f"{task.completed / unit:.{digits}f}/{total / unit:.{digits}f} {suffix}")
    return found


def _bar(task: Task, width: int) -> str:
    """Docker's, which needs neither colours nor more than ASCII."""
    room = width - 2
    full = int(room * task.completed / task.total) if task.total else room
    return f"[{('=' * full + '>')[:room].ljust(room)}]"


def _widest(texts: Sequence[str]) -> int:
    return max(map(len, texts), default=0)
