"""Rules for an image: files as dive's, options, what comes of them, reports."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from fuseoverlay.errors import UsageError
from fuseoverlay.oci.layout import Node
from fuseoverlay.view import rules
from fuseoverlay.view.rules import Measured, Setting, State
from tests.commands.conftest import Cli
from tests.view.conftest import Painter

#: Efficiency 90 of 120 bytes, 60 wasted of 50 above the lowest layer, 30 of 120 could be saved.
EVEN = Measured(0.75, 60, 1.2, 30, 120)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("0", 0), ("42", 42), ("42B", 42), ("1,000", 1000), ("20MB", 20_000_000)),
        *(("20 mb", 20_000_000), ("1.5k", 1500), ("1KiB", 1024), ("2Gi", 2 << 30)),
        *((".5MB", 500_000), ("3t", 3 * 10**12), ("1EiB", 1 << 60), ("0.6", 0)),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert rules.size_of(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "1XB", "1kmB", "1iB", "1 2", "17EiB", "1e3"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        rules.size_of(text)


FILES = {
    "": {},
    "rules:\n": {},
    "# all\n---\nrules:\n  lowestEfficiency: 0.95 # high\n\n  # x\n  highestWastedBytes: 20MB\n":
        {"lowestEfficiency": "0.95", "highestWastedBytes": "20MB"},
    "rules: # dive's\n    highestUserWastedPercent: '0.2' # low\n    lowest-efficiency: \"0.5\"\n":
        {"highestUserWastedPercent": "0.2", "lowestEfficiency": "0.5"},
    # Others' blocks do not matter.
    "log:\n  path: [a, b]\n  - x\nrules:\n  highest-wasted-bytes: off\nkeys:\n  quit: q\n":
        {"highestWastedBytes": "off"},
    # YAML's null leaves what is by default, an empty text disables.
    "rules:\n  lowestEfficiency:\n  highestWastedBytes: ~\n  highestUserWastedPercent: ''\n":
        {"highestUserWastedPercent": ""},
    "rules:\r\n  lowest-efficiency-threshold: .5\r\n": {"lowestEfficiency": ".5"},
    "rules:\n  highestSaveableBytes: 1GB\n  highest-saveable-percent: 0\n":
        {"highestSaveableBytes": "1GB", "highestSaveablePercent": "0"},
}  # fmt: skip


@pytest.mark.parametrize("text", FILES)
def test_files(text: str) -> None:
    found = {key: setting.text for key, setting in rules.parsed(text, "F").items()}
    assert found == FILES[text]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rules: {lowestEfficiency: 0.9}\n", "F:1: not understood"),
        ("rules: 5\n", "F:1: not understood"),
        ("rules:lowestEfficiency: 0.9\n", "F:1: not understood"),
        ("rules:\n  lowestEfficiency:0.9\n", "F:2: not understood"),
        ("rules:\n  - lowestEfficiency: 0.9\n", "F:2: not understood"),
        ("rules:\n\tlowestEfficiency: 0.9\n", "F:2: not understood"),
        ("rules:\n  lowestEfficiency: 0.9\n    highestWastedBytes: 1\n", "F:3: not understood"),
        ("rules:\n  lowestEfficiency 0.9\n", "F:2: not understood"),
        ("rules:\n  lowestEficiency: 0.9\n", "F:2: lowestEficiency is no rule"),
        ("rules:\n  lowest-efficiency: 1\n  lowestEfficiency: 1\n", "F:3: lowestEfficiency is"),
        ("rules:\n  lowestEfficiency: &a 0.9\n", "F:2: lowestEfficiency: '&a 0.9' is not"),
        ("rules:\n  lowestEfficiency: 'a\n", "F:2: not understood"),
    ],
)
def test_malformed_files(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        rules.parsed(text, "F")
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("lowestEfficiency", "high", "is no number"),
        ("lowestEfficiency", "1.01", "is not between 0 and 1"),
        ("lowestEfficiency", "nan", "is not between 0 and 1"),
        ("highestUserWastedPercent", "-0.1", "is not between 0 and 1"),
        ("highestWastedBytes", "lots", "is no size"),
        ("highestSaveablePercent", "10%", "is no number"),
    ],
)
def test_malformed_values(key: str, text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        rules.rules({key: Setting(text, "F:7")})
    assert str(caught.value).startswith(f"F:7: {key}: {text!r} {says}; write a ")


def outcome(key: str, text: str, measured: Measured = EVEN) -> tuple[State, str]:
    (found,) = [
        one
        for one in rules.outcomes(rules.rules({key: Setting(text, "")}), measured)
        if one.key == key
    ]
    return found.state, found.message


@pytest.mark.parametrize(
    ("key", "met", "missed", "says"),
    [
        ("lowestEfficiency", "0.75", "0.76",
         "image efficiency is too low (efficiency=0.75 < threshold=0.76)"),
        ("highestWastedBytes", "60", "59",
         "too many bytes wasted (wasted-bytes=60 > threshold=59)"),
        ("highestUserWastedPercent", "disabled", "1",
         "too many bytes wasted, relative to the user bytes added "
         "(%-user-wasted-bytes=1.20 > threshold=1)"),
        ("highestSaveableBytes", "30B", "29B",
         "too many bytes could be saved (bytes=30 > threshold=29)"),
        ("highestSaveablePercent", "0.25", "0.2",
         "too much of the image could be saved (part=0.25 > threshold=0.2)"),
    ],
)  # fmt: skip
def test_thresholds(key: str, met: str, missed: str, says: str) -> None:
    """Who just meets one has kept the rule."""
    state = State.SKIP if met == "disabled" else State.PASS
    assert outcome(key, met) == (state, met)
    assert outcome(key, missed) == (State.FAIL, says)


@pytest.mark.parametrize("text", ["", " ", "disabled", "Off", "FALSE"])
def test_disabled(text: str) -> None:
    (rule, *_) = rules.rules({"highestUserWastedPercent": Setting(text, "")})
    assert rule.threshold is None


def test_by_default() -> None:
    """Ours are not even mentioned."""
    assert [(rule.key, rule.threshold) for rule in rules.rules({})] == [
        ("highestUserWastedPercent", 0.1),
        ("highestWastedBytes", None),
        ("lowestEfficiency", 0.9),
    ]


def test_a_single_layer() -> None:
    """0/0 is above nothing, as in Go; what is infinite is above all."""
    key = "highestUserWastedPercent"
    assert outcome(key, "0", Measured(1, 0, math.nan, 0, 0))[0] is State.PASS
    state, message = outcome(key, "1", Measured(1, 5, math.inf, 0, 0))
    assert state is State.FAIL
    assert "%-user-wasted-bytes=+Inf > threshold=1" in message


# the command


@pytest.fixture
def picture(paint: Painter) -> str:
    """120 bytes: the file of 30 is there twice, and once under a name that is no name."""
    f, bad = Node("f", data=b"f" * 30), Node("\x1b[1m\n", data=b"x" * 10)
    return paint("picture", [f, bad, Node("g", data=b"g" * 40)], [f, bad])


#: Efficiency 80/120, wasted 60 and 20 of 40, saveable 40 of 120.
REPORT = """\
Analysis:
  efficiency:        66.67 %
  wastedBytes:       80 bytes (80 B)
  userWastedPercent: 200.00 %

