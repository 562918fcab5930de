"""What `--filter` chooses: Docker's filters for images.

Filters of different kinds must all fit. Of one kind one is enough, but all labels must fit.
"""

from __future__ import annotations

import datetime
import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from fuseoverlay.commands.image import common
from fuseoverlay.errors import UsageError
from fuseoverlay.oci.times import parse_time
from fuseoverlay.store.images import Image, Images

#: Of `ls`, and of `prune`.
LISTING: Final = ("dangling", "label", "label!", "before", "since", "until", "reference")
PRUNING: Final = ("until", "label", "label!")

_UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3}
_LENGTH: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")

_Wanted = Callable[[Image], bool]


def wanted(filters: Sequence[str], images: Images, known: Sequence[str]) -> _Wanted:
    """Whether an image fits all `filters`, each `KIND=VALUE` with one of the `known` kinds. Raises
    `UsageError`, and `ImageError` where a filter names an image that is not there."""
    alternatives: dict[str, list[_Wanted]] = {}
    for text in filters:
        kind, equals, value = text.partition("=")
        if kind.endswith("!") or not equals or kind not in known:
            kind, value = _negated(text, known)
        alternatives.setdefault(kind, []).append(_one(kind, value, images))
    return lambda image: all(
        (all if kind.startswith("label") else any)(fits(image) for fits in one)
        for kind, one in alternatives.items()
    )


def _negated(text: str, known: Sequence[str]) -> tuple[str, str]:
    """`label!=VALUE`; an error for everything else that is no filter."""
    kind, equals, value = text.partition("!=")
    if equals and f"{kind}!" in known:
        return f"{kind}!", value
    if text in known:
        example = "true" if text == "dangling" else "VALUE"
        raise UsageError(f"--filter {text}: no value", hint=f"write {text}={example}")
    kinds = ", ".join(f"{kind}=" for kind in known)
    raise UsageError(f"--filter {text}: no such filter", hint=f"there are {kinds}")


def _one(kind: str, value: str, images: Images) -> _Wanted:
    match kind:
        case "dangling":
            return _dangling(value)
        case "label" | "label!":
            return _label(value, absent=kind == "label!")
        case "before" | "since":
            limit = images.resolve(value).created_at
            return _older(limit) if kind == "before" else _newer(limit)
        case "until":
            return _older(_moment(value))
        case _:
            return lambda image: any(_matches(value, name) for name in image.names)


def _dangling(value: str) -> _Wanted:
    if value.lower() not in ("true", "1", "false", "0"):
        raise UsageError(
            f"--filter dangling={value}: not true or false", hint="write dangling=true"
        )
    asked = value.lower() in ("true", "1")
    return lambda image: image.dangling == asked


def _label(value: str, *, absent: bool) -> _Wanted:
    key, equals, wanted = value.partition("=")
    if not equals:
        return lambda image: (key in image.labels) != absent
    return lambda image: (image.labels.get(key) == wanted) != absent


def _older(limit: datetime.datetime | None) -> _Wanted:
    """What has no time is not known to be older, so it is not removed for it."""
    return lambda image: bool(image.created_at and limit and image.created_at < limit)


def _newer(limit: datetime.datetime | None) -> _Wanted:
    return lambda image: bool(image.created_at and limit and image.created_at > limit)


def _moment(text: str) -> datetime.datetime:
    """A moment: RFC 3339, a date, seconds since 1970, or how long ago (10m, 1h30m). Raises
    `UsageError`."""
    try:
        return _parsed_moment(text)
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"{text} is not a time", hint="write 24h, 2026-01-31 or 2026-01-31T12:00:00Z"
        ) from None


def _parsed_moment(text: str) -> datetime.datetime:
    parts = _LENGTH.findall(text)
    if parts and "".join(map("".join, parts)) == text:
        ago = sum(float(number) * _UNITS[unit] for number, unit in parts)
        return datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=ago)
    if text.isdigit():
        return datetime.datetime.fromtimestamp(int(text), datetime.UTC)
    found = parse_time(text)
    if found is None:
        found = datetime.datetime.fromisoformat(text)
    return found if found.tzinfo else found.astimezone()


def named(filters: Sequence[str]) -> Callable[[str | None], bool]:
    """Whether a name, or none, is one that the `reference` filters ask for; if there are none, all
    are."""
    patterns = [text.partition("=")[2] for text in filters if text.startswith("reference=")]
    return lambda name: (
        not patterns or (name is not None and any(_matches(pattern, name) for pattern in patterns))
    )


def _matches(pattern: str, name: str) -> bool:
    """Whether the pattern fits the name as Docker shows it, with or without its tag. A `*` stands
    for no slash."""
    shown = common.familiar(name)
    return any(_fits(pattern, text) for text in (shown, common.split(name)[0]))


def _fits(pattern: str, text: str) -> bool:
    patterns, parts = pattern.split("/"), text.split("/")
    return len(patterns) == len(parts) and all(map(fnmatch.fnmatchcase, parts, patterns))


def joined(first: Iterable[str], reference: str | None) -> list[str]:
    """The filters, and the one that `image ls REPOSITORY[:TAG]` stands for."""
    return [*first, *([f"reference={reference}"] if reference else [])]
