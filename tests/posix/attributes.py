"""stat, chmod, chown, access, statvfs."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.helpers import libc
from tests.helpers.mounts import MODE, fails, needs_root_ids
from tests.posix.table import (
    ALICE,
    ATIME,
    BOB,
    CONTENT,
    KINDS,
    MTIME,
    STAFF,
    behaviour,
    expect,
    kind_of,
    mode_of,
    on_each_kind,
    opened,
    same,
    seen,
)

_OWN = {"follow_symlinks": False}
root_of_some_kind = pytest.mark.skipif(MODE == "user", reason="needs the rights of root")
plain_user = pytest.mark.skipif(MODE != "user", reason="root may do everything")


@behaviour()
def status_of_each_kind(d: Path) -> object:
    def status(path: Path) -> tuple:
        st = os.lstat(path)
        assert (st.st_uid, st.st_gid) == (os.getuid(), os.getgid())
        if path.name != "d":
            assert st.st_nlink == 1
        size = None if stat.S_ISDIR(st.st_mode) else st.st_size
        # Whoever followed the link has moved its access time.
        assert path.name == "s" or st.st_atime_ns == ATIME
        assert st.st_mtime_ns == MTIME
        return oct(st.st_mode), size, st.st_rdev

    return on_each_kind(d, status)


@behaviour()
def status_of_descriptors(d: Path) -> object:
    for name in ("f", "d", "p"):
        with opened(d / name, os.O_RDONLY | os.O_NONBLOCK) as fd:
            by_fd, by_name = os.fstat(fd), os.stat(d / name)
            assert same(by_fd, by_name)
            assert by_fd.st_mode == by_name.st_mode
            assert os.stat(fd).st_ino == by_name.st_ino


@behaviour()
def one_device_number(d: Path) -> object:
    """All objects of a filesystem are on one device."""
    paths = [d / "f", d / "d", d / "e", d / "s", d / "p", d / "d" / "sub" / "leaf", d]
    (d / "new").touch()
    devices = {os.lstat(path).st_dev for path in [*paths, d / "new"]}
    return len(devices)


@behaviour()
def inode_numbers_are_distinct(d: Path) -> object:
    for index in range(20):
        (d / "e" / f"n{index}").touch()
    numbers = [os.lstat(path).st_ino for path in [d, *d.rglob("*")]]
    assert len(set(numbers)) == len(numbers)
    assert 0 not in numbers


@behaviour()
def inode_numbers_stay(d: Path) -> object:
    """Whatever happens to the object."""
    numbers = {name: os.lstat(d / name).st_ino for name in ("f", "d", "p", "k", "s")}
    for name in ("f", "d", "p", "k"):
        os.chmod(d / name, 0o700)
        os.utime(d / name)
    (d / "f").write_bytes(b"changed")
    os.utime(d / "s", **_OWN)
    (d / "d" / "new").touch()
    for name, number in numbers.items():
        assert os.lstat(d / name).st_ino == number, name
    os.rename(d / "f", d / "moved")
    assert os.stat(d / "moved").st_ino == numbers["f"]


@behaviour()
def listed_inode_numbers(d: Path) -> object:
    with os.scandir(d) as entries:
        for entry in entries:
            assert entry.inode() == os.lstat(d / entry.name).st_ino, entry.name


@behaviour()
def chmod_each_kind(d: Path) -> object:
    got = on_each_kind(d, lambda p: os.chmod(p, 0o701))
    expect(got)
    modes = {kind: mode_of(d / KINDS[kind]) for kind in got}
    return expect(modes, others=0o701, link=0o777)


@behaviour()
def chmod_every_bit(d: Path) -> object:
    for name in ("f", "d"):
        for bit in range(12):
            os.chmod(d / name, 1 << bit)
            assert mode_of(d / name) == 1 << bit, name
        for mode in (0o7777, 0o1000, 0, 0o755):
            os.chmod(d / name, mode)
            assert mode_of(d / name) == mode


@behaviour()
def chmod_of_descriptors(d: Path) -> object:
    for name in ("f", "d"):
        with opened(d / name) as fd:
            os.fchmod(fd, 0o710)
            assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o710
        assert mode_of(d / name) == 0o710


@behaviour()
def chmod_follows_links(d: Path) -> object:
    os.chmod(d / "s", 0o604)
    assert mode_of(d / "f") == 0o604
    assert mode_of(d / "s") == 0o777


@behaviour()
def chmod_keeps_the_rest(d: Path) -> object:
    was = os.stat(d / "f")
    os.chmod(d / "f", 0o600)
    now = os.stat(d / "f")
    for field in ("st_ino", "st_size", "st_uid", "st_gid", "st_atime_ns", "st_mtime_ns"):
        assert getattr(was, field) == getattr(now, field), field
    assert (d / "f").read_bytes() == CONTENT
    return os.getxattr(d / "f", "user.colour")


@behaviour()
def chown_to_nobody_new(d: Path) -> object:
    for path in (d / "f", d / "d", d / "p"):
        was = os.stat(path)
        os.chown(path, -1, -1)
        os.chown(path, was.st_uid, was.st_gid)
        os.chown(path, was.st_uid, -1)
        os.chown(path, -1, was.st_gid)
        now = os.stat(path)
        assert (now.st_uid, now.st_gid, now.st_mode) == (was.st_uid, was.st_gid, was.st_mode)


@behaviour(needs_root_ids)
def chown_each_kind(d: Path) -> object:
    expect(on_each_kind(d, lambda p: os.chown(p, ALICE, STAFF, **_OWN)))
    for path in (d / name for name in KINDS.values()):
        st = os.lstat(path)
        assert (st.st_uid, st.st_gid) == (ALICE, STAFF), path.name
    os.chown(d / "f", BOB, -1)
    os.chown(d / "d", -1, BOB)
    assert (os.stat(d / "f").st_uid, os.stat(d / "f").st_gid) == (BOB, STAFF)
    assert (os.stat(d / "d").st_uid, os.stat(d / "d").st_gid) == (ALICE, BOB)


@behaviour(needs_root_ids)
def chown_follows_links(d: Path) -> object:
    os.chown(d / "s", ALICE, ALICE)
    assert os.stat(d / "f").st_uid == ALICE
    assert os.lstat(d / "s").st_uid == 0
    os.chown(d / "s", BOB, BOB, **_OWN)
    assert os.stat(d / "f").st_uid == ALICE
    assert os.lstat(d / "s").st_uid == BOB


@behaviour(needs_root_ids)
def chown_to_high_ids(d: Path) -> object:
    for number in (65534, 65536, 1_000_000, 2**31, 2**32 - 2):
        os.chown(d / "f", number, number)
        st = os.stat(d / "f")
        assert (st.st_uid, st.st_gid) == (number, number)


@behaviour()
def chown_clears_set_id_bits(d: Path) -> object:
    """Even where nothing changes, even by root; not of directories."""
    for name in ("f", "d"):
        os.chmod(d / name, 0o6755)
        os.chown(d / name, os.getuid(), os.getgid())
    assert mode_of(d / "f") == 0o755
    assert mode_of(d / "d") == 0o6755
    os.chmod(d / "f", 0o6755)
    os.chown(d / "f", -1, -1)
    return oct(mode_of(d / "f"))


@behaviour()
def chown_keeps_setgid_of_unexecutable(d: Path) -> object:
    """Without the group's x it once meant mandatory locking."""
    os.chmod(d / "f", 0o6745)
    os.chown(d / "f", os.getuid(), os.getgid())
    return oct(mode_of(d / "f"))


