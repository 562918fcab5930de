"""`image ls --format tree`: images with their platforms, as Docker lists them since version 29."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from fuseoverlay.commands.image import common
from fuseoverlay.commands.show import units
from fuseoverlay.errors import visible
from fuseoverlay.store.garbage import is_used
from fuseoverlay.store.images import Image, Images

_HEADINGS: Final = ("IMAGE", "ID", "DISK USAGE", "CONTENT SIZE", "EXTRA")
#: The columns of sizes, which end below each other.
_RIGHT: Final = (2, 3)
_GAP: Final = "   "
_UNTAGGED: Final = "<untagged>"
_IN_USE: Final = "U"


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Bytes: of the blobs, and of these and the unpacked files together."""

    content: int
    disk: int


def lines(
    images: Images, chosen: Sequence[Image], named: Callable[[str | None], bool], *, dangling: bool
) -> Iterator[str]:
    """The table: a row for each name, sorted, and one for each platform below it. Images without a
    name come last, if `dangling` asks for them."""
    store = images.store
    with store.locked() if store.is_writable() else contextlib.nullcontext():
        rows = [row for image in chosen for row in _rows(images, image, named, dangling=dangling)]
    rows.sort(key=lambda row: (row[0][0] == _UNTAGGED, row[0][0]))
    flat = [_HEADINGS, *(line for row in rows for line in row)]
    widths = [max(len(line[place]) for line in flat) for place in range(len(_HEADINGS))]
    for line in flat:
        cells = [
            cell.rjust(width) if place in _RIGHT else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield _GAP.join(cells).rstrip()


def _rows(
    images: Images, image: Image, named: Callable[[str | None], bool], *, dangling: bool
) -> Iterator[list[tuple[str, ...]]]:
    """For each name its line, and those of the platforms."""
    platforms = images.platforms(image)
    used = any(is_used(images.store, one) for one in platforms)
    below = [
        _line(f"{'└─' if one is platforms[-1] else '├─'} {one.platform or 'unknown'}", one,
              _sizes([one]), used=False)
        for one in platforms
    ]  # fmt: skip
    names = [common.familiar(name) for name in image.names if named(name)]
    if not image.names and dangling and named(None):
        names = [_UNTAGGED]
    for name in names:
        yield [_line(visible(name), image, _sizes(platforms or [image]), used=used), *below]


def _line(name: str, image: Image, sizes: _Sizes, *, used: bool) -> tuple[str, ...]:
    extra = _IN_USE if used else ""
    return (
        name, common.short(image.id), units.size(sizes.disk), units.size(sizes.content), extra,
    )  # fmt: skip


def _sizes(platforms: Sequence[Image]) -> _Sizes:
    """Of several platforms, what they share counts once."""
    blobs = {blob.digest: blob.size for one in platforms for blob in one.blobs}
    files = {
        digest: size or 0
        for one in platforms
        for digest, size in zip(one.diff_ids, one.unpacked, strict=True)
    }
    content = sum(blobs.values())
    return _Sizes(content, content + sum(files.values()))
