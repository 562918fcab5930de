"""Numbers of bytes as people write them. Source: dustin/go-humanize, bytes.go."""

from __future__ import annotations

import re
from typing import Final

_SIZE: Final = re.compile(r"\s*([0-9][0-9,]*\.?[0-9]*|\.[0-9]+)\s*([a-z]*)\s*", re.IGNORECASE)
_UNITS: Final = "kmgtpe"


def size_of(text: str) -> int:
    """The bytes that `20MB`, `1.5 GiB`, `4k` or `1,000` mean. ValueError."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError("no size")
    number, unit = found[1].replace(",", ""), found[2].lower().removesuffix("b")
    base = 1024 if unit.endswith("i") else 1000
    unit = unit.removesuffix("i") if len(unit) > 1 else unit
    if unit and (len(unit) > 1 or unit not in _UNITS):
        raise ValueError("no size")
    value = float(number) * base ** (_UNITS.index(unit) + 1 if unit else 0)
    if value >= 1 << 64:
        raise ValueError("too large")
    return int(value)
