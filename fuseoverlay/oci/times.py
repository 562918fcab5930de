"""Times as the configs of images have them: RFC 3339."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

#: Years that are meant. Docker writes 1 where it knows no time; and near both ends of what can be
#: represented, no zone can be applied.
_FIRST: Final = 1970
_LAST: Final = 9998


def parse_time(text: str) -> datetime | None:
    """The time in RFC 3339 text, with a zone; None if it is none."""
    # Python takes at most six digits of a fraction.
    match = re.fullmatch(r"(.{19})(\.\d+)?(Z|[+-]\d\d:\d\d)", text, re.ASCII)
    if match is None:
        return None
    try:
        found = datetime.fromisoformat(f"{match[1]}{(match[2] or '')[:7]}{match[3]}")
    except ValueError:
        return None
    return found if _FIRST <= found.year <= _LAST else None
