"""The end of --help: commands, mount options and exit codes, as wide as the terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from fuseoverlay.overlay import options
from fuseoverlay.overlay.options import Option

#: The column where explanations begin, as in argparse.
_INDENT: Final = 24


def commands(rows: Iterable[tuple[str, str]]) -> str:
    """The commands, each with what it does."""
    lines = (line for name, what in rows for line in _row(name, what))
    return "\n".join(["commands:", *lines, "", "fuseoverlay COMMAND --help says more."])


def mount_options() -> str:
    """All mount options, each with its summary."""
    lines = ["mount options, which -o takes separated by commas:"]
    for group, rows in options.TABLE.items():
        lines += ["", f" {group}"]
        for option in rows:
            lines += _row(", ".join(option.spellings), _summary(option))
    return "\n".join(lines)


def exit_codes(codes: Mapping[int, str]) -> str:
    """The exit codes, each with its meaning."""
    return "\n".join(["exit codes:", *(f"  {code:3}  {_plain(codes[code])}" for code in codes)])


def _summary(option: Option) -> str:
    default = f" (default: {option.default})" if option.default else ""
    return _plain(option.summary) + default


def _plain(text: str) -> str:
    return text.replace("`", "")


def _row(names: str, summary: str) -> Iterator[str]:
    width = max(shutil.get_terminal_size().columns - 2, 2 * _INDENT)
    beside = len(names) + 4 <= _INDENT
    if not beside:
        yield from textwrap.wrap(names, width, initial_indent="  ", subsequent_indent="  ",
                                 break_on_hyphens=False)  # fmt: skip
    begin = f"  {names}".ljust(_INDENT) if beside else " " * _INDENT
    yield from textwrap.wrap(summary, width, initial_indent=begin, subsequent_indent=" " * _INDENT)
