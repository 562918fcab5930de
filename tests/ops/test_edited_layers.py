"""Lowers that are edited while they are mounted: `timeout=` determines how soon that shows.

In the kernel this is undefined; fuse-overlayfs does not show such changes at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.mounts import Space, fails, fuse_only

pytestmark = [fuse_only, pytest.mark.timeout(60)]


@pytest.fixture
def edited(space: Space) -> Iterator[Space]:
    """Two lowers, mounted with timeout=0; everything in `d` has been looked at."""
    bottom = space.add_lower()
    for number, layer in enumerate((space.lower, bottom)):
        (layer / "d" / "sub").mkdir(parents=True)
        for name in ("same", f"own{number}"):
            (layer / "d" / name).write_text(f"{name} of {number}")
    space.extra = ("timeout=0",)
    space.mount()
    names(space)
    (space.mnt / "d" / "hidden").write_text("x")
    yield space


def names(space: Space, path: str = "d") -> set[str]:
    """What the mount lists there."""
    return set(os.listdir(space.mnt / path))


BEFORE = {"sub", "same", "own0", "own1", "hidden"}


@pytest.mark.parametrize("layer", [0, 1])
def test_new_names(edited: Space, layer: int) -> None:
    lower = edited.lowers[layer] / "d"
    assert names(edited) == BEFORE
    assert not (edited.mnt / "d" / "new").exists()
    (lower / "new").write_text("new")
    assert (edited.mnt / "d" / "new").read_text() == "new"
    assert names(edited) == BEFORE | {"new"}
    (lower / "newdir").mkdir()
    (lower / "newdir" / "inside").write_text("i")
    assert (edited.mnt / "d" / "newdir" / "inside").read_text() == "i"
    (lower / "newdir" / "later").write_text("l")
    assert names(edited, "d/newdir") == {"inside", "later"}
    assert os.stat(edited.mnt / "d").st_nlink == 4


@pytest.mark.parametrize("layer", [0, 1])
def test_names_that_go(edited: Space, layer: int) -> None:
    lower = edited.lowers[layer] / "d"
    (lower / f"own{layer}").unlink()
    assert names(edited) == BEFORE - {f"own{layer}"}
    with fails(errno.ENOENT):
        os.stat(edited.mnt / "d" / f"own{layer}")
    (edited.mnt / "d" / f"own{layer}").write_text("again, in the upper")
    assert (edited.mnt / "d" / f"own{layer}").read_text() == "again, in the upper"


def test_what_was_changed_by_us_stays(edited: Space) -> None:
    """Whiteouts, copies and opaque directories hide new names as well as those of before."""
    top = edited.mnt / "d"
    (top / "same").unlink()
    (top / "own1").write_text("copied up")
    (top / "hidden").unlink()
    shutil.rmtree(top / "sub")
    (top / "sub").mkdir()
    for layer in edited.lowers:
        (layer / "d" / "hidden").write_text("from the lower")
        (layer / "d" / "own1").write_text("changed below")
        (layer / "d" / "sub" / "new").touch()
        (layer / "d" / "same").write_text("changed below")
        (layer / "d" / "more").touch()
    # It was new in the upper, so there is no whiteout for it.
    assert (top / "hidden").read_text() == "from the lower"
    assert names(edited) == {"sub", "own0", "own1", "hidden", "more"}
    assert (top / "own1").read_text() == "copied up"
    assert names(edited, "d/sub") == set()
    with fails(errno.ENOENT):
        os.stat(top / "same")


def test_a_directory_that_was_replaced(edited: Space) -> None:
    """Its name leads to the new one; processes in the old one stay there."""
    lower = edited.lower / "d" / "sub"
    shutil.rmtree(edited.lowers[1] / "d" / "sub")
    (lower / "old").touch()
    assert names(edited, "d/sub") == {"old"}
    fd = os.open(edited.mnt / "d" / "sub", os.O_RDONLY | os.O_DIRECTORY)
    # While the old one exists its inode number cannot be reused.
    lower.rename(edited.base / "away")
    lower.mkdir()
    (lower / "new").write_text("new")
    assert names(edited, "d/sub") == {"new"}
    assert (edited.mnt / "d" / "sub" / "new").read_text() == "new"
    assert os.listdir(fd) == ["old"]
    os.close(fd)
    lower.joinpath("new").unlink()
    lower.rmdir()
    lower.write_text("a file now")
    assert (edited.mnt / "d" / "sub").read_text() == "a file now"


def test_changes_below_a_directory_that_was_replaced(edited: Space) -> None:
    """What is made in the old one does not appear in the new one."""
    lower = edited.lower / "d" / "sub"
    shutil.rmtree(edited.lowers[1] / "d" / "sub")
    (lower / "in").mkdir()
    (lower / "in" / "f").write_text("old")
    with contextlib.ExitStack() as undo:
        standing = os.open(edited.mnt / "d" / "sub" / "in", os.O_RDONLY)
        undo.callback(os.close, standing)
        file = os.open("f", os.O_RDWR, dir_fd=standing)
        undo.callback(os.close, file)
        lower.rename(edited.base / "away")
        (lower / "in").mkdir(parents=True)
        (lower / "in" / "f").write_text("new")
        new = edited.mnt / "d" / "sub" / "in"
        assert (new / "f").read_text() == "new"
        with fails(errno.ESTALE):
            os.mkdir("made", dir_fd=standing)
        with fails(errno.ESTALE):
            os.write(file, b"OLD")
        with fails(errno.ESTALE):
            os.fchmod(file, 0o600)
        assert os.listdir(new) == ["f"]
        assert not (edited.upper / "d" / "sub").exists()
        (new / "made").mkdir()
        (new / "f").write_text("changed")
        assert sorted(os.listdir(new)) == ["f", "made"]


def test_change_of_a_file_whose_name_went(edited: Space) -> None:
    """The file has no name for its copy, and was not removed through the mount."""
    lower = edited.lower / "d"
    with (edited.mnt / "d" / "own0").open("r+b", 0) as stream:
        lower.joinpath("own0").rename(lower / "moved")
        lower.joinpath("own0").mkdir()
        assert (edited.mnt / "d" / "own0").is_dir()
        with fails(errno.ESTALE, errno.ENOENT):
            stream.write(b"lost")
        lower.joinpath("own0").rmdir()
        assert "own0" not in os.listdir(edited.mnt / "d")
        with fails(errno.ESTALE, errno.ENOENT):
            stream.write(b"lost")
    assert os.listdir(edited.upper / "d") == ["hidden"]


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("path", ["d", "d/sub"])
@pytest.mark.parametrize("merged_by", ["the upper", "two lowers"])
@pytest.mark.parametrize("looked_at_between", [False, True])
def test_a_part_of_a_merged_directory_that_was_replaced(
    edited: Space, layer: int, path: str, merged_by: str, looked_at_between: bool
) -> None:
    """The merged directory remains the same, and continues in the new part."""
    lower, top = edited.lowers[layer] / path, edited.mnt / path
    (lower / "old").touch()
    if merged_by == "the upper":
        (top / "mine").write_text("mine")
    here = names(edited, path)
    assert "old" in here
    left = here - set(os.listdir(lower)) | set(os.listdir(edited.lowers[1 - layer] / path))
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    shutil.rmtree(lower)
    if looked_at_between:
        assert names(edited, path) == left
    lower.mkdir()
    (lower / "new").write_text("new")
    (lower / "newdir").mkdir()
    for _ in range(2):
        assert names(edited, path) == left | {"new", "newdir"}
        assert (top / "new").read_text() == "new"
        assert names(edited, f"{path}/newdir") == set()
    if merged_by == "the upper":
        # By what is open, too: the upper has it.
        assert set(os.listdir(fd)) == left | {"new", "newdir"}
    os.close(fd)
    (lower / "new").unlink()
    (top / "newdir" / "above").touch()
    assert names(edited, path) == left | {"newdir"}
    edited.remount()
    assert names(edited, path) == left | {"newdir"}


@pytest.mark.parametrize("dialect", ["char", "oci"])
def test_an_opaque_directory_over_one_that_was_replaced(space: Space, dialect: str) -> None:
    """It hides the new one too, whatever mark makes it opaque."""
    space.extra = ("timeout=0", f"whiteout={dialect}")
    (space.lower / "d" / "sub").mkdir(parents=True)
    bottom = space.add_lower()
    (bottom / "d" / "sub").mkdir(parents=True)
    for layer, name in ((space.upper, "sub"), (space.lower, "low")):
        (layer / "d" / name).mkdir(parents=True)
        (layer / "d" / name / ".wh..wh..opq").touch()
    (bottom / "d" / "low").mkdir()
    mnt = space.mount()
    assert names(space, "d/sub") == names(space, "d/low") == set()
    for layer, name in ((space.lower, "sub"), (bottom, "low"), (bottom, "sub")):
        (layer / "d" / name).rmdir()
        (layer / "d" / name).mkdir()
        (layer / "d" / name / "secret").touch()
    for _ in range(2):
        assert names(space, "d/sub") == names(space, "d/low") == set()
        for name in ("sub", "low"):
            assert not (mnt / "d" / name / "secret").exists()
        space.remount()


def test_listings_under_way(edited: Space) -> None:
    """Names that are there from beginning to end are listed once, whatever else comes and goes."""
    many = {f"name{number:05}" for number in range(3000)}
    (edited.lower / "many").mkdir()
    for name in many:
        (edited.lower / "many" / name).touch()
    seen = []
    with os.scandir(edited.mnt / "many") as entries:
        for number, entry in enumerate(entries):
            seen.append(entry.name)
            if number % 300 == 0:
                (edited.lower / "many" / f"later{number:05}").touch()
                assert (edited.mnt / "many" / f"later{number:05}").exists()
    assert len(seen) == len(set(seen))
    assert set(seen) >= many
    assert len(names(edited, "many")) == 3010


def test_lowers_that_were_not_touched_for_long(edited: Space) -> None:
    """They are not read again, since their times are unchanged. Yet new names are seen."""
    past = time.time() - 100
    for layer in edited.lowers:
        os.utime(layer / "d", (past, past))
    time.sleep(1.1)
    for _ in range(3):
        assert names(edited) == BEFORE
    (edited.lower / "d" / "new").touch()
    assert names(edited) == BEFORE | {"new"}


def test_a_timeout_that_ends(space: Space) -> None:
    space.extra = ("timeout=0.2",)
    (space.lower / "d").mkdir()
    space.mount()
    assert names(space) == set()
    (space.lower / "d" / "new").touch()
    end = time.monotonic() + 20
    while names(space) != {"new"}:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert (space.mnt / "d" / "new").exists()


@pytest.mark.parametrize("ask", ["list", "look up"])
def test_a_timeout_that_ends_in_a_large_directory(space: Space, ask: str) -> None:
    """One that takes too long to be read while others wait."""
    space.extra = ("timeout=0.2",)
    (space.lower / "d").mkdir()
    for number in range(3000):
        (space.lower / "d" / f"n{number}").touch()
    space.mount()
    assert len(names(space)) == 3000
    new = space.mnt / "d" / "new"
    assert not new.exists()
    (space.lower / "d" / "new").touch()
    end = time.monotonic() + 20
    while not (new.exists() if ask == "look up" else "new" in names(space)):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("known", ["opened", "listed", "looked up"])
@pytest.mark.parametrize("new", ["link", "file"])
def test_another_type_with_the_same_number(space: Space, new: str, known: str) -> None:
    """A filesystem soon gives a number again: to a link where a file was, or the reverse."""
    (space.lower / "target").write_text("target")
    path = space.lower / "f"
    _make(path, link=new != "link")
    space.extra = ("timeout=0",)
    mnt = space.mount()
    stream = None
    if known == "opened":
        stream = (mnt / "f").open()
    elif known == "listed":
        assert sorted(entry.name for entry in os.scandir(mnt)) == ["f", "target"]
    else:
        os.lstat(mnt / "f")
    number = os.lstat(path).st_ino
    for _ in range(100):
        path.unlink()
        _make(path, link=new == "link")
        if os.lstat(path).st_ino == number:
            break
    else:
        pytest.skip("the filesystem does not give a number again so soon")
    for _ in range(2):
        assert os.path.islink(mnt / "f") == (new == "link")
        assert (mnt / "f").read_text() == ("target" if new == "link" else "file")
        assert os.listdir(mnt)
    if stream is not None:
        stream.close()
    os.unlink(mnt / "f")
    assert os.listdir(mnt) == ["target"]
    space.settle()


def _make(path: Path, *, link: bool) -> None:
    if link:
        path.symlink_to("target")
    else:
        path.write_text("file")
