"""What comes of the rules for an image: as dive writes it, and as JUnit's XML.

Source: wagoodman/dive, cmd/dive/cli/internal/command/ci/evaluator.go, as of May 2025;
dustin/go-humanize, bytes.go; the JUnit schema of Jenkins' xUnit plugin.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final
from xml.etree import ElementTree as ET

from fuseoverlay.commands.view import subject
from fuseoverlay.errors import visible
from fuseoverlay.view.dive import Figures
from fuseoverlay.view.rules import Measured, Outcome, State, fixed

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_SUITE: Final = "fuseoverlay efficiency"


def lines(figures: Figures, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Dive's report."""
    share = f"{fixed(figures.wasted_share * 100)} %" if figures.wasted else "0 %"
    human = f"({humanized(figures.wasted)})" if figures.wasted else ""
    yield "Analysis:"
    yield f"  {'efficiency:':18} {fixed(figures.efficiency * 100)} %"
    yield f"  {'wastedBytes:':18} {figures.wasted} bytes {human}".rstrip()
    yield f"  {'userWastedPercent:':18} {share}"
    yield ""
    yield "Inefficient Files:" + ("" if figures.repeated else " (None)")
    if figures.repeated:
        yield f"  {'Count':5}  {'Wasted Space':12}  File Path"
    for row in figures.repeated:
        yield f"  {row.times:<5}  {humanized(row.bytes):12}  {subject.shown(row.path)}"
    yield ""
    yield "Evaluation:"
    yield from (f"  {one.state}  {one.key} ({visible(one.message)})" for one in outcomes)
    yield ""
    yield _summary(outcomes)


def _summary(outcomes: Sequence[Outcome]) -> str:
    tally = Counter(outcome.state for outcome in outcomes)
    counts = [f"{state.lower()}:{tally[state]}" for state in State if tally[state]]
    return f"{State.FAIL if tally[State.FAIL] else State.PASS} [{' '.join(counts)}]"


def junit(name: str, measured: Measured, outcomes: Sequence[Outcome]) -> str:
    """The XML, in ASCII, which has a test case for each rule; `name`: that of the image."""
    tally = Counter(outcome.state for outcome in outcomes)
    suite = ET.Element(
        "testsuite", name=_SUITE, tests=str(len(outcomes)), failures=str(tally[State.FAIL]),
        errors="0", skipped=str(tally[State.SKIP]),
    )  # fmt: skip
    properties = ET.SubElement(suite, "properties")
    for key, value in (
        ("image", visible(name)),
        ("size", str(measured.size)),
        ("saveable", str(measured.saveable)),
        ("efficiency", str(measured.efficiency)),
        ("wastedBytes", str(measured.wasted)),
    ):
        ET.SubElement(properties, "property", name=key, value=value)
    for outcome in outcomes:
        _case(suite, name, outcome)
    whole = ET.Element("testsuites")
    whole.append(suite)
    ET.indent(whole)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(whole).decode()


def _case(suite: ET.Element, name: str, outcome: Outcome) -> None:
    case = ET.SubElement(suite, "testcase", classname=visible(name), name=outcome.key, time="0")
    message = visible(outcome.message)
    if outcome.state is State.FAIL:
        ET.SubElement(case, "failure", message=message).text = message
    elif outcome.state is State.SKIP:
        ET.SubElement(case, "skipped", message=message)


def humanized(count: int) -> str:
    """`count` bytes as go-humanize writes them: 1.2 MB."""
    unit, scale = 0, 1
    while count >= scale * 1000 and unit < len(_UNITS) - 1:
        unit, scale = unit + 1, scale * 1000
    if count < 10:
        return f"{count} B"
    value = int(count / scale * 10 + 0.5) / 10
    return f"{value:.1f} {_UNITS[unit]}" if value < 10 else f"{value:.0f} {_UNITS[unit]}"
