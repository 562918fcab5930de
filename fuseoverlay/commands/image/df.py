"""`fuseoverlay image df`: what the store takes up."""

from __future__ import annotations

import json
from typing import Any

from fuseoverlay.commands import output
from fuseoverlay.commands.image import common
from fuseoverlay.commands.parser import Parser
from fuseoverlay.commands.show import units
from fuseoverlay.store import garbage
from fuseoverlay.store.garbage import Removed
from fuseoverlay.store.usage import Usage, usage

_HEADINGS = {"Type": "TYPE", "Total": "TOTAL", "Size": "SIZE", "Reclaimable": "RECLAIMABLE"}
_OF_IMAGES = {"Image": "IMAGE", "ID": "IMAGE ID", "Shared": "SHARED SIZE", "Unique": "UNIQUE SIZE"}


def command(argv: list[str], prog: str) -> int:
    """Show what the store takes up; returns the exit code."""
    args = parser(prog).parse_args(argv)
    images = common.images_at(args.root)
    found = usage(images)
    # Nothing can be had back from what cannot be written.
    writable = images.store.is_writable()
    free = garbage.prune(images, dry_run=True) if writable else garbage.Removed()
    if args.json:
        output.say(json.dumps({"kinds": _kinds(found, free), "images": _images(found)}, indent=4))
        return 0
    common.show(map(_sized, _kinds(found, free)), _HEADINGS, None, list(_HEADINGS))
    if args.verbose:
        output.say("")
        common.show(map(_sized, _images(found)), _OF_IMAGES, None, list(_OF_IMAGES))
    return 0


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = common.parser(prog, "Show what the store takes up.", f"{prog} -v")
    made.add_argument("-v", "--verbose", action="store_true", help="also of each image")
    made.add_argument("--json", action="store_true", help="bytes, as JSON")
    return made


def _kinds(found: Usage, free: Removed) -> list[dict[str, Any]]:
    """Blobs, unpacked layers, partial downloads, what is known of layers: how many, bytes, and how
    many of these `image prune` would free."""
    rows = (
        ("Images", len(found.images), found.blobs, sum(free.blobs.values())),
        ("Unpacked layers", len(found.layers), sum(layer.size for layer in found.layers),
         sum(free.layers.values())),
        ("Partial downloads", found.partials, found.partial, sum(free.partial.values())),
        ("Indexes", len(found.indexes), sum(found.indexes), sum(free.indexes.values())),
    )  # fmt: skip
    return [dict(zip(_HEADINGS, row, strict=True)) for row in rows]


def _images(found: Usage) -> list[dict[str, Any]]:
    return [
        {
            "Image": ", ".join(map(common.familiar, one.image.names)) or common.NONE,
            "ID": common.short(one.image.id),
            "Shared": one.shared,
            "Unique": one.unique,
        }
        for one in found.images
    ]


def _sized(row: dict[str, Any]) -> dict[str, Any]:
    sizes = ("Size", "Reclaimable", "Shared", "Unique")
    return {key: units.size(value) if key in sizes else value for key, value in row.items()}
