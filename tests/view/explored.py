"""The full-screen program on a screen in memory, and stacks to look into."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import re
import stat
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from rich.segment import Segment
from textual.events import MouseScrollUp
from textual.pilot import Pilot
from textual.widgets import Input

from fuseoverlay.commands.explore import background
from fuseoverlay.commands.explore.app import Explorer
from fuseoverlay.commands.explore.lines import Lines
from fuseoverlay.errors import ImageError
from fuseoverlay.view import opened
from fuseoverlay.view.building import Listed, built
from fuseoverlay.view.layerindex import LayerIndex
from fuseoverlay.view.opened import Layer, View
from fuseoverlay.view.stack import Stack

#: A file's content, a link's target, None for a whiteout.
Made = bytes | Path | None

FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755


class Screen:
    """The program while it runs."""

    def __init__(self, run: Callable[[Coroutine[Any, Any, Any]], Any], app: Explorer,
                 pilot: Pilot[None]) -> None:  # fmt: skip
        self._run, self.app, self.pilot = run, app, pilot

    def settle(self) -> None:
        """Wait until nothing is under way in the background."""
        self._run(self._settled())

    async def begun(self) -> None:
        """Wait until the program has found out what it does at first."""
        while self.app.wastes.found is None and self.app.wastes.problem is None:
            await self.pilot.pause(0.002)
        await self._settled()

    async def _settled(self) -> None:
        await self.pilot.pause(0)
        while any(thread.name == background.NAME for thread in threading.enumerate()):
            await self.pilot.pause(0.002)
        await self.pilot.pause(0)
        await self.pilot.pause(0)

    def begin(self) -> None:
        """`begun`, and wait."""
        self._run(self.begun())

    def keys(self, *keys: str) -> None:
        """Press keys, whatever is under way in the background."""
        for key in keys:
            self._run(self.pilot.press(key))

    def press(self, *keys: str) -> None:
        """Press keys, one after the other; wait for what they lead to."""
        for key in keys:
            self._run(self.pilot.press(key))
            self.settle()

    def type(self, text: str) -> None:
        """Write into the field that has the focus."""
        self.write(text)
        self.settle()

    def write(self, text: str) -> None:
        """The same, whatever is under way in the background."""
        self._run(self._typed(text))

    async def _typed(self, text: str) -> None:
        field = self.app.screen.focused
        assert isinstance(field, Input)
        field.insert_text_at_cursor(text)

    def click(self, widget: Lines, x: int, y: int, times: int = 1) -> None:
        """Click on a place of a pane."""
        offset = (x + widget.gutter.left, y + widget.gutter.top)
        self._run(self.pilot.click(widget, offset=offset, times=times))
        self.settle()

    def wheel_up(self, widget: Lines) -> None:
        """Turn the wheel over a pane."""
        self._run(self._turned(widget))
        self.settle()

    async def _turned(self, widget: Lines) -> None:
        await self.pilot._post_mouse_events([MouseScrollUp], widget, (1, 1))

    def resize(self, width: int, height: int) -> None:
        """Make the screen of another size."""
        self._run(self.pilot.resize_terminal(width, height))
        self.settle()

    def strips(self) -> list[list[Segment]]:
        """All that is on the screen."""
        with self.app._context():
            return [[*strip] for strip in self.app.screen._compositor.render_strips()]

    def text(self) -> str:
        """The same as text."""
        return "\n".join("".join(part.text for part in strip) for strip in self.strips())

    def prose(self, width: int = 44) -> str:
        """What is in these columns on the left, without frames, scrollbars and line ends."""
        lines = (line[:width] for line in self.text().splitlines())
        return " ".join(re.sub("[│▁-█]", " ", " ".join(lines)).split())

    def boxed(self) -> str:
        """The text in the box above the panes, without line ends."""
        (box,) = self.app.screen.query(".box")
        lines = self.text().splitlines()[box.region.y : box.region.bottom]
        inside = (line[box.region.x + 1 : box.region.right - 1].strip() for line in lines)
        return " ".join(inside)

    def rows(self) -> list[str]:
        """The rows of the tree, all of them: letter and path."""
        model = self.app.files.model
        found = []
        for row in model.rows:
            path = "/" + b"/".join(row.path).decode(errors="replace")
            found.append(f"{model.letter(row)} {path}")
        return found

    def go_to(self, path: str) -> None:
        """Put the cursor of the tree on a path, opening what leads there."""
        names = tuple(os.fsencode(name) for name in path.split("/") if name)
        self.app.files.reveal(names, opening=True)
        self.app._go(self.app.files)
        self.settle()

    @property
    def path(self) -> str:
        """Where the cursor of the tree is."""
        return "/" + b"/".join(self.app.files.row.path).decode(errors="replace")

    def colour(self, name: str) -> str | None:
        """The colour in which a text is on the screen."""
        for strip in self.strips():
            for part in strip:
                if name in part.text and part.style is not None and part.style.color:
                    return part.style.color.name
        return None


@contextlib.contextmanager
def explored(
    view: View, width: int = 110, height: int = 40, *, begun: bool = True
) -> Iterator[Screen]:
    """Run the program on a screen of this size. With `begun`, wait for what it does at first."""
    with asyncio.Runner() as runner:

        def run(work: Coroutine[Any, Any, Any]) -> Any:
            return runner.run(_limited(work))

        app = Explorer(view)
        running = app.run_test(size=(width, height))
        pilot = run(running.__aenter__())
        screen = Screen(run, app, pilot)
        try:
            if begun:
                screen.begin()
            yield screen
        finally:
            run(running.__aexit__(None, None, None))


async def _limited(work: Coroutine[Any, Any, Any]) -> Any:
    async with asyncio.timeout(60):
        return await work


def layers(base: Path, *made: Mapping[str, Made]) -> list[bytes]:
    """Directories as layers, the bottom one first; returns them from the top."""
    paths = []
    for number, files in enumerate(made, 1):
        root = base / f"layer{number}"
        root.mkdir()
        for name, content in files.items():
            _make(root / name, content)
        paths.append(os.fsencode(root))
    return paths[::-1]


def _make(path: Path, content: Made) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        os.mknod(path, stat.S_IFCHR | 0o600, 0)
    elif isinstance(content, Path):
        path.symlink_to(content)
    else:
        path.write_bytes(content)


@contextlib.contextmanager
def stack(base: Path, *made: Mapping[str, Made]) -> Iterator[View]:
    """An open stack of such layers."""
    warnings: list[str] = []
    with opened.directories("stack", layers(base, *made), None, warnings.append) as view:
        named = [dataclasses.replace(one, name=f"layer{one.number}") for one in view.layers]
        yield dataclasses.replace(view, layers=tuple(named))
    assert not warnings


class Nested:
    """Lists `directories` in a directory, to a depth, and `files` in the last ones; for
    `building`."""

    def __init__(self, directories: Sequence[int], files: int) -> None:
        self._directories, self._files = directories, files

    def root(self) -> Listed:
        """The root."""
        return Listed(b"", DIRECTORY)

    def children(self, path: tuple[bytes, ...]) -> Iterable[Listed]:
        """What is in a directory."""
        if len(path) < len(self._directories):
            return [Listed(b"%05d" % n, DIRECTORY) for n in range(self._directories[len(path)])]
        return [Listed(b"f%05d" % n, FILE, size=n) for n in range(self._files)]


def nested(directories: Sequence[int], files: int) -> View:
    """A layer made of numbers alone."""
    index = LayerIndex(built(Nested(directories, files)))
    return View("nested", (Layer(1, "nested"),), Stack([index]), NoContents())


class NoContents:
    """No file has content."""

    def contents(self, _number: int, _rows: Sequence[int]) -> Iterator[tuple[int, IO[bytes]]]:
        """None."""
        raise ImageError("no content")
