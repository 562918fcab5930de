"""The tree on the screen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Final

from rich.text import Text
from textual.binding import Binding, BindingType

from fuseoverlay.commands.explore.lines import Lines
from fuseoverlay.commands.explore.model import BELOW, Line, Model, Row
from fuseoverlay.view.changes import Kind
from fuseoverlay.view.stack import Path

_COLOURS: Final[Mapping[str, str]] = {
    "A": "#8cc265", "M": "#e5c07b", "D": "#e06c75", BELOW: "#e5c07b",
}  # fmt: skip
#: The letters that stand for a kind in a key.
_KINDS: Final = {"A": Kind.ADDED, "R": Kind.REMOVED, "M": Kind.CHANGED, "U": Kind.SAME}
#: Columns of the attributes; a space follows each.
_WIDTHS: Final[Mapping[str, int]] = {"mode": 10, "owner": 11, "size": 7}
#: Which of them are shown: the first of these that leaves so many columns for names.
_CHOICES: Final = (("mode", "owner", "size"), ("mode", "size"), ("size",))
_NAMES: Final = 20
#: Columns without those of the attributes: the letter and a space.
_LETTER: Final = 2


class Tree(Lines):
    """Paints a `Model`."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,l", "open", "open", show=False),
        Binding("left,h", "close", "close", show=False),
        Binding("space", "fold", "open or close", show=False),
        Binding("ctrl+@,ctrl+space", "close_all", "close all", show=False),
        *(
            Binding(f"ctrl+{letter.lower()},{letter}", f"kind('{letter}')", f"{kind}", show=False)
            for letter, kind in _KINDS.items()
        ),
        Binding("ctrl+b,b", "attributes", "attributes", show=False),
        Binding("ctrl+p,w", "wrap", "wrap", show=False),
        Binding("ctrl+o,o", "sort", "sort", show=False),
    ]

    def __init__(self, name: str, model: Model) -> None:
        super().__init__(name)
        self.model = model
        self.attributes = True

    @property
    def row(self) -> Row:
        """The row at the cursor."""
        return self.model.rows[self.cursor]

    def count(self) -> int:
        """How many rows there are."""
        return len(self.model.rows)

    def text(self, index: int) -> Text:
        """One row, in its colour."""
        row = self.model.rows[index]
        line = self.model.line(row, self._levels)
        text = Text(f"{line.letter} {self._columns(line)}", no_wrap=True)
        text.append(line.guides, "dim")
        text.append(f"{line.mark}{line.name}")
        text.append(line.target, "" if line.letter in _COLOURS else "dim")
        text.stylize(_COLOURS.get(line.letter, ""))
        return text

    def _columns(self, line: Line) -> str:
        values = {"mode": line.mode, "owner": line.owner, "size": line.size}
        return "".join(f"{values[name]:>{_WIDTHS[name]}} " for name in self._shown_attributes)

    @property
    def _shown_attributes(self) -> Sequence[str]:
        """Those that there is room for."""
        if not self.attributes:
            return ()
        room = self.size.width - _NAMES
        return next((names for names in _CHOICES if _begin(names) <= room), ())

    @property
    def _levels(self) -> int:
        """So many levels of guides leave room for names."""
        return max(1, (self.size.width - self._begin) // 4)

    @property
    def _begin(self) -> int:
        """The column where guides begin."""
        return _begin(self._shown_attributes)

    def reveal(self, path: Path, *, opening: bool = False) -> None:
        """Put the cursor on this path, or on what is next to it."""
        self.cursor = 0
        at = self.model.nearest(path, opening=opening)
        self.changed()
        self.move_to(at)

    def go_to_found(self, *, anew: bool) -> None:
        """Put the cursor on the first path that a search found; if it is not `anew`, only from one
        that is not."""
        if anew or not self.model.is_found(self.cursor):
            self.move_to(self.model.first_found())

    def after(self, change: Callable[[], None]) -> None:
        """Have the model make other rows; the cursor stays at its path."""
        path = self.row.path
        change()
        self.cursor = self.model.nearest(path)
        self.changed()
        self.post_message(self.Moved(self))

    # keys

    def action_open(self) -> None:
        """Open the directory, or go into it."""
        if self.row.opened is not None:
            self.move_to(self.cursor + 1)
        elif self.row.is_dir:
            self.model.open(self.cursor)
            self.changed()

    def action_close(self) -> None:
        """Close the directory, or go to the one that it is in."""
        if self.row.opened is not None and self.cursor:
            self.model.close(self.cursor)
            self.changed()
        else:
            self.move_to(self.model.parent(self.cursor))

    def action_fold(self) -> None:
        """Open or close the directory."""
        if self.row.opened is None:
            self.model.open(self.cursor)
        else:
            self.model.close(self.cursor)
        self.changed()

    def action_close_all(self) -> None:
        """Close all directories."""
        self.after(self.model.close_all)

    def action_kind(self, letter: str) -> None:
        """Show names to which this happened, or do not."""
        self.after(lambda: self.model.toggle(_KINDS[letter]))

    def action_attributes(self) -> None:
        """Show mode, owner and size, or do not."""
        self.attributes = not self.attributes
        self.changed()

    def action_sort(self) -> None:
        """Sort by name or by size."""
        self.model.by_size = not self.model.by_size
        self.after(self.model.rebuild)

    def clicked(self, index: int, x: int, times: int) -> None:
        """A click on the arrow opens or closes."""
        super().clicked(index, x, times)
        if times == 1 and self.row.is_dir and x == self._arrow:
            self.action_fold()

    @property
    def _arrow(self) -> int:
        """The column of the arrow at the cursor."""
        return self._begin + len(self.model.line(self.row, self._levels).guides)


def _begin(attributes: Sequence[str]) -> int:
    """The column where guides begin behind these attributes."""
    return _LETTER + sum(_WIDTHS[name] + 1 for name in attributes)
