"""`fuseoverlay which`: which layer gives a file, and what becomes of it in the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from fuseoverlay.commands import output
from fuseoverlay.commands.image import common
from fuseoverlay.commands.parser import Parser
from fuseoverlay.commands.show import units
from fuseoverlay.commands.view import ls, reasons, subject
from fuseoverlay.errors import ImageError
from fuseoverlay.view import life
from fuseoverlay.view.life import Moment
from fuseoverlay.view.opened import View
from fuseoverlay.view.said import Event
from fuseoverlay.view.stack import Path

_WORDS: Final = {
    Event.ADDS: "adds it",
    Event.CHANGES: "changes it",
    Event.REPEATS: "has it again, the same",
    Event.MERGES: "has it, too",
    Event.DELETES: "deletes",
    Event.COVERS: "has a file in place of the directory",
    Event.OPAQUE: "makes",
}
_HAVE: Final = (Event.ADDS, Event.CHANGES, Event.REPEATS, Event.MERGES)


def command(argv: list[str], prog: str) -> int:
    """Tell of paths; returns the exit code: 1 if one of them does not show."""
    args = subject.parsed(parser(prog), argv)
    shown = []
    with subject.look(args) as view:

        def tell(text: str) -> None:
            path = _followed(view, subject.path_of(text))
            moments = list(life.life(view.stack, path, view.same)) if view.layers else []
            if not moments:
                hint = "`fuseoverlay find` searches all layers"
                raise ImageError(f"no layer has {subject.shown(path)}", where=view.name, hint=hint)
            shown.append(moments[-1].after is not None)
            if args.json:
                output.say(json.dumps(_as_json(view, path, moments)))
            else:
                output.say_all(_lines(view, path, moments, everything=args.all))

        code = common.each(args.paths, tell)
    return code or (0 if all(shown) else 1)


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = subject.parser(
        prog, "Say which layer gives a file, which copies it hides, and where it was deleted.",
        f"{prog} debian:12 /etc/passwd", f"{prog} --all mine:1 /var/lib/apt/lists",
    )  # fmt: skip
    made.add_argument("paths", nargs="+", metavar="FILE", help="paths inside it")
    made.add_argument("-a", "--all", action="store_true",
                      help="its whole life, from the bottom layer up")  # fmt: skip
    made.add_argument("--json", action="store_true", help="the whole life, as a line of JSON each")
    return made


def _followed(view: View, path: Path) -> Path:
    """The path, with links above its last name followed where they lead somewhere."""
    above = life.resolved(view.stack, path[:-1]) if path else None
    return path if above is None else (*above, *path[-1:])


def _lines(
    view: View, path: Path, moments: list[Moment], *, everything: bool
) -> Iterator[str]:  # fmt: skip
    yield f"{subject.shown(path)}{_target(view, moments[-1])}"
    if everything:
        for moment in moments:
            yield f"  {_layer(view, moment)} {_what(view, moment)}"
        return
    last = moments[-1]
    if last.after is None:
        yield f"  does not show: {_layer(view, last)} {_what(view, last)}"
    shown = _shown(moments)
    for moment in _holders(moments):
        hides = "shows" if moment.layer in shown else "hidden"
        renamed = f", {_what(view, moment)}" if moment.event is Event.RENAMES else ""
        yield f"  {hides:6} {_layer(view, moment)}{renamed}{_size(view, moment)}"


def _shown(moments: list[Moment]) -> set[int]:
    """The layers of which something shows at the path."""
    last = moments[-1].after
    if last is None:
        return set()
    if last.is_dir:
        # One that renames a directory has it, too.
        return {one.layer for one in last.dirs}
    return {[moment for moment in moments if _holds(moment)][-1].layer}


def _holders(moments: list[Moment]) -> Iterator[Moment]:
    """Those who have the path, the topmost first."""
    return (moment for moment in reversed(moments) if _holds(moment))


def _holds(moment: Moment) -> bool:
    opaque = moment.event is Event.OPAQUE and moment.after is not None
    return opaque or moment.event in (*_HAVE, Event.RENAMES)


def _layer(view: View, moment: Moment) -> str:
    return reasons.named(view.layers[moment.layer])


def _what(view: View, moment: Moment) -> str:
    if moment.event is Event.RENAMES:
        return f"renames {_origin(view, moment)} to {subject.shown(moment.at)}"
    word = _WORDS[moment.event]
    before, after = moment.before, moment.after
    if moment.event is Event.CHANGES and before and after and before.is_dir != after.is_dir:
        word = "replaces the directory" if before.is_dir else "has a directory in place of the file"
    if moment.event in _HAVE:
        return f"{word}{_size(view, moment)}"
    at = "it" if moment.at == _path(moment) else subject.shown(moment.at)
    return f"{word} {at}{' opaque' if moment.event is Event.OPAQUE else ''}"


def _origin(view: View, moment: Moment) -> str:
    """What a directory was called below, where it goes on."""
    node = view.stack.up_to(moment.layer + 1).node(moment.at)
    below = node.dirs[1:2] if node is not None else ()
    found = [view.stack.layers[one.layer].path(one.row) for one in below]
    return subject.shown(found[0]) if found else "something"


def _path(moment: Moment) -> Path:
    node = moment.before or moment.after
    return node.path if node else ()


def _size(view: View, moment: Moment) -> str:
    node = moment.after
    if node is None or node.is_dir:
        return ""
    entry = view.stack.layers[node.layer].entry(node.row)
    return f": {units.size(entry.size)}, {ls.when(entry.mtime)}"


def _target(view: View, last: Moment) -> str:
    node = last.after
    target = view.stack.layers[node.layer].target(node.row) if node else b""
    return f" -> {output.named(target)}" if target else ""


def _as_json(view: View, path: Path, moments: list[Moment]) -> dict[str, Any]:
    life_ = []
    for moment in moments:
        item: dict[str, Any] = {
            "layer": moment.layer + 1,
            "command": view.layers[moment.layer].step.created_by,
            "event": str(moment.event),
            "at": subject.raw(moment.at),
        }
        if moment.event in _HAVE and moment.after is not None:
            item |= ls.facts(view.stack.layers[moment.after.layer].entry(moment.after.row))
        life_.append(item)
    after = moments[-1].after
    shows = after.layer + 1 if after is not None else None
    return {"path": subject.raw(path), "shownFrom": shows, "life": life_}
