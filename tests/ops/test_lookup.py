"""Look-up, listing and stat of what the layers hold."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.helpers.mounts import MODE, Space, fails, make_whiteout
from tests.ops.conftest import ATIME, CONTENT, MTIME, Case

NAMES = {"f", "g", "d", "e", "s", "p", "k"}


def test_listing(case: Case, where: str) -> None:
    assert set(os.listdir(case.path)) == NAMES
    assert set(os.listdir(case.path / "d")) == {"child", "sub"}
    assert os.listdir(case.path / "e") == []


def test_stat(case: Case, where: str) -> None:
    st = os.stat(case.path / "f")
    assert stat.S_ISREG(st.st_mode)
    assert stat.S_IMODE(st.st_mode) == 0o640
    assert (st.st_uid, st.st_gid) == (os.getuid(), os.getgid())
    assert st.st_size == len(CONTENT)
    assert st.st_mtime_ns == MTIME
    assert st.st_atime_ns == ATIME
    assert st.st_nlink == 1
    assert st.st_blocks * 512 >= len(CONTENT)
    assert st.st_blksize >= 512


def test_types(case: Case, where: str) -> None:
    kinds = {name: stat.S_IFMT(os.lstat(case.path / name).st_mode) for name in NAMES}
    assert kinds == {
        "f": stat.S_IFREG,
        "g": stat.S_IFREG,
        "d": stat.S_IFDIR,
        "e": stat.S_IFDIR,
        "s": stat.S_IFLNK,
        "p": stat.S_IFIFO,
        "k": stat.S_IFSOCK,
    }


def test_listed_type_and_number_match_stat(case: Case, where: str) -> None:
    with os.scandir(case.path) as entries:
        for entry in entries:
            st = entry.stat(follow_symlinks=False)
            assert entry.inode() == st.st_ino, entry.name
            assert entry.is_dir(follow_symlinks=False) == stat.S_ISDIR(st.st_mode)
            assert entry.is_symlink() == stat.S_ISLNK(st.st_mode)


def test_dots(case: Case) -> None:
    assert os.stat(case.path / "d" / ".").st_ino == os.stat(case.path / "d").st_ino
    assert os.stat(case.path / "d" / "..").st_ino == os.stat(case.path).st_ino
    assert os.stat(case.space.mnt / "..").st_ino == os.stat(case.space.base).st_ino


def test_device_is_the_same_everywhere(case: Case, where: str) -> None:
    devices = {os.lstat(case.path / name).st_dev for name in NAMES - {"f", "g"}}
    assert os.stat(case.space.mnt).st_dev in devices


def test_readlink(case: Case, where: str) -> None:
    assert os.readlink(case.path / "s") == "f"
    assert os.lstat(case.path / "s").st_size == 1
    assert (case.path / "s").read_bytes() == CONTENT


def test_no_such_name(case: Case, where: str) -> None:
    for _ in range(2):  # the second time from the kernel's negative entry
        with fails(errno.ENOENT):
            os.stat(case.path / "nothing")
    with fails(errno.ENOENT):
        os.stat(case.path / "nothing" / "below")


def test_file_is_no_directory(case: Case, where: str) -> None:
    with fails(errno.ENOTDIR):
        os.stat(case.path / "f" / "below")
    with fails(errno.ENOTDIR):
        os.listdir(case.path / "f")


def test_directory_is_no_file(case: Case, where: str) -> None:
    with fails(errno.EISDIR):
        os.open(case.path / "d", os.O_WRONLY)
    fd = os.open(case.path / "d", os.O_RDONLY)
    with fails(errno.EISDIR):
        os.read(fd, 1)
    os.close(fd)


def test_name_of_255_bytes(case: Case) -> None:
    name = "n" * 255
    (case.path / name).write_bytes(b"long")
    assert (case.path / name).read_bytes() == b"long"
    assert name in os.listdir(case.path)


def test_name_of_256_bytes(case: Case) -> None:
    with fails(errno.ENAMETOOLONG):
        os.stat(case.path / ("n" * 256))
    with fails(errno.ENAMETOOLONG):
        os.mkdir(case.path / ("n" * 256))


def test_names_that_are_not_utf8(space: Space) -> None:
    names = [b"\xff\xfe", b"caf\xe9", b"a\nb", b" ", b"-rf", b"\x01", "ü".encode(), b"n" * 255]
    for name in names[::2]:
        (space.lower / os.fsdecode(name)).write_bytes(name)
    with space.mounted() as mnt:
        top = os.fsencode(mnt)
        for name in names[1::2]:
            Path(os.fsdecode(top + b"/" + name)).write_bytes(name)
        assert sorted(os.listdir(top)) == sorted(names)
        for name in names:
            with open(top + b"/" + name, "rb") as stream:
                assert stream.read() == name
        os.unlink(top + b"/\xff\xfe")
        assert b"\xff\xfe" not in os.listdir(top)


def test_layers_hide_each_other(space: Space) -> None:
    bottom = space.add_lower()
    (bottom / "both").write_bytes(b"bottom")
    (bottom / "only").write_bytes(b"bottom")
    (bottom / "dir").mkdir()
    (bottom / "dir" / "low").write_bytes(b"low")
    (bottom / "dir" / "same").write_bytes(b"bottom")
    (bottom / "swap").mkdir()
    (bottom / "swap" / "inside").write_bytes(b"inside")
    (bottom / "paws").write_bytes(b"file")
    (space.lower / "both").write_bytes(b"middle")
    (space.lower / "dir").mkdir()
    (space.lower / "dir" / "same").write_bytes(b"middle")
    (space.lower / "swap").write_bytes(b"now a file")
    (space.lower / "paws").mkdir()
    (space.upper / "dir").mkdir(mode=0o711)
    (space.upper / "dir" / "high").write_bytes(b"high")
    with space.mounted() as mnt:
        assert sorted(os.listdir(mnt)) == ["both", "dir", "only", "paws", "swap"]
        assert (mnt / "both").read_bytes() == b"middle"
        assert (mnt / "only").read_bytes() == b"bottom"
        assert sorted(os.listdir(mnt / "dir")) == ["high", "low", "same"]
        assert (mnt / "dir" / "same").read_bytes() == b"middle"
        assert stat.S_IMODE(os.stat(mnt / "dir").st_mode) == 0o711
        assert (mnt / "swap").read_bytes() == b"now a file"
        assert os.listdir(mnt / "paws") == []


def test_file_between_directories_ends_the_merge(space: Space) -> None:
    middle, bottom = space.add_lower(), space.add_lower()
    (space.lower / "x").mkdir()
    (space.lower / "x" / "top").touch()
    (middle / "x").write_bytes(b"a file in the middle")
    (bottom / "x").mkdir()
    (bottom / "x" / "hidden").touch()
    with space.mounted() as mnt:
        assert os.listdir(mnt / "x") == ["top"]
        with fails(errno.ENOENT):
            os.stat(mnt / "x" / "hidden")


def test_500_layers(space: Space) -> None:
    while len(space.lowers) < 500:
        space.add_lower()
    for index, layer in enumerate(space.lowers):
        (layer / f"own{index}").write_bytes(b"%d" % index)
        (layer / "same").write_bytes(b"%d" % index)
        (layer / "dir").mkdir()
        (layer / "dir" / f"in{index % 250}").write_bytes(b"%d" % index)
    make_whiteout(space.lowers[100] / "own300")
    with space.mounted(settle=False) as mnt:
        expected = {f"own{index}" for index in range(500) if index != 300} | {"same", "dir"}
        assert set(os.listdir(mnt)) == expected
        assert len(os.listdir(mnt / "dir")) == 250
        assert (mnt / "same").read_bytes() == b"0"
        assert (mnt / "dir" / "in249").read_bytes() == b"249"
        assert (mnt / "own499").read_bytes() == b"499"
        (mnt / "own499").write_bytes(b"changed")
        assert (space.upper / "own499").read_bytes() == b"changed"


@pytest.mark.parametrize("layer", ["lower", "upper"])
def test_deep_directories_whose_descriptors_were_needed(space: Space, layer: str) -> None:
    """They are opened again one by one; there are more of them than Python can nest calls."""
    here = os.open(getattr(space, layer), os.O_RDONLY)
    for _ in range(700):
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    for number in range(200):
        (space.lower / f"n{number}").mkdir()
    here = os.open(space.mount(descriptors=128), os.O_RDONLY)
    try:
        for _ in range(700):
            deeper = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = deeper
        for number in range(200):
            assert os.listdir(space.mnt / f"n{number}") == []
        os.mkdir("new", dir_fd=here)
        assert os.listdir(here) == ["new"]
    finally:
        os.close(here)


def test_deeper_than_path_max(space: Space) -> None:
    """A tree whose full path is too long for any system call, walked by chdir(2)."""
    name, levels = "x" * 200, 30
    here = os.open(space.lower, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    fd = os.open("leaf", os.O_WRONLY | os.O_CREAT, dir_fd=here)
    os.write(fd, b"deep")
    os.close(fd)
    os.close(here)
    here = os.open(space.mount(), os.O_RDONLY)
    for _ in range(levels):
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    fd = os.open("leaf", os.O_RDWR | os.O_APPEND, dir_fd=here)
    assert os.read(fd, 10) == b"deep"
    os.write(fd, b"er")
    os.close(fd)
    assert os.stat("leaf", dir_fd=here).st_size == 6
    os.close(here)
    space.unmount()


@pytest.mark.skipif(MODE == "userns", reason="the only user is root")
def test_nobody_elses_directory(space: Space) -> None:
    """A directory without x for its owner can be listed but not entered; root may."""
    (space.lower / "closed").mkdir()
    (space.lower / "closed" / "inside").touch()
    (space.lower / "closed").chmod(0o400)
    mnt = space.mount()
    try:
        assert os.listdir(mnt / "closed") == ["inside"]
        if MODE == "user":
            with fails(errno.EACCES):
                os.stat(mnt / "closed" / "inside")
        else:
            assert os.stat(mnt / "closed" / "inside").st_size == 0
        space.unmount()
    finally:
        (space.lower / "closed").chmod(0o700)
