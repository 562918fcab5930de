"""`fuseoverlay efficiency`: what an image wastes, and why; whether it keeps the rules of CI."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from fuseoverlay.commands import output
from fuseoverlay.commands.parser import Parser
from fuseoverlay.commands.show import table, units
from fuseoverlay.commands.view import cireport, reasons, subject
from fuseoverlay.errors import FuseOverlayError, ImageError, UsageError, describe, visible
from fuseoverlay.view import divejson, kept, rules
from fuseoverlay.view.dive import Figures
from fuseoverlay.view.opened import View
from fuseoverlay.view.rules import Measured, Outcome, Setting, State
from fuseoverlay.view.waste import Cause, Found, Waste

#: Rows that are shown by default.
_ROWS: Final = 20
_FILE: Final = ".dive-ci"
_DIVE: Final = "dive-json"
_HEADINGS: Final = {
    "Size": "SIZE",
    "Bytes": "BYTES",
    "Files": "FILES",
    "Path": "PATH",
    "Why": "WHY",
}
#: Exit code: the image does not keep a rule.
_FAILED: Final = 1


@dataclasses.dataclass(frozen=True, slots=True)
class _Findings:
    """All that is known of what is wasted."""

    view: View
    found: Found
    figures: Figures

    @property
    def size(self) -> int:
        """Bytes of all layers."""
        return sum(index.size for index in self.view.stack.layers)

    def measured(self) -> Measured:
        """What the rules are about."""
        said = self.figures
        return Measured(
            said.efficiency, said.wasted, said.wasted_share, self.found.wasted, self.size
        )


def command(argv: list[str], prog: str) -> int:
    """Show what an image wastes; returns the exit code."""
    args = subject.parsed(parser(prog), argv)
    checked = _rules(args)
    with subject.look(args) as view:
        if checked:
            _check_layers(view)
        findings = _Findings(view, kept.found(view), kept.figures(view))
        outcomes = rules.outcomes(checked, findings.measured()) if checked else ()
        if args.junit is not None:
            _write(args.junit, cireport.junit(view.name, findings.measured(), outcomes))
        if args.junit != "-":
            output.say_all(_text(findings, args, outcomes))
    return _FAILED if any(one.state is State.FAIL for one in outcomes) else 0


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = subject.parser(
        prog, "Show what could be saved of an image, the most first, and why: copies that layers "
        "above replace, and files that they delete, which frees nothing. With --ci: check rules as "
        "dive does; exit code 1 if one is not kept. Unlike dive, it takes no notice of $CI.",
        f"{prog} debian:12", f"{prog} --json debian:12", f"{prog} --ci --junit report.xml app:1",
        f"{prog} -o lowerdir=top:bottom", f"{prog} mnt",
    )  # fmt: skip
    rows = made.add_mutually_exclusive_group()
    rows.add_argument("-n", dest="rows", type=_count, metavar="N",
                      help=f"the first N paths (default {_ROWS}; of --json and --format all)"
                      )  # fmt: skip
    rows.add_argument("--all", action="store_true", help="all paths")
    form = made.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="everything as one object")
    form.add_argument("--format", metavar="FORM",
                      help=f"table, json, {_DIVE} (what dive --json writes), a template, or table "
                      "TEMPLATE; fields: " + " ".join(_HEADINGS))  # fmt: skip
    _add_rules(made)
    return made


def _add_rules(made: Parser) -> None:
    checks = made.add_argument_group("rules")
    checks.add_argument("--ci", action="store_true", help="check the rules, and show dive's report")
    checks.add_argument("--ci-config", metavar="FILE",
                        help=f"the same, with the rules in this file (default {_FILE}, if there is "
                        "one)")  # fmt: skip
    checks.add_argument("--junit", metavar="FILE",
                        help="with --ci: write what came of each rule as JUnit XML; - for standard "
                        "output, without the report")  # fmt: skip
    for key, default in rules.DEFAULTS.items():
        checks.add_argument(f"--{key}", metavar="LIMIT", help=f"{_HELP[key]} (default {default})")


_HELP: Final[Mapping[str, str]] = {
    rules.LOWEST: "dive's efficiency, from 0 to 1",
    rules.WASTED: "bytes that dive calls wasted, as 20MB",
    rules.SHARE: "the same as a part, from 0 to 1, of all layers but the lowest",
    rules.SAVEABLE: "bytes that could be saved, as 20MB",
    rules.SAVEABLE_SHARE: "the same as a part of the image, from 0 to 1",
}


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rows")
    return int(text)


def _check_layers(view: View) -> None:
    """No rule can be checked without all layers. ImageError."""
    if subject.code_of(view):
        what = "not all of its layers can be read"
        raise ImageError(what, where=view.name, hint="no rule can be checked")


# rules


def _rules(args: argparse.Namespace) -> tuple[rules.Rule, ...]:
    """The rules to check; none without --ci. UsageError."""
    given = {
        key: Setting(getattr(args, key), f"--{key}")
        for key in rules.DEFAULTS
        if getattr(args, key) is not None
    }
    if not args.ci and args.ci_config is None:
        wrong = [setting.where for setting in given.values()]
        wrong += ["--junit"] if args.junit is not None else []
        if wrong:
            raise UsageError(f"{wrong[0]} is for --ci", hint="write --ci, too")
        return ()
    return rules.rules({**_from_file(args.ci_config), **given})


def _from_file(path: str | None) -> dict[str, Setting]:
    try:
        with open(path if path is not None else _FILE, "rb") as file:
            data = file.read(rules.LARGEST + 1)
    except FileNotFoundError:
        if path is None:
            return {}
        raise UsageError("no such file", where=path) from None
    except OSError as exc:
        raise UsageError(f"cannot be read: {describe(exc)}", where=path or _FILE) from None
    if len(data) > rules.LARGEST:
        raise UsageError("too large for a file of rules", where=path or _FILE)
    return rules.parsed(data.decode("utf-8-sig", "replace"), path or _FILE)


def _write(path: str, text: str) -> None:
    if path == "-":
        output.say(text)
        return
    try:
        with open(path, "w", encoding="utf-8") as file:
            print(text, file=file)
    except OSError as exc:
        raise FuseOverlayError(f"cannot be written: {describe(exc)}", where=path) from None


# what is shown


def _text(
    findings: _Findings, args: argparse.Namespace, outcomes: Sequence[Outcome]
) -> Iterable[str]:
    """The lines of the output."""
    every = args.all or (args.rows is None and (args.json or args.format not in (None, "table")))
    wastes = findings.found.wastes
    shown = wastes if every else wastes[: _ROWS if args.rows is None else args.rows]
    if args.json:
        return _json(findings, shown, outcomes)
    if args.format == _DIVE:
        return divejson.export(findings.view, findings.figures)
    if args.format not in (None, "table"):
        rows = (_row(findings.view, waste) for waste in shown)
        return table.listing(rows, _HEADINGS, args.format)
    if outcomes:
        return cireport.lines(findings.figures, outcomes)
    # What has no content is at the end, and nothing that could be saved.
    return _people(findings, shown if every else [one for one in shown if one.bytes])


def _people(findings: _Findings, shown: Sequence[Waste]) -> Iterator[str]:
    view, found = findings.view, findings.found
    yield f"{visible(view.name)}: {_saveable(found.wasted, findings.size)}"
    if len(found.wastes) > len(found.causes):
        yield ""
        yield from table.columns(["SIZE\tFILES\tWHY", *_causes(view, found)])
    if shown:
        yield ""
        yield from table.columns(["SIZE\tFILES\tPATH", *_rows(view, shown)])
    left = len(found.wastes) - len(shown)
    if left:
        paths = "path" if left == 1 else "paths"
        yield f"… {left} more {paths}: --all shows all"
    yield ""
    yield from _as_dive(findings.figures)


def _saveable(wasted: int, size: int) -> str:
    if not wasted:
        return f"nothing to save of {units.size(size)}"
    return f"could save {units.size(wasted)} of {units.size(size)} ({wasted / size * 100:.1f} %)"


def _causes(view: View, found: Found) -> Iterator[str]:
    for cause in found.causes:
        if cause.bytes:
            why = reasons.reason(view, cause, "it" if cause.files == 1 else "them")
            yield f"{units.size(cause.bytes)}\t{cause.files}\t{why}"


def _rows(view: View, shown: Iterable[Waste]) -> Iterator[str]:
    """A line for each path, and the reasons below the last of those which have the same."""
    held: list[str] = []
    for waste in shown:
        found = [f"\t\t  {reason}" for reason in reasons.reasons(view, waste)]
        if held != found:
            yield from held
        held = found
        yield f"{units.size(waste.bytes)}\t{_files(waste)}\t{subject.shown(waste.path)}"
    yield from held


def _files(waste: Waste) -> int:
    return sum(cause.files for cause in waste.causes)


def _as_dive(figures: Figures) -> Iterator[str]:
    wasted = units.size(figures.wasted)
    if math.isfinite(figures.wasted_share):
        wasted += f" ({figures.wasted_share * 100:.2f} % of all layers but the lowest)"
    yield f"As dive counts: efficiency {figures.efficiency * 100:.2f} %, wasted {wasted}."
    yield "dive counts every copy of a path, also the one that shows, and no deleted directories."


def _row(view: View, waste: Waste) -> dict[str, Any]:
    return {
        "Size": units.size(waste.bytes),
        "Bytes": waste.bytes,
        "Files": _files(waste),
        "Path": subject.shown(waste.path),
        "Why": "; ".join(reasons.reasons(view, waste)),
    }


# JSON


def _json(
    findings: _Findings, shown: Iterable[Waste], outcomes: Sequence[Outcome]
) -> Iterator[str]:
    """One object, with a line for each waste."""
    view, figures = findings.view, findings.figures
    yield f'{{"size": {findings.size}, "saveable": {findings.found.wasted}, "wastes": ['
    held = ""
    for waste in shown:
        if held:
            yield f"{held},"
        held = json.dumps(_waste(view, waste))
    share = figures.wasted_share
    dive = {
        "efficiency": figures.efficiency,
        "wastedBytes": figures.wasted,
        "userWastedPercent": share if math.isfinite(share) else None,
    }
    causes = json.dumps([_cause(view, cause) for cause in findings.found.causes])
    yield f"{held}],"
    yield f'"causes": {causes}, "dive": {json.dumps(dive)}{_json_rules(outcomes)}}}'


def _json_rules(outcomes: Sequence[Outcome]) -> str:
    found = [{"rule": one.key, "state": str(one.state), "message": one.message} for one in outcomes]
    return f', "rules": {json.dumps(found)}' if found else ""


def _waste(view: View, waste: Waste) -> dict[str, Any]:
    return {
        "path": subject.raw(waste.path),
        "bytes": waste.bytes,
        "files": _files(waste),
        "causes": [_cause(view, cause) for cause in waste.causes],
    }


def _cause(view: View, cause: Cause) -> dict[str, Any]:
    return {
        "how": str(cause.how),
        "layer": cause.by + 1,
        "command": view.layers[cause.by].step.created_by,
        "files": cause.files,
        "bytes": cause.bytes,
        "of": {str(number + 1): size for number, size in sorted(cause.of.items())},
    }
