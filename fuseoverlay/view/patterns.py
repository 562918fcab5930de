"""Shell patterns for names and paths, as regular expressions that take linear time.

`*`, `?`, `[...]` and `[!...]` fit no slash, `**` does; a backslash takes the next character as it
is. After each star the first place that fits is taken for good (atomic groups), which is as good as
any other, since the next star can pass over the rest. So no name from an image keeps anybody busy.
"""

from __future__ import annotations

import os
import re
from typing import Final

#: `**`, `*`, `?`, a class, and any other character.
_PIECES: Final = re.compile(r"\*\*+|\*|\?|\[!?\]?[^]]*\]|\\?.", re.DOTALL)
_ANY: Final = rb"[^/\0]"
_ANYTHING: Final = rb"[^\0]"
#: One character of UTF-8, or a byte that is none.
_CHARACTER: Final = rb"(?:[\xc2-\xf4][\x80-\xbf]+|[^/\0])"
_NOTHING: Final = rb"(?!)"
_CLASS: Final = re.compile(r"\[(!?)(\]?[^]]*)\]\Z", re.DOTALL)


def expression(pattern: str) -> bytes:
    """A regular expression for what the pattern fits, in bytes without zeros."""
    # Parts between `**`, each of them parts between `*`.
    parts: list[list[bytes]] = [[b""]]
    for piece in _PIECES.findall(pattern):
        if piece.startswith("**"):
            parts.append([b""])
        elif piece == "*":
            parts[-1].append(b"")
        else:
            parts[-1][-1] += _one(piece)
    first, *others = [_joined(part, _ANY) for part in parts]
    if not others:
        return _ended(parts[0], _ANY)
    *middle, _ = others
    passed = b"".join(rb"(?>" + _ANYTHING + b"*?" + part + b")" for part in middle)
    return first + passed + _ANYTHING + b"*" + _ended(parts[-1], _ANY)


def _joined(parts: list[bytes], between: bytes) -> bytes:
    """Parts with a star before each but the first, each at the first place where it fits."""
    first, *others = parts
    return first + b"".join(rb"(?>" + between + b"*?" + part + b")" for part in others)


def _ended(parts: list[bytes], between: bytes) -> bytes:
    """The same for parts at whose end everything ends: the last is wherever that is."""
    if len(parts) == 1:
        return parts[0]
    *others, last = parts
    return _joined(others, between) + between + b"*" + last


def _one(piece: str) -> bytes:
    """What fits one character."""
    if piece == "?":
        return _CHARACTER
    found = _CLASS.match(piece)
    if found is not None and found[2]:
        return _class(found[2], negated=bool(found[1]))
    if piece.startswith("["):
        return b"".join(re.escape(os.fsencode(char)) for char in piece)
    return re.escape(os.fsencode(piece[-1] if len(piece) > 1 else piece))


def _class(inside: str, *, negated: bool) -> bytes:
    """One of some characters, or none of them; `a-f` is a range."""
    choices = []
    at = 0
    while at < len(inside):
        low = high = inside[at]
        if inside[at + 1 : at + 2] == "-" and at + 2 < len(inside):
            high = inside[at + 2]
            at += 2
        at += 1
        choices.append(_range(low, high))
    fits = b"(?:" + b"|".join(choices) + b")"
    return b"(?!" + fits + b")" + _CHARACTER if negated else fits


def _range(low: str, high: str) -> bytes:
    """The characters from one to another, in UTF-8."""
    if low == high:
        return re.escape(os.fsencode(low))
    if high > "\x7f" or low > high:
        # Of characters beyond ASCII only the two ends, of a range that runs backwards nothing.
        ends = [re.escape(os.fsencode(char)) for char in (low, high)]
        return b"|".join(ends) if low < high else _NOTHING
    return b"[" + re.escape(low.encode()) + b"-" + re.escape(high.encode()) + b"]"
