"""The full-screen program: what is wasted, why, and when that is found out."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseoverlay.commands.show import units
from fuseoverlay.oci.layout import Node
from fuseoverlay.store import indexes
from fuseoverlay.store.root import Store
from fuseoverlay.view import kept, opened, waste
from fuseoverlay.view.changes import Same
from fuseoverlay.view.opened import View
from fuseoverlay.view.stack import Stack
from fuseoverlay.view.waste import Found
from tests.view.conftest import Painter
from tests.view.explored import Screen, explored, stack

IMAGE = [
    [Node("var/cache/a", data=bytes(20_000)), Node("var/cache/b", data=bytes(10_000)),
     Node("etc/conf", data=b"one\n")],
    [Node("etc/conf", data=b"three\n"), Node("var/.wh.cache")],
]  # fmt: skip
COMMANDS = ("COPY files /", "RUN rm -rf /var/cache")
SIZE, WASTED = 30_010, 30_004


@pytest.fixture
def view(paint: Painter, tmp_path: Path) -> Iterator[View]:
    """An image that nobody has looked into before."""
    path = paint("layout", *IMAGE, steps=COMMANDS)
    with opened.image(Store(tmp_path / "store"), path, warn=pytest.fail) as view:
        assert not kept_at(view).exists()
        yield view


def kept_at(view: View) -> Path:
    """Where it is kept what was found out about an image."""
    assert view.store is not None
    return indexes.place(view.store, f"{indexes.FOUND}/{view.key}")


@pytest.fixture
def screen(view: View) -> Iterator[Screen]:
    """The program, looking into it."""
    with explored(view) as screen:
        yield screen


def test_waste_says_why(screen: Screen) -> None:
    assert "it frees nothing" not in screen.prose()
    screen.app._go(screen.app.wastes)
    screen.settle()
    text = screen.prose()
    assert "path /var/cache" in text
    assert "wasted 30kB in 2 files" in text
    why = ("layer 2 (RUN rm -rf /var/cache) deletes what layer 1 (COPY files /) added: it frees "
           "nothing, delete it in the same step")  # fmt: skip
    assert why.replace(" ", "") in text.replace(" ", "")
    screen.press("down")
    text = screen.prose()
    assert "path /etc/conf" in text and "wasted 4B in 1 file path" in text
    assert "replacesit" in text.replace(" ", "") and "deletes" not in text
    # The layers are described elsewhere.
    assert "entries" not in text
    screen.press("enter")
    assert "entries" in screen.prose() and "replaces it" not in screen.prose()


def test_waste_says_what_the_image_wastes_in_all(screen: Screen) -> None:
    figures = kept.figures(screen.app.view)
    assert 0 < figures.efficiency < 1 and figures.wasted > 0
    # Whichever pane has the focus.
    assert "Waste: 30kB of 30kB" in screen.text()
    efficiency = f"{figures.efficiency * 100:.2f} %"
    wasted = units.size(figures.wasted)
    assert f"dive: {efficiency}, {wasted}" in screen.text()
    screen.app._go(screen.app.wastes)
    screen.settle()
    text = screen.prose()
    assert f"image 30kB, could save 30kB ({WASTED / SIZE * 100:.1f} %)" in text
    assert f"as dive efficiency {efficiency}, wasted {wasted}" in text


def test_waste_counts_files(screen: Screen) -> None:
    assert re.findall(r"(\S+B) +(\d+) (/\S+)", screen.text()) == [
        ("30kB", "2", "/var/cache"), ("4B", "1", "/etc/conf"),
    ]  # fmt: skip


def test_nothing_wasted_is_said(tmp_path: Path) -> None:
    with stack(tmp_path, {"file": b"x"}) as view, explored(view) as screen:
        screen.app._go(screen.app.wastes)
        screen.settle()
        assert "image 1B, nothing to save" in screen.prose()
        assert "as dive efficiency 100.00 %, wasted 0B" in screen.prose()


def test_hostile_commands_do_nothing_where_they_are_a_reason(
    paint: Painter, tmp_path: Path
) -> None:
    path = paint("layout", *IMAGE, steps=("A", "RUN \x1b[31m\u202e rm"))
    image = opened.image(Store(tmp_path / "store"), path, warn=pytest.fail)
    with image as view, explored(view) as screen:
        screen.app._go(screen.app.wastes)
        screen.settle()
        assert r"RUN\x1b[31m\u202erm" in screen.prose().replace(" ", "")
        for strip in screen.strips():
            assert all("\x1b" not in part.text and "\u202e" not in part.text for part in strip)


def test_keys_do_not_wait_for_what_is_wasted(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes to find out."""
    go_on, find = threading.Event(), waste.find

    def slow(stack: Stack, same: Same | None = None) -> Found:
        assert go_on.wait(60)
        return find(stack, same)

    monkeypatch.setattr(waste, "find", slow)
    with explored(view, begun=False) as screen:
        app = screen.app
        try:
            screen.keys("down", "tab", "down", "space")
            assert "changes of layer 2" in screen.text() and "reclaimable …" in screen.prose()
            screen.keys("tab", "enter")
            assert app.wastes.found is None and app.wastes.figures is None
            assert "M /etc/conf" in screen.rows()
            assert app.wastes.has_focus and "Waste: …" in screen.text()
        finally:
            go_on.set()
        screen.begin()
        assert app.wastes.found is not None and app.wastes.found.wasted == WASTED
    assert kept_at(view).is_file()
