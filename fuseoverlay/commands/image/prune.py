"""`fuseoverlay image prune`: images without a name, and whatever no image needs."""

from __future__ import annotations

from fuseoverlay.commands import output
from fuseoverlay.commands.image import common, filters, removal
from fuseoverlay.commands.parser import Parser
from fuseoverlay.store import garbage

_QUESTION = """\
WARNING! This will remove all {what}, and what broken pulls have left.
Are you sure you want to continue? [y/N] """


def command(argv: list[str], prog: str) -> int:
    """Remove what is not needed; returns the exit code."""
    args = parser(prog).parse_args(argv)
    images = common.images_at(args.root)
    fits = filters.wanted(args.filter, images, filters.PRUNING)
    what = "images that no mount uses" if args.all else "images without a name"
    if not (args.force or args.dry_run or common.confirmed(_QUESTION.format(what=what))):
        return 0
    removed = garbage.prune(images, unused=args.all, wanted=fits, dry_run=args.dry_run)
    lines = list(removal.lines(removed, "untagged", "deleted"))
    first, last = ("Deleted Images:", "Total reclaimed space:")
    if args.dry_run:
        first, last = ("Would delete:", "Space that would be reclaimed:")
    if lines:
        output.say("\n".join([first, *lines, ""]))
    output.say(f"{last} {removal.freed(removed)}")
    removal.complain(removed)
    return 0


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = common.parser(
        prog, "Remove images without a name, and what no image needs. What a mount uses stays.",
        f"{prog}", f"{prog} -a --filter until=240h --dry-run",
    )  # fmt: skip
    made.add_argument("-a", "--all", action="store_true", help="all images that no mount uses")
    made.add_argument("-f", "--force", action="store_true", help="do not ask")
    made.add_argument("--filter", action="append", default=[], metavar="KIND=VALUE",
                        help="until, label, label!: only these images")  # fmt: skip
    made.add_argument("--dry-run", action="store_true", help="only say what would go")
    return made
