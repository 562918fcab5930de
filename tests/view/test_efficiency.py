"""`efficiency`: what could be saved, and why, in words and as data."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fuseoverlay.oci.layout import Node, directory
from fuseoverlay.store import indexes
from fuseoverlay.store.root import Store
from fuseoverlay.view import dive, kept, opened, waste
from tests.commands.conftest import Cli
from tests.helpers.mounts import fuse_only
from tests.view.conftest import Painter

LONG = "RUN " + "x" * 60
#: Bottom first; what each path shows is why its bytes are wasted.
LAYERS = [
    [Node("lists/a", data=b"a" * 6000), Node("lists/b", data=b"b" * 1000),
     Node("app", data=b"p" * 4000), Node("copied", data=b"c" * 3000),
     directory("data"), Node("data/x", data=b"x" * 2000), Node("three", data=b"1" * 300)],
    [Node(".wh.lists"), Node("three", data=b"2" * 200), Node("data/y", data=b"y" * 100)],
    [Node("app", 0o755, data=b"p" * 4000), Node("copied", data=b"c" * 3000),
     Node("data/.wh..wh..opq"), Node("three", data=b"3" * 100), Node("none")],
    [Node(".wh.none")],
]  # fmt: skip
STEPS = [
    "/bin/sh -c #(nop) ADD file:1 in / ",
    "RUN /bin/sh -c rm -rf  lists # buildkit",
    LONG,
    "/bin/sh -c echo \x1b[1m",
]


@pytest.fixture
def picture(paint: Painter) -> str:
    return paint("picture", *LAYERS, steps=STEPS)


def test_in_words(cli: Cli, picture: str) -> None:
    add, rm = "layer 1 (ADD file:1 in /)", "layer 2 (RUN rm -rf lists)"
    long = f"layer 3 ({LONG[:44]}…)"
    # dive: each of app, copied and three is there two or three times. Leaves: 16300 in the lowest
    # layer, 300 in the second, 7100 in the third. Smallest of app 4000, copied 3000, three 100.
    assert cli.said("efficiency", picture).splitlines() == [
        f"{picture}: could save 16.6kB of 23.7kB (70.0 %)",
        "",
        "SIZE      FILES     PATH",
        "7kB       2         /lists",
        f"                      {rm} deletes what {add} added: it frees nothing, delete it in the "
        "same step",
        "4kB       1         /app",
        f"                      {long} copies it only to change its owner, mode or attributes: set "
        "them where it is made, as by COPY --chown",
        "3kB       1         /copied",
        f"                      {long} has the same again that {add} added: "
        "leave it out of that step",
        "2.1kB     2         /data",
        f"                      {long} makes the directory opaque, which hides what layers 1 and 2 "
        "added: it frees nothing",
        "500B      2         /three",
        f"                      {rm} replaces it, {add} keeps its copy",
        f"                      {long} replaces it, {rm} keeps its copy",
        "… 1 more path: --all shows all",
        "",
        "As dive counts: efficiency 68.35 %, wasted 14.6kB (197.30 % of all layers but the "
        "lowest).",
        "dive counts every copy of a path, also the one that shows, and no deleted directories.",
    ]


def paths(cli: Cli, *argv: object) -> list[str]:
    text = cli.said("efficiency", "--format", "{{.Path}}", *argv)
    return text.splitlines()


def test_how_many(cli: Cli, picture: str) -> None:
    every = ["/lists", "/app", "/copied", "/data", "/three", "/none"]
    assert paths(cli, picture) == paths(cli, "--all", picture) == every
    assert paths(cli, "-n", 2, picture) == every[:2]
    lines = cli.said("efficiency", "-n2", picture).splitlines()
    assert sum(line.startswith(("7kB", "4kB", "3kB")) for line in lines) == 2
    assert "… 4 more paths: --all shows all" in lines
    lines = cli.said("efficiency", "--all", picture).splitlines()
    assert "0B        1         /none" in lines and "more path" not in "".join(lines)
    said = json.loads(cli.said("efficiency", "--json", "-n1", picture))
    assert [one["path"] for one in said["wastes"]] == every[:1]
    cli.refused(2, "'-1' is no number of rows", "efficiency", "-n=-1".replace("=", ""), picture)
    cli.refused(2, "not allowed with", "efficiency", "-n1", "--all", picture)


def test_twenty_by_default(cli: Cli, paint: Painter) -> None:
    layer = [Node(f"f{number:02}", data=b"x" * (100 - number)) for number in range(30)]
    picture = paint("picture", layer, layer)
    lines = cli.said("efficiency", picture).splitlines()
    shown = [line.split()[2] for line in lines if "/f" in line and line.split()[1] == "1"]
    assert shown == [f"/f{number:02}" for number in range(20)]
    assert "… 10 more paths: --all shows all" in lines


def test_added_up(cli: Cli, paint: Painter) -> None:
    """What one step does to many files is said once."""
    names = [f"f{number}" for number in range(5)]
    picture = paint(
        "picture",
        [Node(name, data=b"x" * 10) for name in names],
        [Node(name, data=b"x" * 10, uid=1) for name in names],
        [Node("f0", data=b"y" * 7), Node("f1", data=b"y" * 7)],
        steps=["COPY f* /", "RUN chown", "RUN y"],
    )
    assert cli.said("efficiency", "-n1", picture).splitlines()[:9] == [
        f"{picture}: could save 70B of 114B (61.4 %)",
        "",
        "SIZE      FILES     WHY",
        "50B       5         layer 2 (RUN chown) copies them only to change their owner, mode or "
        "attributes: set them where they are made, as by COPY --chown",
        "20B       2         layer 3 (RUN y) replaces them, layer 2 (RUN chown) keeps its copy",
        "",
        "SIZE      FILES     PATH",
        "20B       2         /f0",
        "                      layer 2 (RUN chown) copies it only to change its owner, mode or "
        "attributes: set them where it is made, as by COPY --chown",
    ]
    causes = json.loads(cli.said("efficiency", "--json", "-n1", picture))["causes"]
    assert [(one["how"], one["layer"], one["files"], one["of"]) for one in causes] == [
        ("metadata changed", 2, 5, {"1": 50}),
        ("replaced", 3, 2, {"2": 20}),
    ]


def test_nothing_to_save(cli: Cli, paint: Painter) -> None:
    picture = paint("picture", [Node("f", data=b"x" * 10)])
    assert cli.said("efficiency", picture).splitlines()[:3] == [
        f"{picture}: nothing to save of 10B",
        "",
        "As dive counts: efficiency 100.00 %, wasted 0B.",
    ]


def test_as_data(cli: Cli, picture: str) -> None:
    said = json.loads(cli.said("efficiency", "--json", picture))
    assert (said["size"], said["saveable"]) == (23700, 16600)
    assert said["dive"] == {
        "efficiency": (23700 - 14600 + 7100) / 23700,
        "wastedBytes": 14600,
        "userWastedPercent": 14600 / 7400,
    }
    found = {one["path"]: one for one in said["wastes"]}
    assert found["/data"] == {
        "path": "/data",
        "bytes": 2100,
        "files": 2,
        "causes": [
            {"how": "made opaque", "layer": 3, "command": LONG, "files": 2, "bytes": 2100,
             "of": {"1": 2000, "2": 100}}
        ],
    }  # fmt: skip
    assert [(one["how"], one["layer"], one["of"]) for one in found["/three"]["causes"]] == [
        ("replaced", 2, {"1": 300}),
        ("replaced", 3, {"2": 200}),
    ]


def test_rows_as_data(cli: Cli, picture: str) -> None:
    first = json.loads(cli.said("efficiency", "--format", "json", picture).splitlines()[0])
    assert first.pop("Why").startswith("layer 2 (RUN rm -rf lists) deletes what layer 1 ")
    assert first == {"Size": "7kB", "Bytes": 7000, "Files": 2, "Path": "/lists"}
    text = cli.said("efficiency", "--format", r"table {{.Bytes}}\t{{.Path}}", "-n1", picture)
    assert text == "BYTES     PATH\n7000      /lists\n"


def test_hostile_names(cli: Cli, paint: Painter) -> None:
    """Nothing in them reaches the terminal, and the data has all of it."""
    name = b"\x1b[2J\n\xff\t\xe2\x80\xae"
    layer = [Node(name, data=b"x" * 9)]
    picture = paint("picture", layer, layer, steps=["a", "b\x1b]0;x\x07\nc \u202e"])
    shown = r"/\x1b[2J\n\xff\t\u202e"
    text = cli.said("efficiency", picture)
    assert shown in text and r"layer 2 (b\x1b]0;x\x07 c \u202e)" in text
    assert all(line.isprintable() for line in text.splitlines())
    assert paths(cli, picture) == [shown]
    said = json.loads(cli.said("efficiency", "--json", picture))
    assert os.fsencode(said["wastes"][0]["path"]) == b"/" + name
    data = json.loads(cli.said("efficiency", "--format", "dive-json", picture))
    assert data["image"]["fileReference"][0]["file"] == "/\x1b[2J\n\ufffd\t\u202e"


def test_kept(cli: Cli, paint: Painter) -> None:
    """Once found out, all of it is read from the store: what is not asked for, not even parsed."""
    layer = [Node(f"f{number:02}", data=b"x" * (100 - number)) for number in range(30)]
    picture = paint("picture", layer, layer)
    every = ("--json", "--format=dive-json", "--format={{.Path}}", "--ci")
    before = [cli.run("efficiency", form, picture).stdout for form in every]
    table = cli.said("efficiency", picture)
    (kept,) = cli.root.glob("index/found/*")
    magic, _, head, *lines = kept.read_bytes().splitlines()
    assert len(lines) == 60
    assert [cli.run("efficiency", form, picture).stdout for form in every] == before
    # The rows behind the first 20 and dive's are none any more; their lengths stay.
    spoilt = lines[:20] + [b"!" * len(line) for line in lines[20:]]
    pieces = [line + b"\n" for line in (head, *spoilt)]
    kept.write_bytes(indexes.sealed(magic + b"\n", pieces))
    assert cli.said("efficiency", picture) == table
    assert cli.run("efficiency", "--all", picture).returncode != 0


@pytest.mark.parametrize("how", ["cut", "changed", "empty", "of an older version"])
def test_kept_and_damaged(cli: Cli, picture: str, how: str) -> None:
    """It is found out again."""
    before = cli.said("efficiency", "--json", picture)
    (kept,) = cli.root.glob("index/found/*")
    good = kept.read_bytes()
    match how:
        case "cut":
            kept.write_bytes(good[:-10])
        case "changed":
            kept.write_bytes(good.replace(b"lists", b"LISTS"))
        case "empty":
            kept.write_bytes(b"")
        case _:
            kept.write_bytes(good.replace(b"found 3", b"found 2"))
    assert cli.said("efficiency", "--json", picture) == before
    assert kept.read_bytes() == good


def test_a_layer_that_cannot_be_read(cli: Cli, picture: str) -> None:
    """The others are shown; rules are not kept by what nobody knows."""
    blobs = Path(picture[:-2]) / "blobs/sha256"
    layers = [path for path in blobs.iterdir() if path.read_bytes()[:2] == b"\x1f\x8b"]
    max(layers, key=lambda path: path.stat().st_size).write_bytes(b"no layer")
    done = cli.run("efficiency", picture)
    assert done.returncode == 0 and "cannot be read" in done.stderr
    cli.refused(7, "no rule can be checked", "efficiency", "--ci", picture)


@pytest.fixture
def stacked(tmp_path: Path) -> str:
    """Three directories as lowers; the first two have the same file."""
    for name, content in (("top", b"t" * 30), ("middle", b"x" * 50), ("bottom", b"x" * 50)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_bytes(content)
    return ":".join(str(tmp_path / name) for name in ("top", "middle", "bottom"))


def test_directories(cli: Cli, stacked: str) -> None:
    said = json.loads(cli.said("efficiency", "--json", "-o", f"lowerdir={stacked}"))
    (waste,) = said["wastes"]
    assert (said["size"], waste["path"], waste["bytes"]) == (130, "/f", 100)
    assert [(one["how"], one["of"]) for one in waste["causes"]] == [
        ("copied again", {"1": 50}),
        ("replaced", {"2": 50}),
    ]


@fuse_only
def test_a_mount(cli: Cli, stacked: str) -> None:
    upper, work = cli.base / "upper", cli.base / "work"
    upper.mkdir()
    work.mkdir()
    cli.said("-o", f"lowerdir={stacked},upperdir={upper},workdir={work}", cli.mnt)
    (cli.mnt / "f").unlink()
    lines = cli.said("efficiency", cli.mnt).splitlines()
    assert lines[0] == f"{cli.mnt}: could save 130B of 130B (100.0 %)"
    assert "layer 4 (changes of the mount) deletes what layer 3 added" in lines[6]
    cli.said("unmount", cli.mnt)


def test_kept_lines_are_a_sequence(cli: Cli, paint: Painter) -> None:
    """What is read from the store is in no way different from what was found out."""
    layer = [Node(f"f{number:02}", data=b"x" * (100 - number)) for number in range(30)]
    picture = paint("picture", layer, layer)
    store = Store(cli.root)
    with opened.image(store, picture, warn=print) as view:
        pairs = [
            (waste.find(view.stack).wastes, [kept.found(view).wastes for _ in range(2)]),
            (dive.figures(view.stack).repeated, [kept.figures(view).repeated for _ in range(2)]),
        ]
        for made, read in pairs:
            assert type(read[1]) is not tuple
            for one in read:
                assert [*one] == [*made] == [one[at] for at in range(30)]
                assert (len(one), one[-1], one[29]) == (30, made[29], made[29])
                for part in (slice(3), slice(4, 9), slice(-2, None), slice(None, None, -7)):
                    assert one[part] == tuple(made[part])
                with pytest.raises(IndexError):
                    one[30]
