"""Copies never touch what is there already, and never stay half done."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest

from fuseoverlay.errors import ImageError
from fuseoverlay.oci.layout import Node, directory, symlink
from fuseoverlay.store.root import Store
from fuseoverlay.view import extract, opened
from fuseoverlay.view.extract import CopyError, ExistsError
from fuseoverlay.view.opened import Contents, View
from tests.helpers.mounts import MODE
from tests.oci.helpers import block, header, pax
from tests.view.conftest import Painter

LAYER = [
    directory("d", 0o555, mtime=7), Node("d/f", 0o4755, b"data", mtime=8), Node("d/g", data=b"2"),
    symlink("d/l", "/etc/passwd"),
]  # fmt: skip


class Meanwhile:
    """Contents, before each of which something happens."""

    def __init__(self, inner: Contents, happens: Callable[[], None]) -> None:
        self._inner, self._happens = inner, happens

    def contents(self, number: int, rows: Sequence[int]) -> Iterator[tuple[int, IO[bytes]]]:
        for found in self._inner.contents(number, rows):
            self._happens()
            yield found


@pytest.fixture
def view(tmp_path: Path, paint: Painter) -> Iterator[View]:
    with opened.image(Store(tmp_path / "store"), paint("one", LAYER), warn=print) as found:
        yield found


def copy(view: View, target: Path, path: tuple[bytes, ...] = (b"d",)) -> None:
    node = view.stack.node(path)
    assert node is not None
    extract.extract(view, view.stack, node, target, print)


def beside(target: Path) -> list[str]:
    return sorted(os.listdir(target.parent))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place/out"


def test_a_copy(view: View, target: Path) -> None:
    copy(view, target)
    st = os.stat(target)
    assert (stat.S_IMODE(st.st_mode), st.st_mtime) == (0o555, 7)
    st = os.stat(target / "f")
    assert (stat.S_IMODE(st.st_mode), st.st_mtime, st.st_uid) == (0o755, 8, os.getuid())
    assert os.readlink(target / "l") == "/etc/passwd"
    assert beside(target) == ["out"]
    os.chmod(target, 0o755)


@pytest.mark.parametrize("path", [(b"d",), (b"d", b"f"), (b"d", b"l")])
def test_what_comes_meanwhile_stays(view: View, target: Path, path: tuple[bytes, ...]) -> None:
    """Somebody else is faster."""

    def create() -> None:
        if not target.exists():
            target.write_text("precious")

    slow = replace(view, contents=Meanwhile(view.contents, create))
    if path[-1] == b"l":
        create()
    with pytest.raises(ExistsError):
        copy(slow, target, path)
    assert target.read_text() == "precious" and beside(target) == ["out"]


@pytest.mark.parametrize("exc", [ImageError("damaged"), KeyboardInterrupt(), SystemExit(143)])
def test_what_fails_leaves_nothing(view: View, target: Path, exc: BaseException) -> None:
    def fail() -> None:
        assert not target.exists(), "it is there before it is whole"
        raise exc

    with pytest.raises(type(exc)):
        copy(replace(view, contents=Meanwhile(view.contents, fail)), target)
    assert beside(target) == []


def test_no_room(view: View, target: Path) -> None:
    """The message names what could not be made."""

    def fill() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(CopyError) as caught:
        copy(replace(view, contents=Meanwhile(view.contents, fill)), target)
    assert str(caught.value) == f"{target}: cannot be made: No space left on device"


@pytest.mark.skipif(MODE != "root", reason="needs another user")
def test_where_another_user_may_write(view: View, target: Path, tmp_path: Path) -> None:
    """Who owns the directory cannot lead root to his own links: it works where nobody may enter."""
    victim = tmp_path / "victim"
    victim.write_text("secret")
    victim.chmod(0o600)
    os.chown(target.parent, 12345, 12345)
    seen = set()

    def look() -> None:
        for name in os.listdir(target.parent):
            st = os.stat(target.parent / name)
            seen.add((stat.S_IMODE(st.st_mode), st.st_uid))
            os.rename(target.parent / name, target.parent / f"moved-{name}")
            os.symlink(victim, target.parent / name)

    slow = replace(view, contents=Meanwhile(view.contents, look))
    copy(slow, target, (b"d", b"f"))
    assert seen == {(0o700, 0)} and target.read_bytes() == b"data"
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600 and victim.read_text() == "secret"


def test_holes_stay_holes(tmp_path: Path, paint: Painter, target: Path) -> None:
    """A terabyte from a few bytes is neither read nor written."""
    size = 1 << 40
    records = (
        b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.realsize=%d" % size,
        b"GNU.sparse.name=hole",
    )  # fmt: skip
    body = block(b"1\n%d\n4\n" % (size // 2)) + block(b"data")
    tar = pax(*records) + header("hole", size=len(body)) + body + bytes(1024)
    with opened.image(Store(tmp_path / "store"), paint("one", tar), warn=print) as view:
        copy(view, target, (b"hole",))
    assert target.stat().st_size == size and target.stat().st_blocks < 100
    with target.open("rb") as file:
        file.seek(size // 2 - 1)
        assert file.read(6) == b"\0data\0"
