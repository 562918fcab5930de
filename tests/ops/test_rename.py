"""rename(2) and renameat2(2): over every kind of object, with flags, across layers."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess

import pytest

from fuseoverlay.system.syscalls import AT_FDCWD, RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2
from tests.helpers.mounts import Space, fails, file_handles, is_opaque, is_whiteout, make_whiteout
from tests.ops.conftest import CONTENT, Case


def rename(source: os.PathLike, target: os.PathLike, flags: int) -> None:
    """renameat2 on paths."""
    renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags)


@pytest.mark.parametrize("name", ["f", "s", "p", "k"])
def test_rename(case: Case, where: str, name: str) -> None:
    before = os.lstat(case.path / name)
    os.rename(case.path / name, case.path / "new")
    after = os.lstat(case.path / "new")
    assert (after.st_mode, after.st_size, after.st_mtime_ns) == (
        before.st_mode,
        before.st_size,
        before.st_mtime_ns,
    )
    assert not os.path.lexists(case.path / name)
    assert name not in os.listdir(case.path)
    assert "new" in os.listdir(case.path)
    if where == "upper":
        assert not case.is_up(name)
    else:
        assert is_whiteout(case.upper / name)


def test_rename_keeps_everything(case: Case, where: str) -> None:
    os.rename(case.path / "f", case.path / "new")
    assert (case.path / "new").read_bytes() == CONTENT
    assert os.getxattr(case.path / "new", "user.colour") == b"red"


def test_rename_to_another_directory(case: Case, where: str) -> None:
    os.rename(case.path / "f", case.path / "d" / "sub" / "moved")
    assert (case.path / "d" / "sub" / "moved").read_bytes() == CONTENT
    assert not (case.path / "f").exists()
    os.rename(case.path / "d" / "sub" / "leaf", case.path / "leaf")
    assert (case.path / "leaf").read_bytes() == b"leaf"
    assert os.listdir(case.path / "d" / "sub") == ["moved"]


def test_rename_there_and_back(case: Case, where: str) -> None:
    for _ in range(3):
        os.rename(case.path / "f", case.path / "e" / "x")
        assert not (case.path / "f").exists()
        os.rename(case.path / "e" / "x", case.path / "f")
        assert (case.path / "f").read_bytes() == CONTENT
        assert os.listdir(case.path / "e") == []


def test_rename_over_a_file(case: Case, where: str) -> None:
    os.rename(case.path / "g", case.path / "f")
    assert (case.path / "f").read_bytes() == b"content of g\n"
    assert not (case.path / "g").exists()
    assert os.listxattr(case.path / "f") == []


def test_new_file_over_a_file(case: Case, where: str) -> None:
    """The way editors save."""
    (case.path / "f.tmp").write_bytes(b"saved")
    os.rename(case.path / "f.tmp", case.path / "f")
    assert (case.path / "f").read_bytes() == b"saved"
    assert not case.is_up("f.tmp"), "a whiteout that hides nothing"
    assert sorted(os.listdir(case.path)) == ["d", "e", "f", "g", "k", "p", "s"]


def test_rename_over_a_whiteout(case: Case, where: str) -> None:
    os.unlink(case.path / "f")
    os.rename(case.path / "g", case.path / "f")
    assert (case.path / "f").read_bytes() == b"content of g\n"
    assert "g" not in os.listdir(case.path)
    os.unlink(case.path / "f")
    assert "f" not in os.listdir(case.path)


def test_rename_over_a_symlink_or_fifo(case: Case, where: str) -> None:
    os.rename(case.path / "f", case.path / "s")
    assert stat.S_ISREG(os.lstat(case.path / "s").st_mode)
    os.rename(case.path / "s", case.path / "p")
    assert (case.path / "p").read_bytes() == CONTENT


def test_rename_onto_itself(case: Case, where: str) -> None:
    os.rename(case.path / "f", case.path / "f")
    assert (case.path / "f").read_bytes() == CONTENT
    os.rename(case.path / "d", case.path / "d")
    assert (case.path / "d" / "child").read_bytes() == b"child"


def test_rename_of_nothing(case: Case, where: str) -> None:
    with fails(errno.ENOENT):
        os.rename(case.path / "nothing", case.path / "new")
    with fails(errno.ENOENT):
        os.rename(case.path / "f", case.path / "nowhere" / "new")
    assert (case.path / "f").exists()


def test_rename_between_kinds(case: Case, where: str) -> None:
    with fails(errno.ENOTDIR):
        os.rename(case.path / "e", case.path / "f")
    with fails(errno.EISDIR):
        os.rename(case.path / "f", case.path / "e")


def test_rename_into_itself(case: Case, where: str) -> None:
    os.mkdir(case.path / "new")
    os.mkdir(case.path / "new" / "below")
    with fails(errno.EINVAL):
        os.rename(case.path / "new", case.path / "new" / "below" / "x")


def test_rename_of_a_new_directory(case: Case, where: str) -> None:
    os.mkdir(case.path / "new")
    (case.path / "new" / "inside").write_bytes(b"in")
    os.rename(case.path / "new", case.path / "newer")
    assert (case.path / "newer" / "inside").read_bytes() == b"in"
    os.rename(case.path / "newer", case.path / "d" / "sub" / "newest")
    assert (case.path / "d" / "sub" / "newest" / "inside").read_bytes() == b"in"
    (case.path / "d" / "sub" / "newest" / "more").write_bytes(b"more")
    assert sorted(os.listdir(case.path / "d" / "sub" / "newest")) == ["inside", "more"]


def test_rename_of_a_directory_with_a_lower_part(case: Case, where: str) -> None:
    """EXDEV, so that mv(1) copies; an upper directory just moves."""
    if where == "upper":
        os.rename(case.path / "d", case.path / "new")
        assert (case.path / "new" / "sub" / "leaf").read_bytes() == b"leaf"
        assert not case.is_up("d")
    else:
        with fails(errno.EXDEV):
            os.rename(case.path / "d", case.path / "new")
        assert (case.path / "d" / "sub" / "leaf").read_bytes() == b"leaf"
        assert not os.path.lexists(case.path / "new")


def test_mv_of_a_directory(case: Case, where: str) -> None:
    argv = ["mv", case.path / "d", case.path / "moved"]
    done = subprocess.run(argv, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not (case.path / "d").exists()
    assert (case.path / "moved" / "sub" / "leaf").read_bytes() == b"leaf"
    assert sorted(os.listdir(case.path / "moved")) == ["child", "sub"]


def test_new_directory_over_an_empty_one(case: Case, where: str) -> None:
    os.mkdir(case.path / "new")
    (case.path / "new" / "inside").write_bytes(b"in")
    os.rename(case.path / "new", case.path / "e")
    assert os.listdir(case.path / "e") == ["inside"]
    assert not os.path.lexists(case.path / "new")


def test_new_directory_over_a_full_one(case: Case, where: str) -> None:
    os.mkdir(case.path / "new")
    with fails(errno.ENOTEMPTY, errno.EEXIST):
        os.rename(case.path / "new", case.path / "d")
    assert sorted(os.listdir(case.path / "d")) == ["child", "sub"]


def test_new_directory_over_an_emptied_one(case: Case, where: str) -> None:
    """The target holds only whiteouts; the old children must not reappear."""
    os.unlink(case.path / "d" / "child")
    shutil.rmtree(case.path / "d" / "sub")
    os.mkdir(case.path / "new")
    (case.path / "new" / "inside").write_bytes(b"in")
    os.rename(case.path / "new", case.path / "d")
    assert os.listdir(case.path / "d") == ["inside"]
    with fails(errno.ENOENT):
        os.stat(case.path / "d" / "child")
    if where != "upper":
        assert is_opaque(case.upper / "d")


def test_new_directory_over_a_deleted_one(case: Case, where: str) -> None:
    shutil.rmtree(case.path / "d")
    os.mkdir(case.path / "new")
    (case.path / "new" / "inside").write_bytes(b"in")
    os.rename(case.path / "new", case.path / "d")
    assert os.listdir(case.path / "d") == ["inside"]
    if where != "upper":
        assert is_opaque(case.upper / "d")


def test_opaque_directory_moves_over_names_below(space: Space) -> None:
    """A new directory at a deleted name moves to another deleted name, and back."""
    for top in ("one", "two"):
        (space.lower / top / "old").mkdir(parents=True)
        (space.lower / top / "old" / "leaf").touch()
    with space.mounted() as mnt:
        shutil.rmtree(mnt / "one")
        shutil.rmtree(mnt / "two")
        (mnt / "one").mkdir()
        (mnt / "one" / "fresh").write_bytes(b"fresh")
        os.rename(mnt / "one", mnt / "two")
        assert os.listdir(mnt) == ["two"]
        assert os.listdir(mnt / "two") == ["fresh"]
        os.rename(mnt / "two", mnt / "one")
        assert os.listdir(mnt) == ["one"]
        assert os.listdir(mnt / "one") == ["fresh"]
        os.rename(mnt / "one", mnt / "three")
        (mnt / "one").mkdir()
        assert os.listdir(mnt / "one") == []


def test_new_directory_into_a_name_that_a_lower_whiteout_hides(space: Space) -> None:
    bottom = space.add_lower()
    (bottom / "d").mkdir()
    (bottom / "d" / "old").touch()
    make_whiteout(space.lower / "d")
    with space.mounted() as mnt:
        (mnt / "new").mkdir()
        os.rename(mnt / "new", mnt / "d")
        assert os.listdir(mnt / "d") == []
        (mnt / "d" / "x").touch()
        assert os.listdir(mnt / "d") == ["x"]


def test_noreplace(case: Case, where: str) -> None:
    with fails(errno.EEXIST):
        rename(case.path / "f", case.path / "g", RENAME_NOREPLACE)
    assert (case.path / "f").read_bytes() == CONTENT
    rename(case.path / "f", case.path / "new", RENAME_NOREPLACE)
    assert (case.path / "new").read_bytes() == CONTENT
    os.unlink(case.path / "g")
    rename(case.path / "new", case.path / "g", RENAME_NOREPLACE)
    assert (case.path / "g").read_bytes() == CONTENT


def test_exchange_files(case: Case, where: str) -> None:
    rename(case.path / "f", case.path / "g", RENAME_EXCHANGE)
    assert (case.path / "g").read_bytes() == CONTENT
    assert (case.path / "f").read_bytes() == b"content of g\n"
    rename(case.path / "f", case.path / "d" / "child", RENAME_EXCHANGE)
    assert (case.path / "d" / "child").read_bytes() == b"content of g\n"
    assert (case.path / "f").read_bytes() == b"child"


def test_exchange_file_and_new_directory(case: Case, where: str) -> None:
    os.mkdir(case.path / "new")
    (case.path / "new" / "inside").write_bytes(b"in")
    rename(case.path / "new", case.path / "f", RENAME_EXCHANGE)
    assert (case.path / "new").read_bytes() == CONTENT
    assert os.listdir(case.path / "f") == ["inside"]
    (case.path / "f" / "more").touch()
    assert sorted(os.listdir(case.path / "f")) == ["inside", "more"]


def test_exchange_with_a_lower_directory(case: Case, where: str) -> None:
    if where == "upper":
        rename(case.path / "d", case.path / "f", RENAME_EXCHANGE)
        assert (case.path / "f" / "child").read_bytes() == b"child"
        assert (case.path / "d").read_bytes() == CONTENT
        return
    with fails(errno.EXDEV):
        rename(case.path / "d", case.path / "f", RENAME_EXCHANGE)
    with fails(errno.EXDEV):
        rename(case.path / "f", case.path / "d", RENAME_EXCHANGE)
    assert (case.path / "d" / "child").read_bytes() == b"child"
    assert (case.path / "f").read_bytes() == CONTENT


def test_exchange_new_directories(case: Case, where: str) -> None:
    """At names that the lower has too: neither may merge with the lower's directory."""
    shutil.rmtree(case.path / "d")
    for name in ("d", "new"):
        os.mkdir(case.path / name)
        (case.path / name / f"in-{name}").touch()
    rename(case.path / "new", case.path / "d", RENAME_EXCHANGE)
    assert os.listdir(case.path / "d") == ["in-new"]
    assert os.listdir(case.path / "new") == ["in-d"]


