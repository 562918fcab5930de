"""The full-screen program: what is on the screen after which keys."""

from __future__ import annotations

import dataclasses
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from textual.geometry import Size

from fuseoverlay.commands.explore.asking import Ask, Tell
from fuseoverlay.commands.explore.content import MOST, Content, picture
from fuseoverlay.commands.explore.viewer import Viewer
from fuseoverlay.oci.layout import Node, directory, symlink
from fuseoverlay.store.images import Step
from fuseoverlay.store.root import Store
from fuseoverlay.view import opened
from fuseoverlay.view.opened import View
from tests.helpers.mounts import PROJECT
from tests.view.conftest import Painter
from tests.view.explored import Made, Screen, explored, nested, stack

PICTURE = PROJECT / "docs" / "explore.svg"
#: Set it to draw docs/explore.svg anew.
WRITE = "FUSEOVERLAY_TEST_WRITE"

HOSTILE = b"evil\x1b[31m\n[bold red]\xe2\x80\xaeabc\xff"

ADDED, CHANGED, REMOVED = "#8cc265", "#e5c07b", "#e06c75"

BOTTOM: dict[str, Made] = {
    "etc/passwd": b"root:x:0:0\n",
    "etc/group": b"root:x:0:\n",
    "usr/bin/tool": bytes(range(256)) * 20,
    "usr/bin/sh": Path("tool"),
    "var/cache/big": bytes(30_000),
    "var/cache/small": b"s",
}
MIDDLE: dict[str, Made] = {
    "etc/passwd": b"root:x:0:0\nme:x:1:1\n",
    "etc/shadow": b"secret\n",
    "var/cache": None,
}
TOP: dict[str, Made] = {"etc/shadow": None, "opt/app/main": b"main\n" * 10}


@pytest.fixture
def view(tmp_path: Path) -> Iterator[View]:
    """Three layers that add, change and remove."""
    with stack(tmp_path, BOTTOM, MIDDLE, TOP) as view:
        yield view


@pytest.fixture
def screen(view: View) -> Iterator[Screen]:
    """The program, looking into them."""
    with explored(view) as screen:
        yield screen


# layers and modes


def test_the_layers_are_listed_and_the_first_is_selected(screen: Screen) -> None:
    text = screen.text()
    for number in (1, 2, 3):
        assert re.search(rf"{number} +\S+ .*layer{number}", text)
    assert "changes of layer 1, in stack" in text
    assert screen.rows() == ["A /", "A /etc", "A /usr", "A /var"]


def test_another_layer_is_selected(screen: Screen) -> None:
    screen.press("down")
    assert "changes of layer 2" in screen.text()
    assert screen.rows() == ["~ /", "~ /etc", "  /usr", "~ /var"]
    screen.press("j", "k", "end")
    assert "changes of layer 3" in screen.text()
    assert screen.rows() == ["~ /", "~ /etc", "A /opt", "  /usr", "  /var"]


def test_details_say_what_the_layer_does(screen: Screen) -> None:
    screen.press("down")
    text = screen.prose()
    assert re.search(r"entries \d+: 1 added, 1 changed, 3 removed", text)
    # The shadow file that layer 3 deletes.
    assert "reclaimable 7B" in text
    assert "layer layer2" in text


def test_all_changes_up_to_a_layer(screen: Screen) -> None:
    screen.press("end", "ctrl+a")
    assert "changes of layers 2 to 3" in screen.text()
    screen.go_to("/etc/passwd")
    rows = screen.rows()
    # Layer 2 added the shadow file and layer 3 removed it: it is in neither state.
    assert {"M /etc/passwd", "  /etc/group", "A /opt", "~ /var"} <= {*rows}
    assert "/etc/shadow" not in "".join(rows)
    screen.press("ctrl+l")
    assert "changes of layer 3" in screen.text()
    assert {"  /etc/passwd", "D /etc/shadow", "  /var"} <= {*screen.rows()}
    screen.press("m")
    assert "changes of layers 2 to 3" in screen.text()


def test_what_is_open_stays_open_in_another_layer(screen: Screen) -> None:
    screen.go_to("/var/cache/big")
    assert screen.rows()[-2:] == ["A /var/cache/big", "A /var/cache/small"]
    screen.app._go(screen.app.layers)
    screen.press("down")
    assert screen.rows()[-2:] == ["D /var/cache/big", "D /var/cache/small"]
    assert screen.path == "/var/cache/big"
    screen.press("down")
    assert screen.rows()[-1] == "  /var"


