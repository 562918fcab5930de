"""A listing ends, whatever is made meanwhile, and has each name that was there at its start once.

Programs see names made later after the next rewinddir(3).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.mounts import Space, fuse_only
from tests.ops.test_listing import Stream

MANY = 1000
WHERES = ("lower", "upper", "merged")
NAMES = {f"n{number}" for number in range(MANY)}


@pytest.fixture(params=WHERES)
def full(request: pytest.FixtureRequest, space: Space) -> Path:
    """A directory with many names: in the lower, in the upper, or half of them in each."""
    space.add_lower()
    for layer in space.lowers if request.param != "upper" else [space.upper]:
        (layer / "d").mkdir()
    if request.param == "merged":
        (space.upper / "d").mkdir()
    for number, name in enumerate(sorted(NAMES)):
        layer = space.upper if request.param != "lower" else space.lowers[number % 2]
        if request.param == "merged" and number % 2:
            layer = space.lowers[number % 4 // 2]
        (layer / "d" / name).touch()
    return space.mount() / "d"


def _rename(path: Path) -> None:
    path.rename(path.with_name("x" + path.name))


def _create(path: Path) -> None:
    path.with_name(path.name + ".b").touch()


def _remake(path: Path) -> None:
    path.unlink()
    path.touch()


def _away_and_back(path: Path) -> None:
    away = path.with_name("away")
    path.rename(away)
    away.rename(path)


def _remake_in_turn(path: Path) -> None:
    """Make the name a directory, then a file, then remove it."""
    path.unlink()
    path.mkdir()
    path.rmdir()
    path.touch()


def _list(path: Path) -> None:
    """Begin and end another pass, with one more name each time."""
    path.with_name(path.name + ".b").touch()
    with os.scandir(path.parent) as entries:
        next(entries)


CHANGES: dict[str, Callable[[Path], None]] = {
    "rename": _rename,
    "create": _create,
    "remake": _remake,
    "away and back": _away_and_back,
    "remake in turn": _remake_in_turn,
    "list": _list,
}


@fuse_only  # a directory that the upper alone has the kernel lists as the filesystem below does
@pytest.mark.parametrize("change", CHANGES)
def test_changing_what_was_just_read(full: Path, change: str) -> None:
    met = []
    with os.scandir(full) as entries:
        for entry in entries:
            met.append(entry.name)
            assert len(met) <= MANY, "it goes on and on"
            CHANGES[change](full / entry.name)
    assert sorted(met) == sorted(NAMES)
    assert len(os.listdir(full)) == MANY * (1 + (change in ("create", "list")))


@fuse_only
def test_names_that_came_late_are_listed_after_a_rewind(full: Path) -> None:
    stream = Stream(full)
    assert stream.next() is not None
    late = {f"late{number}" for number in range(MANY)}
    for name in late:
        (full / name).touch()
    assert set(stream.rest()) == NAMES
    stream.rewind()
    assert set(stream.rest()) == NAMES | late
    stream.close()


@fuse_only
def test_each_pass_has_an_end_of_its_own(full: Path) -> None:
    """Readers that began before and after a change go on in turn, from positions, too."""
    early = Stream(full)
    first = [early.next() for _ in range(100)]
    position = early.tell()
    (full / "late").touch()
    late = Stream(full)
    before = [late.next() for _ in range(100)]
    (full / "later").touch()
    seen_late = {found[0] for found in before if found} | set(late.rest())
    assert seen_late - {".", ".."} == NAMES | {"late"}
    met = early.rest()
    assert len(met) == len(set(met))
    assert {found[0] for found in first if found} | set(met) == NAMES | {".", ".."}
    assert set(os.listdir(full)) == NAMES | {"late", "later"}
    early.seek(position)
    assert early.rest() == met
    early.close()
    late.close()


@fuse_only
def test_reader_that_pauses_while_others_go_on(full: Path) -> None:
    """Meanwhile the entry that it read last is removed, and hundreds of passes begin and end."""
    paused = Stream(full)
    seen = [found[0] for found in (paused.next() for _ in range(500)) if found]
    (full / seen[-1]).unlink()
    for number in range(300):
        (full / f"temporary{number % 10}").touch()
        with os.scandir(full) as entries:
            next(entries)
        (full / f"temporary{number % 10}").unlink()
    assert set(os.listdir(full)) == NAMES - {seen[-1]}
    rest = paused.rest()
    assert sorted({*seen, *rest} - {".", ".."}) == sorted(NAMES)
    assert len(rest) + len(seen) == MANY + 2
    paused.close()


@fuse_only
def test_listing_beside_a_writer(full: Path) -> None:
    """Beside a writer that makes names at full speed, existing ones are listed once; it ends."""
    done = threading.Event()

    def make() -> None:
        number = 0
        while not done.is_set():
            (full / f"made{number}").touch()
            (full / f"made{number}").rename(full / f"renamed{number}")
            number += 1

    writer = threading.Thread(target=make)
    writer.start()
    try:
        for _ in range(5):
            names = os.listdir(full)
            assert len(names) == len(set(names))
            assert set(names) >= NAMES
    finally:
        done.set()
        writer.join()
