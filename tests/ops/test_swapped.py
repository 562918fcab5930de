"""Objects of a lower that somebody swaps for others while they are mounted.

The kernel caches what it was told of an object: owner, mode, capabilities, data. Somebody who may
write to a lower directory must not get the content of one object with the attributes of another.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.libc import cached_pages
from tests.helpers.mounts import MODE, Space, fails, fuse_only, root_only

pytestmark = [fuse_only, pytest.mark.timeout(60)]

OLD, NEW = b"old content\n", b"new content, longer\n"
SIZES = {"small": 1, "large": 20_000}


def _swap(path: Path, content: bytes) -> None:
    """Put another file in the place of this one; that one lives on and keeps its number."""
    os.link(path, f"{path}.kept")
    other = path.with_name("other")
    other.write_bytes(content)
    other.chmod(0o4755)
    other.rename(path)


def _lower(space: Space, form: str, content: bytes) -> Path:
    """The file `d/f` of a lower that will be mounted in this form."""
    lower = space.lower / "d" / "f"
    lower.parent.mkdir()
    lower.write_bytes(content)
    if form == "attribute":
        os.setxattr(lower, "user.colour", b"red")
    space.features = ("index=off",) if form == "alone" else ()
    return lower


KNOWN: dict[str, Callable[[Path], object]] = {
    "looked up": os.stat,
    "listed": lambda path: [entry.stat() for entry in os.scandir(path.parent)],
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("form", ["plain", "linked", "alone", "attribute"])
def test_data(space: Space, form: str, known: str, size: str) -> None:
    count = SIZES[size]
    lower = _lower(space, form, OLD * count)
    if form in ("linked", "alone"):
        os.link(lower, f"{lower}2")
    path = space.mount() / "d" / "f"
    KNOWN[known](path)
    with path.open("rb") as stream:
        _swap(lower, NEW * count)
        if form == "linked" and known == "listed":
            # The name beside it was listed too, and still leads to the open file.
            assert stream.read() == OLD * count
            return
        with fails(errno.ESTALE):
            stream.read()


def test_what_is_read_already_stays(space: Space) -> None:
    (space.lower / "f").write_bytes(OLD)
    path = space.mount() / "f"
    assert path.read_bytes() == OLD
    with path.open("rb") as stream:
        _swap(space.lower / "f", NEW)
        assert stream.read() == OLD


@pytest.mark.parametrize("form", ["plain", "linked", "alone", "attribute", "link"])
def test_attributes(space: Space, form: str) -> None:
    """Those of the open object are not returned any more; its name leads to the new object."""
    lower = space.lower / "f"
    lower.write_bytes(OLD)
    if form in ("linked", "alone"):
        os.link(lower, f"{lower}2")
    if form == "attribute":
        os.setxattr(lower, "user.colour", b"red")
    space.features = ("index=off",) if form == "alone" else ()
    path = space.mount() / "f"
    before = path.stat()
    with path.open("rb") as stream:
        # The kernel then requests the access time, and takes over all attributes it is told.
        assert stream.read() == OLD
        _swap(lower, NEW)
        with fails(errno.ESTALE):
            os.fstat(stream.fileno())
    after = path.stat()
    assert after.st_ino != before.st_ino
    assert stat.S_IMODE(after.st_mode) == 0o4755
    assert path.read_bytes() == NEW


def test_extended_attributes(space: Space) -> None:
    lower = space.lower / "f"
    lower.write_bytes(OLD)
    os.setxattr(lower, "user.colour", b"red")
    path = space.mount() / "f"
    with path.open("rb") as stream:
        assert os.getxattr(stream.fileno(), "user.colour") == b"red"
        _swap(lower, NEW)
        os.setxattr(lower, "user.colour", b"blue")
        for call in (os.listxattr, lambda fd: os.getxattr(fd, "user.colour")):
            with fails(errno.ESTALE):
                call(stream.fileno())


def test_symbolic_links(space: Space) -> None:
    lower = space.lower / "s"
    os.symlink("old", lower)
    path = space.mount() / "s"
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        lower.rename(space.lower / "kept")
        os.symlink("new", lower)
        with fails(errno.ESTALE):
            os.readlink("", dir_fd=fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("inner", ["", "sub"])
def test_directories(space: Space, inner: str) -> None:
    """A user who may enter the directory known to the kernel may not enter any other."""
    lower, other = space.lower / "d", space.lower / "secret"
    for top, name in ((lower, "old"), (other, "new")):
        (top / "sub").mkdir(parents=True)
        (top / "sub" / name).write_bytes(OLD)
        (top / name).write_bytes(OLD)
    other.chmod(0o700)
    for number in range(200):
        (space.lower / f"n{number}" / "sub").mkdir(parents=True)
    path = space.mount(descriptors=128) / "d"
    path.stat()
    fd = os.open(path, os.O_RDONLY)
    try:
        for number in range(200):
            assert (space.mnt / f"n{number}").stat()
            assert os.listdir(space.mnt / f"n{number}") == ["sub"]
        lower.rename(space.lower / "kept")
        other.rename(lower)
        with fails(errno.ESTALE):
            os.listdir(os.path.join(path, inner))
        with fails(errno.ESTALE):
            os.stat("new", dir_fd=fd)
    finally:
        os.close(fd)


@pytest.mark.skipif(MODE != "root", reason="takes trusted attributes")
def test_data_of_a_metacopy(space: Space) -> None:
    lower = space.lower / "f"
    lower.write_bytes(OLD)
    space.features = ("metacopy=on",)
    mnt = space.mount()
    (mnt / "f").chmod(0o4711)
    space.unmount()
    path = space.mount() / "f"
    with path.open("rb") as stream:
        _swap(lower, NEW)
        with fails(errno.ESTALE):
            stream.read()


def test_copy_up_takes_nothing_else(space: Space) -> None:
    lower = space.lower / "f"
    lower.write_bytes(OLD)
    path = space.mount() / "f"
    fd = os.open(path, os.O_RDWR)
    try:
        _swap(lower, NEW)
        with fails(errno.ESTALE):
            os.pwrite(fd, b"x", 0)
    finally:
        os.close(fd)
    assert not (space.upper / "f").exists()


def test_layers_that_are_edited(space: Space) -> None:
    """With `timeout=` the new objects are to be seen."""
    (space.lower / "f").write_bytes(OLD)
    space.extra = ("timeout=0",)
    path = space.mount() / "f"
    assert path.read_bytes() == OLD
    _swap(space.lower / "f", NEW)
    assert path.read_bytes() == NEW
    assert stat.S_IMODE(path.stat().st_mode) == 0o4755


@pytest.mark.parametrize("features", [(), ("timeout=0",)], ids=["", "edited"])
@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("kind", ["link", "pipe", "file"])
def test_another_type(space: Space, kind: str, known: str, features: tuple[str, ...]) -> None:
    """The kernel makes an inode unusable for good if its type changes."""
    lower = space.lower / "d" / "f"
    lower.parent.mkdir()
    if kind == "file":
        os.mkfifo(lower)
    else:
        lower.write_bytes(OLD)
    space.extra = features
    path = space.mount() / "d" / "f"
    KNOWN[known](path)
    fd = os.open(path, os.O_PATH if kind == "file" else os.O_RDONLY)
    try:
        lower.rename(space.lower / "kept")
        if kind == "link":
            lower.symlink_to("elsewhere")
        elif kind == "pipe":
            os.mkfifo(lower)
        else:
            lower.write_bytes(NEW)
        if features:
            with fails(errno.ESTALE):
                os.fstat(fd)
        with fails(errno.ESTALE):
            os.chmod(f"/proc/self/fd/{fd}", 0o600)
        if kind != "file":
            with fails(errno.ESTALE):
                os.read(fd, 1)
        if features:
            assert path.lstat().st_mode == lower.lstat().st_mode
    finally:
        os.close(fd)


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_another_type_with_the_same_number(space: Space, kind: str, known: str) -> None:
    lower = space.lower / "d" / "f"
    lower.parent.mkdir()
    lower.write_bytes(OLD)
    path = space.mount() / "d" / "f"
    KNOWN[known](path)
    with path.open("rb") as stream:
        _reuse(lower, os.mkfifo if kind == "pipe" else lambda other: other.symlink_to("to")).rename(
            lower
        )
        with fails(errno.ESTALE):
            os.fchmod(stream.fileno(), 0o600)
        with fails(errno.ESTALE):
            stream.read()
    assert path.lstat().st_mode == lower.lstat().st_mode


def _reuse(path: Path, make: Callable[[Path], object]) -> Path:
    """Remove this file; returns another object beside it that has got its number."""
    number = path.lstat().st_ino
    base = path.parent / "reused"
    base.mkdir()
    path.unlink()
    for count in range(5000):
        other = base / f"{count}"
        make(other)
        if other.lstat().st_ino == number:
            return other
    pytest.fail("the filesystem does not give the number out again")


def _anothers(content: bytes) -> Callable[[Path], object]:
    """A maker of files that belong to another user."""

    def make(path: Path) -> None:
        path.write_bytes(content)
        os.chown(path, 4001, 4001)

    return make


@root_only
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("form", ["plain", "linked", "alone", "attribute"])
def test_another_users_file_with_the_same_number(
    space: Space, form: str, known: str, size: str
) -> None:
    count = SIZES[size]
    lower = _lower(space, form, OLD * count)
    lower.chmod(0o4755)
    path = space.mount() / "d" / "f"
    KNOWN[known](path)
    with path.open("rb") as stream:
        other = _reuse(lower, _anothers(NEW * count))
        if form in ("linked", "alone"):
            os.link(other, f"{other}.link")
        other.chmod(0o4755)
        other.rename(lower)
        with fails(errno.ESTALE):
            stream.read()
        with fails(errno.ESTALE):
            os.getxattr(stream.fileno(), "user.colour")


@root_only
@pytest.mark.parametrize("names", [1, 2])
def test_a_copy_is_not_found_by_a_number_that_was_given_out_again(space: Space, names: int) -> None:
    """Otherwise a user who may make files in a lower directory could reach files of others."""
    lower = space.lower
    for name in ("private", "late", "hidden"):
        (lower / name).mkdir()
    (lower / "private" / "f").write_bytes(OLD)
    if names == 2:
        os.link(lower / "private" / "f", lower / "private" / "g")
    mnt = space.mount()
    (mnt / "private" / "f").write_bytes(b"secret")
    (mnt / "private" / "f").rename(mnt / "hidden" / "f")
    if names == 2:
        (lower / "private" / "g").unlink()
    other = _reuse(lower / "private" / "f", _anothers(NEW))
    if names == 2:
        os.link(other, f"{other}.link")
    other.rename(lower / "late" / "mine")
    assert (mnt / "late" / "mine").read_bytes() == NEW
    (mnt / "late" / "mine").write_bytes(b"his")
    assert (mnt / "hidden" / "f").read_bytes() == b"secret"
    assert (mnt / "late" / "mine").stat().st_ino != (mnt / "hidden" / "f").stat().st_ino


@root_only
def test_read_ahead_gives_no_other_file(space: Space) -> None:
    directory = space.lower / "d"
    directory.mkdir()
    for number in range(8):
        (directory / f"f{number}").write_bytes(OLD)
    (directory / "f7").chmod(0o4755)
    space.extra = ("readahead=on",)
    mnt = space.mount(read_only=True)
    KNOWN["listed"](mnt / "d" / "f0")
    with (mnt / "d" / "f7").open("rb") as stream:
        other = _reuse(directory / "f7", _anothers(NEW))
        other.rename(directory / "f7")
        for number in range(3):
            assert (mnt / "d" / f"f{number}").read_bytes() == OLD
        assert cached_pages(mnt / "d" / "f6")
        with fails(errno.ESTALE):
            # No more than before: for that much the kernel sends no request.
            os.pread(stream.fileno(), len(OLD), 0)