def test_colours_say_what_happened(screen: Screen) -> None:
    screen.press("down")
    screen.go_to("/etc/shadow")
    screen.press("home")
    assert screen.colour("▾ etc") == CHANGED
    assert screen.colour("passwd") == CHANGED
    assert screen.colour("shadow") == ADDED
    screen.go_to("/var/cache")
    screen.press("home")
    assert screen.colour("▸ cache") == REMOVED
    assert screen.colour("▸ usr") not in (ADDED, CHANGED, REMOVED)


def test_without_colours_letters_say_it(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with explored(view) as screen:
        screen.press("down")
        screen.go_to("/etc/shadow")
        text = screen.text()
        assert re.search(r"│M -.* passwd", text) and re.search(r"│A -.* shadow", text)


# the tree


def test_directories_open_and_close(screen: Screen) -> None:
    screen.press("tab", "down", "right")
    opened = ["A /", "A /etc", "A /etc/group", "A /etc/passwd", "A /usr", "A /var"]
    assert screen.rows() == opened
    screen.press("right")
    assert screen.path == "/etc/group"
    screen.press("left")
    assert screen.path == "/etc"
    screen.press("h")
    closed = ["A /", "A /etc", "A /usr", "A /var"]
    assert screen.rows() == closed
    screen.press("space")
    assert screen.rows() == opened
    screen.press("enter")
    assert screen.rows() == closed
    # The root stays open.
    screen.press("home", "left", "space")
    assert screen.rows() == closed


def test_all_directories_close(screen: Screen) -> None:
    screen.go_to("/usr/bin/sh")
    screen.go_to("/var/cache/big")
    assert len(screen.rows()) == 10
    screen.press("ctrl+@")
    assert screen.rows() == ["A /", "A /etc", "A /usr", "A /var"]
    assert screen.path == "/var"


def test_kinds_are_left_out(screen: Screen) -> None:
    screen.press("down")
    screen.go_to("/etc/passwd")
    assert len(screen.rows()) == 7
    screen.press("ctrl+u")
    # A directory is shown for what is below it.
    assert screen.rows() == ["~ /", "~ /etc", "M /etc/passwd", "A /etc/shadow", "~ /var"]
    assert "without same" in screen.text()
    screen.press("ctrl+a")
    assert screen.rows() == ["~ /", "~ /etc", "M /etc/passwd", "~ /var"]
    screen.press("M")
    assert screen.rows() == ["~ /", "~ /var"]
    screen.press("ctrl+r")
    assert screen.rows() == ["~ /"]
    screen.press("A", "R", "M", "U")
    assert len(screen.rows()) == 7


def test_sorted_by_size(screen: Screen) -> None:
    screen.go_to("/etc/group")
    screen.press("ctrl+o")
    assert screen.rows() == [
        *("A /", "A /var", "A /usr", "A /etc", "A /etc/passwd", "A /etc/group"),
    ]
    assert "by size" in screen.text()
    assert screen.path == "/etc/group"
    screen.press("o")
    assert [row[3:] for row in screen.rows()][1:3] == ["etc", "etc/group"]


def test_sizes_of_directories_are_those_of_what_they_show(screen: Screen) -> None:
    assert re.search(r"30kB ├?└─▸ var", screen.text())
    screen.press("end")
    text = screen.text()
    assert re.search(r" 0B └─▸ var", text)
    # Of both layers, without what was deleted.
    assert re.search(r" 30B ├─▸ etc", text)
    assert re.search(r" 5.2kB ▾ /", text)


def test_attributes_are_left_out(screen: Screen) -> None:
    owner = f"{os.getuid()}:{os.getgid()}"
    assert re.search(rf"drwx\S+ +{owner} +\S+ ▾ /", screen.text())
    screen.press("tab", "ctrl+b")
    assert owner not in screen.text()
    assert "│A ▾ /" in screen.text()
    screen.press("b")
    assert owner in screen.text()


def test_links_say_where_they_lead(screen: Screen) -> None:
    screen.go_to("/usr/bin/sh")
    assert "sh -> tool" in screen.text()


def test_long_names_are_shown_whole(tmp_path: Path) -> None:
    name = "n" * 200 + "end"
    with stack(tmp_path, {name: b"", "z": b""}) as view, explored(view) as screen:
        assert "end" not in screen.text()
        screen.press("tab", "ctrl+p")
        assert "end" in screen.text()
        screen.press("end")
        assert screen.app.files.row.name == b"z"
        screen.press("w")
        assert "end" not in screen.text()


def test_the_last_row_can_be_reached_when_all_are_long(tmp_path: Path) -> None:
    names = {f"{number:03}" + "n" * 200: b"" for number in range(50)}
    with stack(tmp_path, names) as view, explored(view) as screen:
        screen.press("tab", "w", "end")
        assert re.search(r"└─  049n", screen.text())
        screen.press("pageup", "home")
        assert "▾ /" in screen.text()


def test_names_cannot_do_anything_to_the_terminal(tmp_path: Path) -> None:
    files: dict[str, Made] = {os.fsdecode(HOSTILE): b"x", "link": Path(os.fsdecode(HOSTILE))}
    escaped = r"evil\x1b[31m\n[bold red]\u202eabc\xff"
    with stack(tmp_path, files, {os.fsdecode(HOSTILE): None}) as view:
        step = Step(created_by=f"RUN {os.fsdecode(HOSTILE)}")
        hostile = tuple(dataclasses.replace(layer, step=step) for layer in view.layers)
        view = dataclasses.replace(view, layers=hostile, name=os.fsdecode(HOSTILE))
        with explored(view, width=160) as screen:
            text = screen.text()
            assert f"─  {escaped}" in text and f"link -> {escaped}" in text
            # Of a command each white space is a space.
            command = escaped.replace(r"\n", " ")
            assert re.search(r" 1 +\S+ RUN " + re.escape(command), text)
            assert re.search(r"command +RUN " + re.escape(command), text)
            assert f"changes of layer 1, in {command}" in text
            assert f"1B   1 /{escaped}" in text
            screen.go_to(os.fsdecode(HOSTILE))
            screen.press("v")
            assert f"/{escaped}: text, 1B" in screen.text()
            screen.press("q", "e")
            assert f"/{escaped} into which" in screen.boxed()
            for strip in screen.strips():
                assert all("\x1b" not in part.text and "\u202e" not in part.text for part in strip)


def test_a_layer_that_cannot_be_read_says_why(view: View) -> None:
    bad = dataclasses.replace(view.layers[1], problem="the \x1b[1mblob is cut short")
    view = dataclasses.replace(view, layers=(view.layers[0], bad, view.layers[2]))
    with explored(view) as screen:
        assert re.search(r"2 +! the \\x1b\[1mblob is", screen.text())
        screen.press("down")
        assert re.search(r"problem +the \\x1b\[1mblob is cut short", screen.text())


# finding


def test_paths_are_found_while_they_are_written(screen: Screen) -> None:
    screen.press("slash")
    screen.type("s")
    # Everything below what is found would be shown, too.
    assert screen.rows() == ["A /", "A /etc", "A /etc/passwd", "A /usr", "A /var",
                             "A /var/cache", "A /var/cache/small"]  # fmt: skip
    screen.type("h$")
    assert screen.rows() == ["A /", "A /usr", "A /usr/bin", "A /usr/bin/sh"]
    assert "1 found" in screen.text()
    screen.press("enter", "end", "left", "left")
    assert screen.rows() == ["A /", "A /usr", "A /usr/bin"]
    screen.press("escape")
    assert screen.rows() == ["A /", "A /etc", "A /usr", "A /var"]


def test_a_search_that_is_no_regular_expression_is_plain_text(tmp_path: Path) -> None:
    with stack(tmp_path, {"a(b": b"", "ab": b""}) as view, explored(view) as screen:
        screen.press("ctrl+f")
        screen.type("A(b")
        # Capital letters count.
        assert screen.rows() == ["A /"]
        screen.press(*["backspace"] * 3)
        screen.type("a(b")
        assert screen.rows() == ["A /", "A /a(b"]


def test_a_search_goes_on_in_another_layer(screen: Screen) -> None:
    screen.press("slash")
    screen.type("cache/")
    found = ["A /", "A /var", "A /var/cache", "A /var/cache/big", "A /var/cache/small"]
    assert screen.rows() == found
    screen.app._go(screen.app.layers)
    screen.press("down")
    assert screen.rows()[-2:] == ["D /var/cache/big", "D /var/cache/small"]
    screen.press("down")
    assert screen.rows() == ["~ /"]


def test_a_search_finds_only_kinds_that_are_shown(screen: Screen) -> None:
    screen.press("down", "tab", "U", "slash")
    screen.type("/etc/")
    assert screen.rows() == ["~ /", "~ /etc", "M /etc/passwd", "A /etc/shadow"]


def test_the_first_that_is_found_is_at_the_cursor(screen: Screen) -> None:
    screen.press("slash")
    screen.type("s")
    assert screen.path == "/etc/passwd"
    screen.type("h")
    assert screen.path == "/usr/bin/sh"
    screen.press("backspace")
    assert screen.path == "/etc/passwd"
    screen.press("enter", "enter")
    assert "/etc/passwd: text, 11B" in screen.text()


def test_in_another_layer_the_cursor_stays_at_what_is_found(screen: Screen) -> None:
    screen.press("slash")
    screen.type("cache/")
    assert screen.path == "/var/cache/big"
    screen.press("enter", "down")
    screen.app._go(screen.app.layers)
    screen.press("down")
    assert screen.path == "/var/cache/small"


def test_enter_waits_for_what_is_found() -> None:
    with explored(nested([20, 20, 20], 20)) as screen:
        screen.keys("slash")
        screen.write("f00019")
        # Before all is found.
        screen.keys("enter")
        screen.settle()
        assert screen.app.files.has_focus
        assert screen.path == "/00000/00000/00000/f00019"


# waste


def test_waste_is_listed_the_most_first(screen: Screen) -> None:
    text = screen.text()
    assert "Waste: 30kB" in text
    wastes = re.findall(r"(\S+B) +1 (/\S+)", text)
    assert wastes == [("11B", "/etc/passwd"), ("7B", "/etc/shadow")]
    assert re.search(r"30kB +2 /var/cache", text)


def test_waste_leads_to_the_path_in_the_layer_that_hides_it(screen: Screen) -> None:
    screen.press("tab", "U", "R", "slash")
    screen.type("opt")
    screen.app._go(screen.app.wastes)
    screen.press("down", "down", "enter")
    assert "changes of layer 3" in screen.text()
    assert screen.path == "/etc/shadow"
    assert screen.app.files.has_focus
    assert "D /etc/shadow" in screen.rows()


def test_nothing_is_wasted_in_a_single_layer(tmp_path: Path) -> None:
    with stack(tmp_path, {"file": b"x"}) as view, explored(view) as screen:
        assert "Waste: 0B" in screen.text() and "│nothing" in screen.text()
        screen.app._go(screen.app.wastes)
        screen.press("enter", "down")
        assert screen.app.wastes.has_focus


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    """Without digests both files have to be read."""
    with stack(tmp_path, {"file": b"one"}, {"file": b"two"}) as view:
        (tmp_path / "layer1/file").unlink()
        with explored(view) as screen:
            assert "file: No such file or directory" in screen.text()
            screen.press("down")
            assert screen.rows() == ["~ /", "M /file"]
            assert "reclaimable …" in screen.prose()
            screen.app._go(screen.app.wastes)
            screen.press("enter")
            assert screen.app.wastes.has_focus


def test_a_file_that_was_written_again_is_unchanged(tmp_path: Path) -> None:
    files: list[dict[str, Made]] = [{"file": b"one", "two": b"2"}, {"file": b"one"}]
    with stack(tmp_path, *files) as view, explored(view) as screen:
        screen.press("down")
        assert screen.rows() == ["  /", "= /file", "  /two"]
        assert re.search(r"│= -.*─  file", screen.text())
        # It is of the unchanged kind.
        screen.press("tab", "U")
        assert screen.rows() == ["  /"]
        screen.press("U", "m")
        assert "= /file" in screen.rows()


def test_a_directory_that_a_layer_has_again_costs_nothing(tmp_path: Path) -> None:
    files: list[dict[str, Made]] = [{"etc/a": b"1"}, {"etc/a": b"1"}]
    with stack(tmp_path, *files) as view, explored(view) as screen:
        screen.press("down")
        screen.go_to("/etc/a")
        assert screen.rows() == ["  /", "  /etc", "= /etc/a"]


# content


def test_text_is_shown_with_numbers(screen: Screen) -> None:
    screen.press("down")
    screen.go_to("/etc/passwd")
    screen.press("v")
    assert isinstance(screen.app.screen, Viewer)
    text = screen.text()
    assert "/etc/passwd: text, 20B" in text
    assert re.search(r"1 root:x:0:0 ", text) and re.search(r"2 me:x:1:1 ", text)
    screen.press("escape")
    assert not isinstance(screen.app.screen, Viewer)


def test_content_is_that_of_the_layer(screen: Screen) -> None:
    screen.go_to("/etc/passwd")
    screen.press("enter")
    assert "root:x:0:0" in screen.text() and "me:x:1:1" not in screen.text()


def test_what_was_removed_is_shown_as_it_was(screen: Screen) -> None:
    screen.press("end")
    screen.go_to("/etc/shadow")
    screen.press("v")
    assert "1 secret" in screen.text()


def test_anything_else_is_shown_in_hexadecimal_digits(screen: Screen) -> None:
    screen.go_to("/usr/bin/tool")
    screen.press("v")
    text = screen.text()
    assert "/usr/bin/tool: data, 5.12kB" in text
    line = "00000040 40 41 42 43 44 45 46 47  48 49 4a 4b 4c 4d 4e 4f  @ABCDEFGHIJKLMNO"
    assert line in text
    screen.press("x")
    assert line not in screen.text() and r"\x00\x01" in screen.text()
    screen.press("x", "end")
    assert "000013f0 f0 f1" in screen.text()


LINKS: dict[str, Made] = {
    "etc/conf": b"one\n",
    "etc/up": Path("../usr/conf"),
    "usr/conf": Path("/etc/conf"),
    "usr/dir": Path("../opt/inner"),
    "opt/inner/x": b"",
    "opt/a": b"",
    "zero": b"",
    "nowhere": Path("/missing\x1b[1m"),
    "circle": Path("circle"),
    "outside": Path("/../../etc"),
}


@pytest.fixture
def links(tmp_path: Path) -> Iterator[Screen]:
    """Symbolic links, of which a second layer removes some, and what they lead to."""
    gone: dict[str, Made] = {"etc/up": None, "etc/conf": b"other"}
    with stack(tmp_path, LINKS, gone) as view, explored(view) as screen:
        yield screen


@pytest.mark.parametrize("key", ["v", "enter"])
def test_a_link_is_followed_to_a_file(links: Screen, key: str) -> None:
    links.go_to("/etc/up")
    links.press(key)
    assert isinstance(links.app.screen, Viewer)
    assert "/etc/up -> /etc/conf: text, 4B" in links.text()
    assert "1 one" in links.text()


def test_a_removed_link_is_followed_as_it_was(links: Screen) -> None:
    links.press("down")
    links.go_to("/etc/up")
    links.press("v")
    assert "/etc/up -> /etc/conf: text, 4B" in links.text() and "1 one" in links.text()
    links.press("escape")
    links.go_to("/usr/conf")
    links.press("v")
    assert "/usr/conf -> /etc/conf: text, 5B" in links.text() and "1 other" in links.text()


@pytest.mark.parametrize(("link", "target"), [("/usr/dir", "/opt/inner"), ("/outside", "/etc")])
def test_a_link_leads_to_a_directory(links: Screen, link: str, target: str) -> None:
    links.press("tab", "slash")
    links.type(link.rpartition("/")[2])
    links.press("enter")
    assert links.path == link
    links.press("enter")
    assert not isinstance(links.app.screen, Tell)
    assert links.path == target and links.app.files.has_focus
    # All is shown again.
    assert "A /zero" in links.rows()


@pytest.mark.parametrize(
    ("link", "target"), [("/nowhere", r"/missing\x1b[1m"), ("/circle", "circle")]
)
def test_a_link_that_leads_nowhere_says_so(links: Screen, link: str, target: str) -> None:
    links.go_to(link)
    links.press("v")
    assert isinstance(links.app.screen, Tell)
    assert f"{link} -> {target}: leads nowhere in the image" in links.text()
    links.press("escape")
    assert links.path == link


def test_what_is_no_file_has_no_content(links: Screen) -> None:
    links.press("down")
    links.go_to("/etc")
    links.press("v")
    assert isinstance(links.app.screen, Tell)
    assert "/etc is no regular file" in links.text()
    links.press("escape")
    assert not isinstance(links.app.screen, Tell)


def test_a_file_that_is_gone_is_said_to_be(view: View, tmp_path: Path) -> None:
    (tmp_path / "layer1/etc/group").unlink()
    with explored(view) as screen:
        screen.go_to("/etc/group")
        screen.press("v")
        assert isinstance(screen.app.screen, Tell)
        assert "group: No such file or directory" in screen.text()


def test_only_the_beginning_of_a_large_file_is_read(tmp_path: Path) -> None:
    with stack(tmp_path, {"large": b"line\n" * (MOST // 4)}) as view, explored(view) as screen:
        screen.go_to("/large")
        screen.press("v")
        assert "text, 1.31MB, the first 1024 KiB" in screen.text()
        screen.press("end")
        assert f"{MOST // 5 + 1} l" in screen.text()


def test_long_lines_and_odd_bytes_are_readable() -> None:
    data = "é".encode() * 600 + b"\tx\x1b[0m\xff\r\nlast"
    lines = [*Content(data, len(data)).lines(hex=False)]
    assert [number for number, _ in lines] == ["1", "", "", "2"]
    assert "".join(line for _, line in lines[:-1]) == "é" * 600 + r"        x\x1b[0m\xff"
    assert lines[-1] == ("2", "last")
    assert not Content(b"", 0).lines(hex=False) and not Content(b"", 0).lines(hex=True)


PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 640, 480)
JPEG = b"\xff\xd8\xff\xe0\0\x04ab\xff\xc2\0\x11\x08" + struct.pack(">HH", 48, 64) + b"\x03"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (PNG, "PNG picture, 640 x 480 pixels"),
        (b"GIF89a" + struct.pack("<HH", 320, 200), "GIF picture, 320 x 200 pixels"),
        (JPEG, "JPEG picture, 64 x 48 pixels"),
        (PNG[:20], "PNG picture"),
        (b"GIF87a\1", "GIF picture"),
        (JPEG[:12], "JPEG picture"),
        (b"\xff\xd8\xff\xe0\0\0" + bytes(20), "JPEG picture"),
        (b"PNG", None),
    ],
)
def test_pictures_are_known_by_their_headers(data: bytes, said: str | None) -> None:
    assert picture(data) == said


def test_a_picture_is_shown_with_its_size(tmp_path: Path) -> None:
    with stack(tmp_path, {"logo.png": PNG}) as view, explored(view) as screen:
        screen.go_to("/logo.png")
        screen.press("v")
        assert "/logo.png: PNG picture, 640 x 480 pixels, 24B" in screen.text()
        assert "00000000 89 50 4e 47" in screen.text()


# extracting


def test_a_file_is_extracted(screen: Screen, tmp_path: Path) -> None:
    screen.go_to("/etc/passwd")
    screen.press("ctrl+e")
    assert isinstance(screen.app.screen, Ask)
    target = tmp_path / "new" / "place"
    screen.type(f"{target}")
    screen.press("enter")
    assert (target / "passwd").read_bytes() == BOTTOM["etc/passwd"]
    assert "extracted /etc/passwd to" in screen.text()


def test_a_directory_is_extracted_as_the_layer_shows_it(screen: Screen, tmp_path: Path) -> None:
    screen.press("down")
    screen.go_to("/etc")
    screen.press("e")
    screen.type(f"{tmp_path}/out")
    screen.press("enter")
    found = {path.name: path.read_bytes() for path in (tmp_path / "out/etc").iterdir()}
    assert found == {
        "group": BOTTOM["etc/group"], "passwd": MIDDLE["etc/passwd"],
        "shadow": MIDDLE["etc/shadow"],
    }  # fmt: skip


def test_nothing_is_overwritten(screen: Screen, tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("mine")
    screen.go_to("/etc/passwd")
    screen.press("e")
    screen.type(f"{tmp_path}")
    screen.press("enter")
    assert "there is something already" in screen.boxed()
    assert (tmp_path / "passwd").read_text() == "mine"


def test_what_was_removed_can_be_extracted(screen: Screen, tmp_path: Path) -> None:
    screen.press("down")
    screen.go_to("/var/cache")
    screen.press("e")
    screen.type(f"{tmp_path}/out")
    screen.press("enter")
    assert {path.name for path in (tmp_path / "out/cache").iterdir()} == {"big", "small"}


# comparing


def test_any_two_layers_are_compared(screen: Screen) -> None:
    screen.press("end", "c")
    screen.type("1")
    screen.press("enter")
    assert "from layer 1 to layer 3" in screen.text()
    screen.go_to("/etc/passwd")
    assert {"M /etc/passwd", "A /opt", "~ /var"} <= {*screen.rows()}
    screen.press("escape")
    assert "changes of layer 3" in screen.text()


def test_backwards_everything_is_the_other_way_round(screen: Screen) -> None:
    screen.press("c")
    screen.type("3")
    screen.press("enter")
    screen.go_to("/var/cache")
    assert {"D /opt", "A /var/cache"} <= {*screen.rows()}


@pytest.mark.parametrize("answer", ["0", "4", "x", "99999999999999999999"])
def test_a_layer_that_is_not_there_is_not_compared(screen: Screen, answer: str) -> None:
    screen.press("c")
    screen.type(answer)
    screen.press("enter")
    assert f"there is no layer {answer}" in screen.text()
    screen.press("escape")
    assert "changes of layer 1" in screen.text()


# mouse, panes, sizes


def test_a_click_selects_and_on_the_arrow_opens(screen: Screen) -> None:
    files = screen.app.files
    line = screen.app.files.text(1).plain
    screen.click(files, line.index("etc"), 1)
    assert screen.path == "/etc" and len(files.model.rows) == 4
    screen.click(files, line.index("▸"), 1)
    assert len(files.model.rows) == 6
    screen.click(files, line.index("▸"), 1)
    assert len(files.model.rows) == 4
    # Where there is no row nothing happens.
    screen.click(files, 5, 20)
    assert screen.path == "/etc"


def test_a_double_click_opens(screen: Screen) -> None:
    files = screen.app.files
    screen.click(files, files.text(2).plain.index("usr"), 2, times=2)
    assert screen.rows() == ["A /", "A /etc", "A /usr", "A /usr/bin", "A /var"]
    screen.click(screen.app.layers, 5, 1)
    assert "changes of layer 2" in screen.text()


def test_the_wheel_scrolls(tmp_path: Path) -> None:
    names = {f"{number:03}": b"" for number in range(200)}
    with stack(tmp_path, names) as view, explored(view) as screen:
        files = screen.app.files
        screen.press("tab", "end")
        assert "199" in screen.text() and files.scroll_offset.y == 201 - files.size.height
        before = files.scroll_offset.y
        screen.wheel_up(files)
        assert files.scroll_offset.y < before
        assert files.cursor == 200


def test_tab_goes_from_pane_to_pane(screen: Screen) -> None:
    app = screen.app
    seen = []
    for _ in range(4):
        seen.append(app.focused)
        screen.press("tab")
    assert seen == [app.layers, app.files, app.wastes, app.layers]
    screen.press("shift+tab")
    assert app.focused is app.layers


def test_help_says_all_keys(screen: Screen) -> None:
    screen.press("question_mark")
    assert isinstance(screen.app.screen, Tell)
    assert "tab, shift+tab" in screen.text()
    screen.press("escape", "f1")
    assert isinstance(screen.app.screen, Tell)


@pytest.mark.parametrize("size", [(20, 5), (1, 1), (59, 24), (200, 8)], ids=str)
def test_small_screens_show_what_there_is_room_for(view: View, size: tuple[int, int]) -> None:
    with explored(view, *size) as screen:
        screen.press("down", "tab", "down", "right", "w", "end", "v", "escape", "slash", "s")
        screen.press("escape", "tab", "enter", "question_mark", "escape", "c", "1", "enter")
        screen.press("e", "escape")
        assert screen.app.size == Size(*size)
        assert screen.app.choice.other == 0
        screen.resize(110, 40)
        assert "from layer 1 to layer" in screen.text()
        assert "Layers" in screen.text() and "Waste" in screen.text()


def test_a_narrow_screen_shows_one_side(view: View) -> None:
    with explored(view, 50, 12) as screen:
        assert "layer1" in screen.text() and "▾ /" not in screen.text()
        screen.press("enter")
        assert "layer1" not in screen.text() and "▾ /" in screen.text()
        screen.press("tab")
        assert "layer1" in screen.text()


def test_q_and_ctrl_c_quit(view: View) -> None:
    for keys in (["q"], ["ctrl+c"], ["slash", "q", "ctrl+c"], ["e", "ctrl+c"]):
        with explored(view) as screen:
            for key in keys:
                assert screen.app.is_running and screen.app.return_code is None
                screen.press(key)
            assert screen.app.return_code == 0


# many


def test_a_large_directory_is_looked_up_only_where_it_is_seen() -> None:
    """The counts of a million names."""
    with explored(nested([10], 100_000)) as screen:
        files, model = screen.app.files, screen.app.files.model
        assert sum(map(len, screen.app.view.stack.layers)) == 1_000_011
        assert len(model.rows) == 11 and model.looked_up == 10
        screen.press("tab", "down", "right")
        assert len(model.rows) == 100_011
        assert model.looked_up <= 10 + 2 * files.size.height
        screen.press("end", "home", "pagedown", "pagedown")
        assert model.looked_up <= 10 + 5 * files.size.height
        screen.press("home", "down", "down", "left", "left", "left")
        assert len(model.rows) == 11


def test_a_deep_directory_is_opened_to_its_end() -> None:
    depth = 10_000
    with explored(nested([1] * depth, 1)) as screen:
        files = screen.app.files
        screen.press("slash")
        screen.type("f00000")
        assert len(files.model.rows) == depth + 2
        screen.press("enter", "end")
        assert len(files.row.path) == depth + 1
        assert "… " in screen.text() and "─  f00000" in screen.text()
        screen.press("v")
        assert "no content" in screen.text()
        screen.press("escape", "o", "U", "ctrl+@", "escape")
        screen.press("ctrl+@")
        assert len(files.model.rows) == 2


# the picture


def _demo() -> list[list[Node]]:
    mib = 1 << 20
    shop = {"uid": 1000, "gid": 1000}
    return [
        [directory("bin"), Node("bin/sh", 0o755, bytes(mib)), directory("etc"),
         Node("etc/passwd", data=b"root:x:0:0:root:/root:/bin/sh\n"), directory("var"),
         directory("tmp", 0o1777)],
        [directory("var/lib/apt"), Node("var/lib/apt/lists", data=bytes(18 * mib)),
         directory("usr/bin"), Node("usr/bin/python3", 0o755, bytes(6 * mib)),
         symlink("usr/bin/python", "python3")],
        [directory("srv/shop", **shop), Node("srv/shop/app.py", data=bytes(8000), **shop),
         Node("srv/shop/models.py", data=bytes(5300), **shop),
         Node("srv/shop/settings.py", data=bytes(900), **shop)],
        [Node("etc/passwd", data=b"root:x:0:0:root:/root:/bin/sh\nshop:x:1000:1000::/srv:\n"),
         Node("srv/shop/settings.py", data=bytes(950), **shop),
         Node("srv/shop/static/style.css", data=bytes(2100), **shop),
         Node("var/lib/apt/.wh.lists"), Node("srv/shop/.wh.models.py")],
    ]  # fmt: skip


COMMANDS = (
    "ADD rootfs.tar.gz /",
    "RUN apt-get update && apt-get install -y python3",
    "COPY --chown=shop . /srv/shop",
    "RUN useradd shop && rm -rf /var/lib/apt/lists",
)


def test_the_picture_shows_the_program_as_it_is(paint: Painter, tmp_path: Path) -> None:
    path = paint("layout", *_demo(), steps=COMMANDS)
    with opened.image(Store(tmp_path / "store"), path, warn=pytest.fail) as view:
        # Another zlib compresses otherwise.
        plain = [dataclasses.replace(one, digest=None, compressed=None) for one in view.layers]
        view = dataclasses.replace(view, layers=tuple(plain), name="shop:1.4")
        with explored(view, 112, 30) as screen:
            screen.press("end")
            for name in ("/var/lib/apt/lists", "/srv/shop/app.py", "/etc/passwd"):
                screen.go_to(name)
            drawn = _without_ids(screen.app.export_screenshot(title="fuseoverlay explore shop:1.4"))
    if os.environ.get(WRITE):
        PICTURE.write_text(drawn)
    assert PICTURE.read_text() == drawn, f"stale: run this with {WRITE}=1"


def _without_ids(drawn: str) -> str:
    """Without what differs each time, and without fonts of other sites."""
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.S)
    return re.sub(r"terminal-\d+", "terminal", drawn)


def test_what_is_found() -> None:
    """Text or a shell pattern, anywhere; no name keeps the search busy."""
    from fuseoverlay.commands.explore.search import matcher

    for text, path, expected in (
        ("pass", "/etc/passwd", True), ("PASS", "/etc/passwd", False),
        ("pass", "/etc/PASSwd", True),
        ("*.conf", "/etc/a.conf", True), ("*.conf$", "/etc/a.conf.d", False),
        ("^/etc/*$", "/etc/x", True), ("^/etc/*$", "/etc/x/y", False), ("a+b", "/a+b", True),
        ("(a|aa)+$b", "/" + "a" * 250, False), ("*a*a*a*a*b", "/" + "a" * 250, False),
    ):  # fmt: skip
        assert matcher(text)(path) is expected, (text, path)
