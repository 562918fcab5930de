"""Hard links, made through the mount or present in layers."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import libc
from tests.helpers.mounts import IMPL, MODE, NATIVE, Space, detach, differs, fails, file_handles
from tests.ops.conftest import CONTENT, Case


@file_handles
def test_link(case: Case, where: str) -> None:
    os.link(case.path / "f", case.path / "hard")
    a, b = os.stat(case.path / "f"), os.stat(case.path / "hard")
    assert a.st_ino == b.st_ino
    assert a.st_nlink == b.st_nlink == 2
    with open(case.path / "hard", "r+b") as stream:
        stream.write(b"BY THE LINK")
    assert (case.path / "f").read_bytes() == b"BY THE LINK" + CONTENT[11:]
    os.unlink(case.path / "f")
    assert (case.path / "hard").read_bytes() == b"BY THE LINK" + CONTENT[11:]
    assert os.stat(case.path / "hard").st_nlink == 1
    assert os.getxattr(case.path / "hard", "user.colour") == b"red"


@file_handles
def test_link_to_another_directory(case: Case, where: str) -> None:
    os.link(case.path / "f", case.path / "d" / "sub" / "hard")
    assert os.path.samefile(case.path / "f", case.path / "d" / "sub" / "hard")
    assert os.path.samefile(case.upper / "f", case.upper / "d" / "sub" / "hard")


@file_handles
def test_link_of_other_kinds(case: Case, where: str) -> None:
    os.link(case.path / "p", case.path / "p2")
    os.link(case.path / "s", case.path / "s2", follow_symlinks=False)
    assert os.path.samestat(os.lstat(case.path / "p"), os.lstat(case.path / "p2"))
    assert os.path.islink(case.path / "s2")
    assert os.readlink(case.path / "s2") == "f"


def test_link_over_what_exists(case: Case, where: str) -> None:
    for name in ("g", "d", "s"):
        with fails(errno.EEXIST):
            os.link(case.path / "f", case.path / name)
    assert os.stat(case.path / "f").st_nlink == 1


def test_link_of_a_directory(case: Case, where: str) -> None:
    with fails(errno.EPERM):
        os.link(case.path / "d", case.path / "hard")


def test_link_of_nothing(case: Case) -> None:
    with fails(errno.ENOENT):
        os.link(case.path / "nothing", case.path / "hard")


def test_link_over_a_whiteout(case: Case, where: str) -> None:
    os.unlink(case.path / "g")
    os.link(case.path / "f", case.path / "g")
    assert (case.path / "g").read_bytes() == CONTENT
    assert os.stat(case.path / "f").st_nlink == 2
    assert os.listdir(case.path).count("g") == 1


def test_link_of_an_open_file(case: Case, where: str) -> None:
    with open(case.path / "f", "r+b", buffering=0) as stream:
        os.link(case.path / "f", case.path / "hard")
        stream.write(b"later")
    assert (case.path / "hard").read_bytes()[:5] == b"later"


@file_handles
def test_rename_of_one_name_onto_the_other(case: Case, where: str) -> None:
    """rename(2) of one link to a file onto another does nothing: both stay."""
    os.link(case.path / "f", case.path / "hard")
    os.rename(case.path / "f", case.path / "hard")
    assert os.path.samefile(case.path / "f", case.path / "hard")


def test_write_through_one_descriptor_shows_in_every_name(case: Case, where: str) -> None:
    for index in range(5):
        os.link(case.path / "f", case.path / f"hard{index}")
    fd = os.open(case.path / "f", os.O_RDONLY)
    (case.path / "hard3").write_bytes(b"new")
    assert os.pread(fd, 100, 0) == b"new"
    os.close(fd)
    for index in range(5):
        assert (case.path / f"hard{index}").read_bytes() == b"new"
        os.unlink(case.path / f"hard{index}")
        assert os.stat(case.path / "f").st_nlink == 5 - index


@pytest.fixture
def linked(space: Space) -> Space:
    """A lower with one file of three names, in two directories, and an unrelated file."""
    space.kernel_reads = False
    (space.lower / "a").write_bytes(b"shared content")
    os.link(space.lower / "a", space.lower / "b")
    (space.lower / "dir").mkdir()
    os.link(space.lower / "a", space.lower / "dir" / "c")
    (space.lower / "other").write_bytes(b"other")
    return space


def _all_the_same(space: Space, names: tuple[str, ...], content: bytes) -> None:
    numbers = {os.stat(space.mnt / name).st_ino for name in names}
    assert len(numbers) == 1
    for name in names:
        assert (space.mnt / name).read_bytes() == content, name
        assert os.stat(space.mnt / name).st_nlink == len(names), name
        assert os.stat(space.mnt / name).st_size == len(content), name


THREE = ("a", "b", "dir/c")


def test_lower_links_are_one_file(linked: Space) -> None:
    with linked.mounted() as mnt:
        _all_the_same(linked, THREE, b"shared content")
        assert os.stat(mnt / "other").st_ino != os.stat(mnt / "a").st_ino
        with os.scandir(mnt) as entries:
            numbers = {entry.name: entry.inode() for entry in entries}
        assert numbers["a"] == numbers["b"] == os.stat(mnt / "a").st_ino


@differs("hard-links")
@pytest.mark.parametrize("through", THREE)
def test_lower_links_stay_one_file_across_copy_up(linked: Space, through: str) -> None:
    with linked.mounted() as mnt:
        for name in THREE:
            os.stat(mnt / name)
        (mnt / through).write_bytes(b"changed")
        _all_the_same(linked, THREE, b"changed")
        linked.remount()
        _all_the_same(linked, THREE, b"changed")
        (mnt / "b").write_bytes(b"changed again")
        _all_the_same(linked, THREE, b"changed again")


@differs("hard-links")
def test_copy_up_before_the_other_names_were_seen(linked: Space) -> None:
    with linked.mounted() as mnt:
        (mnt / "a").write_bytes(b"changed")
        _all_the_same(linked, THREE, b"changed")
        linked.remount()
        assert (mnt / "dir" / "c").read_bytes() == b"changed"
        os.chmod(mnt / "dir" / "c", 0o600)
        assert os.stat(mnt / "b").st_mode & 0o777 == 0o600
        _all_the_same(linked, THREE, b"changed")


@differs("hard-links")
def test_descriptor_of_one_name_sees_a_change_by_another(linked: Space) -> None:
    with linked.mounted() as mnt:
        fd = os.open(mnt / "a", os.O_RDONLY)
        assert os.pread(fd, 100, 0) == b"shared content"
        (mnt / "dir" / "c").write_bytes(b"changed")
        assert os.pread(fd, 100, 0) == b"changed"
        os.close(fd)


@differs("hard-links")
def test_unlinking_lower_names_one_by_one(linked: Space) -> None:
    with linked.mounted() as mnt:
        os.unlink(mnt / "b")
        _all_the_same(linked, ("a", "dir/c"), b"shared content")
        linked.remount()
        _all_the_same(linked, ("a", "dir/c"), b"shared content")
        (mnt / "dir" / "c").write_bytes(b"changed")
        _all_the_same(linked, ("a", "dir/c"), b"changed")
        os.unlink(mnt / "a")
        _all_the_same(linked, ("dir/c",), b"changed")
        linked.remount()
        _all_the_same(linked, ("dir/c",), b"changed")
        os.unlink(mnt / "dir" / "c")
        assert sorted(os.listdir(mnt)) == ["dir", "other"]


@differs("hard-links")
def test_new_name_for_a_lower_file_with_several(linked: Space) -> None:
    with linked.mounted() as mnt:
        os.link(mnt / "b", mnt / "fourth")
        _all_the_same(linked, (*THREE, "fourth"), b"shared content")
        linked.remount()
        _all_the_same(linked, (*THREE, "fourth"), b"shared content")
        (mnt / "a").write_bytes(b"changed")
        linked.remount()
        _all_the_same(linked, (*THREE, "fourth"), b"changed")


@differs("hard-links")
def test_renaming_one_of_the_lower_names(linked: Space) -> None:
    with linked.mounted() as mnt:
        os.rename(mnt / "a", mnt / "dir" / "renamed")
        names = ("dir/renamed", "b", "dir/c")
        _all_the_same(linked, names, b"shared content")
        linked.remount()
        _all_the_same(linked, names, b"shared content")
        (mnt / "b").write_bytes(b"changed")
        linked.remount()
        _all_the_same(linked, names, b"changed")


@differs("hard-links")
def test_replacing_one_of_the_lower_names(linked: Space) -> None:
    with linked.mounted() as mnt:
        (mnt / "tmp").write_bytes(b"new file")
        os.rename(mnt / "tmp", mnt / "a")
        _all_the_same(linked, ("b", "dir/c"), b"shared content")
        assert (mnt / "a").read_bytes() == b"new file"
        linked.remount()
        _all_the_same(linked, ("b", "dir/c"), b"shared content")
        (mnt / "b").write_bytes(b"changed")
        assert (mnt / "a").read_bytes() == b"new file"
        _all_the_same(linked, ("b", "dir/c"), b"changed")


@differs("hard-links")
def test_truncating_open_of_a_lower_link(linked: Space) -> None:
    with linked.mounted() as mnt:
        os.close(os.open(mnt / "b", os.O_WRONLY | os.O_TRUNC))
        _all_the_same(linked, THREE, b"")


def test_links_of_a_copied_tree(linked: Space) -> None:
    """cp -a through the mount keeps links; like tar and rsync it goes by st_ino and st_nlink."""
    with linked.mounted() as mnt:
        shutil.copytree(mnt / "dir", mnt / "plain")
        assert os.stat(mnt / "plain" / "c").st_nlink == 1
        code = os.spawnlp(os.P_WAIT, "cp", "cp", "-a", str(mnt / "a"), str(mnt / "b"), "/nowhere")
        assert code != 0
        (mnt / "target").mkdir()
        argv = ["cp", "cp", "-a", *(str(mnt / name) for name in ("a", "b")), str(mnt / "target")]
        assert os.spawnlp(os.P_WAIT, *argv) == 0
        assert os.path.samefile(mnt / "target" / "a", mnt / "target" / "b")


def test_links_in_the_upper(space: Space) -> None:
    (space.upper / "a").write_bytes(b"x")
    os.link(space.upper / "a", space.upper / "b")
    with space.mounted() as mnt:
        _all_the_same(space, ("a", "b"), b"x")
        (mnt / "a").write_bytes(b"changed")
        _all_the_same(space, ("a", "b"), b"changed")
        os.unlink(mnt / "a")
        _all_the_same(space, ("b",), b"changed")


def test_links_between_layers_are_different_files(space: Space) -> None:
    """An inode with names in two layers (a hard link between them) is two files: one may change."""
    bottom = space.add_lower()
    (bottom / "a").write_bytes(b"x")
    os.link(bottom / "a", space.lower / "b")
    with space.mounted(settle=False) as mnt:
        assert (mnt / "a").read_bytes() == (mnt / "b").read_bytes() == b"x"


def test_symlink_with_two_names_loses_one(case: Case, where: str) -> None:
    os.readlink(case.path / "s")
    os.link(case.path / "s", case.path / "s2", follow_symlinks=False)
    os.unlink(case.path / "s")
    assert os.readlink(case.path / "s2") == "f"
    os.rename(case.path / "s2", case.path / "d" / "s3")
    assert os.readlink(case.path / "d" / "s3") == "f"


@pytest.mark.parametrize("name", ["f", "p", "s"])
def test_last_name_after_the_first_was_replaced(case: Case, where: str, name: str) -> None:
    """The name by which the overlay found the inode is gone; everything works by the other one."""
    st = os.lstat(case.path / name)
    os.link(case.path / name, case.path / "d" / "second", follow_symlinks=False)
    (case.path / "new").write_bytes(b"new")
    os.rename(case.path / "new", case.path / name)
    second = case.path / "d" / "second"
    os.chown(second, os.getuid(), os.getgid(), follow_symlinks=False)
    os.utime(second, ns=(1, 2), follow_symlinks=False)
    now = os.lstat(second)
    assert (now.st_mode, now.st_size, now.st_nlink) == (st.st_mode, st.st_size, 1)
    assert now.st_mtime_ns == 2
    if name == "f":
        assert second.read_bytes() == CONTENT
        with open(second, "ab") as stream:
            stream.write(b"more")
        assert (case.upper / "d" / "second").read_bytes() == CONTENT + b"more"
    os.link(second, case.path / "third", follow_symlinks=False)
    os.unlink(second)
    assert os.lstat(case.path / "third").st_mode == st.st_mode
    assert (case.path / name).read_bytes() == b"new"


def test_unlinked_symlink_is_still_readable(case: Case, where: str) -> None:
    fd = os.open(case.path / "s", os.O_PATH | os.O_NOFOLLOW)
    os.unlink(case.path / "s")
    assert os.readlink("", dir_fd=fd) == "f"
    assert os.fstat(fd).st_size == 1
    os.close(fd)


def test_metacopy_of_a_file_with_two_names(space: Space) -> None:
    """The name that was not copied up leads to a copy without data: the lower's data counts."""
    space.features = ("metacopy=on", "redirect_dir=on", "index=on")
    (space.lower / "a").write_bytes(b"data")
    os.link(space.lower / "a", space.lower / "b")
    with space.mounted() as mnt:
        os.setxattr(mnt / "a", "user.x", b"y")
        assert (mnt / "b").read_bytes() == b"data"
    with space.mounted() as mnt:
        assert (mnt / "b").read_bytes() == b"data"
        assert os.getxattr(mnt / "b", "user.x") == b"y"
        with open(mnt / "b", "ab") as stream:
            stream.write(b" more")
        assert (mnt / "a").read_bytes() == b"data more"
    with space.mounted() as mnt:
        assert (mnt / "a").read_bytes() == (mnt / "b").read_bytes() == b"data more"


