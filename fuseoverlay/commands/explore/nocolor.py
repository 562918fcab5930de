"""NO_COLOR: nothing that is painted has a colour."""

from __future__ import annotations

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter


class Plain(LineFilter):
    """Takes all colours away. textual's own filter makes them grey."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The segments without colours; what is bold, dim, underlined or reverse remains so."""
        return [
            Segment(text, style.without_color if style else style, control)
            for text, style, control in segments
        ]
