"""An overlay whose layers are directories of another overlay's mount.

The outer overlay stores the inner one's whiteouts, opaque marks and redirects like any files and
attributes, the latter under escaped names: kernel Documentation/filesystems/overlayfs.rst, "Nesting
overlayfs mounts". A device 0:0 cannot be made in an overlay, so the inner one has to write its
whiteouts in another form.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseoverlay.system.syscalls import AT_FDCWD, file_handle
from tests.helpers.mounts import (
    MODE,
    Space,
    fails,
    fuse_only,
    is_whiteout,
    make_whiteout,
    overlay_xattr,
    scratch,
    set_overlay_xattr,
    wait_for,
)
from tests.helpers.tree import compare, record

pytestmark = [fuse_only, pytest.mark.timeout(90)]

OUTER = ["fuse"] if MODE == "user" else ["fuse", "kernel"]
#: What a plain directory, the reference, does differently or not at all.
IGNORE = {"mtime_ns"}


def populate(base: Path) -> None:
    """A tree for the bottom of the inner overlay."""
    (base / "d" / "sub").mkdir(parents=True)
    (base / "e" / "sub").mkdir(parents=True)
    for name in ("f", "g", "h", "d/child", "d/sub/leaf", "e/child", "e/sub/leaf"):
        (base / name).write_bytes(f"content of {name}\n".encode())
    os.link(base / "h", base / "h2")
    os.symlink("f", base / "s")


def work_on(base: Path) -> None:
    """Everything that leaves a mark in an upper; the same on a plain directory."""
    os.unlink(base / "f")
    os.unlink(base / "d" / "child")
    shutil.rmtree(base / "e")
    (base / "e").mkdir()
    (base / "e" / "new").write_bytes(b"new\n")
    os.rename(base / "g", base / "renamed")
    os.rename(base / "d", base / "moved")
    (base / "h").write_bytes(b"both names\n")
    (base / "made" / "in").mkdir(parents=True)
    os.unlink(base / "s")
    os.symlink("renamed", base / "s")
    os.setxattr(base / "made", "user.colour", b"red")


@pytest.fixture(params=OUTER)
def outer(request: pytest.FixtureRequest) -> Iterator[Space]:
    """A mounted overlay; `low` is in its lower, `top` and `work` are made in the mount."""
    with scratch() as base:
        (base / "outer").mkdir()
        space = Space(base / "outer")
        (space.lower / "low").mkdir()
        populate(space.lower / "low")
        space.impl = request.param  # type: ignore[attr-defined]
        try:
            mount_outer(space)
            for name in ("top", "work"):
                (space.mnt / name).mkdir()
            yield space
        finally:
            space.drop()


def mount_outer(space: Space) -> None:
    """Mount it with the implementation that the test asks for."""
    space.mount(impl=space.impl)  # type: ignore[attr-defined]


def unmount_outer(space: Space) -> None:
    """Unmount it; an inner overlay that was unmounted may keep it busy for a moment."""

    def gone() -> bool:
        try:
            space.unmount()
        except AssertionError:
            return False
        return True

    wait_for(gone, 5, "unmounting the outer overlay")


@pytest.fixture
def inner(outer: Space) -> Iterator[Space]:
    """An overlay, not yet mounted, of directories in the mount of `outer`."""
    base = outer.base.parent / "inner"
    base.mkdir()
    space = Space(base)
    space.lowers = [outer.mnt / "low"]
    space.upper, space.work = outer.mnt / "top", outer.mnt / "work"
    space.features = ("redirect_dir=on",)
    try:
        yield space
    finally:
        space.drop()


@pytest.fixture
def reference(outer: Space) -> Path:
    """A plain directory on which the same was done."""
    path = outer.base.parent / "reference"
    path.mkdir()
    populate(path)
    work_on(path)
    return path


def check(reference: Path, mnt: Path, *, links: bool) -> None:
    """Check that the tree is the same, except for the attributes of the inner root. Names of one
    lower file stay together (`links`) only if the outer overlay has file handles."""
    trees = record(str(reference)), record(str(mnt))
    for tree in trees:
        for name in (b".", *(() if links else (b"h", b"h2"))):
            tree.pop(name)
    assert compare(*trees, ignore=IGNORE) == []


def has_handles(outer: Space) -> bool:
    """Whether files in the outer mount have handles."""
    return outer.impl == "fuse"  # type: ignore[attr-defined]


def test_marks_survive_remounts_of_both(outer: Space, inner: Space, reference: Path) -> None:
    mnt = inner.mount()
    work_on(mnt)
    check(reference, mnt, links=has_handles(outer))
    inner.remount()
    check(reference, mnt, links=has_handles(outer))
    for _ in range(2):
        inner.unmount()
        unmount_outer(outer)
        mount_outer(outer)
        inner.mount()
        check(reference, mnt, links=has_handles(outer))
    # And it goes on working.
    shutil.rmtree(mnt / "moved")
    (mnt / "moved").mkdir()
    (mnt / "f").write_bytes(b"again\n")
    inner.remount()
    assert os.listdir(mnt / "moved") == []
    assert (mnt / "f").read_bytes() == b"again\n"
    inner.unmount()
    unmount_outer(outer)


def test_what_the_outer_overlay_shows_and_stores(outer: Space, inner: Space) -> None:
    """Through the outer mount attributes have the inner one's names; on disk they are escaped."""
    work_on(inner.mount())
    inner.unmount()
    top, stored = outer.mnt / "top", outer.upper / "top"
    assert sorted(os.listdir(top)) == sorted(
        ["d", "e", "f", "g", "h", "made", "moved", "renamed", "s"]
    )
    assert overlay_xattr(top / "moved", "redirect") == b"d"
    assert overlay_xattr(top / "e", "opaque") == b"y"
    assert overlay_xattr(stored / "moved", "overlay.redirect") == b"d"
    assert overlay_xattr(stored / "moved", "redirect") is None
    assert overlay_xattr(stored / "e", "overlay.opaque") == b"y"
    for name in ("d", "f", "g"):
        assert not is_whiteout(top / name)
        assert not is_whiteout(stored / name)
    with fails(errno.EPERM):
        make_whiteout(top / "device")
    unmount_outer(outer)


