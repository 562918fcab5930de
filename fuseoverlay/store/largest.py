"""How large a layer may become when it is decompressed.

A few megabytes of gzip can stand for gigabytes, and zstd for any number. Layers of real images grow
to three or four times their size; those that hold holes as zeros grow a thousandfold.
"""

from __future__ import annotations

import os
import re
from typing import Final

from fuseoverlay.errors import UsageError

#: No layer up to this size is refused, and none up to so many times the size of its blob.
_ALWAYS: Final = 1 << 30
_TIMES: Final = 100
_VARIABLE: Final = "FUSEOVERLAY_MAX_LAYER"
_SIZE: Final = re.compile(r"(\d{1,18})([kmgt]?)(?:i?b)?\Z", re.IGNORECASE | re.ASCII)
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def limit(size: int) -> int:
    """The bytes that the plain archive of a layer may have, whose blob has `size` bytes.

    `$FUSEOVERLAY_MAX_LAYER` says it for all layers: bytes, or with K, M, G, T. Raises `UsageError`
    if that is not a size.
    """
    text = os.environ.get(_VARIABLE)
    if not text:
        return max(_ALWAYS, _TIMES * size)
    match = _SIZE.match(text.strip())
    if match is None:
        raise UsageError(f"{_VARIABLE}={text} is not a size", hint="write 100G, for example")
    return int(match[1]) * _UNITS[match[2].lower()]
