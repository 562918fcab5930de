"""`fuseoverlay push`: an image into a registry."""

from __future__ import annotations

import functools
from typing import Any

import trio

from fuseoverlay.commands import output
from fuseoverlay.commands.image import arrivals, common, fetching
from fuseoverlay.commands.parser import Parser
from fuseoverlay.errors import UsageError
from fuseoverlay.oci import names
from fuseoverlay.oci.reference import Reference
from fuseoverlay.store.images import Images
from fuseoverlay.store.push import Pushed, push


def command(argv: list[str], prog: str) -> int:
    """Push an image; returns the exit code."""
    args = parser(prog).parse_args(argv)
    images = common.images_at(args.root)
    platform = common.platform(args.platform)
    image = names.in_registry(args.image)
    to = _destination(images, image, args.destination)
    if not args.quiet:
        output.say(f"The push refers to repository [{to.name}]")
    fetching.silence_requests()
    with (
        output.advising("the same command goes on with what is there"),
        arrivals.shown(arrivals.going, quiet=args.quiet) as progress,
    ):
        work: functools.partial[Any] = functools.partial(
            push, images, image, to, platform=platform,
            settings=fetching.settings_of(args), progress=progress,
        )  # fmt: skip
        pushed: Pushed = trio.run(work)
    top = pushed.descriptor
    tag = to.tag or to.digest
    output.say(to if args.quiet else f"{tag}: digest: {top.digest} size: {top.size}")
    return 0


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = common.parser(
        prog,
        "Put an image into a registry, bit for bit. What the registry has is not sent again.",
        f"{prog} quay.io/team/tool:1", f"{prog} debian:12 docker://localhost:5000/debian:12",
    )  # fmt: skip
    made.add_argument("image", metavar="IMAGE", help="a name, an id, its beginning")
    made.add_argument("destination", nargs="?", metavar="DESTINATION",
                      help="[docker://]NAME[:TAG]: how it is called there (default: as here)"
                      )  # fmt: skip
    made.add_argument("-q", "--quiet", action="store_true", help="print the name only")
    made.add_argument("--platform", metavar="OS/ARCH[/VARIANT]",
                      help="only this one of a multi-platform image")  # fmt: skip
    fetching.add_options(made)
    return made


def _destination(images: Images, image: str, destination: str | None) -> Reference:
    if destination is not None:
        names.check_pushed(destination)
        return Reference.parse(names.in_registry(destination))
    _, entry = images.find(image)
    if entry is None or entry.name is None:
        raise UsageError(f"{image} is no name to push to", hint="write DESTINATION after it")
    return Reference.parse(entry.name)
