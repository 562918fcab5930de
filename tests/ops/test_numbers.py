"""Inode numbers: the same across copy-up, rename and remount, and in listings as in stat(2)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.mounts import (
    IMPL,
    MODE,
    Space,
    detach,
    file_handles,
    fuse_only,
    make_whiteout,
    overlay_xattr,
    root_only,
)
from tests.ops.conftest import make_socket

#: The bits of a number that hold the real one.
REAL = (1 << 56) - 1
KINDS = ("f", "d", "s", "p", "k")


def _populate(base: Path) -> None:
    (base / "f").write_bytes(b"content")
    (base / "d").mkdir()
    (base / "d" / "inside").write_bytes(b"inside")
    os.symlink("f", base / "s")
    os.mkfifo(base / "p")
    make_socket(base / "k")


def _touch_all(mnt: Path) -> None:
    for path in (*mnt.rglob("*"), mnt):
        os.utime(path, ns=(1, 1), follow_symlinks=False)


def _numbers(mnt: Path) -> dict[str, int]:
    """The numbers from stat by path; fails if a listing has another one, or if two are equal."""
    found = {}
    for path in (mnt, *mnt.rglob("*")):
        found[str(path.relative_to(mnt))] = path.lstat().st_ino
        if path.is_dir() and not path.is_symlink():
            with os.scandir(path) as entries:
                listed = {entry.name: entry.inode() for entry in entries}
            assert listed == {name: (path / name).lstat().st_ino for name in listed}
    if IMPL == "fuse":
        assert len(set(found.values())) == len(found)
    return found


@pytest.fixture(params=["same filesystem", "another filesystem"])
def layers(request: pytest.FixtureRequest, space: Space) -> Iterator[Space]:
    """Two lowers with every kind of object, the second one perhaps on a filesystem of its own."""
    other = space.base / "other"
    other.mkdir()
    if request.param == "another filesystem":
        if MODE == "user":
            pytest.skip("needs mount(2)")
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(other)], check=True, timeout=30)
    try:
        (other / "lower").mkdir()
        (other / "lower" / "second").mkdir()
        _populate(other / "lower" / "second")
        _populate(space.lower)
        space.lowers.append(other / "lower")
        yield space
    finally:
        space.drop()
        if os.path.ismount(other):
            subprocess.run(["umount", "-l", str(other)], check=False, timeout=30)


@file_handles
def test_numbers_stay_across_copy_up_and_remount(layers: Space) -> None:
    if IMPL == "kernel" and MODE == "root":
        layers.features = ("xino=on",)
    mnt = layers.mount()
    before = _numbers(mnt)
    _touch_all(mnt)
    assert _numbers(mnt) == before
    layers.remount()
    after = _numbers(mnt)
    if MODE != "root":
        # Symbolic links and special files hold no attribute that a user could set.
        for name in list(after):
            if Path(name).name in ("s", "p", "k"):
                del before[name], after[name]
    assert after == before


@root_only  # only root can find a file by its handle
def test_numbers_stay_across_rename_and_remount(layers: Space) -> None:
    if IMPL == "kernel":
        layers.features = ("xino=on",)
    mnt = layers.mount()
    before = {name: os.lstat(mnt / "second" / name).st_ino for name in KINDS if name != "d"}
    (mnt / "new").mkdir()
    for name in before:
        os.rename(mnt / "second" / name, mnt / "new" / f"renamed-{name}")
    for _ in range(2):
        got = {name: os.lstat(mnt / "new" / f"renamed-{name}").st_ino for name in before}
        assert got == before
        _numbers(mnt)
        layers.remount()


@root_only
def test_moved_directory_keeps_its_number(layers: Space) -> None:
    layers.features = ("redirect_dir=on", *(("xino=on",) if IMPL == "kernel" else ()))
    mnt = layers.mount()
    before = _numbers(mnt / "second" / "d")
    os.rename(mnt / "second" / "d", mnt / "moved")
    assert _numbers(mnt / "moved") == before
    layers.remount()
    assert _numbers(mnt / "moved") == before


@pytest.mark.skipif(MODE == "user", reason="needs mount(2)")
def test_equal_numbers_on_two_filesystems(space: Space) -> None:
    """Programs like tar and cp take files with equal numbers for hard links to one file."""
    if IMPL == "kernel":
        space.features = ("xino=on",)
    tops = [space.base / "one", space.base / "two"]
    try:
        for top in tops:
            top.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(top)], check=True, timeout=30)
            (top / "lower").mkdir()
            (top / "lower" / top.name).write_bytes(top.name.encode())
        space.lowers[:] = [top / "lower" for top in tops]
        real = [os.stat(top / "lower" / top.name).st_ino for top in tops]
        assert real[0] == real[1], "a new tmpfs counts from the start"
        mnt = space.mount()
        for _ in range(2):
            assert len(set(_numbers(mnt).values())) == 3
            assert [(mnt / top.name).read_text() for top in tops] == ["one", "two"]
            for top in tops:
                assert os.stat(mnt / top.name).st_nlink == 1
            space.remount()
    finally:
        space.drop()
        for top in tops:
            subprocess.run(["umount", "-l", str(top)], check=False, timeout=30)


def test_new_file_is_not_taken_for_the_one_it_replaces(space: Space) -> None:
    (space.lower / "f").write_bytes(b"old")
    mnt = space.mount()
    before = os.stat(mnt / "f").st_ino
    os.unlink(mnt / "f")
    (mnt / "f").write_bytes(b"new")
    for _ in range(2):
        assert os.stat(mnt / "f").st_ino != before
        assert (mnt / "f").read_bytes() == b"new"
        space.remount()


def test_origin_of_another_type_is_ignored(space: Space) -> None:
    """A copied attribute must not give a file the number of a directory."""
    (space.lower / "f").write_bytes(b"file")
    (space.lower / "d").mkdir()
    mnt = space.mount()
    os.utime(mnt / "f", ns=(1, 1))
    space.unmount()
    origin = overlay_xattr(space.upper / "f", "origin")
    assert origin is not None
    os.mkfifo(space.upper / "p")
    if MODE == "root":
        os.setxattr(space.upper / "p", "trusted.overlay.origin", origin)
    space.mount()
    assert len({os.stat(mnt / name).st_ino for name in ("f", "d", "p")}) == 3
    assert os.stat(mnt / "f").st_ino == os.stat(space.lower / "f").st_ino


@pytest.fixture
def disk(space: Space) -> Iterator[Path]:
    """A filesystem with a UUID, which is in the handles of its files."""
    image, path = space.base / "image", space.base / "disk"
    path.mkdir()
    with image.open("wb") as stream:
        stream.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, timeout=60)
    subprocess.run(["mount", "-o", "loop", str(image), str(path)], check=True, timeout=60)
    try:
        yield path
    finally:
        space.drop()
        subprocess.run(["umount", "-l", str(path)], check=False, timeout=30)


@root_only
@pytest.mark.parametrize("first", ["fuse", "kernel"])
def test_hard_links_of_a_filesystem_with_uuid(space: Space, disk: Path, first: str) -> None:
    """The index writer chooses the name of a lower file in it; the other one can read it."""
    if IMPL == "kernel" and first == "fuse":
        pytest.skip("mounts both")
    second = "kernel" if first == "fuse" and IMPL == "fuse" else IMPL
    lower = disk / "lower"
    lower.mkdir()
    (lower / "a").write_bytes(b"lower")
    os.link(lower / "a", lower / "b")
    space.lowers[:] = [lower]
    space.features = ("index=on",)
    mnt = space.mount(impl=first)
    before = os.stat(mnt / "a").st_ino
    (mnt / "a").write_bytes(b"changed")
    space.unmount()
    for impl in (second, first):
        space.mount(impl=impl)
        assert (mnt / "b").read_bytes() == b"changed", impl
        # The bits above hold the filesystem, in a different form in each implementation.
        numbers = [os.stat(mnt / name).st_ino for name in "ab"]
        assert numbers[0] == numbers[1], impl
        assert numbers[0] & REAL == before & REAL, impl
        assert os.stat(mnt / "b").st_nlink == 2
        space.unmount()


def test_numbers_of_unlike_objects_never_meet(space: Space) -> None:
    """A name is removed and made again: while the old object is open it keeps its number."""
    (space.lower / "f").write_bytes(b"lower")
    mnt = space.mount()
    held, seen = [], set()
    for turn in range(20):
        held.append(os.open(mnt / "f", os.O_RDONLY))
        number = os.fstat(held[-1]).st_ino
        assert number not in seen
        seen.add(number)
        os.unlink(mnt / "f")
        (mnt / "f").write_bytes(b"%d" % turn)
    assert [os.pread(fd, 10, 0) for fd in held[:3]] == [b"lower", b"0", b"1"]
    for fd in held:
        os.close(fd)


def test_copied_work_directory_of_another_upper(space: Space) -> None:
    """The index leads from lower names to files of the upper, only of the one it belongs to."""
    (space.lower / "a").write_bytes(b"lower")
    os.link(space.lower / "a", space.lower / "b")
    space.features = ("index=on",) if MODE == "root" else ()
    mnt = space.mount()
    (mnt / "a").write_bytes(b"mine")
    space.unmount()
    shutil.rmtree(space.upper)
    make_whiteout(space.base / "inode")  # takes the number that the upper had
    space.upper.mkdir()
    with pytest.raises((pytest.fail.Exception, AssertionError)):
        space.mount()
    space.drop()
    if IMPL == "fuse":
        assert "belongs to another upper" in space.log.read_text()
    shutil.rmtree(space.work)
    space.work.mkdir()
    space.mount()
    assert (mnt / "b").read_bytes() == b"lower"


@fuse_only
@pytest.mark.skipif(MODE == "user", reason="a plain user cannot mount filesystems")
def test_more_filesystems_than_numbers_for_them(space: Space) -> None:
    """Each file keeps its content and a number that no other file has."""
    many = 300
    try:
        for number in range(many):
            layer = space.add_lower() if number else space.lower
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(layer)], check=True, timeout=30)
            (layer / f"file{number}").write_bytes(b"%d" % number)
            (layer / f"dir{number}").mkdir()
            (layer / "merged").mkdir()
            (layer / "merged" / f"inner{number}").write_bytes(b"inner %d" % number)
        mnt = space.mount()
        for _ in range(2):
            seen = set()
            for number in range(many):
                assert (mnt / f"file{number}").read_bytes() == b"%d" % number
                assert (mnt / "merged" / f"inner{number}").read_bytes() == b"inner %d" % number
                for name in (f"file{number}", f"dir{number}", f"merged/inner{number}"):
                    seen.add(os.stat(mnt / name).st_ino)
            assert len(seen) == 3 * many
            assert len(os.listdir(mnt)) == 2 * many + 1
        (mnt / "file299").write_bytes(b"changed")
        assert (mnt / "file298").read_bytes() == b"298"
        space.unmount()
    finally:
        space.drop()
        for layer in space.lowers:
            detach(layer)
