"""Small screens above the others: questions, help, and what went wrong."""

from __future__ import annotations

import textwrap
from typing import ClassVar, Final

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from fuseoverlay.errors import visible

_HELP: Final = """\
Everywhere
  tab, shift+tab       next pane, previous pane
  ↑ k  ↓ j             up, down
  pgup u  pgdn d       a page up, down
  home g  end G        to the first, the last
  ctrl+l  ctrl+a  m    this layer's changes; all up to it; the other
  c                    compare with another layer
  ctrl+f /             find paths: text or a shell pattern
  esc                  end finding, comparing
  ? F1                 this help
  q ctrl+c             quit

Layers
  enter                go to the tree
Waste
  ↑ k  ↓ j             say why it is wasted, in the pane above
  enter                show the path, in the layer that hides it
Tree
  → l  ← h  space      open, close a directory
  ctrl+space           close all directories
  enter v              show the content of a file; follow a link
  ctrl+a A  ctrl+r R   show added, removed
  ctrl+m M  ctrl+u U   show changed, unchanged
  ctrl+b b             show mode, owner and size
  ctrl+p w             show long names whole
  ctrl+o o             sort by name or by size
  ctrl+e e             extract the file or directory
Content
  x                    text or hexadecimal digits
  ctrl+p w             show long lines whole
  esc q                back

Letters
  A M D                added, changed, removed
  =                    unchanged, but the layer has the file again
  ~                    something below it was added, changed or removed"""
#: Columns before what the keys do; on narrow screens before its further lines.
_KEYS: Final = 23
_INDENT: Final = 4
#: So many columns are enough for words.
_ENOUGH: Final = 20


class Above(ModalScreen[str | None]):
    """A box that escape closes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "back"),
        Binding("ctrl+c", "app.quit", "quit", priority=True),
    ]
    DEFAULT_CSS = """
    Above { align: center middle; }
    Above > .box {
        width: 76; max-width: 100%; height: auto; max-height: 100%;
        border: round $primary; padding: 0 1; background: $surface;
    }
    """

    def action_back(self) -> None:
        """Close it without an answer."""
        self.dismiss(None)


class Ask(Above):
    """Asks for a line of text."""

    def __init__(self, question: str, given: str = "") -> None:
        super().__init__()
        self._question, self._given = question, given

    def compose(self) -> ComposeResult:
        """The question, and room for the answer."""
        with Vertical(classes="box"):
            yield Static(Text(visible(self._question)))
            yield Input(self._given, compact=True)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """That is the answer."""
        self.dismiss(event.value)


class Tell(Above):
    """Says something."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,q,question_mark,f1", "back", "back", show=False)
    ]

    def __init__(self, text: RenderableType) -> None:
        """A text may have several lines, and must be fit for a terminal."""
        super().__init__()
        self._text = Text(text) if isinstance(text, str) else text

    def compose(self) -> ComposeResult:
        """The text."""
        with VerticalScroll(classes="box"):
            yield Static(self._text)


class _Help:
    """Puts each line that is too long on several, below what it says of the keys."""

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        indent = " " * (_KEYS if width >= _KEYS + _ENOUGH else _INDENT)
        for line in _HELP.splitlines():
            yield Text("\n".join(textwrap.wrap(line, width, subsequent_indent=indent)))


def help_screen() -> Tell:
    """What the keys do."""
    return Tell(_Help())
