"""Directories that the kernel has forgotten while it still knows something in them.

The kernel keeps the inode of an object that is watched, open or was reached by a handle, but
neither its name nor the directories above. A new look-up must find the same directory, and what is
known in it must still be there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseoverlay.system.syscalls import RENAME_EXCHANGE, file_handle, open_by_handle, renameat2
from tests.helpers.libc import watched
from tests.helpers.mounts import IMPL, MODE, Space, fails, fuse_only, root_only

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(MODE == "user", reason="fusermount3 knows no way to have names forgotten"),
]


def forget_names(mnt: Path) -> None:
    """Make the kernel forget every name on this mount that is not in use."""
    # Not through the helper for FUSE, which would mount again.
    argv = ["mount", "-i", "-o", "remount", str(mnt)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


LAYERS = ("lower", "upper", "merged")


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> str:
    """Where the directories and files are."""
    return request.param


def fill(base: Path, *names: str) -> None:
    """Files in `d/sub`."""
    (base / "d" / "sub").mkdir(parents=True)
    for name in names:
        (base / "d" / "sub" / name).write_text(f"old {name}")


def make_layers(space: Space, layer: str) -> Path:
    """Mount `d/sub` with the files f and g."""
    if layer == "merged":
        fill(space.lower, "f")
        fill(space.add_lower(), "g")
    else:
        fill(space.lower if layer == "lower" else space.upper, "f", "g")
    return space.mount() / "d"


@contextlib.contextmanager
def forgotten(mnt: Path, *kept: Path) -> Iterator[None]:
    """Make the kernel keep the inodes of these and nothing else."""
    for path in kept:
        path.stat()
    with watched(*kept):
        forget_names(mnt)
        yield


def numbers(*paths: Path) -> list[int]:
    """Their inode numbers."""
    return [path.stat().st_ino for path in paths]


@pytest.mark.parametrize("reader_first", [False, True])
def test_names_kept_apart(space: Space, reader_first: bool) -> None:
    """With index=off the other names of a changed file show the old one, and never have the number
    of the changed one: programs that archive the tree would take both for one file."""
    space.extra = ("index=off",)
    for names in (("e", "z"), ("other", "unchanged")):
        (space.lower / names[0]).write_text("original\n")
        os.link(space.lower / names[0], space.lower / names[1])
    mnt = space.mount()
    before = numbers(mnt / "other", mnt / "unchanged")
    if reader_first:
        numbers(mnt / "z", mnt / "e")
    with open(mnt / "e", "a") as stream:
        stream.write("changed\n")
    os.link(mnt / "e", mnt / "a")
    changed, unchanged = set(), set()
    for _ in range(3):
        forget_names(mnt)
        unchanged.update(numbers(mnt / "z"))
        forget_names(mnt)
        changed.update(numbers(mnt / "a", mnt / "e"))
        assert (mnt / "z").read_text() == "original\n"
        assert (mnt / "a").read_text() == "original\nchanged\n"
    assert len(unchanged) == 1
    assert not changed & unchanged
    assert numbers(mnt / "other", mnt / "unchanged") == before


def test_there_is_one_of_each(space: Space, layer: str) -> None:
    d = make_layers(space, layer)
    sub, f, g = d / "sub", d / "sub" / "f", d / "sub" / "g"
    before = numbers(d, sub, f, g)
    with forgotten(space.mnt, sub, f):
        assert numbers(d, sub, f, g) == before
        f.write_text("new f")
        assert f.read_text() == "new f"
        (sub / "new").touch()
        (d / "new").touch()
        g.write_text("new g")
        g.unlink()
        (sub / "made").mkdir()
        assert numbers(d, sub, f) == before[:3]
        forget_names(space.mnt)
        (d / "later").touch()
        (sub / "later").touch()
    assert sorted(os.listdir(d)) == ["later", "new", "sub"]
    assert sorted(os.listdir(sub)) == ["f", "later", "made", "new"]
    space.settle()


def test_a_new_directory_of_that_name(space: Space, layer: str) -> None:
    """What was open in the old directory does not appear in the new one."""
    d = make_layers(space, layer)
    sub, f = d / "sub", d / "sub" / "f"
    with watched(sub, f):
        forget_names(space.mnt)
        fd = os.open(f, os.O_RDWR)
        shutil.rmtree(sub)
        sub.mkdir(0o700)
        assert os.write(fd, b"written") == 7
        assert os.pread(fd, 99, 0) == b"written"
        os.close(fd)
        assert os.listdir(sub) == []
        f.write_text("mine")
    assert os.listdir(sub) == ["f"]
    space.settle()


@pytest.mark.parametrize("parent", ["forgotten", "open"])
def test_open_below_a_directory_that_is_replaced(space: Space, layer: str, parent: str) -> None:
    """Nor do an open directory and what is created in it through its descriptor."""
    d = make_layers(space, layer)
    sub = d / "sub"
    with watched(sub), contextlib.ExitStack() as undo:
        if parent == "forgotten":
            forget_names(space.mnt)
        fd = os.open(sub, os.O_RDONLY | os.O_DIRECTORY)
        undo.callback(os.close, fd)
        shutil.rmtree(sub)
        sub.mkdir()
        with fails(errno.ENOENT):
            os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
        assert os.listdir(fd) == os.listdir(sub) == []
        (sub / "y").touch()
        assert os.listdir(fd) == []
    space.settle()


def test_renamed(space: Space, layer: str) -> None:
    """A directory that is renamed after the kernel has looked it up again takes along what was
    known below it."""
    if layer != "upper":
        if MODE == "userns" and IMPL == "kernel":
            pytest.skip("redirect_dir=on takes the superuser")
        space.features = ("redirect_dir=on",)
    d = make_layers(space, layer)
    before = numbers(d, d / "sub", d / "sub" / "f")
    with forgotten(space.mnt, d / "sub", d / "sub" / "f"):
        e = d.rename(space.mnt / "e")
        sub = (e / "sub").rename(e / "other")
        d.mkdir()
        (d / "sub").mkdir()
        assert numbers(e, sub, sub / "f") == before
        forget_names(space.mnt)
        (sub / "f").write_text("new f")
        (sub / "new").touch()
        assert sub.joinpath("f").read_text() == "new f"
        assert os.listdir(d / "sub") == []
        forget_names(space.mnt)
        assert numbers(e, sub, sub / "f") == before
        assert sorted(os.listdir(sub)) == ["f", "g", "new"]
    space.settle()


def test_exchanged(space: Space) -> None:
    for name in "de":
        (space.upper / name / "sub").mkdir(parents=True)
        (space.upper / name / "sub" / "f").write_text(name)
    d, e = space.mount() / "d", space.mnt / "e"
    kept = [path / "sub" / "f" for path in (d, e)]
    with forgotten(space.mnt, *kept):
        before = numbers(*kept)
        top = os.open(space.mnt, os.O_PATH)
        renameat2(top, b"d", top, b"e", RENAME_EXCHANGE)
        os.close(top)
        forget_names(space.mnt)
        assert numbers(*reversed(kept)) == before
        for path in kept:
            with path.open("a") as stream:
                stream.write(" more")
        assert [path.read_text() for path in kept] == ["e more", "d more"]
    space.settle()


@fuse_only
@root_only
@pytest.mark.parametrize("mode", ["r+b", "wb"])
def test_written_by_handle(space: Space, mode: str) -> None:
    """A file that is reached by a handle keeps its place: what is written to it stays."""
    fill(space.lower, "f")
    (space.lower / "d" / "sub" / "f").write_text("old")
    f = space.mount() / "d" / "sub" / "f"
    f.read_text()
    with contextlib.ExitStack() as undo:
        root, known = os.open(space.mnt, os.O_RDONLY), os.open(f, os.O_PATH)
        undo.callback(os.close, root)
        handle = file_handle(known, b"")
        os.close(known)
        with forgotten(space.mnt, f):
            found = open_by_handle(root, *handle)
            undo.callback(os.close, found)
            with open(f"/proc/self/fd/{found}", mode, buffering=0) as stream:
                stream.write(b"written")
                os.fsync(stream)
            assert f.read_text() == "written"
    space.settle()


def _number_again(mnt: Path, number: int) -> Path:
    """A new file with this inode number: the filesystem reuses the lowest free one."""
    for count in range(200):
        path = mnt / f"new{count}"
        path.write_text("new")
        if path.stat().st_ino == number:
            return path
    pytest.skip("the filesystem does not give a number again so soon")


@fuse_only
@root_only
@pytest.mark.parametrize("kind", ["file", "directory", "replaced"])
def test_a_handle_of_what_is_gone(space: Space, kind: str) -> None:
    """It leads nowhere, even after a new file got the number."""
    mnt = space.mount()
    path = mnt / "old"
    if kind == "directory":
        path.mkdir()
    else:
        path.write_text("old")
    with contextlib.ExitStack() as undo:
        root = os.open(mnt, os.O_RDONLY)
        undo.callback(os.close, root)
        number, handle = path.stat().st_ino, file_handle(root, os.fsencode(path.name))
        if kind == "replaced":
            (mnt / "other").write_text("other")
            os.rename(mnt / "other", path)
        elif kind == "directory":
            path.rmdir()
        else:
            path.unlink()
        forget_names(mnt)
        again = _number_again(mnt, number)
        with fails(errno.ESTALE):
            os.close(open_by_handle(root, *handle))
        handle = file_handle(root, os.fsencode(again.name))
        found = open_by_handle(root, *handle)
        undo.callback(os.close, found)
        assert Path(f"/proc/self/fd/{found}").read_text() == "new"
    space.settle()