def test_exchange_with_nothing(case: Case, where: str) -> None:
    with fails(errno.ENOENT):
        rename(case.path / "f", case.path / "nothing", RENAME_EXCHANGE)


def test_unknown_flags(case: Case) -> None:
    with fails(errno.EINVAL):
        rename(case.path / "f", case.path / "new", 1 << 10)
    with fails(errno.EINVAL):
        rename(case.path / "f", case.path / "g", RENAME_EXCHANGE | RENAME_NOREPLACE)
    assert (case.path / "f").exists()


def test_rename_moves_the_kernels_entries(case: Case, where: str) -> None:
    """The kernel's positive and negative entries follow the rename."""
    assert not (case.path / "new").exists()
    os.stat(case.path / "f")
    os.rename(case.path / "f", case.path / "new")
    os.stat(case.path / "new")
    assert not (case.path / "f").exists()
    (case.path / "f").write_bytes(b"another")
    assert (case.path / "new").read_bytes() == CONTENT
    assert os.stat(case.path / "f").st_ino != os.stat(case.path / "new").st_ino


def test_directory_handle_survives_rename(case: Case) -> None:
    os.mkdir(case.path / "new")
    fd = os.open(case.path / "new", os.O_RDONLY)
    os.rename(case.path / "new", case.path / "e" / "moved")
    os.close(os.open("inside", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    assert os.listdir(case.path / "e" / "moved") == ["inside"]
    assert os.listdir(fd) == ["inside"]
    os.close(fd)


def test_files_of_a_moved_directory_go_on(case: Case) -> None:
    os.mkdir(case.path / "new")
    with open(case.path / "new" / "log", "wb", buffering=0) as stream:
        stream.write(b"one ")
        os.rename(case.path / "new", case.path / "e" / "moved")
        stream.write(b"two ")
        os.mkdir(case.path / "new")
        (case.path / "new" / "log").write_bytes(b"another")
        stream.write(b"three")
    assert (case.path / "e" / "moved" / "log").read_bytes() == b"one two three"


@file_handles
def test_inode_number_survives_rename(case: Case, where: str) -> None:
    before = os.stat(case.path / "f").st_ino
    os.rename(case.path / "f", case.path / "new")
    assert os.stat(case.path / "new").st_ino == before
    with os.scandir(case.path) as entries:
        assert {entry.name: entry.inode() for entry in entries}["new"] == before


def test_rename_chain(space: Space) -> None:
    """Every file moves to its neighbour's name: a mistake would show as wrong content."""
    for index in range(20):
        (space.lower / f"n{index}").write_bytes(b"%d" % index)
    with space.mounted() as mnt:
        os.rename(mnt / "n0", mnt / "spare")
        for index in range(19):
            os.rename(mnt / f"n{index + 1}", mnt / f"n{index}")
        os.rename(mnt / "spare", mnt / "n19")
        for index in range(20):
            assert (mnt / f"n{index}").read_bytes() == b"%d" % ((index + 1) % 20)
        assert len(os.listdir(mnt)) == 20