def test_name_of_an_open_file_goes_before_it_is_written(linked: Space) -> None:
    """The other names show what is written through the descriptor, even if only one is left."""
    linked.features = ("index=on",)
    os.unlink(linked.lower / "dir" / "c")
    with linked.mounted(settle=False) as mnt:
        # Nobody has looked at the other name yet.
        fd = os.open(mnt / "a", os.O_RDWR)
        os.unlink(mnt / "a")
        os.pwrite(fd, b"WRITTEN", 0)
        assert (mnt / "b").read_bytes() == b"WRITTENcontent"
        assert os.fstat(fd).st_nlink == os.stat(mnt / "b").st_nlink == 1
        os.close(fd)
        linked.remount()
        assert (mnt / "b").read_bytes() == b"WRITTENcontent"
        assert os.stat(mnt / "b").st_nlink == 1
        os.unlink(mnt / "b")
        assert sorted(os.listdir(mnt)) == ["dir", "other"]


@differs("hard-links")
def test_change_that_finds_no_room_leaves_links_alone(space: Space) -> None:
    """Writes through a descriptor never reach a lower, whatever failed before."""
    space.mnt.rmdir()
    if MODE == "user":
        pytest.skip("a plain user cannot mount a tmpfs")
    small = space.base / "small"
    small.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "nr_inodes=100,size=4m", "small", str(small)],
        check=True, timeout=30,
    )  # fmt: skip
    try:
        _fill_up(space, small)
    finally:
        detach(space.mnt)
        detach(small)


