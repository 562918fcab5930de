"""`fuseoverlay history`: how an image was made, the newest step first."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterator
from typing import Any, Final

from fuseoverlay.commands import output
from fuseoverlay.commands.image import common
from fuseoverlay.commands.parser import Parser
from fuseoverlay.commands.show import units
from fuseoverlay.oci.model import Step
from fuseoverlay.oci.times import parse_time
from fuseoverlay.store.images import Image

_HEADINGS: Final = {
    "ID": "IMAGE",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "CreatedBy": "CREATED BY",
    "Size": "SIZE",
    "Comment": "COMMENT",
}
#: Characters of CREATED BY.
_CUT: Final = 45
_MISSING: Final = "<missing>"
#: What is older has no time of its own: reproducible builds set one such.
_NO_TIME: Final = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)


def command(argv: list[str], prog: str) -> int:
    """Show the history of an image; returns the exit code."""
    args = parser(prog).parse_args(argv)
    images = common.images_at(args.root)
    with common.found(images, args.image, common.platform(args.platform)) as (where, image):
        rows = list(_rows(image, where.history(image), args))
    if args.quiet:
        for row in rows:
            output.say(row["ID"])
        return 0
    since = "CreatedSince" if args.human else "CreatedAt"
    columns = ["ID", since, "CreatedBy", "Size", "Comment"]
    common.show(rows, _HEADINGS, args.format, columns)
    return 0


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = common.parser(prog, "Show how an image was made.", f"{prog} debian:12")
    made.add_argument("image", metavar="IMAGE", help="a name, an id or its beginning, or a file")
    common.add_platform(made)
    made.add_argument("-q", "--quiet", action="store_true", help="only the ids")
    made.add_argument("--no-trunc", action="store_true", help="whole ids and commands")
    common.add_switch(made, "-H", "--human", default=True,
                      help="short ages and sizes, as by default; --human=false: times as RFC 3339, "
                      "sizes in bytes")  # fmt: skip
    made.add_argument("--format", metavar="FORM",
                        help="table, json, a template, or table TEMPLATE; fields: "
                        + " ".join(_HEADINGS))  # fmt: skip
    return made


def _rows(image: Image, steps: list[Step], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    now = datetime.datetime.now(datetime.UTC)
    id_ = common.short(image.id, whole=args.no_trunc)
    for step in reversed(steps):
        size = 0 if step.layer is None else image.layer_sizes[step.layer]
        created_by = step.created_by.replace("\t", " ")
        if not args.no_trunc and len(created_by) > _CUT:
            created_by = created_by[: _CUT - 1] + "…"
        yield {
            "ID": id_,
            "CreatedSince": _since(step.created, now),
            "CreatedAt": units.in_seconds(step.created) or "N/A",
            "CreatedBy": created_by,
            "Size": units.size(size) if args.human else str(size),
            "Comment": step.comment,
        }
        # Steps have no ids of their own where the image was not built.
        id_ = _MISSING


def _since(created: str, now: datetime.datetime) -> str:
    then = parse_time(created)
    return "N/A" if then is None or then <= _NO_TIME else units.since(created, now)
