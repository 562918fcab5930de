"""`fuseoverlay image df`: what the store takes up."""

from __future__ import annotations

import json
from typing import Any

from fuseoverlay.commands import output
from fuseoverlay.commands.image import common
from fuseoverlay.commands.parser import Parser
from fuseoverlay.commands.show import table, units
from fuseoverlay.store.usage import Usage, usage

_HEADINGS = {"Type": "TYPE", "Total": "TOTAL", "Size": "SIZE", "Reclaimable": "RECLAIMABLE"}
_OF_IMAGES = {"Image": "IMAGE", "ID": "IMAGE ID", "Shared": "SHARED SIZE", "Unique": "UNIQUE SIZE"}


def command(argv: list[str], prog: str) -> int:
    """Show what the store takes up; returns the exit code."""
    args = parser(prog).parse_args(argv)
    found = usage(common.images_at(args.root))
    if args.json:
        output.say(json.dumps({"kinds": _kinds(found), "images": _images(found)}, indent=4))
        return 0
    for line in table.listing(map(_sized, _kinds(found)), _HEADINGS, _all(_HEADINGS)):
        output.say(line)
    if args.verbose:
        output.say("")
        for line in table.listing(map(_sized, _images(found)), _OF_IMAGES, _all(_OF_IMAGES)):
            output.say(line)
    return 0


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = common.parser(prog, "Show what the store takes up.", f"{prog} -v")
    made.add_argument("-v", "--verbose", action="store_true", help="also of each image")
    made.add_argument("--json", action="store_true", help="bytes, as JSON")
    return made


def _all(headings: dict[str, str]) -> str:
    return table.by_default(list(headings))


def _kinds(found: Usage) -> list[dict[str, Any]]:
    """Blobs, unpacked layers, partial downloads: how many, and bytes. What can be had back: what
    no image needs, and layers that are unpacked anew when they are needed."""
    idle = sum(layer.size for layer in found.layers if not layer.in_use)
    rows = (
        ("Images", len(found.images), found.blobs, found.needless),
        ("Unpacked layers", len(found.layers), sum(x.size for x in found.layers), idle),
        ("Partial downloads", "", found.partial, found.partial),
    )
    return [dict(zip(_HEADINGS, row, strict=True)) for row in rows]


def _images(found: Usage) -> list[dict[str, Any]]:
    return [
        {
            "Image": common.familiar(one.image.names[0]) if one.image.names else common.NONE,
            "ID": common.short(one.image.id),
            "Shared": one.shared,
            "Unique": one.unique,
        }
        for one in found.images
    ]


def _sized(row: dict[str, Any]) -> dict[str, Any]:
    sizes = ("Size", "Reclaimable", "Shared", "Unique")
    return {key: units.size(value) if key in sizes else value for key, value in row.items()}