Inefficient Files:
  Count  Wasted Space  File Path
  2      60 B          /f
  2      20 B          /\\x1b[1m\\n

Evaluation:
  FAIL  highestUserWastedPercent (too many bytes wasted, relative to the user bytes added \
(%-user-wasted-bytes=2.00 > threshold=0.1))
  SKIP  highestWastedBytes (disabled)
  FAIL  lowestEfficiency (image efficiency is too low (efficiency=0.67 < threshold=0.9))

FAIL [fail:2 skip:1]
"""


def test_report(cli: Cli, picture: str) -> None:
    done = cli.run("efficiency", "--ci", picture)
    assert (done.returncode, done.stdout, done.stderr) == (1, REPORT, "")


def test_report_of_what_is_good(cli: Cli, paint: Painter) -> None:
    done = cli.run("efficiency", "--ci", "--highestSaveableBytes=1k", paint("good", [Node("f")]))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "Analysis:\n  efficiency:        100.00 %\n  wastedBytes:       0 bytes\n"
        "  userWastedPercent: 0 %\n\nInefficient Files: (None)\n\nEvaluation:\n"
        "  PASS  highestSaveableBytes (1k)\n  PASS  highestUserWastedPercent (0.1)\n"
        "  SKIP  highestWastedBytes (disabled)\n  PASS  lowestEfficiency (0.9)\n\n"
        "PASS [pass:3 skip:1]\n"
    )


def states(cli: Cli, code: int, *argv: object) -> dict[str, str]:
    done = cli.run("efficiency", "--json", *argv)
    assert done.returncode == code, done.stderr
    return {one["rule"]: one["state"] for one in json.loads(done.stdout).get("rules", [])}


def test_where_rules_come_from(cli: Cli, picture: str) -> None:
    """Options before the file, the file before what is by default."""
    lax = ("--lowestEfficiency=0.1", "--highestUserWastedPercent=off")
    assert states(cli, 0, picture) == {}
    assert set(states(cli, 0, "--ci", *lax, picture).values()) == {"PASS", "SKIP"}
    (cli.base / ".dive-ci").write_text("rules:\n  lowestEfficiency: 0.9\n")
    assert states(cli, 0, picture) == {}
    assert states(cli, 1, "--ci", *lax[1:], picture)["lowestEfficiency"] == "FAIL"
    assert states(cli, 0, "--ci", *lax, picture)["lowestEfficiency"] == "PASS"
    other = cli.base / "other"
    other.write_text("rules:\n  highestUserWastedPercent: off\n  lowestEfficiency: off\n")
    assert set(states(cli, 0, "--ci-config", other, picture).values()) == {"SKIP"}
    ours = states(cli, 1, "--ci-config", other, "--highestSaveableBytes=39", picture)
    assert ours["highestSaveableBytes"] == "FAIL"


def test_ci_in_the_environment_changes_nothing(cli: Cli, picture: str) -> None:
    cli.env["CI"] = "true"
    assert cli.said("efficiency", picture).splitlines()[0].endswith("40B of 120B (33.3 %)")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--highestWastedBytes=1",), "--highestWastedBytes is for --ci"),
        (("--junit", "x"), "--junit is for --ci"),
        (("--ci-config", "none"), "none: no such file"),
        (("--ci-config", "."), ".: cannot be read"),
        (("--ci", "--lowestEfficiency=x"), "--lowestEfficiency: lowestEfficiency: 'x' is no num"),
        (("--ci-config", "bad"), "bad:2: lowestEfficiency: 'high' is no number"),
        (("--ci-config", "large"), "large: too large"),
    ],
)
def test_refused(cli: Cli, picture: str, words: tuple[str, ...], says: str) -> None:
    (cli.base / "bad").write_text("rules:\n  lowestEfficiency: high\n")
    (cli.base / "large").write_bytes(b"#" * (1 << 17))
    cli.refused(2, says, "efficiency", *words, picture)


def case_of(path: Path | str) -> tuple[dict[str, str], dict[str, Any]]:
    root = ET.fromstring(path if isinstance(path, str) else path.read_text())
    (suite,) = root
    cases = {
        case.attrib["name"]: [(one.tag, one.attrib["message"]) for one in case]
        for case in suite.iter("testcase")
    }
    return suite.attrib, cases


def test_junit(cli: Cli, picture: str) -> None:
    done = cli.run("efficiency", "--ci", "--junit", "report.xml", picture)
    assert (done.returncode, done.stdout) == (1, REPORT)
    counts, cases = case_of(cli.base / "report.xml")
    assert counts == {
        "name": "fuseoverlay efficiency", "tests": "3", "failures": "2", "errors": "0",
        "skipped": "1",
    }  # fmt: skip
    assert cases["highestWastedBytes"] == [("skipped", "disabled")]
    assert cases["lowestEfficiency"] == [
        ("failure", "image efficiency is too low (efficiency=0.67 < threshold=0.9)")
    ]


def test_junit_on_standard_output(cli: Cli, paint: Painter) -> None:
    """Names of images are no XML."""
    picture = paint("a<b>&\x01", [Node("f")])
    text = cli.said("efficiency", "--ci", "--junit", "-", picture)
    _, cases = case_of(text)
    assert cases["lowestEfficiency"] == []
    assert "a&lt;b&gt;&amp;\\x01" in text and text.isascii()


def test_junit_that_cannot_be_written(cli: Cli, picture: str) -> None:
    cli.refused(1, "no/x: cannot be written", "efficiency", "--ci", "--junit", "no/x", picture)


def test_a_large_file_takes_no_time() -> None:
    """Each character is looked at a few times at most, or this would take minutes."""
    for line in ("rules:" + " " * 60_000 + "'", "rules:\n  a: b" + " " * 60_000 + "'#",
                 "rules:\n  a: " + "'" * 60_001, "a" * 60_000 + " " * 4000):  # fmt: skip
        try:
            rules.parsed(line, "F")
        except UsageError as exc:
            assert "F:" in str(exc)
