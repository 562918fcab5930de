"""Sizes and times as Docker writes them.

Source: docker/go-units, `HumanSizeWithPrecision` and `HumanDuration`.
"""

from __future__ import annotations

import datetime
from typing import Final

from fuseoverlay.oci.times import parse_time

_SIZES: Final = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
_HOUR: Final = 3600
_DAY: Final = 24 * _HOUR
#: Up to how many hours an age is given in a unit, the unit, and its hours.
_LONG: Final = ((48, "hours", 1), (336, "days", 24), (1440, "weeks", 168), (17520, "months", 720))


def size(count: int) -> str:
    """`count` bytes in decimal units with three digits: 1.98MB."""
    value, unit = float(count), 0
    while value >= 1000 and unit < len(_SIZES) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g}{_SIZES[unit]}"


def age(seconds: float) -> str:
    """A length of time in one unit: About an hour."""
    whole = int(seconds)
    minutes, hours = whole // 60, int(seconds / _HOUR + 0.5)
    if whole < 1:
        return "Less than a second"
    if whole < 60:
        return "1 second" if whole == 1 else f"{whole} seconds"
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    if hours == 1:
        return "About an hour"
    for limit, unit, length in _LONG:
        if hours < limit:
            return f"{hours // length} {unit}"
    return f"{whole // _DAY // 365} years"


def since(text: str, now: datetime.datetime) -> str:
    """How long ago a time of an image was: 3 weeks ago. Empty if there is no such time."""
    then = parse_time(text)
    return "" if then is None else f"{age((now - then).total_seconds())} ago"


def in_seconds(text: str) -> str:
    """A time of an image as RFC 3339 without a fraction, in the local zone."""
    then = parse_time(text)
    if then is None:
        return ""
    shown = then.astimezone().isoformat(timespec="seconds")
    return shown.removesuffix("+00:00") + "Z" if shown.endswith("+00:00") else shown


def at(text: str) -> str:
    """A time of an image as Docker's `CreatedAt` has it: 2024-02-01 13:00:00 +0100 CET."""
    then = parse_time(text)
    return "" if then is None else then.astimezone().strftime("%Y-%m-%d %H:%M:%S %z %Z")
