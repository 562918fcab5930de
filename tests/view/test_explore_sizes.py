"""The full-screen program on terminals of many sizes, and without colours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseoverlay.commands.explore.asking import Tell
from fuseoverlay.oci.layout import Node
from fuseoverlay.store.root import Store
from fuseoverlay.view import opened
from fuseoverlay.view.opened import View
from tests.view.conftest import Painter
from tests.view.explored import Made, Screen, explored, stack

COUNT = 12
LONG = "a-name-of-20-letters"


@pytest.fixture
def view(tmp_path: Path) -> Iterator[View]:
    """Twelve layers, each with a file of its own and one that all have."""
    made: list[dict[str, Made]] = [
        {f"{LONG}/own{number}": bytes(number), "all": bytes(number)} for number in range(COUNT)
    ]
    with stack(tmp_path, *made) as view:
        yield view


def _tree(screen: Screen) -> str:
    """What is on the screen once the tree has the focus."""
    screen.app._go(screen.app.files)
    screen.settle()
    return screen.text()


@pytest.mark.parametrize(
    ("size", "attributes"),
    [
        ((112, 30), ("mode", "owner", "size")),
        ((80, 24), ("mode", "size")),
        ((60, 20), ("size",)),
        ((40, 12), ("size",)),
        ((30, 8), ("size",)),
        ((24, 8), ()),
    ],
    ids=str,
)
def test_names_have_room_before_attributes(
    view: View, size: tuple[int, int], attributes: tuple[str, ...]
) -> None:
    with explored(view, *size) as screen:
        text = _tree(screen)
        (line,) = (line for line in text.splitlines() if "▸" in line)
        before, _, name = line.partition("▸ ")
        assert LONG[:16] in name
        assert ("drwx" in before) == ("mode" in attributes)
        assert (":" in before) == ("owner" in attributes)
        assert bool(re.search(r"\dB", before)) == ("size" in attributes)


def test_a_click_on_the_arrow_finds_it_where_it_is(view: View) -> None:
    with explored(view, 80, 24) as screen:
        files = screen.app.files
        screen.click(files, files.text(1).plain.index("▸"), 1)
        assert screen.rows()[1:3] == [f"A /{LONG}", f"A /{LONG}/own0"]


@pytest.mark.parametrize(
    ("size", "rows"), [((112, 40), COUNT), ((80, 24), 6), ((60, 20), 6)], ids=str
)
def test_layers_have_rows_and_details_what_remains(
    view: View, size: tuple[int, int], rows: int
) -> None:
    with explored(view, *size) as screen:
        text = screen.text()
        assert len(re.findall(r"│ +\d+ +\S+B layer\d", text)) == rows
        details = screen.app.query_one("#details")
        assert 3 <= details.content_size.height <= 10
        assert screen.app.wastes.size.height >= 2
        assert re.search(r"size +0B", text)
        height = screen.app.layers.size.height
        screen.press("end")
        assert screen.app.layers.size.height == height
        # A layer that is selected further below is seen.
        assert re.search(r"│ 12 +\S+B layer12", screen.text())


@pytest.mark.parametrize("size", [(80, 24), (60, 20)], ids=str)
def test_the_reason_of_a_waste_is_seen_whole(
    paint: Painter, tmp_path: Path, size: tuple[int, int]
) -> None:
    nodes = [[Node("opt/cache/file", data=bytes(99))], [Node("opt/.wh.cache")]]
    steps = ("COPY " + "a" * 60, "RUN rm -rf /opt/cache && " + "b" * 60)
    path = paint("layout", *nodes, steps=steps)
    image = opened.image(Store(tmp_path / "store"), path, warn=pytest.fail)
    with image as view, explored(view, *size) as screen:
        screen.press("tab", "tab")
        width = screen.app.query_one("#left").size.width
        assert "delete it in the same step" in screen.prose(width)
        assert "wasted 99B" in screen.prose(width)
        assert screen.app.layers.size.height >= 2 and screen.app.wastes.size.height >= 2


def test_few_layers_leave_their_room_to_the_waste(tmp_path: Path) -> None:
    with stack(tmp_path, {"a": b"1"}, {"a": b"2"}) as view, explored(view) as screen:
        assert screen.app.layers.size.height == 2
        assert screen.app.wastes.size.height > 15


@pytest.mark.parametrize(("width", "begin"), [(110, 23), (60, 23), (40, 4)])
def test_help_has_its_words_below_each_other(view: View, width: int, begin: int) -> None:
    with explored(view, width, 60) as screen:
        screen.press("question_mark")
        assert isinstance(screen.app.screen, Tell)
        (box,) = screen.app.screen.query(".box")
        lines = [
            line[box.region.x + 2 : box.region.right - 2].rstrip()
            for line in screen.text().splitlines()[box.region.y + 1 : box.region.bottom - 1]
        ]
        headings = {"Everywhere", "Layers", "Waste", "Tree", "Content", "Letters", ""}
        assert {line for line in lines if line[:2] != "  "} <= headings
        more = [line for line in lines if line[:4] == "    "]
        assert all(re.match(f" {{{begin}}}\\S", line) for line in more)
        assert "ctrl+l ctrl+a m this layer's changes; all up to it; the other" in " ".join(
            " ".join(lines).split()
        )


def test_without_colours_none_is_sent(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with explored(view) as screen:
        # Of each: whether something has a cursor.
        for keys, cursor in ((["down"], True), (["tab", "down", "space"], True), (["slash"], True),
                             (["escape", "question_mark"], False), (["escape", "down", "v"], True),
                             (["escape", "e"], True)):  # fmt: skip
            screen.press(*keys)
            styles = [part.style for strip in screen.strips() for part in strip if part.style]
            assert not [style for style in styles if style.color or style.bgcolor]
            assert any(style.reverse for style in styles) or not cursor
