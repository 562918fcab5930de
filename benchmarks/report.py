"""What a run says: tables in Markdown, and the same and more as JSON."""

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
    return {
        "unit": samples.unit,
        "values": samples.values,
        "median": samples.median,
        "ours_to_this": _ratio(row, name),
        "requests": samples.typical_requests,
    }


def _ratio(row: dict[str, Samples], name: str) -> float | None:
    """Our median divided by that of `name`."""
    mine = row[OURS].median if OURS in row else None
    theirs = row[name].median
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
    """The tables that people read."""
    parts = [_about(report["about"]), _seconds(report), _requests(report), _targets_table(report)]
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
    names = report["about"]["contenders"]
    others = [name for name in names if name != OURS]
    rows = []
    for measure, row in report["measures"].items():
        cells = [measure, _median(row.get(OURS))]
        for name in others:
            one = row.get(name)
            ratio = one and one["ours_to_this"]
            cells.append(f"{ratio:.2f} ({_median(one)})" if ratio is not None else _median(one))
        rows.append(cells)
    title = "## Medians, and ours divided by each peer's (its own in parentheses)\n\n"
    return title + _table(["workload", OURS, *others], rows)


def _median(one: dict[str, Any] | None) -> str:
    if one is None or one["median"] is None:
        return "-"
    if one["unit"] == "s":
        return f"{one['median']:.3f}"
    return f"{one['median']:.1f} {one['unit']}"


def _requests(report: dict[str, Any]) -> str:
    counted = {
        measure: {name: one["requests"] for name, one in row.items() if one["requests"] is not None}
        for measure, row in report["measures"].items()
    }
    present = {name for row in counted.values() for name in row}
    names = [name for name in report["about"]["contenders"] if name in present]
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
