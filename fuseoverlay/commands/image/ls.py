"""`fuseoverlay image ls`, and `fuseoverlay images`: the images of the store."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable, Iterator
from typing import Any, Final

from fuseoverlay.commands import output
from fuseoverlay.commands.image import common, filters, tree
from fuseoverlay.commands.parser import Parser
from fuseoverlay.commands.show import units
from fuseoverlay.errors import visible
from fuseoverlay.store.images import Image

_HEADINGS: Final = {
    "Repository": "REPOSITORY",
    "Tag": "TAG",
    "Digest": "DIGEST",
    "ID": "IMAGE ID",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "Size": "SIZE",
    "Platform": "PLATFORM",
}
_COLUMNS: Final = ("Repository", "Tag", "ID", "CreatedSince", "Size")
#: What `--sort` may name, and the key of each.
_ORDERS: Final = ("created", "id", "repository", "size", "tag")


def command(argv: list[str], prog: str) -> int:
    """List images; returns the exit code."""
    args = parser(prog).parse_args(argv)
    images = common.images_at(args.root)
    chosen = filters.joined(args.filter, args.reference)
    fits = filters.wanted(chosen, images, filters.LISTING)
    named = filters.named(chosen)
    listed = [image for image in images.all() if fits(image)]
    if args.format == "tree" and not args.quiet:
        for line in tree.lines(images, listed, named, dangling=args.all):
            output.say(line)
        return 0
    rows = [row for image in listed for row in _rows(image, named, args)]
    rows = _sorted(rows, args.sort)
    if args.quiet:
        # Once for each name, as Docker does.
        for row in rows:
            output.say(row["ID"])
        return 0
    shown = [{key: row[key] for key in _HEADINGS} for row in rows]
    common.show(shown, _HEADINGS, args.format, _columns(digests=args.digests))
    return 0


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = common.parser(
        prog, "List the images of the store.",
        f"{prog}", f"{prog} --filter reference='deb*' --format '{{{{.ID}}}} {{{{.Size}}}}'",
    )  # fmt: skip
    made.add_argument("reference", nargs="?", metavar="REPOSITORY[:TAG]",
                        help="only the images with this name; * stands for any text")  # fmt: skip
    made.add_argument("-a", "--all", action="store_true",
                        help="tree: also images without a name, as the others do")  # fmt: skip
    made.add_argument("-q", "--quiet", action="store_true", help="only the ids")
    made.add_argument("--digests", action="store_true", help="also the digests of manifests")
    made.add_argument("--no-trunc", action="store_true", help="whole ids")
    made.add_argument("--format", metavar="FORM",
                        help="table, tree, json, a template, or table TEMPLATE; fields: "
                        + " ".join(_HEADINGS))  # fmt: skip
    made.add_argument("-f", "--filter", action="append", default=[], metavar="KIND=VALUE",
                        help=", ".join(filters.LISTING))  # fmt: skip
    made.add_argument("--sort", choices=_ORDERS, default="created",
                        help="the order (default created, the newest first)")  # fmt: skip
    return made


def _columns(*, digests: bool) -> list[str]:
    columns = list(_COLUMNS)
    if digests:
        columns.insert(2, "Digest")
    return columns


def _rows(
    image: Image, named: Callable[[str | None], bool], args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """A row for each name that is `named`, or one for an image that has none."""
    now = datetime.datetime.now(datetime.UTC)
    shared = {
        "ID": common.short(image.id, whole=args.no_trunc),
        "CreatedSince": units.since(image.created, now) or "N/A",
        "CreatedAt": units.at(image.created) or "N/A",
        "Size": units.size(sum(image.layer_sizes)),
        "Platform": str(image.platform or ""),
        "created": image.created_at.timestamp() if image.created_at else 0.0,
        "bytes": sum(image.layer_sizes),
    }
    for entry in image.entries:
        tagged = entry.name is not None and "@" not in entry.name
        if not named(entry.name) or (not tagged and image.names):
            continue
        repository, tag = common.split(entry.name) if entry.name else _nameless(entry.repository)
        digest = str(entry.descriptor.digest)
        # Names of other programs may hold anything; for a script each has a line.
        names = {"Repository": visible(repository), "Tag": visible(tag)}
        yield {**names, "Digest": digest, **shared}


def _nameless(repository: str | None) -> tuple[str, str]:
    return (common.familiar_repository(repository) if repository else common.NONE), common.NONE


def _sorted(rows: list[dict[str, Any]], order: str) -> list[dict[str, Any]]:
    match order:
        case "created":
            return sorted(rows, key=lambda row: -row["created"])
        case "size":
            return sorted(rows, key=lambda row: -row["bytes"])
        case _:
            key = {"id": "ID", "repository": "Repository", "tag": "Tag"}[order]
            return sorted(rows, key=lambda row: (row[key], row["Repository"], row["Tag"]))
