"""Sizes, ages, tables and templates as Docker's commands write them."""

from __future__ import annotations

import datetime

import pytest

from fuseoverlay.commands.show import table, units
from fuseoverlay.commands.show.template import Template
from fuseoverlay.errors import UsageError
from fuseoverlay.oci.times import parse_time


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *((0, "0B"), (3, "3B"), (999, "999B"), (1000, "1kB"), (1024, "1.02kB")),
        *((1_977_000, "1.98MB"), (124_000_000, "124MB"), (1_130_000_000, "1.13GB")),
        (999_999, "1e+03kB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert units.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.9, "Less than a second"), (1.9, "1 second"), (59, "59 seconds")),
        *((60, "About a minute"), (119, "About a minute"), (120, "2 minutes")),
        *((3599, "59 minutes"), (3600, "About an hour"), (5399, "About an hour")),
        *((5400, "2 hours"), (47 * 3600, "47 hours"), (48 * 3600, "2 days")),
        *((13 * 86400, "13 days"), (14 * 86400, "2 weeks"), (59 * 86400, "8 weeks")),
        *((60 * 86400, "2 months"), (729 * 86400, "24 months"), (730 * 86400, "2 years")),
    ],
)
def test_age(seconds: float, text: str) -> None:
    assert units.age(seconds) == text


def test_time_of_an_image() -> None:
    now = datetime.datetime(2026, 11, 28, 12, tzinfo=datetime.UTC)
    assert units.since("2026-11-28T11:58:00.123456789Z", now) == "About a minute ago"
    assert units.since("2026-11-28T13:58:00+02:00", now) == "2 minutes ago"
    assert units.since("once upon a time", now) == ""
    assert parse_time(units.in_seconds("2026-11-28T11:58:00.9Z")) == now.replace(hour=11, minute=58)


def test_table() -> None:
    """Docker's own lines: at least ten wide, three apart, nothing after the last."""
    headings = {"Repository": "REPOSITORY", "Tag": "TAG", "ID": "IMAGE ID", "Size": "SIZE"}
    row = {"Repository": "ex", "Tag": "1", "ID": "b9cb14e6b093", "Size": "1.98MB"}
    assert [*table.listing([row], headings, table.by_default(list(headings)))] == [
        "REPOSITORY   TAG       IMAGE ID       SIZE",
        "ex           1         b9cb14e6b093   1.98MB",
    ]


def test_formats() -> None:
    headings = {"ID": "IMAGE ID", "Tag": "TAG"}
    rows = [{"ID": "a", "Tag": "x"}, {"ID": "b", "Tag": "\x1b[31m"}]
    assert [*table.listing(rows, headings, "{{.ID}}:{{.Tag}}")] == ["a:x", "b:\\x1b[31m"]
    assert [*table.listing(rows[:1], headings, "json")] == ['{"ID":"a","Tag":"x"}']
    assert [*table.listing(rows[:1], headings, r"table {{.Tag}}\t{{.ID}}")] == [
        "TAG       IMAGE ID",
        "x         a",
    ]


DATA = {
    "Id": "sha256:abc",
    "Names": ["one:1", "two:2"],
    "Config": {"Env": ["A=b"], "Labels": {"z": "last", "a": "first"}, "User": ""},
    "Size": 12,
    "None": None,
}


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{.Id}}", "sha256:abc"),
        ("{{ .Config.Env }}|{{.Config.Labels}}", "[A=b]|map[a:first z:last]"),
        ("{{json .Config.Labels}}", '{"z":"last","a":"first"}'),
        ("{{.Names | json}}", '["one:1","two:2"]'),
        ("{{range .Names}}{{.}},{{end}}", "one:1,two:2,"),
        ("{{range .Names}}{{$.Size}}{{println .}}{{end}}", "12one:1\n12two:2\n"),
        ("{{range .Config.Labels}}{{.}} {{end}}", "first last "),
        ("{{if .Config.User}}{{.Config.User}}{{else}}root{{end}}", "root"),
        ("{{if .None}}a{{else if .Size}}b{{else}}c{{end}}", "b"),
        ("{{with .Config}}{{.Env}}{{end}}", "[A=b]"),
        ('{{index .Names 1}} {{index .Config.Labels "a"}}', "two:2 first"),
        ('{{join .Names ", "}} {{upper (index .Names 0)}}', "one:1, two:2 ONE:1"),
        ("{{len .Names}} {{eq .Size 12}}", "2 true"),
        ('{{printf "%5d|%v" .Size .Id}}', "   12|sha256:abc"),
        ("a {{- .Size -}} b {{/* no */}}", "a12b "),
        ("{{.None}}", "<no value>"),
        ("{{not .Size}} {{and .Size .Id}} {{or .None `x`}}", "false sha256:abc x"),
    ],
)
def test_template(source: str, text: str) -> None:
    assert Template(source).fill(DATA) == text


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{.Nothing}}", "no field Nothing"),
        ("{{.Id.Nothing}}", "no field Nothing"),
        ("{{nothing .Id}}", "no function nothing"),
        ("{{if .Id}}", "without {{end}}"),
        ("{{end}}", "without a beginning"),
        ("{{.Id", "without }}"),
        ("{{(.Id}}", "not closed"),
        ("{{.Id)}}", "too many"),
        ("{{.Id | }}", "missing"),
        ("{{index .Names 7}}", "index cannot take"),
        ("{{.Id .Id}}", "only a function"),
        ("{{.Id ; }}", "not understood"),
    ],
)
def test_template_that_cannot_be_meant(source: str, says: str) -> None:
    with pytest.raises(UsageError, match="--format") as caught:
        Template(source).fill(DATA)
    assert says in str(caught.value)
