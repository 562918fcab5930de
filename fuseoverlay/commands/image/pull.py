"""`fuseoverlay pull`: an image from a registry."""

from __future__ import annotations

from fuseoverlay.commands import output
from fuseoverlay.commands.image import common, fetching
from fuseoverlay.commands.parser import Parser
from fuseoverlay.oci import names
from fuseoverlay.store.pull import Pulled


def command(argv: list[str], prog: str) -> int:
    """Pull images and unpack them; returns the exit code. The others come also if one cannot."""
    args = parser(prog).parse_args(argv)
    images = common.images_at(args.root)
    platform = common.platform(args.platform)

    def get(word: str) -> None:
        names.check_pulled(word)
        before = {entry.name: entry.descriptor.digest for entry in images.names.entries()}
        pulled = fetching.fetch(
            images.store, names.in_registry(word), platform=platform,
            all_platforms=args.all_platforms, unpack=not args.no_unpack,
            settings=fetching.settings_of(args), quiet=args.quiet,
        )  # fmt: skip
        new = before.get(pulled.name) != pulled.descriptor.digest or pulled.received > 0
        _tell(pulled, new=new, quiet=args.quiet)

    with output.advising():
        return common.each(args.images, get)


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = common.parser(
        prog,
        "Get images from registries. A pull that was interrupted goes on where it was.",
        f"{prog} debian:12", f"{prog} --platform linux/arm64 quay.io/team/tool@sha256:...",
    )  # fmt: skip
    made.add_argument("images", nargs="+", metavar="NAME[:TAG|@DIGEST]", help="what to get")
    made.add_argument("-q", "--quiet", action="store_true", help="print the name only")
    common.add_platform(made)
    made.add_argument("--all-platforms", action="store_true", help="all of them")
    made.add_argument("--no-unpack", action="store_true",
                        help="leave that to the first mount")  # fmt: skip
    fetching.add_options(made)
    return made


def _tell(pulled: Pulled, *, new: bool, quiet: bool) -> None:
    """Docker's last lines."""
    if not quiet:
        shown = common.familiar(pulled.name)
        output.say(f"Digest: {pulled.descriptor.digest}")
        what = "Downloaded newer image" if new else "Image is up to date"
        output.say(f"Status: {what} for {shown}")
    output.say(pulled.name)
