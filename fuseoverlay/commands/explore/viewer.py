"""The screen that shows the content of a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Static

from fuseoverlay.commands.explore.content import MOST, Content
from fuseoverlay.commands.explore.lines import Lines
from fuseoverlay.commands.show import units

#: Columns of a number, or of an offset in hexadecimal digits.
_NUMBER: Final = 8


class _ContentLines(Lines):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.lines: Sequence[tuple[str, str]] = ()

    def count(self) -> int:
        return len(self.lines)

    def text(self, index: int) -> Text:
        number, line = self.lines[index]
        return Text(no_wrap=True).append(f"{number:>{_NUMBER}} ", "dim").append(line)


class Viewer(Screen[None]):
    """The content as text or in hexadecimal digits."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss", "back"),
        Binding("ctrl+c", "app.quit", "quit", priority=True),
        Binding("x", "hex", "text or hex"),
        Binding("ctrl+p,w", "wrap", "wrap"),
    ]
    DEFAULT_CSS = """
    Viewer Static { height: 1; background: $primary; color: $text; }
    Viewer:nocolor Static { text-style: reverse; }
    """

    def __init__(self, path: str, content: Content) -> None:
        """`path`: as it is shown."""
        super().__init__()
        self._path, self._content = path, content
        self.hex = not content.is_text

    def compose(self) -> ComposeResult:
        """Path and kind, content, keys."""
        yield Static(Text(self._heading(), no_wrap=True))
        yield _ContentLines("content")
        yield Static("x text or hex  w wrap  esc back", markup=False)

    def _heading(self) -> str:
        content = self._content
        cut = f", the first {MOST // 1024} KiB" if content.cut else ""
        return f"{self._path}: {content.kind}, {units.size(content.size)}{cut}"

    def on_mount(self) -> None:
        """Show it."""
        self._show()

    def _show(self) -> None:
        lines = self.query_one(_ContentLines)
        lines.lines = self._content.lines(hex=self.hex)
        lines.changed()
        lines.move_to(0)

    def action_hex(self) -> None:
        """Show it the other way."""
        self.hex = not self.hex
        self._show()

    def action_wrap(self) -> None:
        """Show long lines whole, or cut them."""
        self.query_one(_ContentLines).action_wrap()