def _fill_up(space: Space, small: Path) -> None:
    space.lowers = [small / "lower"]
    space.upper, space.work, space.mnt = small / "upper", small / "work", space.base / "mnt"
    for path in (space.lower, space.upper, space.work, space.mnt):
        path.mkdir()
    (space.lower / "a").write_bytes(b"shared content")
    os.link(space.lower / "a", space.lower / "b")
    mnt = space.mount()
    fd = os.open(mnt / "a", os.O_RDWR)
    made = []
    while os.statvfs(small).f_ffree > 2:
        made.append(mnt / f"filler{len(made)}")
        made[-1].touch()
    # One for the index directory, one for the entry of the copy.
    taken = []
    while os.statvfs(small).f_ffree:
        taken.append(small / f"taken{len(taken)}")
        taken[-1].touch()
    with fails(errno.ENOSPC):
        os.chmod(mnt / "a", 0o600)
    for path in [*taken, *made]:
        path.unlink()
    os.unlink(mnt / "a")
    os.pwrite(fd, b"OVERWRITTEN", 0)
    os.close(fd)
    assert (space.lower / "b").read_bytes() == b"shared content"
    assert (mnt / "b").read_bytes() == b"OVERWRITTENent"
    assert [name for name in os.listxattr(space.lower / "b") if "overlay" in name] == []
    assert os.stat(mnt / "b").st_nlink == 1
    os.unlink(mnt / "b")
    space.unmount()