@behaviour(pytest.mark.skipif(MODE != "userns", reason="needs unmapped ids"))
def chown_to_unmapped_ids(d: Path) -> object:
    with fails(errno.EINVAL):
        os.chown(d / "f", 5, -1)
    with fails(errno.EINVAL):
        os.chown(d / "f", -1, 5)


@behaviour()
def attribute_errors(d: Path) -> object:
    for path, code in ((d / "missing", errno.ENOENT), (d / "f" / "x", errno.ENOTDIR)):
        for call in (
            lambda path=path: os.chmod(path, 0o600),
            lambda path=path: os.chown(path, -1, -1),
            lambda path=path: os.chown(path, -1, -1, **_OWN),
            lambda path=path: os.utime(path, ns=(1, 1)),
            lambda path=path: os.access(path, os.F_OK) or os.stat(path),
        ):
            with fails(code):
                call()


@behaviour()
def access_of_each_kind(d: Path) -> object:
    expect(on_each_kind(d, lambda p: libc.faccessat(p, os.F_OK, 0)))
    expect(on_each_kind(d, lambda p: libc.faccessat(p, os.R_OK | os.W_OK, 0)))
    os.chmod(d / "f", 0o600)
    with fails(errno.EACCES):
        libc.faccessat(d / "f", os.X_OK, 0)
    os.chmod(d / "f", 0o100)
    libc.faccessat(d / "f", os.X_OK, 0)
    with fails(errno.EINVAL):
        libc.faccessat(d / "f", 0o77, 0)
    os.chmod(d / "f", 0o600)


