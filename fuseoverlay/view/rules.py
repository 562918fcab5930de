"""Rules that an image has to keep, as dive has them in `.dive-ci`, and two of our own.

    rules:
      lowestEfficiency: 0.95
      highestWastedBytes: 20MB
      highestUserWastedPercent: 0.2

Dive's are of its own figures. Like dive, and unlike its manual, an image that just meets a
threshold keeps the rule.

Source: wagoodman/dive, cmd/dive/cli/internal/command/ci/rules.go and options/ci.go, as of May 2025;
dustin/go-humanize, bytes.go.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from fuseoverlay.errors import UsageError
from fuseoverlay.view.bytecount import size_of

LOWEST: Final = "lowestEfficiency"
WASTED: Final = "highestWastedBytes"
SHARE: Final = "highestUserWastedPercent"
#: Ours: what could be saved, in bytes, and as a part of the image.
SAVEABLE: Final = "highestSaveableBytes"
SAVEABLE_SHARE: Final = "highestSaveablePercent"
#: Each rule, what holds where nothing is said, and what it says.
DEFAULTS: Final[Mapping[str, str]] = {
    LOWEST: "0.9",
    WASTED: "disabled",
    SHARE: "0.1",
    SAVEABLE: "disabled",
    SAVEABLE_SHARE: "disabled",
}
#: The rules that dive has.
DIVES: Final = (LOWEST, WASTED, SHARE)
#: dive's newer names.
_ALSO: Final[Mapping[str, str]] = {
    "lowest-efficiency": LOWEST,
    "lowest-efficiency-threshold": LOWEST,
    "highest-wasted-bytes": WASTED,
    "highest-user-wasted-percent": SHARE,
    "highest-saveable-bytes": SAVEABLE,
    "highest-saveable-percent": SAVEABLE_SHARE,
}
_DISABLED: Final = ("", "disabled", "off", "false")
_IN_BYTES: Final = (WASTED, SAVEABLE)
#: A file with more than this is none of rules.
LARGEST: Final = 1 << 16
#: A line: its indentation, the name, the value with or without quotes.
_LINE: Final = re.compile(
    r"""(\ *)([\w-]+|"[\w-]+"|'[\w-]+')\ *:(?:\s+(?:
    ('(?:[^']|'')*'|"[^"\\]*")(?:\s+\#.*)? | ([^'"\s\#].*?)(?:\s\#.*)? | \#.*))?""",
    re.VERBOSE,
)
#: What YAML gives a meaning at the beginning of a value.
_SIGNS: Final = tuple("[]{}&*!|>%@`,")
_NULL: Final = ("", "~", "null")


class State(StrEnum):
    """What came of a rule."""

    PASS = "PASS"  # noqa: S105 (no password)
    FAIL = "FAIL"
    SKIP = "SKIP"


@dataclass(frozen=True, slots=True)
class Measured:
    """What rules are about. `efficiency` to `share` are dive's; `saveable` is in bytes, of
    `size`."""

    efficiency: float
    wasted: int
    share: float
    saveable: int
    size: int

    @property
    def saveable_share(self) -> float:
        """`saveable` as a part of `size`."""
        return self.saveable / self.size if self.size else 0.0


class Rule(NamedTuple):
    """A rule with its threshold as it was written and as a number, None if it is disabled."""

    key: str
    text: str
    threshold: float | None


class Outcome(NamedTuple):
    """What came of the rule `key`, and why."""

    key: str
    state: State
    message: str


class Setting(NamedTuple):
    """What a rule was set to, and where."""

    text: str
    where: str


def rules(settings: Mapping[str, Setting]) -> tuple[Rule, ...]:
    """All rules, sorted by name, but ours only where they are set. `settings` by their keys; others
    are as by default. UsageError."""
    found = (
        _rule(key, settings.get(key, Setting(DEFAULTS[key], "default"))) for key in sorted(DEFAULTS)
    )
    return tuple(rule for rule in found if rule.threshold is not None or rule.key in DIVES)


def _rule(key: str, setting: Setting) -> Rule:
    text, where = setting
    if text.strip().lower() in _DISABLED:
        return Rule(key, text, None)
    try:
        value = float(size_of(text)) if key in _IN_BYTES else _ratio(text)
    except ValueError as exc:
        hint = "write a size such as 20MB" if key in _IN_BYTES else "write a number from 0 to 1"
        what = f"{key}: {text!r} is {exc}"
        raise UsageError(what, where=where, hint=f"{hint}, or disabled") from None
    return Rule(key, text, value)


