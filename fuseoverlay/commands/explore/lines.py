"""A list on the screen of which only the lines that are seen are made; the other widgets build on
it.

It scrolls by items. An item has one line, or with `wrap` as many as it needs.
"""

from __future__ import annotations

from typing import ClassVar, Final

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

_SELECTED: Final = Style(reverse=True)
#: Where the cursor is in a list that does not have the focus.
_MARKED: Final = Style(bold=True, underline=True)


class Lines(ScrollView, can_focus=True):
    """Shows what `count` and `text` say."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "up", show=False),
        Binding("down,j", "move(1)", "down", show=False),
        Binding("pageup,u", "page(-1)", "page up", show=False),
        Binding("pagedown,d", "page(1)", "page down", show=False),
        Binding("home,g", "ends(0)", "first", show=False),
        Binding("end,G", "ends(1)", "last", show=False),
        Binding("enter", "choose", "choose", show=False),
        Binding("tab", "app.pane(1)", "next pane", show=False),
        Binding("shift+tab", "app.pane(-1)", "previous pane", show=False),
    ]
    DEFAULT_CSS = "Lines { overflow-x: hidden; scrollbar-size-vertical: 1; }"

    class Moved(Message):
        """The cursor of `lines` has moved."""

        def __init__(self, lines: Lines) -> None:
            super().__init__()
            self.lines = lines

    class Chosen(Message):
        """The item at the cursor of `lines` was chosen."""

        def __init__(self, lines: Lines) -> None:
            super().__init__()
            self.lines = lines

    def __init__(self, name: str) -> None:
        """`name`: its id."""
        super().__init__(id=name)
        self.cursor = 0
        self.wrap = False
        #: What each line of the screen shows, from the first on: the number of an item, and a line
        #: of its text. Empty: not known.
        self._shown: list[tuple[int, Text]] = []

    def count(self) -> int:
        """The number of items."""
        raise NotImplementedError

    def text(self, index: int) -> Text:
        """One item."""
        raise NotImplementedError

    # painting

    def changed(self) -> None:
        """The items are others now, or look different."""
        self.cursor = max(0, min(self.cursor, self.count() - 1))
        # So that the last one can be the first that is seen if it needs all lines.
        height = self.count() + (max(0, self.size.height - 1) if self.wrap else 0)
        self.virtual_size = Size(self.size.width, height)
        self._follow()
        self._paint()

    def _paint(self) -> None:
        self._shown = []
        self.refresh()

    def on_resize(self, _event: events.Resize) -> None:
        """Lines have another length now."""
        self.changed()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Other items are seen."""
        self._shown = []
        super().watch_scroll_y(old_value, new_value)

    def render_line(self, y: int) -> Strip:
        """The line `y` of those that are seen."""
        if not self._shown:
            self._shown = self._laid_out()
        width = self.size.width
        if y >= len(self._shown):
            return Strip.blank(width, self.rich_style)
        index, text = self._shown[y]
        strip = Strip(text.render(self.app.console)).crop_extend(0, width, self.rich_style)
        strip = strip.apply_style(self.rich_style)
        if index != self.cursor:
            return strip
        return strip.apply_style(_SELECTED if self.has_focus else _MARKED)

    def _laid_out(self) -> list[tuple[int, Text]]:
        shown: list[tuple[int, Text]] = []
        for index in range(self._top, self.count()):
            if len(shown) >= self.size.height:
                break
            shown += [(index, line) for line in self._lines(index)]
        return shown

    def _lines(self, index: int) -> list[Text]:
        text = self.text(index)
        text.end = ""
        width = self.size.width
        if not self.wrap or width < 1 or text.cell_len <= width:
            return [text]
        lines = _folded(text, width)
        for line in lines:
            line.end = ""
        return lines

    @property
    def _top(self) -> int:
        return self.scroll_offset.y

    # moving

    def move_to(self, index: int) -> None:
        """Put the cursor on this item."""
        index = max(0, min(index, self.count() - 1))
        moved = index != self.cursor
        self.cursor = index
        self._follow()
        self._paint()
        if moved:
            self.post_message(self.Moved(self))

    def _follow(self) -> None:
        """Scroll so that the cursor is seen."""
        height = max(1, self.size.height)
        top = min(self._top, self.cursor)
        if not self.wrap:
            top = max(top, self.cursor - height + 1)
        else:
            top = max(top, self._first_above(self.cursor, height))
        if top != self._top:
            self.scroll_to(y=top, animate=False, immediate=True, force=True)

    def _first_above(self, index: int, height: int) -> int:
        """The first of the items that fit on the screen together with this one below them."""
        height -= len(self._lines(index))
        while index and (height := height - len(self._lines(index - 1))) >= 0:
            index -= 1
        return index

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        self.move_to(self.cursor + by)

    def action_page(self, by: int) -> None:
        """Move the cursor by what is seen."""
        self.move_to(self.cursor + by * max(1, self.size.height - 1))

    def action_ends(self, last: int) -> None:
        """Move the cursor to the first or the last item."""
        self.move_to(self.count() - 1 if last else 0)

    def action_choose(self) -> None:
        """Choose the item at the cursor."""
        if self.count():
            self.post_message(self.Chosen(self))

    def action_wrap(self) -> None:
        """Show long items on several lines, or cut them."""
        self.wrap = not self.wrap
        self.changed()

    def on_focus(self) -> None:
        """The cursor looks different."""
        self._paint()

    def on_blur(self) -> None:
        """The cursor looks different."""
        self._paint()

    def on_click(self, event: events.Click) -> None:
        """Something is clicked."""
        at = event.get_content_offset(self)
        if at is not None and at.y < len(self._shown):
            self.clicked(self._shown[at.y][0], at.x, event.chain)

    def clicked(self, index: int, _x: int, times: int) -> None:
        """Select an item that is clicked; a second click chooses it."""
        self.move_to(index)
        if times == 2:
            self.action_choose()


def _folded(text: Text, width: int) -> list[Text]:
    """The text in lines of so many columns."""
    offsets, column = [], 0
    for at, char in enumerate(text.plain):
        cells = cell_len(char)
        if column + cells > width:
            offsets.append(at)
            column = 0
        column += cells
    return list(text.divide(offsets))
