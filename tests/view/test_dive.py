"""What dive says of odd images, worked out by hand, beside what could really be saved."""

from __future__ import annotations

import json
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fuseoverlay.oci.layout import Node, directory, symlink
from tests.commands.conftest import Cli
from tests.view.conftest import Painter


def file(name: str, size: int, letter: bytes = b"x", **more: Any) -> Node:
    return Node(name, data=letter * size, **more)


def gone(name: str) -> Node:
    """The whiteout of a name."""
    parent, slash, last = name.rpartition("/")
    return Node(f"{parent}{slash}.wh.{last}")


OPAQUE = ".wh..wh..opq"


@dataclass(frozen=True)
class Case:
    """An image, bottom layer first. dive's efficiency as two sums of bytes, and what it lists as
    path, count, bytes. What is really wasted as path, bytes, how."""

    layers: Sequence[Sequence[Node]]
    efficiency: tuple[int, int]
    repeated: Sequence[tuple[str, int, int]]
    wastes: Sequence[tuple[str, int, str]]


CASES = {
    # The whiteout counts with the 150 bytes below the directory, and is alone at its path.
    "deleted directory": Case(
        [[directory("d"), file("d/a", 100), file("d/b", 50)], [gone("d")]],
        (300, 300), [], [("/d", 150, "deleted")],
    ),
    # To dive this is no directory, so the whiteout counts with 0.
    "deleted directory that is not listed": Case(
        [[file("d/a", 100)], [gone("d")]], (100, 100), [], [("/d", 100, "deleted")]
    ),
    "opaque directory": Case(
        [[directory("d"), file("d/a", 100)],
         [directory("d"), Node(f"d/{OPAQUE}"), file("d/b", 10)]],
        (110, 110), [], [("/d", 100, "made opaque")],
    ),
    # dive keeps d/a below the opaque directory: the whiteout counts with 100 and 10.
    "opaque directory that is deleted": Case(
        [[directory("d"), file("d/a", 100)],
         [directory("d"), Node(f"d/{OPAQUE}"), file("d/b", 10)], [gone("d")]],
        (220, 220), [], [("/d", 110, "made opaque, deleted")],
    ),
    # Only the first name has a size. The other one still shows the content.
    "one of two hard links hidden": Case(
        [[file("a", 100), Node("b", hardlink="a")], [gone("a")]],
        (0, 100), [("/a", 2, 100)], [("/a", 0, "deleted")],
    ),
    "both hard links hidden": Case(
        [[file("a", 100), Node("b", hardlink="a")], [gone("a"), gone("b")]],
        (0, 100), [("/a", 2, 100), ("/b", 2, 0)], [("/b", 100, "deleted"), ("/a", 0, "deleted")],
    ),
    # The link is listed before the name that has the content in dive's order, which is no matter.
    "hard link whose name comes first": Case(
        [[file("b", 100), Node("a", hardlink="b")], [gone("a")]],
        (100, 100), [("/a", 2, 0)], [("/a", 0, "deleted")],
    ),
    "only the mode": Case(
        [[file("f", 100)], [file("f", 100, mode=0o600)]],
        (100, 200), [("/f", 2, 200)], [("/f", 100, "metadata changed")],
    ),
    "the same again": Case(
        [[file("f", 100)], [file("f", 100, mtime=9)]],
        (100, 200), [("/f", 2, 200)], [("/f", 100, "copied again")],
    ),
    # Both are leaves.
    "empty directory twice": Case(
        [[directory("e"), file("f", 10)], [directory("e", 0o700)]], (10, 10), [("/e", 2, 0)], []
    ),
    # A directory that holds something is no leaf.
    "file replaced by a directory": Case(
        [[file("p", 100)], [directory("p"), file("p/x", 30)]],
        (130, 130), [], [("/p", 100, "replaced")],
    ),
    "directory replaced by a file": Case(
        [[directory("p"), file("p/x", 30), file("p/y", 5)], [file("p", 100)]],
        (135, 135), [], [("/p", 35, "replaced")],
    ),
    # To dive, p/x is still there below the file, and the directory of the third layer has it again.
    "directory that was a file between": Case(
        [[directory("p"), file("p/x", 30)], [file("p", 100)], [directory("p")], [gone("p")]],
        (30, 160), [("/p", 3, 130)], [("/p", 130, "replaced, replaced")],
    ),
    "empty directory replaced by a file": Case(
        [[directory("p")], [file("p", 100)]], (0, 100), [("/p", 2, 100)], []
    ),
    "file in three layers": Case(
        [[file("f", 100)], [file("f", 100, b"y")], [file("f", 60)]],
        (60, 260), [("/f", 3, 260)], [("/f", 200, "replaced, replaced")],
    ),
    # The whiteout counts with 0, which is the smallest.
    "deleted file": Case(
        [[file("f", 100), file("g", 100)], [gone("f")]],
        (100, 200), [("/f", 2, 100)], [("/f", 100, "deleted")],
    ),
    # dive leaves out the layer from the whiteout on, so f and z, but not -f, whose name comes
    # before. The path where it stops counts with -1.
    "whiteout of nothing": Case(
        [[file("f", 100), file("-f", 10)],
         [gone("a"), file("f", 100), file("z", 50), file("-f", 10)]],
        (109, 120), [("/-f", 2, 20)], [("/f", 100, "copied again"), ("/-f", 10, "copied again")],
    ),
    # The third layer has the path, so that there is no -1.
    "whiteout of nothing that is there later": Case(
        [[file("f", 100)], [gone("a"), file("f", 100)], [file("a", 7)]],
        (107, 107), [], [("/f", 100, "copied again")],
    ),
    "whiteout in the lowest layer": Case(
        [[file("-f", 5), gone("x"), file("z", 10)]], (4, 5), [], []
    ),
    # The leaf d counts with 100; d/a has two leaves.
    "deleted and added again": Case(
        [[directory("d"), file("d/a", 100)], [gone("d")], [directory("d"), file("d/a", 100)]],
        (200, 300), [("/d/a", 2, 200)], [("/d", 100, "deleted")],
    ),
    # At the end 70 bytes are below d. Smallest: d/a 70, d/b 0, d 70.
    "deleted bit by bit": Case(
        [[directory("d"), file("d/a", 100), file("d/b", 10)],
         [directory("d"), gone("d/b"), file("d/a", 70)], [gone("d")]],
        (140, 250), [("/d/a", 2, 170), ("/d/b", 2, 10)],
        [("/d/a", 100, "replaced"), ("/d", 70, "deleted"), ("/d/b", 10, "deleted")],
    ),
    "symbolic link twice": Case(
        [[symlink("s", "x" * 50)], [symlink("s", "y" * 50)]],
        (0, 0), [("/s", 2, 0)], [("/s", 0, "replaced")],
    ),
    # Of the same size, what was found last comes first.
    "of the same size": Case(
        [[file(name, 10) for name in "abc"], [file(name, 10) for name in "acb"]],
        (30, 60), [("/c", 2, 20), ("/b", 2, 20), ("/a", 2, 20)],
        [(f"/{name}", 10, "copied again") for name in "abc"],
    ),
    "nothing twice": Case([[file("a", 1)], [file("b", 2)]], (3, 3), [], []),
    "nothing at all": Case([[], []], (0, 0), [], []),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_both_ways(cli: Cli, paint: Painter, name: str) -> None:
    case = CASES[name]
    picture = paint("picture", *case.layers)
    said = json.loads(cli.said("efficiency", "--json", picture))
    wastes = [
        (one["path"], one["bytes"], ", ".join(cause["how"] for cause in one["causes"]))
        for one in said["wastes"]
    ]
    assert wastes == list(case.wastes)
    assert said["saveable"] == sum(size for _, size, _ in wastes)
    dive = json.loads(cli.said("efficiency", "--format", "dive-json", picture))["image"]
    rows = [(row["file"], row["count"], row["sizeBytes"]) for row in dive["fileReference"]]
    assert rows == list(case.repeated)
    part, whole = case.efficiency
    assert dive["efficiencyScore"] == said["dive"]["efficiency"] == (part / whole if whole else 1)
    wasted = sum(size for _, _, size in rows)
    assert dive["inefficientBytes"] == said["dive"]["wastedBytes"] == wasted
    user = sum(len(node.data) for layer in case.layers[1:] for node in layer)
    assert said["dive"]["userWastedPercent"] == (wasted / user if user else None)


def test_json_of_dive(cli: Cli, paint: Painter) -> None:
    """All of it, as Go writes it."""
    picture = paint(
        "picture",
        [Node("d/f", 0o4755, b"x" * 10, uid=1, gid=2), Node("d/g", hardlink="d/f")],
        [gone("d/f"), Node("d/t", stat.S_IFDIR | 0o1777), symlink("l", "d"),
         Node("p", stat.S_IFIFO | 0o600)],
        steps=["/bin/sh -c make", "COPY <x> \x1b"],
    )  # fmt: skip
    text = cli.said("efficiency", "--format", "dive-json", picture)
    data = json.loads(text)
    assert text == json.dumps(data, indent=2) + "\n"
    first, second = data["layer"]
    keys = ("index", "sizeBytes", "command")
    assert [first[key] for key in keys] == [0, 10, "make"]
    assert [second[key] for key in keys] == [1, 0, "COPY <x> \x1b"]
    assert first["digestId"] == f"sha256:{first['id']}" != second["digestId"]
    assert [list(one.values()) for one in first["fileList"]] == [
        ["d/f", 48, "", 10, 1 << 23 | 0o755, 1, 2, False],
        ["d/g", 49, "d/f", 0, 1 << 23 | 0o755, 1, 2, False],
        # The archive does not list it.
        ["", 0, "", 0, 0, 0, 0, False],
    ]
    assert [list(one.values()) for one in second["fileList"]] == [
        ["d/.wh.f", 48, "", 0, 0, 0, 0, False],
        ["d/t", 53, "", 0, 1 << 31 | 1 << 20 | 0o777, 0, 0, True],
        ["", 0, "", 0, 0, 0, 0, False],
        ["l", 50, "d", 0, 1 << 27 | 0o777, 0, 0, False],
        ["p", 54, "", 0, 1 << 25 | 0o600, 0, 0, False],
    ]
    assert data["image"] == {
        "sizeBytes": 10,
        "inefficientBytes": 10,
        "efficiencyScore": 0,
        "fileReference": [{"count": 2, "sizeBytes": 10, "file": "/d/f"}],
    }


def test_directories(cli: Cli, tmp_path: Path) -> None:
    """Of two names of a file the first one has its size."""
    top, bottom = tmp_path / "top", tmp_path / "bottom"
    top.mkdir()
    bottom.mkdir()
    (bottom / "b").write_bytes(b"x" * 100)
    (bottom / "a").hardlink_to(bottom / "b")
    (top / "a").write_bytes(b"y" * 7)
    (top / ".wh.b").touch()
    said = json.loads(cli.said("efficiency", "--json", "-o", f"lowerdir={top}:{bottom}"))
    # a: 100 and 7; b: 0 and 0.
    assert said["dive"] == {
        "efficiency": 7 / 107,
        "wastedBytes": 107,
        "userWastedPercent": 107 / 7,
    }
    assert (said["size"], said["saveable"]) == (107, 100)


def test_deep(cli: Cli, paint: Painter) -> None:
    """Far more levels than Python calls functions."""
    path = "/".join(["d"] * 1500)
    layer = [Node(f"{path}/f", data=b"x" * 10)]
    picture = paint("picture", layer, layer)
    data = json.loads(cli.said("efficiency", "--format", "dive-json", picture))
    assert len(data["layer"][0]["fileList"]) == 1501
    assert data["image"]["efficiencyScore"] == 0.5
