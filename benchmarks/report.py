"""The report of a run: tables in Markdown, and the same and more as JSON."""

from __future__ import annotations

from typing import Any

from benchmarks.peers import OURS
from benchmarks.requests import synchronous
from benchmarks.runner import Outcome
from benchmarks.session import Samples
from benchmarks.targets import TARGETS, Results
from benchmarks.trees import Sizes


def as_json(outcome: Outcome, sizes: Sizes, about: dict[str, Any]) -> dict[str, Any]:
    """Everything measured: `measures` -> contender -> values, median, ratio, requests."""
    measures = {
        measure: {name: _samples_as_json(row, name) for name in row}
        for measure, row in outcome.results.items()
    }
    keys = ("workload", "contender", "why")
    return {
        "about": about,
        "measures": measures,
        "targets": _targets(outcome.results, sizes),
        "failures": [dict(zip(keys, one, strict=True)) for one in outcome.failures],
    }


def _samples_as_json(row: dict[str, Samples], name: str) -> dict[str, Any]:
    samples = row[name]
    mine = row.get(OURS, Samples())
    return {
        "unit": samples.unit,
        "values": samples.values,
        "median": samples.median,
        "ours_to_this": _ratio(mine.median, samples.median),
        "cpu": samples.cpu_median,
        "cpu_ours_to_this": _ratio(mine.cpu_median, samples.cpu_median),
        "requests": samples.typical_requests,
    }


def _ratio(mine: float | None, theirs: float | None) -> float | None:
    return mine / theirs if mine is not None and theirs else None


def _targets(results: Results, sizes: Sizes) -> list[dict[str, Any]]:
    told = []
    for target in TARGETS:
        value = target.reached(results, sizes)
        told.append(
            {
                "target": target.what,
                "measure": target.measure,
                "limit": target.limit,
                "reached": value,
                "hit": None if value is None else value <= target.limit,
                "form": target.form,
            }
        )
    return told


def as_text(report: dict[str, Any]) -> str:
    """The tables for people to read."""
    tables = (_seconds, _cpu, _requests, _targets_table)
    parts = [_about(report["about"]), *(table(report) for table in tables)]
    if report["failures"]:
        lines = ["- {workload}, {contender}: {why}".format(**one) for one in report["failures"]]
        parts.append("## Failed\n\n" + "\n".join(lines))
    return "\n\n".join(part for part in parts if part) + "\n"


def _about(about: dict[str, Any]) -> str:
    lines = []
    for key, value in about.items():
        if isinstance(value, dict):
            value = "; ".join(f"{step}: {seconds:.3f} s" for step, seconds in value.items())  # noqa: PLW2901
        if key != "contenders":
            lines.append(f"- {key}: {value}")
    return "\n".join(lines)


def _table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose columns also line up as plain text."""
    widths = [max(len(row[at]) for row in [head, *rows]) for at in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (head, ["-" * width for width in widths], *rows)
    ]
    return "\n".join(lines)


def _seconds(report: dict[str, Any]) -> str:
    title = "## Medians, and ours divided by each peer's (its own in parentheses)\n\n"
    return title + _compared(report, "median", "ours_to_this")


def _cpu(report: dict[str, Any]) -> str:
    if all(one["cpu"] is None for row in report["measures"].values() for one in row.values()):
        return ""
    title = "## The same of the CPU seconds that daemon and client used\n\n"
    return title + _compared(report, "cpu", "cpu_ours_to_this")


def _compared(report: dict[str, Any], key: str, ratio: str) -> str:
    others = [name for name in report["about"]["contenders"] if name != OURS]
    rows = []
    for measure, row in report["measures"].items():
        if any(one[key] is not None for one in row.values()):
            cells = [_number(row.get(OURS), key)]
            for one in (row.get(name) for name in others):
                known = one is not None and one[ratio] is not None
                number = _number(one, key)
                cells.append(f"{one[ratio]:.2f} ({number})" if known else number)
            rows.append([measure, *cells])
    return _table(["workload", OURS, *others], rows)


def _number(one: dict[str, Any] | None, key: str) -> str:
    if one is None or one[key] is None:
        return "-"
    return f"{one[key]:.3f}" if one["unit"] == "s" else f"{one[key]:.1f} {one['unit']}"


def _requests(report: dict[str, Any]) -> str:
    counted = {
        measure: {name: one["requests"] for name, one in row.items() if one["requests"] is not None}
        for measure, row in report["measures"].items()
    }
    present = {name for row in counted.values() for name in row}
    names = [name for name in report["about"]["contenders"] if name in present]
    if all(measure.startswith(("containers/", "images/", "layers/")) for measure in counted):
        return ""
    if not names:
        return "FUSE requests were not counted: that takes root and fuse:fuse_request_send."
    rows = [
        [measure, *(_sum(row.get(name)) for name in names), _opcodes(row.get(OURS))]
        for measure, row in counted.items()
        if row
    ]
    title = "## FUSE requests: how many somebody waited for, and all of ours by opcode\n\n"
    return title + _table(["workload", *names, "ours by opcode"], rows)


def _sum(requests: dict[str, int] | None) -> str:
    return "-" if requests is None else str(synchronous(requests))


def _opcodes(requests: dict[str, int] | None) -> str:
    return ", ".join(f"{name} {count}" for name, count in (requests or {}).items()) or "-"


def _targets_table(report: dict[str, Any]) -> str:
    rows = [
        [
            one["target"],
            "≤ " + one["form"].format(one["limit"]),
            one["form"].format(one["reached"]),
            "hit" if one["hit"] else "MISS",
        ]
        for one in report["targets"]
        if one["reached"] is not None
    ]
    if not rows:
        return ""
    return "## Targets\n\n" + _table(["what", "target", "reached", ""], rows)