def _ratio(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError("no number") from None
    if not 0 <= value <= 1:
        raise ValueError("not between 0 and 1")
    return value


# outcomes


def outcomes(found: Iterable[Rule], measured: Measured) -> tuple[Outcome, ...]:
    """What comes of each rule."""
    return tuple(_outcome(rule, measured) for rule in found)


def _outcome(rule: Rule, measured: Measured) -> Outcome:
    if rule.threshold is None:
        return Outcome(rule.key, State.SKIP, "disabled")
    complaint = _complaint(rule.key, rule.threshold, measured)
    if complaint:
        return Outcome(rule.key, State.FAIL, complaint)
    return Outcome(rule.key, State.PASS, rule.text)


def _complaint(key: str, threshold: float, measured: Measured) -> str:
    """What is wrong; the first three in dive's words."""
    limit = shortest(threshold)
    if key == LOWEST and threshold > measured.efficiency:
        shown = f"efficiency={fixed(measured.efficiency)} < threshold={limit}"
        return f"image efficiency is too low ({shown})"
    if key == WASTED and measured.wasted > threshold:
        return f"too many bytes wasted (wasted-bytes={measured.wasted} > threshold={limit})"
    if key == SHARE and measured.share > threshold:
        shown = f"%-user-wasted-bytes={fixed(measured.share)} > threshold={limit}"
        return f"too many bytes wasted, relative to the user bytes added ({shown})"
    if key == SAVEABLE and measured.saveable > threshold:
        return f"too many bytes could be saved (bytes={measured.saveable} > threshold={limit})"
    if key == SAVEABLE_SHARE and measured.saveable_share > threshold:
        shown = f"part={fixed(measured.saveable_share)} > threshold={limit}"
        return f"too much of the image could be saved ({shown})"
    return ""


def shortest(value: float) -> str:
    """A number as Go's %v has it."""
    return str(int(value)) if value.is_integer() else repr(value)


def fixed(value: float) -> str:
    """A number with two digits as Go's %.2f has it."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else f"{value:.2f}"


# the file


def parsed(text: str, where: str) -> dict[str, Setting]:
    """The rules in a file; `where` is its name. Of YAML only that is understood in which such files
    are written: one rule a line below `rules:`. UsageError."""
    found: dict[str, Setting] = {}
    for place, key, value in _below_rules(text, where):
        name = _ALSO.get(key, key)
        if name not in DEFAULTS:
            hint = f"the rules are {', '.join(DEFAULTS)}"
            raise UsageError(f"{key} is no rule", where=place, hint=hint)
        if name in found:
            raise UsageError(f"{key} is there twice", where=place)
        # Nothing at all is YAML's null, which leaves dive's default.
        if value not in _NULL:
            found[name] = Setting(_scalar(key, value, place), place)
    return found


def _below_rules(text: str, where: str) -> Iterator[tuple[str, str, str]]:
    """(place, key, value) of each line in the block `rules`. Other blocks are other programs'."""
    inside, indent = False, 0
    for number, line in enumerate(map(str.rstrip, text.splitlines()), 1):
        if line in ("", "---", "...") or line.lstrip().startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        key = found[2].strip("\"'") if found is not None else ""
        value = (found[3] or found[4] or "") if found is not None else ""
        deep = len(line) - len(line.lstrip())
        if not deep:
            inside, indent = key == "rules" or line.startswith("rules:"), 0
        elif inside:
            indent = indent or deep
        place = f"{where}:{number}"
        if inside and (found is None or deep != indent or (not deep and value not in _NULL)):
            hint = "write a rule as `  NAME: VALUE` below `rules:`"
            raise UsageError("not understood", where=place, hint=hint)
        if inside and deep:
            yield place, key, value


def _scalar(key: str, text: str, where: str) -> str:
    """A value without its quotes."""
    if text.startswith(_SIGNS):
        what = f"{key}: {text!r} is not understood"
        raise UsageError(what, where=where, hint="write a plain value")
    return text[1:-1].replace("''", "'") if text[0] in "'\"" else text.rstrip()
