"""Listing directories, big and changing ones, with offsets that stay valid."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import libc
from tests.helpers.mounts import (
    IMPL,
    NATIVE,
    Space,
    fails,
    fuse_only,
    make_whiteout,
    set_overlay_xattr,
)
from tests.ops.conftest import Case

MANY = 5000


class Stream(libc.Stream):
    """A directory stream with names as text and positions as from telldir(3)."""

    def next(self) -> tuple[str, int] | None:
        """(name, position after it); None at the end."""
        found = super().next()
        return (os.fsdecode(found.name), self.tell()) if found is not None else None

    def rest(self) -> list[str]:
        """All names from here, without dots."""
        return [name for name, _ in self if name not in (".", "..")]


@pytest.fixture(scope="module")
def big() -> Iterator[Space]:
    """Read only: two layers with 3,000 names each, 1,000 in both, some hidden."""
    from tests.helpers.mounts import scratch

    with scratch() as base:
        space = Space(base)
        bottom = space.add_lower()
        for layer, start in ((bottom, 0), (space.lower, 2000)):
            (layer / "d").mkdir()
            for index in range(start, start + 3000):
                (layer / "d" / f"n{index}").touch()
        for index in range(100):
            make_whiteout(space.lower / "d" / f"n{index}")
        try:
            space.mount()
            yield space
            space.unmount()
        finally:
            space.drop()


EXPECTED = {f"n{index}" for index in range(100, 5000)}


def test_big_directory(big: Space) -> None:
    for _ in range(2):
        names = os.listdir(big.mnt / "d")
        assert len(names) == len(EXPECTED), "a name is listed twice, or not at all"
        assert set(names) == EXPECTED


def test_dots_are_listed_first_and_once(big: Space) -> None:
    stream = Stream(big.mnt / "d")
    names = []
    while (found := stream.next()) is not None:
        names.append(found[0])
    stream.close()
    assert names.count(".") == names.count("..") == 1


def test_seek_to_every_kind_of_position(big: Space) -> None:
    stream = Stream(big.mnt / "d")
    seen = []
    while (found := stream.next()) is not None:
        seen.append(found)
    for index in (0, 1, 2, 5, 100, 2500, 4898, len(seen) - 2, len(seen) - 1):
        stream.seek(seen[index][1])
        expected = [name for name, _ in seen[index + 1 :] if name not in (".", "..")]
        assert stream.rest() == expected, f"after position {index}"
    stream.close()


def test_two_listings_at_once(big: Space) -> None:
    one, two = Stream(big.mnt / "d"), Stream(big.mnt / "d")
    for _ in range(1000):
        one.next()
    assert set(two.rest()) == EXPECTED
    rest = one.rest()
    assert len(rest) in (len(EXPECTED) - 1000 + 2, len(EXPECTED) - 1000)
    one.close()
    two.close()


def test_deletion_while_listing(space: Space) -> None:
    """`rm -r` alternates reading and deleting: it must meet every name once."""
    (space.lower / "d").mkdir()
    for index in range(MANY):
        (space.lower / "d" / f"n{index}").touch()
    with space.mounted(settle=False) as mnt:
        met = []
        with os.scandir(mnt / "d") as entries:
            for entry in entries:
                met.append(entry.name)
                os.unlink(mnt / "d" / entry.name)
        assert len(met) == len(set(met)) == MANY
        assert os.listdir(mnt / "d") == []
        os.rmdir(mnt / "d")
        assert os.listdir(mnt) == []


def test_deletion_of_new_files_while_listing(case: Case) -> None:
    os.mkdir(case.path / "new")
    for index in range(2000):
        (case.path / "new" / f"n{index}").touch()
    with os.scandir(case.path / "new") as entries:
        for entry in entries:
            os.unlink(case.path / "new" / entry.name)
    os.rmdir(case.path / "new")


def test_creation_while_listing(space: Space) -> None:
    """Names that are there all the time are listed once, whatever is created meanwhile."""
    (space.lower / "d").mkdir()
    for index in range(1000):
        (space.lower / "d" / f"n{index}").touch()
    with space.mounted(settle=False) as mnt:
        met = []
        with os.scandir(mnt / "d") as entries:
            for count, entry in enumerate(entries):
                met.append(entry.name)
                if count < 1000:
                    (mnt / "d" / f"new{count}").touch()
        old = [name for name in met if name.startswith("n") and not name.startswith("new")]
        assert len(old) == len(set(old)) == 1000
        assert len(met) == len(set(met))
        assert len(os.listdir(mnt / "d")) == 2000


def test_renaming_while_listing(space: Space) -> None:
    (space.lower / "d").mkdir()
    for index in range(500):
        (space.lower / "d" / f"n{index}").touch()
    with space.mounted(settle=False) as mnt:
        with os.scandir(mnt / "d") as entries:
            for entry in entries:
                if entry.name.startswith("n"):
                    os.rename(mnt / "d" / entry.name, mnt / "d" / f"r{entry.name}")
        assert set(os.listdir(mnt / "d")) == {f"rn{index}" for index in range(500)}


def test_open_directory_sees_changes_after_rewind(case: Case, where: str) -> None:
    fd = os.open(case.path / "d", os.O_RDONLY)
    assert set(os.listdir(fd)) == {"child", "sub"}
    (case.path / "d" / "new").touch()
    assert set(os.listdir(fd)) == {"child", "sub", "new"}
    os.unlink(case.path / "d" / "child")
    assert set(os.listdir(fd)) == {"sub", "new"}
    os.rename(case.path / "d" / "new", case.path / "d" / "newer")
    assert set(os.listdir(fd)) == {"sub", "newer"}
    os.close(fd)


def test_remove_and_remake_many(case: Case) -> None:
    for _ in range(3):
        for index in range(200):
            (case.path / "d" / f"n{index}").touch()
        assert len(os.listdir(case.path / "d")) == 202
        shutil.rmtree(case.path / "d")
        os.mkdir(case.path / "d")
        assert os.listdir(case.path / "d") == []
        os.mkdir(case.path / "d" / "sub")
        (case.path / "d" / "child").touch()


@fuse_only  # in a user namespace the kernel has no metacopy
def test_malformed_entry_does_not_hide_the_others(space: Space) -> None:
    """A metacopy without data anywhere is listed; only looking at it fails."""
    space.features = ("metacopy=on",)
    for name in ("a", "m", "z"):
        (space.lower / name).touch()
    set_overlay_xattr(space.lower / "m", "metacopy", b"")
    set_overlay_xattr(space.lower / "m", "redirect", b"/nowhere")
    space.add_lower()
    with space.mounted(settle=False) as mnt:
        assert sorted(os.listdir(mnt)) == ["a", "m", "z"]
        with fails(errno.EIO):
            os.stat(mnt / "m")
        os.unlink(mnt / "a")
        assert sorted(os.listdir(mnt)) == ["m", "z"]


def test_listing_of_long_names(space: Space) -> None:
    """Names of 255 bytes: few fit into one reply."""
    names = {f"{index:0255d}" for index in range(300)}
    for name in names:
        (space.lower / name).touch()
    with space.mounted() as mnt:
        assert set(os.listdir(mnt)) == names


#: In the bottom layer; every third is hidden by the middle one, every fifth is in the top one too.
THREE = 900
HIDDEN = set(range(0, THREE, 3)) - set(range(0, THREE, 5))


@pytest.fixture
def three(space: Space) -> Iterator[Path]:
    """A directory `d`, merged from three lowers with whiteouts, in a writable mount."""
    middle, bottom = space.add_lower(), space.add_lower()
    for layer in space.lowers:
        (layer / "d").mkdir()
    for number in range(THREE):
        (bottom / "d" / f"n{number}").touch()
        if number % 3 == 0:
            make_whiteout(middle / "d" / f"n{number}")
        if number % 5 == 0:
            (space.lower / "d" / f"n{number}").touch()
    (middle / "d" / "only in the middle").touch()
    before = space.evidence()
    yield space.mount() / "d"
    space.remount()
    space.unmount()
    space.check_lowers(before)


LEFT = {f"n{number}" for number in range(THREE) if number not in HIDDEN} | {"only in the middle"}


def check_listing(met: list[str], stayed: set[str]) -> None:
    """Names that stayed all the time are listed once; no name is listed twice."""
    assert [name for name in met if name in stayed and met.count(name) > 1] == []
    assert stayed <= set(met)


def test_merged_directory_from_every_position(three: Path) -> None:
    stream = Stream(three)
    seen = []
    while (found := stream.next()) is not None:
        seen.append(found)
    assert {name for name, _ in seen} == LEFT | {".", ".."}
    for index in range(0, len(seen), 61):
        stream.seek(seen[index][1])
        rest = [name for name, _ in seen[index + 1 :] if name not in (".", "..")]
        assert stream.rest() == rest
    stream.rewind()
    assert set(stream.rest()) == LEFT
    stream.close()


def test_positions_stay_true_under_change(three: Path) -> None:
    """Return to a position after names before and behind it came and went."""
    stream = Stream(three)
    seen = []
    while (found := stream.next()) is not None:
        if found[0] not in (".", ".."):
            seen.append(found)
    names = [name for name, _ in seen]
    middle = len(seen) // 2
    gone = set(names[10:60]) | set(names[middle + 10 : middle + 60])
    for name in gone:
        os.unlink(three / name)
    for number in range(50):
        (three / f"new{number}").touch()
    stream.seek(seen[middle][1])
    met = stream.rest()
    check_listing(met, set(names[middle + 1 :]) - gone)
    if IMPL == "fuse" and not NATIVE:  # the kernel goes on with what it read at first
        assert not gone & set(met)
    assert not set(names[: middle + 1]) & set(met)
    stream.rewind()
    assert set(stream.rest()) == LEFT - gone | {f"new{number}" for number in range(50)}
    stream.close()


def test_deleting_what_was_just_read_by_several(three: Path) -> None:
    """Two listings at once, one of which deletes what it reads."""
    one, two = Stream(three), Stream(three)
    first: list[str] = []
    while (found := one.next()) is not None:
        if found[0] in (".", ".."):
            continue
        first.append(found[0])
        two.next()
        os.unlink(three / found[0])
    assert sorted(first) == sorted(LEFT)
    assert os.listdir(three) == []
    one.rewind()
    assert one.rest() == []
    one.close()
    two.close()


def test_first_entry_until_nothing_is_left(three: Path) -> None:
    """Rewind after each deletion."""
    stream = Stream(three)
    met = []
    while True:
        stream.rewind()
        names = (found[0] for found in iter(stream.next, None))
        name = next((name for name in names if name not in (".", "..")), None)
        if name is None:
            break
        met.append(name)
        os.unlink(three / name)
    assert sorted(met) == sorted(LEFT)
    stream.close()


def test_renaming_and_creating_between_reads(three: Path) -> None:
    stream = Stream(three)
    met = []
    stayed = {name for name in LEFT if name.endswith(("1", "2"))}
    change = sorted(LEFT - stayed)
    others = set()
    while (found := stream.next()) is not None:
        met.append(found[0])
        if change:
            name = change.pop()
            os.rename(three / name, three / f"renamed {name}")
            (three / f"created {name}").touch()
            others.add(name)
    check_listing(met, stayed)
    stream.rewind()
    now = stream.rest()
    done = {f"renamed {name}" for name in others} | {f"created {name}" for name in others}
    assert len(others) > 100
    assert sorted(now) == sorted(LEFT - others | done)
    stream.close()


def test_tree_that_is_removed_and_made_again_stays_empty(space: Space) -> None:
    """`rm -rf` and `mkdir -p` of the same names: no children come back, in no mount."""
    bottom = space.add_lower()
    for layer in (space.lower, bottom):
        for path in ("a/b/c", "a/b/x", "a/y"):
            (layer / path).mkdir(parents=True)
            (layer / path / layer.name).touch()
    with space.mounted() as mnt:
        for turn in range(3):
            shutil.rmtree(mnt / "a")
            (mnt / "a/b/c").mkdir(parents=True)
            found = list((mnt / "a").rglob("*"))
            assert found == [mnt / "a/b", mnt / "a/b/c"]
            (mnt / "a/y").mkdir()
            assert os.listdir(mnt / "a/y") == []
            (mnt / f"a/b/c/turn {turn}").touch()
            space.remount()
            assert os.listdir(mnt / "a/b/c") == [f"turn {turn}"]
            assert sorted(os.listdir(mnt / "a")) == ["b", "y"]


HUGE = 100_000


@fuse_only
def test_hundred_thousand_entries(space: Space) -> None:
    """One pass: as many requests as replies are filled, each name once."""
    fd = os.open(space.lower, os.O_RDONLY)
    for number in range(HUGE):
        os.mknod(f"n{number}", 0o600, dir_fd=fd)
    os.close(fd)
    mnt = space.mount(args=("--debug",))
    names = os.listdir(mnt)
    assert len(names) == len(set(names)) == HUGE
    assert space.daemon is not None
    log = space.daemon.text().splitlines()
    asked = ("readdir(", "readdirplus(")
    assert 0 < sum(line.startswith(asked) for line in log) < HUGE / 10
    space.unmount()


def test_directory_that_cannot_be_read_is_listed(space: Space) -> None:
    """A merged directory of two lowers: neither listing its parent nor stat requires reading it."""
    for layer in (space.lower, space.add_lower()):
        (layer / "d" / "closed" / "sub").mkdir(parents=True)
        (layer / "d" / "closed").chmod(0o311)
    mnt = space.mount()
    assert os.listdir(mnt / "d") == ["closed"]
    assert stat.S_IMODE(os.stat(mnt / "d" / "closed").st_mode) == 0o311
    space.unmount()
