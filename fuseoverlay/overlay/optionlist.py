"""The syntax of a list of mount options: commas, quotes, and the escapes `\\:`, `\\,` and `\\\\`.

Sources: mount(8) for the list; kernel Documentation/filesystems/overlayfs.rst for the escapes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from typing import Final

from fuseoverlay.errors import UsageError

#: A value in double quotes, up to the second quote that is not escaped.
_CLOSED: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


def options(text: bytes, *, paths: Collection[str]) -> Iterator[bytes]:
    """The options of a list. In a value that starts with a double quote, a comma before the closing
    quote is part of the value. Quotes elsewhere, and all quotes in values of the options `paths`,
    are plain characters, as in the kernel. Raises `UsageError`."""
    begun = b""
    for piece in split(text, b","):
        part = begun + piece
        name, _, value = part.partition(b"=")
        quoted = value.startswith(b'"') and os.fsdecode(name) not in paths
        begun = part + b"," if quoted and not _CLOSED.match(value) else b""
        if part and not begun:
            yield part
    if begun:
        raise UsageError(
            f"the quote that {os.fsdecode(name)}= opens is not closed",
            hint=f'write {os.fsdecode(name)}="..."',
        )


def split(text: bytes, separator: bytes) -> list[bytes]:
    """Split at the separators that no backslash escapes."""
    parts = [bytearray()]
    for char in re.findall(rb"\\.|.", text, re.DOTALL):
        if char == separator:
            parts.append(bytearray())
        else:
            parts[-1] += char
    return [bytes(part) for part in parts]


def unescape(text: bytes) -> bytes:
    """The text without its escaping backslashes."""
    return re.sub(rb"\\(.)", rb"\1", text, flags=re.DOTALL)


def path(name: str, value: bytes) -> bytes:
    """The path in the value of the option `name`. Raises `UsageError` if it is empty."""
    meant = unescape(value)
    if not meant:
        raise UsageError(
            f"an empty path in {name}=", hint="write a colon that is part of a name as \\:"
        )
    return meant


def lowers(value: bytes) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """The lowers and the data-only lowers of a `lowerdir=` value: `A:B::C::D` means lowers A and B
    and data-only lowers C and D. Raises `UsageError`."""
    parts = split(value, b":")
    cut = parts.index(b"", 1) if b"" in parts[1:-1] else len(parts)
    plain = tuple(path("lowerdir", part) for part in parts[:cut])
    # From the cut on every other part is the empty inside of a double colon.
    data = tuple(path("lowerdir", part) for part in parts[cut + 1 :: 2])
    if any(parts[cut + 2 :: 2]):
        raise UsageError(
            "a single colon after a double one in lowerdir=",
            hint="data-only layers come last, each after a double colon",
        )
    return plain, data
