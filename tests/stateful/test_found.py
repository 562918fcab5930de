"""What the random search found, each as an ordinary test."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.mounts import Space, differs
from tests.helpers.tree import compare, record


def _chmod(path: Path) -> None:
    path.chmod(0o400)


def _touch(path: Path) -> None:
    os.utime(path, (1, 1))


@pytest.mark.parametrize("change", [_chmod, _touch])
def test_copy_up_of_a_read_only_file_with_attributes(
    space: Space, change: Callable[[Path], None]
) -> None:
    """To set `user.` attributes takes write permission, which its owner has not."""
    (space.lower / "f").write_bytes(b"text")
    os.setxattr(space.lower / "f", "user.x", b"value")
    (space.lower / "f").chmod(0o444)
    with space.mounted() as mnt:
        change(mnt / "f")
        assert os.getxattr(mnt / "f", "user.x") == b"value"
        assert (mnt / "f").read_bytes() == b"text"


def test_copy_up_of_a_read_only_directory_with_attributes(space: Space) -> None:
    (space.lower / "d").mkdir()
    os.setxattr(space.lower / "d", "user.x", b"value")
    (space.lower / "d").chmod(0o555)
    with space.mounted() as mnt:
        os.utime(mnt / "d", (1, 1))
        assert os.getxattr(mnt / "d", "user.x") == b"value"


@differs("hard-links")
def test_copy_up_of_a_read_only_file_with_several_names(space: Space) -> None:
    (space.lower / "f").write_bytes(b"text")
    (space.lower / "f").chmod(0o444)
    for name in ("g", "h"):
        os.link(space.lower / "f", space.lower / name)
    space.kernel_reads = False
    with space.mounted() as mnt:
        os.utime(mnt / "f", (1, 1))
        os.unlink(mnt / "g")
        assert os.stat(mnt / "f").st_nlink == os.stat(mnt / "h").st_nlink == 2
        assert os.stat(mnt / "f").st_ino == os.stat(mnt / "h").st_ino


@differs("daemon")
def test_data_of_a_read_only_metacopy_is_written_by_who_has_it_open(space: Space) -> None:
    (space.lower / "f").write_bytes(b"text")
    space.features = ("metacopy=on",)
    with space.mounted() as mnt:
        fd = os.open(mnt / "f", os.O_RDWR)
        try:
            os.fchmod(fd, 0o444)
            assert os.write(fd, b"T") == 1
            assert os.pread(fd, 10, 0) == b"Text"
        finally:
            os.close(fd)


def test_making_a_read_only_directory_opaque(space: Space) -> None:
    """It takes the place of a directory of the lower."""
    (space.lower / "d").mkdir()
    (space.lower / "d" / "old").touch()
    with space.mounted() as mnt:
        os.unlink(mnt / "d" / "old")
        os.rmdir(mnt / "d")
        os.mkdir(mnt / "e")
        os.chmod(mnt / "e", 0o555)
        os.rename(mnt / "e", mnt / "d")
        assert os.listdir(mnt / "d") == []
        os.chmod(mnt / "d", 0o755)


@differs("daemon")
def test_moving_a_read_only_directory_with_redirect_dir(space: Space) -> None:
    (space.lower / "d").mkdir()
    (space.lower / "d" / "inside").write_bytes(b"text")
    (space.lower / "d").chmod(0o555)
    space.features = ("redirect_dir=on",)
    with space.mounted() as mnt:
        os.rename(mnt / "d", mnt / "e")
        assert (mnt / "e" / "inside").read_bytes() == b"text"


def _oci_layer(space: Space, mark: str) -> None:
    """`d` of the lower hides that of the layer below, in one of the ways of OCI layers."""
    bottom = space.add_lower()
    for layer, name in ((space.lower, b"top"), (bottom, b"bottom")):
        (layer / "d" / "sub").mkdir(parents=True)
        (layer / "d" / "sub" / os.fsdecode(name)).touch()
        (layer / "d" / "file").write_bytes(name)
    (space.lower / mark).touch()
    space.kernel_reads = False


oci_marks = pytest.mark.parametrize("mark", [".wh.d", "d/.wh..wh..opq", ".wh..wh..opq"])


@differs("dialects")
@oci_marks
@pytest.mark.parametrize("name", ["d", "d/sub"])
def test_redirect_through_an_oci_opaque_directory(space: Space, mark: str, name: str) -> None:
    """What it hides stays hidden after the next mount, and what it has stays there."""
    _oci_layer(space, mark)
    space.features = ("redirect_dir=on",)
    with space.mounted() as mnt:
        shown = record(str(mnt / name))
        os.rename(mnt / name, mnt / "moved")
        space.remount()
        assert compare(shown, record(str(mnt / "moved"))) == []


@differs("dialects")
@oci_marks
def test_metacopy_in_an_oci_opaque_directory(space: Space, mark: str) -> None:
    _oci_layer(space, mark)
    space.features = ("metacopy=on",)
    with space.mounted() as mnt:
        os.chmod(mnt / "d" / "file", 0o600)
        space.remount()
        assert (mnt / "d" / "file").read_bytes() == b"top"


@differs("removed-directories")
def test_changing_an_open_directory_of_a_lower_that_was_removed(space: Space) -> None:
    (space.lower / "d").mkdir()
    os.setxattr(space.lower / "d", "user.x", b"value")
    with space.mounted() as mnt:
        fd = os.open(mnt / "d", os.O_RDONLY)
        try:
            os.rmdir(mnt / "d")
            os.fchmod(fd, 0o700)
            os.utime(fd, (1, 2))
            os.setxattr(fd, "user.y", b"other")
            st = os.fstat(fd)
            assert (st.st_mode & 0o777, st.st_mtime) == (0o700, 2)
            assert sorted(os.listxattr(fd)) == ["user.x", "user.y"]
        finally:
            os.close(fd)
        assert os.listdir(mnt) == []


@pytest.mark.parametrize("name", ["file", "sub", "fifo", "link"])
def test_copy_up_in_a_read_only_directory(space: Space, name: str) -> None:
    """Its owner may change what is in it, and so the copy must get into it."""
    (space.lower / "d" / "sub").mkdir(parents=True)
    (space.lower / "d" / "file").write_bytes(b"text")
    os.mkfifo(space.lower / "d" / "fifo")
    os.symlink("file", space.lower / "d" / "link")
    (space.lower / "d").chmod(0o555)
    with space.mounted() as mnt:
        os.utime(mnt / "d" / name, (1, 2), follow_symlinks=False)
        assert os.lstat(mnt / "d" / name).st_mtime == 2
        assert os.stat(mnt / "d").st_mode & 0o777 == 0o555
    assert os.stat(space.upper / "d").st_mode & 0o777 == 0o555