@behaviour(root_of_some_kind)
def root_needs_no_permission(d: Path) -> object:
    os.chmod(d / "f", 0)
    os.chmod(d / "d", 0)
    assert (d / "f").read_bytes() == CONTENT
    (d / "f").write_bytes(b"changed")
    (d / "d" / "new").write_bytes(b"new")
    os.unlink(d / "d" / "child")
    assert os.access(d / "f", os.R_OK | os.W_OK)
    assert not os.access(d / "f", os.X_OK)
    return sorted(os.listdir(d / "d"))


@behaviour(plain_user)
def owner_without_permission(d: Path) -> object:
    os.chmod(d / "f", 0)
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        with fails(errno.EACCES):
            os.open(d / "f", flags)
    with fails(errno.EACCES):
        os.truncate(d / "f", 0)
    with fails(errno.EACCES):
        os.getxattr(d / "f", "user.colour")
    os.chmod(d / "f", 0o400)
    assert (d / "f").read_bytes() == CONTENT
    with fails(errno.EACCES):
        os.open(d / "f", os.O_WRONLY)


@behaviour(plain_user)
def directory_without_permission(d: Path) -> object:
    os.chmod(d / "d", 0o600)
    assert sorted(os.listdir(d / "d")) == ["child", "sub"]
    assert kind_of(d / "d" / "child") == "EACCES"
    os.chmod(d / "d", 0o300)
    with fails(errno.EACCES):
        os.listdir(d / "d")
    (d / "d" / "new").touch()
    os.chmod(d / "d", 0o500)
    answers = {
        "mkdir": seen(os.mkdir, d / "d" / "x"),
        "unlink": seen(os.unlink, d / "d" / "child"),
        "rename": seen(os.rename, d / "d" / "child", d / "new"),
        "link": seen(os.link, d / "f", d / "d" / "x"),
        "create": seen(os.open, d / "d" / "x", os.O_CREAT | os.O_WRONLY),
    }
    os.chmod(d / "d", 0o700)
    return expect(answers, others="EACCES")


@behaviour(plain_user)
def set_id_bits_go_with_a_write(d: Path) -> object:
    for change in (
        lambda: (d / "f").write_bytes(b"x"),
        lambda: os.truncate(d / "f", 5),
        lambda: os.truncate(d / "f", 5),
    ):
        os.chmod(d / "f", 0o6755)
        change()
        assert mode_of(d / "f") == 0o755


@behaviour()
def filesystem_status(d: Path) -> object:
    st = os.statvfs(d)
    assert st.f_bsize > 0
    assert st.f_frsize > 0
    assert st.f_blocks >= st.f_bfree >= st.f_bavail > 0
    assert st.f_files >= st.f_ffree
    with opened(d / "f") as fd:
        assert os.fstatvfs(fd).f_blocks == st.f_blocks
    for name in ("f", "d", "p", "k"):
        assert os.statvfs(d / name).f_namemax == st.f_namemax
    return st.f_namemax, st.f_bsize, st.f_frsize, st.f_blocks


@behaviour()
def preferred_block_size(d: Path) -> object:
    return {name: os.stat(d / name).st_blksize for name in ("f", "d")}


@behaviour()
def birth_time(d: Path) -> object:
    if libc.statx_mask(d / "f", libc.STATX_BTIME) == 0:
        raise OSError(errno.ENODATA, "no birth time")


@behaviour()
def extended_status(d: Path) -> object:
    """statx(2) knows all that stat(2) has."""
    basic = 0x7FF
    return expect(on_each_kind(d, lambda p: libc.statx_mask(p, basic)), others=basic)


@behaviour()
def path_configuration(d: Path) -> object:
    names = ("PC_NAME_MAX", "PC_PATH_MAX", "PC_PIPE_BUF", "PC_NO_TRUNC", "PC_CHOWN_RESTRICTED")
    return {name: os.pathconf(d, name) for name in names}