@pytest.mark.skipif(MODE != "root", reason="in a user namespace the kernel follows no redirects")
def test_kernel_reads_the_layers(outer: Space, inner: Space, reference: Path) -> None:
    """Kernel overlayfs, with the inner's upper and lower as its lowers, shows the same."""
    work_on(inner.mount())
    inner.unmount()
    inner.lowers.insert(0, outer.mnt / "top")
    check_kernel(reference, inner)
    unmount_outer(outer)


def check_kernel(reference: Path, inner: Space) -> None:
    """Check that kernel overlayfs shows the same; without an index it keeps no links together."""
    try:
        inner.mount(read_only=True, impl="kernel")
        check(reference, inner.mnt, links=False)
    finally:
        inner.unmount()


def test_marks_made_by_hand(outer: Space, inner: Space) -> None:
    """Marks in layers that somebody prepares inside an overlay count only for the inner one."""
    top = outer.mnt / "top"
    (top / "d").mkdir()
    set_overlay_xattr(top / "d", "opaque", b"y")
    (top / "x").mkdir()
    set_overlay_xattr(top / "x", "redirect", b"/e")
    assert os.listdir(top / "d") == []
    inner.upper = outer.mnt / "top"
    mnt = inner.mount()
    assert os.listdir(mnt / "d") == []
    assert sorted(os.listdir(mnt / "x")) == ["child", "sub"]
    inner.unmount()
    unmount_outer(outer)
    mount_outer(outer)
    assert overlay_xattr(top / "d", "opaque") == b"y"
    unmount_outer(outer)


@pytest.mark.parametrize("outer", ["fuse"], indirect=True)
def test_handle_of_one_file_is_never_that_of_another(outer: Space, inner: Space) -> None:
    """An overlay above ours identifies files by their handles, in the next mount too. If real
    numbers do not fit, ours change from mount to mount."""
    unmount_outer(outer)
    memory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        names = [f"n{number}" for number in range(20)]
        for name in names:
            (memory / name).write_bytes(name.encode())
        outer.lowers.append(memory)
        mount_outer(outer)
        inner.lowers = [outer.mnt]
        known: dict[tuple[int, bytes], str] = {}
        for order in (names, names[::-1]):
            mnt = inner.mount(read_only=True)
            for name in order:
                assert (
                    known.setdefault(file_handle(AT_FDCWD, os.fsencode(mnt / name)), name) == name
                )
            inner.unmount()
        unmount_outer(outer)
    finally:
        shutil.rmtree(memory)


@pytest.mark.parametrize("outer", ["fuse"], indirect=True)
def test_three_levels(outer: Space, inner: Space, reference: Path) -> None:
    inner.mount()
    for name in ("low", "top", "work"):
        (inner.mnt / name).mkdir()
    populate(inner.mnt / "low")
    base = outer.base.parent / "innermost"
    base.mkdir()
    third = Space(base)
    third.lowers = [inner.mnt / "low"]
    third.upper, third.work = inner.mnt / "top", inner.mnt / "work"
    third.features = inner.features
    try:
        work_on(third.mount())
        check(reference, third.mnt, links=True)
        third.unmount()
        inner.remount()
        third.mount()
        check(reference, third.mnt, links=True)
        third.unmount()
    finally:
        third.drop()
    inner.unmount()
    unmount_outer(outer)