def test_names_are_kept_apart_without_an_index(linked: Space) -> None:
    """As needed if layers share unrelated files by hard links."""
    linked.features = ("index=off",)
    with linked.mounted(settle=False) as mnt:
        for name in THREE:
            assert (mnt / name).read_bytes() == b"shared content"
            assert os.stat(mnt / name).st_nlink == 3
        opened = os.open(mnt / "b", os.O_RDONLY)
        (mnt / "a").write_bytes(b"changed")
        os.chmod(mnt / "dir" / "c", 0o600)
        assert (mnt / "b").read_bytes() == os.pread(opened, 100, 0) == b"shared content"
        assert (mnt / "dir" / "c").read_bytes() == b"shared content"
        assert os.stat(mnt / "a").st_nlink == os.stat(mnt / "dir" / "c").st_nlink == 1
        assert os.stat(mnt / "b").st_mode & 0o777 != 0o600
        os.close(opened)
        linked.remount()
        assert (mnt / "a").read_bytes() == b"changed"
        assert (mnt / "b").read_bytes() == b"shared content"
        os.rename(mnt / "b", mnt / "moved")
        os.unlink(mnt / "dir" / "c")
        os.link(mnt / "moved", mnt / "again")
        (mnt / "again").write_bytes(b"two names")
        linked.remount()
        assert (mnt / "moved").read_bytes() == b"two names"
        assert sorted(os.listdir(mnt)) == ["a", "again", "dir", "moved", "other"]
    assert not (linked.work / "index").exists() or IMPL == "kernel"


