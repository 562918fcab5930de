"""`fuseoverlay rmi`: names go, and images that have no other."""

from __future__ import annotations

from fuseoverlay.commands import output
from fuseoverlay.commands.image import common, removal
from fuseoverlay.commands.parser import Parser
from fuseoverlay.store import garbage
from fuseoverlay.store.images import NoImageError


def command(argv: list[str], prog: str) -> int:
    """Remove images; returns the exit code. The others go also if one is not there."""
    args = parser(prog).parse_args(argv)
    images = common.images_at(args.root)

    def remove(word: str) -> None:
        try:
            removed = garbage.remove(images, word, force=args.force, dry_run=args.dry_run)
        except NoImageError as exc:
            if not args.force:
                raise
            # As with `rm -f`, nothing has to be done.
            output.complain("error", str(exc))
            return
        words = ("Would untag", "Would delete") if args.dry_run else ("Untagged", "Deleted")
        for line in removal.lines(removed, *words):
            output.say(line)
        if removed.freed:
            output.note(f"{'would free' if args.dry_run else 'freed'} {removal.freed(removed)}")
        removal.complain(removed)

    return common.each(args.images, remove)


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = common.parser(
        prog, "Remove names, and images that have no other name. What a mount uses stays.",
        f"{prog} debian:12", f"{prog} --dry-run debian:12",
    )  # fmt: skip
    made.add_argument("images", nargs="+", metavar="IMAGE", help="a name, an id, its beginning")
    made.add_argument("-f", "--force", action="store_true",
                        help="by id: also if it has names in several repositories; what is not "
                        "there is no failure")  # fmt: skip
    made.add_argument("--dry-run", action="store_true", help="only say what would go")
    return made
