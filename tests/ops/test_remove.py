"""unlink and rmdir: whiteouts, opaque directories, and what must not come back."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from tests.helpers.mounts import (
    IMPL,
    MODE,
    Space,
    differs,
    fails,
    fuse_only,
    is_opaque,
    is_whiteout,
    make_whiteout,
    overlay_xattr,
)
from tests.ops.conftest import CONTENT, Case


@pytest.mark.parametrize("name", ["f", "s", "p", "k"])
def test_unlink(case: Case, where: str, name: str) -> None:
    os.unlink(case.path / name)
    for _ in range(2):
        with fails(errno.ENOENT):
            os.lstat(case.path / name)
    assert name not in os.listdir(case.path)
    with fails(errno.ENOENT):
        os.unlink(case.path / name)
    if where == "upper":
        assert not case.is_up(name), "a whiteout that hides nothing"
    else:
        assert is_whiteout(case.upper / name)


def test_unlink_below(case: Case, where: str) -> None:
    os.unlink(case.path / "d" / "sub" / "leaf")
    assert os.listdir(case.path / "d" / "sub") == []
    if where != "upper":
        assert is_whiteout(case.upper / "d" / "sub" / "leaf")


def test_unlink_of_a_directory(case: Case, where: str) -> None:
    with fails(errno.EISDIR):
        os.unlink(case.path / "d")


def test_unlink_of_nothing(case: Case, where: str) -> None:
    with fails(errno.ENOENT):
        os.unlink(case.path / "nothing")
    assert not case.is_up("nothing")


def test_rmdir(case: Case, where: str) -> None:
    os.rmdir(case.path / "e")
    with fails(errno.ENOENT):
        os.stat(case.path / "e")
    assert "e" not in os.listdir(case.path)
    if where == "upper":
        assert not case.is_up("e")
    else:
        assert is_whiteout(case.upper / "e")


def test_rmdir_of_a_full_directory(case: Case, where: str) -> None:
    with fails(errno.ENOTEMPTY):
        os.rmdir(case.path / "d")
    assert set(os.listdir(case.path / "d")) == {"child", "sub"}


def test_rmdir_of_a_directory_that_was_emptied(case: Case, where: str) -> None:
    shutil.rmtree(case.path / "d")
    with fails(errno.ENOENT):
        os.stat(case.path / "d")
    if where == "upper":
        assert not case.is_up("d")
    else:
        assert is_whiteout(case.upper / "d")


def test_rmdir_of_a_file(case: Case, where: str) -> None:
    for name in ("f", "s", "p"):
        with fails(errno.ENOTDIR):
            os.rmdir(case.path / name)


def test_rmdir_of_dots(case: Case) -> None:
    with fails(errno.EINVAL):
        os.rmdir(str(case.path / "e") + "/.")
    with fails(errno.ENOTEMPTY):
        os.rmdir(str(case.path / "d" / "sub") + "/..")


def test_removed_directory_is_still_open(case: Case, where: str) -> None:
    fd = os.open(case.path / "e", os.O_RDONLY | os.O_DIRECTORY)
    os.rmdir(case.path / "e")
    assert os.listdir(fd) == []
    with fails(errno.ENOENT):
        os.mkdir("new", dir_fd=fd)
    with fails(errno.ENOENT):
        os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    assert stat.S_ISDIR(os.fstat(fd).st_mode)
    os.close(fd)


def test_children_do_not_come_back(case: Case, where: str) -> None:
    shutil.rmtree(case.path / "d")
    os.mkdir(case.path / "d")
    assert os.listdir(case.path / "d") == []
    with fails(errno.ENOENT):
        os.stat(case.path / "d" / "child")
    (case.path / "d" / "sub").mkdir()
    assert os.listdir(case.path / "d" / "sub") == []
    if where != "upper":
        assert is_opaque(case.upper / "d")


def test_children_do_not_come_back_after_many_rounds(space: Space) -> None:
    bottom = space.add_lower()
    for layer in space.lowers:
        (layer / "d" / "sub").mkdir(parents=True)
        (layer / "d" / layer.name).touch()
        (layer / "d" / "sub" / "leaf").touch()
    with space.mounted() as mnt:
        for _ in range(3):
            shutil.rmtree(mnt / "d")
            assert not (mnt / "d").exists()
            (mnt / "d").mkdir()
            assert os.listdir(mnt / "d") == []
            (mnt / "d" / "sub").mkdir()
            assert os.listdir(mnt / "d" / "sub") == []
            (mnt / "d" / "new").touch()
        space.remount()
        assert sorted(os.listdir(mnt / "d")) == ["new", "sub"]
        assert os.listdir(mnt / "d" / "sub") == []
        with fails(errno.ENOENT):
            os.stat(mnt / "d" / bottom.name)


def test_file_comes_and_goes(case: Case, where: str) -> None:
    for round_ in range(5):
        os.unlink(case.path / "f")
        assert not (case.path / "f").exists()
        (case.path / "f").write_bytes(b"%d" % round_)
        assert (case.path / "f").read_bytes() == b"%d" % round_


def test_whiteout_in_a_pure_upper_directory_is_not_made(case: Case) -> None:
    os.mkdir(case.path / "new")
    (case.path / "new" / "x").touch()
    os.unlink(case.path / "new" / "x")
    assert os.listdir(case.upper / "new") == []
    os.rmdir(case.path / "new")
    assert not case.is_up("new")


def test_whiteout_in_an_opaque_directory_is_not_made(case: Case) -> None:
    shutil.rmtree(case.path / "d")
    os.mkdir(case.path / "d")
    (case.path / "d" / "child").touch()
    os.unlink(case.path / "d" / "child")
    if IMPL == "fuse":
        assert os.listdir(case.upper / "d") == []
    assert os.listdir(case.path / "d") == []


def test_unlink_in_a_middle_layer_hides_all_below(space: Space) -> None:
    middle, bottom = space.add_lower(), space.add_lower()
    for layer in (space.lower, middle, bottom):
        (layer / "f").write_bytes(os.fsencode(layer.name))
    with space.mounted() as mnt:
        os.unlink(mnt / "f")
        assert not (mnt / "f").exists()
        space.remount()
        assert not (mnt / "f").exists()
        (mnt / "f").write_bytes(b"new")
        os.unlink(mnt / "f")
        assert not (mnt / "f").exists()


def test_unlink_of_what_a_whiteout_in_the_middle_hides(space: Space) -> None:
    """Only the upper has it, since the layer between has a whiteout: nothing is to be hidden."""
    bottom = space.add_lower()
    (bottom / "f").write_bytes(b"old")
    make_whiteout(space.lower / "f")
    with space.mounted() as mnt:
        assert not (mnt / "f").exists()
        (mnt / "f").write_bytes(b"new")
        os.unlink(mnt / "f")
        assert os.listdir(mnt) == []


def test_remove_a_whole_tree(space: Space) -> None:
    for index in range(20):
        sub = space.lower / "tree" / f"d{index}" / "e"
        sub.mkdir(parents=True)
        for leaf in range(10):
            (sub / f"f{leaf}").write_bytes(b"x")
    with space.mounted() as mnt:
        (mnt / "tree" / "d3" / "e" / "f3").write_bytes(b"changed")
        (mnt / "tree" / "d4" / "new").write_bytes(b"new")
        shutil.rmtree(mnt / "tree")
        assert os.listdir(mnt) == []
        assert is_whiteout(space.upper / "tree")
        assert os.listdir(space.upper) == ["tree"]


def test_rmdir_with_open_files_inside_that_were_deleted(case: Case, where: str) -> None:
    fd = os.open(case.path / "d" / "child", os.O_RDWR)
    shutil.rmtree(case.path / "d")
    assert os.pread(fd, 10, 0) == b"child"
    os.pwrite(fd, b"orphan", 0)
    assert os.pread(fd, 10, 0) == b"orphan"
    os.close(fd)


def test_deleted_lower_file_keeps_attributes_while_open(case: Case, where: str) -> None:
    fd = os.open(case.path / "f", os.O_RDWR)
    os.unlink(case.path / "f")
    st = os.fstat(fd)
    assert (st.st_size, stat.S_IMODE(st.st_mode), st.st_nlink) == (len(CONTENT), 0o640, 0)
    os.fchmod(fd, 0o600)
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
    assert os.getxattr(fd, "user.colour") == b"red"
    os.close(fd)


@fuse_only
@pytest.mark.parametrize("dialect", ["char", "xattr", "oci"])
def test_every_dialect_written(space: Space, dialect: str) -> None:
    """`-o whiteout=` chooses the dialect written; all are read again."""
    space.kernel_reads = dialect != "oci"
    space.extra = (f"whiteout={dialect}",)
    for name in ("f", "g"):
        (space.lower / name).write_bytes(b"x")
    for path in ("d/child", "e/child"):
        (space.lower / path).parent.mkdir()
        (space.lower / path).write_bytes(b"x")
    with space.mounted() as mnt:
        os.unlink(mnt / "f")
        os.unlink(mnt / "d" / "child")
        shutil.rmtree(mnt / "e")
        os.mkdir(mnt / "e")
        assert sorted(os.listdir(mnt)) == ["d", "e", "g"]
        assert os.listdir(mnt / "d") == os.listdir(mnt / "e") == []
        if dialect == "char":
            assert is_whiteout(space.upper / "f")
            assert is_whiteout(space.upper / "d" / "child")
        elif dialect == "xattr":
            assert overlay_xattr(space.upper / "f", "whiteout") is not None
            assert overlay_xattr(space.upper / "d" / "child", "whiteout") is not None
            assert overlay_xattr(space.upper / "d", "opaque") == b"x"
            assert os.lstat(space.upper / "f").st_size == 0
        else:
            assert set(os.listdir(space.upper)) >= {".wh.f", "d"}
            assert not os.path.lexists(space.upper / "f")
            assert os.listdir(space.upper / "d") == [".wh.child"]
        space.remount()
        assert sorted(os.listdir(mnt)) == ["d", "e", "g"]
        assert os.listdir(mnt / "d") == os.listdir(mnt / "e") == []
        (mnt / "f").write_bytes(b"again")
        (mnt / "d" / "child").mkdir()
        assert (mnt / "f").read_bytes() == b"again"
        assert os.listdir(mnt / "d") == ["child"]
        left = [name for _, dirs, files in os.walk(space.upper) for name in dirs + files]
        assert not [name for name in left if name.startswith(".wh.") and name != ".wh..wh..opq"]


@fuse_only
def test_whiteout_of_a_name_too_long_for_a_prefix(space: Space) -> None:
    space.extra = ("whiteout=oci",)
    space.kernel_reads = False
    for name in ("n" * 255, "n" * 252, "n" * 251):
        (space.lower / name).write_bytes(b"x")
    with space.mounted() as mnt:
        for name in ("n" * 255, "n" * 252, "n" * 251):
            os.unlink(mnt / name)
        assert os.listdir(mnt) == []
        space.remount()
        assert os.listdir(mnt) == []


@differs("dialects")
def test_dialects_change_between_mounts(space: Space) -> None:
    space.kernel_reads = False
    for name in ("a", "b", "c"):
        (space.lower / name).write_bytes(b"x")
        (space.lower / f"dir{name}").mkdir()
        (space.lower / f"dir{name}" / "inside").touch()
    with space.mounted() as mnt:
        for name, dialect in (("a", "char"), ("b", "xattr"), ("c", "oci")):
            space.extra = (f"whiteout={dialect}",)
            space.remount()
            os.unlink(mnt / name)
            shutil.rmtree(mnt / f"dir{name}")
            (mnt / f"dir{name}").mkdir()
        assert sorted(os.listdir(mnt)) == ["dira", "dirb", "dirc"]
        for name in ("dira", "dirb", "dirc"):
            assert os.listdir(mnt / name) == []


@fuse_only
def test_userxattr_chooses_the_namespace(space: Space) -> None:
    space.extra = ("userxattr",)
    # As root the kernel reads only `trusted.overlay.`, unless mounted with the same option.
    space.kernel_reads = False
    (space.lower / "d").mkdir()
    (space.lower / "d" / "child").touch()
    with space.mounted() as mnt:
        shutil.rmtree(mnt / "d")
        os.mkdir(mnt / "d")
        assert os.getxattr(space.upper / "d", "user.overlay.opaque") == b"y"
        found = [name for name in os.listxattr(space.upper / "d") if name.startswith("trusted")]
        assert found == []
        assert os.listxattr(mnt / "d") == []
        assert os.listdir(mnt / "d") == []


def test_whiteouts_are_one_device(space: Space) -> None:
    """Each takes a name but no inode, and each can be removed alone."""
    for number in range(20):
        (space.lower / f"f{number}").touch()
    (space.lower / "full").mkdir()
    (space.lower / "full" / "inside").touch()
    with space.mounted() as mnt:
        for number in range(20):
            os.unlink(mnt / f"f{number}")
        shutil.rmtree(mnt / "full")
        (mnt / "f3").write_bytes(b"again")
        whiteouts = [path for path in space.upper.iterdir() if is_whiteout(path)]
        assert len(whiteouts) == 20
        devices = {path.lstat().st_ino for path in whiteouts if path.is_char_device()}
        assert len(devices) <= 1
        assert sorted(os.listdir(mnt)) == ["f3"]
        assert (mnt / "f3").read_bytes() == b"again"


@fuse_only
@pytest.mark.parametrize("emptied", [31, 33])
def test_directories_full_of_whiteouts_leave_nothing(space: Space, emptied: int) -> None:
    (space.lower / "d").mkdir()
    for number in range(emptied):
        (space.lower / "d" / f"f{number}").touch()
    with space.mounted() as mnt:
        shutil.rmtree(mnt / "d")
        (staging,) = space.work.glob("work")
        assert len(os.listdir(staging)) <= 1
        assert not os.listdir(mnt)


@fuse_only
def test_renames_over_whiteouts_leave_nothing(space: Space) -> None:
    """A link that is renamed over another link to the same file would stay where it was."""
    space.features = ("redirect_dir=on",)
    for number in range(5):
        (space.lower / f"old{number}").mkdir()
        (space.lower / f"old{number}" / "inside").write_bytes(b"%d" % number)
        (space.lower / f"new{number}").touch()
    with space.mounted() as mnt:
        for number in range(5):
            os.unlink(mnt / f"new{number}")
            os.rename(mnt / f"old{number}", mnt / f"new{number}")
        (staging,) = space.work.glob("work")
        assert len(os.listdir(staging)) <= 1
        for number in range(5):
            assert (mnt / f"new{number}" / "inside").read_bytes() == b"%d" % number
        assert len(os.listdir(mnt)) == 5


@pytest.mark.skipif(MODE != "userns", reason="of a user namespace")
def test_files_of_strangers(space: Space) -> None:
    """Files of root, for whom a plain user's namespace has no id; `test_unmapped` has the rest. The
    kernel removes only the files."""
    # The lower is not compared: only the owner can read files without changing access times.
    space.lowers = [Path(json.__file__).parent]
    assert space.lower.stat().st_uid == 65534
    mnt = space.mount()
    for path in mnt.iterdir():
        if not path.is_dir():
            path.unlink()
        elif IMPL == "fuse":
            (path / "new").write_bytes(b"content")
            shutil.rmtree(path)
    for _ in range(2):
        assert not [path for path in mnt.iterdir() if IMPL == "fuse" or not path.is_dir()]
        mnt = space.remount()
    space.unmount()
    assert (space.lower / "__init__.py").exists()