def _write(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"more")


def _write_mapped(path: Path) -> None:
    with path.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as mapping:
        mapping[:4] = b"more"
        mapping.flush()


def _allocate(path: Path) -> None:
    with path.open("r+b") as stream:
        libc.fallocate(stream.fileno(), 0, 0, 10_000)


def _copy_range(path: Path) -> None:
    with path.open("rb") as source, path.open("r+b") as sink:
        assert os.copy_file_range(source.fileno(), sink.fileno(), 4, 0, 4) == 4


def _rename(path: Path) -> None:
    """There and back."""
    moved = path.with_name("moved")
    path.rename(moved)
    moved.rename(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "write": _write,
    "mapping": _write_mapped,
    "open": lambda path: path.write_bytes(b""),
    "truncate": lambda path: os.truncate(path, 3),
    "copy": _copy_range,
    "mode": lambda path: path.chmod(0o600),
    "times": lambda path: os.utime(path, (1, 1)),
    "attribute": lambda path: os.setxattr(path, "user.taste", b"sweet"),
    "no attribute": lambda path: os.removexattr(path, "user.colour"),
    "rename": _rename,
}
if IMPL == "kernel" or NATIVE:
    CHANGES["allocate"] = _allocate


@pytest.mark.parametrize("change", CHANGES)
def test_what_copying_a_file_up_changes_is_seen(linked: Space, change: str) -> None:
    """A copy has one name; the kernel must see that, whatever attributes it expected to change."""
    os.setxattr(linked.lower / "dir" / "c", "user.colour", b"red")
    linked.features = ("index=off",)
    with linked.mounted(settle=False) as mnt:
        path = mnt / "dir" / "c"
        assert libc.links_alone(path) == 3
        CHANGES[change](path)
        assert libc.links_alone(path) == 1
