"""What a registry asks for in the headers WWW-Authenticate (RFC 9110 11.6.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_NEXT: Final = re.compile(
    rf"[\s,]*(?:(?P<name>{_WORD})\s*=\s*"
    rf'(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>[^\s,"]+))|(?P<scheme>{_WORD})(?=[\s,]|\Z))'
)
_ESCAPED: Final = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to prove who is asking: `scheme` and the names of `values` in lower case."""

    scheme: str
    values: Mapping[str, str] = field(default_factory=dict)


def challenges(headers: Iterable[str]) -> list[Challenge]:
    """All that is asked for in `headers`. What is malformed ends its header."""
    found: list[Challenge] = []
    for header in headers:
        values: dict[str, str] | None = None
        at = 0
        while match := _NEXT.match(header, at):
            at = match.end()
            if match["scheme"]:
                values = {}
                found.append(Challenge(match["scheme"].lower(), values))
            elif values is not None:
                quoted = match["quoted"]
                text = match["plain"] if quoted is None else _ESCAPED.sub(r"\1", quoted)
                values[match["name"].lower()] = text
    return found
