"""Making things: create, mkdir, mknod, symlink."""

from __future__ import annotations

import errno
import os
import stat
import sys

import pytest

from tests.helpers.mounts import MODE, Space, fails, is_opaque, is_whiteout, root_only
from tests.ops.conftest import CONTENT, Case, make_socket


def test_create(case: Case, where: str) -> None:
    fd = os.open(case.path / "new", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, b"hello")
    assert os.pread(fd, 10, 0) == b"hello"
    os.close(fd)
    assert (case.path / "new").read_bytes() == b"hello"
    assert (case.upper / "new").read_bytes() == b"hello"
    assert "new" in os.listdir(case.path)
    st = os.stat(case.path / "new")
    assert (st.st_uid, st.st_gid, st.st_nlink) == (os.getuid(), os.getgid(), 1)


def test_create_in_a_nested_lower_directory(case: Case, where: str) -> None:
    before = os.stat(case.path / "d")
    (case.path / "d" / "sub" / "new").write_bytes(b"x")
    assert set(os.listdir(case.path / "d" / "sub")) == {"leaf", "new"}
    after = os.stat(case.path / "d")
    assert after.st_mtime_ns == before.st_mtime_ns, "an ancestor's time moved"
    assert after.st_mode == before.st_mode


def test_create_exclusively_what_exists(case: Case, where: str) -> None:
    for name in ("f", "d", "s", "p"):
        with fails(errno.EEXIST):
            os.open(case.path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    assert (case.path / "f").read_bytes() == CONTENT


def test_create_opens_what_exists(case: Case, where: str) -> None:
    fd = os.open(case.path / "f", os.O_RDONLY | os.O_CREAT, 0o777)
    assert os.read(fd, 10_000) == CONTENT
    os.close(fd)
    assert stat.S_IMODE(os.stat(case.path / "f").st_mode) == 0o640


def test_create_where_there_is_no_directory(case: Case, where: str) -> None:
    with fails(errno.ENOENT):
        os.open(case.path / "nothing" / "new", os.O_WRONLY | os.O_CREAT)
    with fails(errno.ENOTDIR):
        os.open(case.path / "f" / "new", os.O_WRONLY | os.O_CREAT)


def test_create_after_a_negative_look_up(case: Case, where: str) -> None:
    """The kernel's negative entries must not outlive the creation, no matter which call creates."""
    for name in ("file", "dir", "link", "hard", "fifo", "renamed"):
        assert not os.path.lexists(case.path / name)
    (case.path / "file").touch()
    os.mkdir(case.path / "dir")
    os.symlink("x", case.path / "link")
    os.link(case.path / "f", case.path / "hard")
    os.mkfifo(case.path / "fifo")
    os.rename(case.path / "g", case.path / "renamed")
    for name in ("file", "dir", "link", "hard", "fifo", "renamed"):
        assert os.path.lexists(case.path / name), name


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o027])
def test_umask(case: Case, umask: int) -> None:
    os.umask(umask)
    os.close(os.open(case.path / "new", os.O_WRONLY | os.O_CREAT, 0o666))
    os.mkdir(case.path / "newdir", 0o777)
    os.mkfifo(case.path / "newfifo", 0o666)
    assert stat.S_IMODE(os.stat(case.path / "new").st_mode) == 0o666 & ~umask
    assert stat.S_IMODE(os.stat(case.path / "newdir").st_mode) == 0o777 & ~umask
    assert stat.S_IMODE(os.stat(case.path / "newfifo").st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("mode", [0o000, 0o400, 0o755, 0o4755, 0o1777, 0o2755])
def test_modes(case: Case, mode: int) -> None:
    os.umask(0)
    os.close(os.open(case.path / "file", os.O_WRONLY | os.O_CREAT, mode))
    os.mkdir(case.path / "dir", mode)
    assert stat.S_IMODE(os.stat(case.path / "file").st_mode) == mode
    # mkdir(2) ignores setuid and setgid.
    assert stat.S_IMODE(os.stat(case.path / "dir").st_mode) == mode & 0o1777
    os.chmod(case.path / "dir", 0o700)
    assert os.listdir(case.path / "dir") == []


def test_mkdir(case: Case, where: str) -> None:
    os.mkdir(case.path / "new", 0o700)
    assert os.listdir(case.path / "new") == []
    assert stat.S_ISDIR(os.stat(case.upper / "new").st_mode)
    (case.path / "new" / "below").write_bytes(b"deep")
    assert (case.upper / "new" / "below").read_bytes() == b"deep"


def test_mkdir_where_something_is(case: Case, where: str) -> None:
    for name in ("f", "d", "s", "p"):
        with fails(errno.EEXIST):
            os.mkdir(case.path / name)


def test_symlink(case: Case, where: str) -> None:
    for name, target in (("a", "f"), ("b", "/absolute"), ("c", "no/where"), ("d2", "x" * 4000)):
        os.symlink(target, case.path / name)
        assert os.readlink(case.path / name) == target
        assert os.readlink(case.upper / name) == target
        st = os.lstat(case.path / name)
        assert (stat.S_IFMT(st.st_mode), st.st_size) == (stat.S_IFLNK, len(target))
    assert (case.path / "a").read_bytes() == CONTENT
    with fails(errno.EEXIST):
        os.symlink("f", case.path / "s")
    with fails(errno.ENOENT):
        os.stat(case.path / "c")


def test_symlink_to_bytes_that_are_no_text(case: Case) -> None:
    os.symlink(b"\xff\xfe\n", os.fsencode(case.path / "odd"))
    assert os.readlink(os.fsencode(case.path / "odd")) == b"\xff\xfe\n"


def test_symlinks_out_of_the_layer_are_text(space: Space) -> None:
    """A symbolic link in a layer is resolved by the reader, never by the daemon."""
    secret = space.base / "secret"
    secret.write_bytes(b"secret")
    os.symlink(str(secret), space.lower / "out")
    os.symlink("../../../../../../etc", space.lower / "up")
    os.symlink(str(space.base), space.lower / "dirlink")
    with space.mounted() as mnt:
        assert os.readlink(mnt / "out") == str(secret)
        assert os.lstat(mnt / "out").st_size == len(str(secret))
        assert os.readlink(mnt / "up") == "../../../../../../etc"
        os.chown(mnt / "out", os.getuid(), os.getgid(), follow_symlinks=False)
        os.unlink(mnt / "up")
        with fails(errno.ENOTDIR):
            os.rmdir(mnt / "dirlink")
        os.rename(mnt / "dirlink", mnt / "renamed")
        assert os.readlink(mnt / "renamed") == str(space.base)
    assert secret.read_bytes() == b"secret"
    assert os.path.isdir("/etc")


def test_fifo_and_socket(case: Case, where: str) -> None:
    os.mkfifo(case.path / "fifo", 0o600)
    assert stat.S_ISFIFO(os.stat(case.path / "fifo").st_mode)
    assert stat.S_ISFIFO(os.stat(case.upper / "fifo").st_mode)
    make_socket(case.path / "socket")
    assert stat.S_ISSOCK(os.stat(case.path / "socket").st_mode)
    os.mknod(case.path / "plain", stat.S_IFREG | 0o600)
    assert stat.S_ISREG(os.stat(case.path / "plain").st_mode)


@root_only
def test_devices(case: Case, where: str) -> None:
    os.mknod(case.path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(case.path / "block", stat.S_IFBLK | 0o600, os.makedev(7, 200))
    os.mknod(case.path / "big", stat.S_IFCHR | 0o600, os.makedev(259, 300_000))
    assert os.stat(case.path / "null").st_rdev == os.makedev(1, 3)
    assert os.stat(case.path / "block").st_rdev == os.makedev(7, 200)
    assert os.stat(case.path / "big").st_rdev == os.makedev(259, 300_000)
    assert stat.S_ISBLK(os.stat(case.upper / "block").st_mode)
    with open(case.path / "null", "wb") as stream:
        stream.write(b"swallowed")


@root_only
def test_devices_in_a_lower(space: Space) -> None:
    os.mknod(space.lower / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(space.lower / "zero", stat.S_IFCHR | 0o644, os.makedev(1, 5))
    with space.mounted() as mnt:
        with open(mnt / "zero", "rb") as stream:
            assert stream.read(4) == b"\0\0\0\0"
        os.chmod(mnt / "zero", 0o600)
        assert os.stat(mnt / "zero").st_rdev == os.makedev(1, 5)
        assert os.stat(space.upper / "zero").st_rdev == os.makedev(1, 5)
        os.utime(mnt / "null", ns=(1, 2))
        assert stat.S_ISCHR(os.stat(space.upper / "null").st_mode)


@pytest.mark.skipif(MODE == "root", reason="the superuser may")
def test_devices_are_not_for_users(case: Case) -> None:
    with fails(errno.EPERM):
        os.mknod(case.path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert not os.path.lexists(case.path / "null")


def test_no_one_makes_a_whiteout_by_hand(case: Case, where: str) -> None:
    with fails(errno.EPERM):
        os.mknod(case.path / "nothing", stat.S_IFCHR, os.makedev(0, 0))
    assert not os.path.lexists(case.path / "nothing")
    assert not case.is_up("nothing")


def test_setgid_directory_hands_down_its_group(case: Case, where: str) -> None:
    group = 54321 if MODE == "root" else os.getgid()
    os.chown(case.path / "d", -1, group)
    os.chmod(case.path / "d", 0o2775)
    os.umask(0o022)
    os.mkdir(case.path / "d" / "below")
    (case.path / "d" / "file").touch()
    st = os.stat(case.path / "d" / "below")
    assert (st.st_gid, stat.S_IMODE(st.st_mode)) == (group, 0o2755)
    assert os.stat(case.path / "d" / "file").st_gid == group


@pytest.mark.parametrize("kind", ["file", "dir", "link", "fifo", "hard"])
@pytest.mark.parametrize("was", ["f", "d", "s"])
def test_make_what_was_deleted(case: Case, where: str, was: str, kind: str) -> None:
    """An object made over a whiteout is new: nothing of the old one shows through."""
    path = case.path / was
    if was == "d":
        for name in ("d/sub/leaf", "d/child"):
            os.unlink(case.path / name)
        os.rmdir(case.path / "d" / "sub")
        os.rmdir(path)
    else:
        os.unlink(path)
    if kind == "file":
        path.write_bytes(b"new")
        assert path.read_bytes() == b"new"
        assert os.listxattr(path) == []
    elif kind == "dir":
        os.mkdir(path)
        assert os.listdir(path) == []
        if was == "d" and where != "upper":
            assert is_opaque(case.upper / was)
    elif kind == "link":
        os.symlink("elsewhere", path)
        assert os.readlink(path) == "elsewhere"
    elif kind == "fifo":
        os.mkfifo(path)
        assert stat.S_ISFIFO(os.lstat(path).st_mode)
    else:
        os.link(case.path / "g", path)
        assert path.read_bytes() == b"content of g\n"
    assert os.listdir(case.path).count(was) == 1
    assert not is_whiteout(case.upper / was)


def test_parent_times_follow_changes(case: Case, where: str) -> None:
    for change in (
        lambda: (case.path / "e" / "new").touch(),
        lambda: os.rename(case.path / "e" / "new", case.path / "e" / "newer"),
        lambda: os.unlink(case.path / "e" / "newer"),
        lambda: os.mkdir(case.path / "e" / "dir"),
        lambda: os.rmdir(case.path / "e" / "dir"),
        lambda: os.link(case.path / "g", case.path / "e" / "hard"),
        lambda: os.symlink("x", case.path / "e" / "link"),
    ):
        os.utime(case.path / "e", ns=(1000, 1000))
        change()
        st = os.stat(case.path / "e")
        assert st.st_mtime_ns > 1000
        assert st.st_ctime_ns > 1000


def test_nlink_of_directories_is_sane(case: Case, where: str) -> None:
    """Either the true count, or 1 for "not counted"; find(1) relies on that."""
    os.mkdir(case.path / "d" / "another")
    assert os.stat(case.path / "d").st_nlink in (1, 4)


def test_many_creations(case: Case) -> None:
    for index in range(300):
        (case.path / f"n{index}").write_bytes(b"%d" % index)
    assert len(os.listdir(case.path)) == 307
    for index in range(300):
        assert (case.path / f"n{index}").read_bytes() == b"%d" % index


def test_statvfs(case: Case) -> None:
    st = os.statvfs(case.path)
    real = os.statvfs(case.space.upper)
    assert st.f_blocks * st.f_frsize == real.f_blocks * real.f_frsize
    assert st.f_files == real.f_files
    assert st.f_namemax == 255
    assert 0 < st.f_bavail * st.f_frsize <= st.f_blocks * st.f_frsize
    assert st.f_bsize > 0
    assert not st.f_flag & os.ST_RDONLY
    assert sys.platform == "linux"
