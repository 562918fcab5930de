"""Rows as a table, as lines of a template, or as JSON, the way Docker's `--format` chooses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from fuseoverlay.commands.show.template import Template
from fuseoverlay.errors import visible

#: Docker's table: cells at least this wide, this much between them.
_WIDTH: Final = 10
_GAP: Final = 3

Row = Mapping[str, Any]


def listing(rows: Iterable[Row], headings: Mapping[str, str], form: str) -> Iterator[str]:
    """The lines that show `rows`.

    `headings`: a heading for each field that a row may have. `form` is `json` (an object a line),
    a template, or `table TEMPLATE`, whose lines are aligned below headings. Raises `UsageError`.
    """
    if form == "json":
        yield from (json.dumps(dict(row), separators=(",", ":")) for row in rows)
        return
    aligned = form == "table" or form.startswith("table ")
    template = Template(_unescaped(form.removeprefix("table ") if aligned else form))
    lines = [template.fill(row) for row in rows]
    if not aligned:
        yield from (_shown(line) for line in lines)
        return
    yield from columns([template.fill(headings), *lines])


def by_default(fields: Sequence[str]) -> str:
    """The format that shows these fields as a table."""
    return "table " + "\t".join(f"{{{{.{field}}}}}" for field in fields)


def columns(lines: Sequence[str]) -> Iterator[str]:
    """Lines of cells divided by tabs, aligned. As in Go's tabwriter, a cell belongs to a column if
    a tab follows it."""
    cells = [[visible(cell) for cell in line.split("\t")] for line in lines]
    widths: list[int] = []
    for row in cells:
        for place, cell in enumerate(row[:-1]):
            if place == len(widths):
                widths.append(_WIDTH)
            widths[place] = max(widths[place], len(cell) + _GAP)
    for row in cells:
        *before, last = row
        yield "".join(cell.ljust(widths[place]) for place, cell in enumerate(before)) + last


def _shown(line: str) -> str:
    return "\t".join("\n".join(map(visible, part.split("\n"))) for part in line.split("\t"))


def _unescaped(text: str) -> str:
    r"""`\t` and `\n`, which a shell leaves as they are."""
    return text.replace(r"\t", "\t").replace(r"\n", "\n")
