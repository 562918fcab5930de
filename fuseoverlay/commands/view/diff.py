"""`fuseoverlay diff`: what differs between two images, or between two layers of one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Final

from fuseoverlay.commands import output
from fuseoverlay.commands.parser import Parser
from fuseoverlay.commands.view import differences, subject, upperdiff
from fuseoverlay.errors import FuseOverlayError, UsageError
from fuseoverlay.view.building import nothing
from fuseoverlay.view.compare import Side, compare
from fuseoverlay.view.opened import View
from fuseoverlay.view.stack import Stack

#: The exit code of diff(1) for errors.
_TROUBLE: Final = 2


def command(argv: list[str], prog: str) -> int:
    """Compare; returns the exit code: 0 if nothing differs, 1 if something does."""
    args = parser(prog).parse_intermixed_args(argv)
    subjects: list[str | None] = [*args.images, *([None] if args.options else [])]
    args.image = None
    if len(subjects) == 1 and not args.layers:
        return upperdiff.command(args, subjects[0])
    if len(subjects) != (1 if args.layers else 2):
        what = "--layers wants one image" if args.layers else "one mount or two images are wanted"
        hint = f"write {prog} MNT, {prog} IMAGE IMAGE, or {prog} IMAGE --layers N M"
        raise UsageError(what, hint=hint)
    if args.stat:
        raise UsageError("--stat is for one mount or upper", hint="leave it out")
    differs = False
    with contextlib.ExitStack() as stack:
        views = [stack.enter_context(subject.look(args, image)) for image in subjects]
        one, other = _sides(views, args.layers)

        def lines() -> Iterator[str]:
            nonlocal differs
            for found in compare(one, other, times=args.times):
                differs = True
                if args.json:
                    yield json.dumps(differences.as_json(one, other, found))
                    continue
                yield differences.line(one, other, found)
                if args.content:
                    yield from differences.content(one, other, found)

        try:
            output.say_all(lines())
        except FuseOverlayError as exc:
            # 1 would say that they differ, and nothing else.
            exc.exit_code = max(exc.exit_code, _TROUBLE)
            raise
        # What cannot be read may differ, or not.
        return subject.code_of(*views) or (1 if differs else 0)


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = subject.parser(
        prog, "Show what was changed in a mount, or in a directory of --upper, as docker diff "
        "does; or what differs between two images, or two layers of one. A added, C changed, D "
        "removed.",
        f"{prog} mnt", f"{prog} debian:11 debian:12", f"{prog} mine:1 --layers 2 4",
        f"{prog} --content mine:1 mine:2", image=False,
    )  # fmt: skip
    made.add_argument("images", nargs="*", metavar="IMAGE|MNT",
                      help=f"{subject.WHAT}, or a directory of mount --upper")  # fmt: skip
    made.add_argument("--layers", nargs=2, type=int, metavar=("N", "M"),
                      help="compare the image as of layer N, from 1 at the bottom, with that as of "
                      "layer M; 0 is nothing")  # fmt: skip
    made.add_argument("--content", action="store_true", help="show what changed in texts, too")
    made.add_argument("--times", action="store_true", help="compare modification times, too")
    made.add_argument("--stat", action="store_true", help="of one mount or upper, only how much")
    made.add_argument("--json", action="store_true", help="a line of JSON for each path")
    return made


def _sides(views: list[View], layers: list[int] | None) -> tuple[Side, Side]:
    if layers is None:
        one, other = views
        return Side(one, one.stack), Side(other, other.stack)
    (view,) = views
    first, second = (Side(view, _as_of(view, layer)) for layer in layers)
    return first, second


def _as_of(view: View, layer: int) -> Stack:
    return Stack([nothing()]) if layer == 0 else subject.as_of(view, layer)
