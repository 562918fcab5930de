"""open(2): flags on every kind of object, creation, what a descriptor may do."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import tempfile
from pathlib import Path

import pytest

from fuseoverlay.system.syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2
from tests.helpers.mounts import fails, needs_root_ids
from tests.posix.table import (
    ALICE,
    CONTENT,
    SIZE,
    Child,
    as_user,
    behaviour,
    expect,
    in_child,
    kind_of,
    mode_of,
    on_each_kind,
    opened,
    opens,
    seen,
)

moves_access_times = pytest.mark.skipif(
    bool(os.statvfs(tempfile.gettempdir()).f_flag & os.ST_NOATIME),
    reason="this filesystem is mounted without access times",
)
_READ, _WRITE, _BOTH = os.O_RDONLY, os.O_WRONLY, os.O_RDWR


@behaviour()
def open_for_reading(d: Path) -> object:
    return expect(
        on_each_kind(d, lambda p: opens(p, _READ)),
        socket="ENXIO",
        block=seen(opens, d / "b", _READ),
    )


@behaviour()
def open_for_writing(d: Path) -> object:
    return expect(
        on_each_kind(d, lambda p: opens(p, _WRITE)),
        dir="EISDIR",
        fifo="ENXIO",
        socket="ENXIO",
        block=seen(opens, d / "b", _WRITE),
    )


@behaviour()
def open_for_both(d: Path) -> object:
    return expect(
        on_each_kind(d, lambda p: opens(p, _BOTH)),
        dir="EISDIR",
        socket="ENXIO",
        block=seen(opens, d / "b", _BOTH),
    )


@behaviour()
def open_directory_only(d: Path) -> object:
    return expect(
        on_each_kind(d, lambda p: opens(p, _READ | os.O_DIRECTORY)), others="ENOTDIR", dir=None
    )


@behaviour()
def open_no_link(d: Path) -> object:
    return expect(
        on_each_kind(d, lambda p: opens(p, _READ | os.O_NOFOLLOW)),
        link="ELOOP",
        socket="ENXIO",
        block=seen(opens, d / "b", _READ),
    )


@behaviour()
def open_directory_by_link(d: Path) -> object:
    os.symlink("d", d / "to-d")
    opens(d / "to-d", os.O_DIRECTORY)
    with fails(errno.ENOTDIR):
        opens(d / "to-d", os.O_DIRECTORY | os.O_NOFOLLOW)
    return sorted(os.listdir(d / "to-d"))


@behaviour()
def open_path_only(d: Path) -> object:
    return expect(on_each_kind(d, lambda p: opens(p, os.O_PATH | os.O_NOFOLLOW)))


@behaviour()
def path_descriptor_of_a_link(d: Path) -> object:
    with opened(d / "s", os.O_PATH | os.O_NOFOLLOW) as fd:
        assert stat.S_ISLNK(os.fstat(fd).st_mode)
        return os.readlink("", dir_fd=fd)


@behaviour()
def path_descriptor_does_no_io(d: Path) -> object:
    with opened(d / "f", os.O_PATH) as fd:
        assert os.fstat(fd).st_size == SIZE
        return expect(
            {
                "read": seen(os.read, fd, 1),
                "write": seen(os.write, fd, b"x"),
                "fchmod": seen(os.fchmod, fd, 0o600),
                "ftruncate": seen(os.ftruncate, fd, 0),
                "fsync": seen(os.fsync, fd),
                "setxattr": seen(os.setxattr, fd, "user.x", b"y"),
            },
            others="EBADF",
        )


@behaviour()
def path_descriptor_opened_again(d: Path) -> object:
    with opened(d / "f", os.O_PATH) as fd, opened(f"/proc/self/fd/{fd}", _BOTH) as again:
        os.pwrite(again, b"again", 0)
    assert (d / "f").read_bytes() == b"again" + CONTENT[5:]


@behaviour()
def create_over_each_kind(d: Path) -> object:
    return expect(
        on_each_kind(d, lambda p: opens(p, _READ | os.O_CREAT)),
        dir="EISDIR",
        socket="ENXIO",
        block=seen(opens, d / "b", _READ),
    )


@behaviour()
def create_exclusively_over_each_kind(d: Path) -> object:
    return expect(
        on_each_kind(d, lambda p: opens(p, _WRITE | os.O_CREAT | os.O_EXCL)), others="EEXIST"
    )


@behaviour()
def create_exclusively(d: Path) -> object:
    with opened(d / "new", _BOTH | os.O_CREAT | os.O_EXCL, 0o640) as fd:
        os.write(fd, b"new")
        assert os.pread(fd, 9, 0) == b"new"
    return mode_of(d / "new"), (d / "new").read_bytes()


@behaviour()
def create_exclusively_at_dangling_link(d: Path) -> object:
    os.symlink("target", d / "dangling")
    with fails(errno.EEXIST):
        opens(d / "dangling", _WRITE | os.O_CREAT | os.O_EXCL)
    assert kind_of(d / "target") == "ENOENT"


@behaviour()
def create_through_dangling_link(d: Path) -> object:
    os.symlink("target", d / "dangling")
    opens(d / "dangling", _WRITE | os.O_CREAT)
    assert kind_of(d / "target") == "file"
    assert kind_of(d / "dangling") == "link"


@behaviour()
def create_at_link_without_following(d: Path) -> object:
    os.symlink("target", d / "dangling")
    with fails(errno.ELOOP):
        opens(d / "dangling", _WRITE | os.O_CREAT | os.O_NOFOLLOW)
    with fails(errno.ELOOP):
        opens(d / "s", _WRITE | os.O_CREAT | os.O_NOFOLLOW)


@behaviour()
def create_and_directory(d: Path) -> object:
    """EINVAL since Linux 6.4; before that a file might be made."""
    return seen(opens, d / "new", os.O_CREAT | os.O_DIRECTORY)


@behaviour()
def create_in_dangling_directory(d: Path) -> object:
    os.symlink("nowhere/target", d / "dangling")
    with fails(errno.ENOENT):
        opens(d / "dangling", _WRITE | os.O_CREAT)


@behaviour()
def open_truncates_each_kind(d: Path) -> object:
    got = on_each_kind(d, lambda p: opens(p, _BOTH | os.O_TRUNC))
    assert os.stat(d / "f").st_size == 0
    return expect(got, dir="EISDIR", socket="ENXIO", block=seen(opens, d / "b", _BOTH))


@behaviour()
def open_for_reading_truncates(d: Path) -> object:
    opens(d / "f", _READ | os.O_TRUNC)
    return os.stat(d / "f").st_size


@behaviour()
def truncating_open_keeps_the_rest(d: Path) -> object:
    was = os.stat(d / "f")
    opens(d / "f", _WRITE | os.O_TRUNC)
    now = os.stat(d / "f")
    assert (now.st_uid, now.st_gid, now.st_nlink) == (was.st_uid, was.st_gid, was.st_nlink)
    return mode_of(d / "f"), os.getxattr(d / "f", "user.colour")


@behaviour()
def exclusive_without_create(d: Path) -> object:
    opens(d / "f", _BOTH | os.O_EXCL)
    return os.stat(d / "f").st_size


@behaviour()
def creation_mode(d: Path) -> object:
    modes = (0, 0o1, 0o444, 0o777, 0o1777, 0o2755, 0o4755, 0o7777)
    for mode in modes:
        opens(d / f"new{mode:o}", _WRITE | os.O_CREAT | os.O_EXCL, mode)
    got = [mode_of(d / f"new{mode:o}") for mode in modes]
    assert [mode & 0o777 for mode in got] == [mode & 0o755 for mode in modes]
    for mode in modes:
        os.chmod(d / f"new{mode:o}", 0o644)
    return got


@behaviour()
def create_without_permissions_and_write(d: Path) -> object:
    with opened(d / "new", _BOTH | os.O_CREAT, 0) as fd:
        os.write(fd, b"written")
        assert os.pread(fd, 99, 0) == b"written"
        os.fchmod(fd, 0o600)
    return (d / "new").read_bytes()


@behaviour()
def open_missing(d: Path) -> object:
    with fails(errno.ENOENT):
        opens(d / "missing", _READ)
    with fails(errno.ENOENT):
        opens(d / "missing" / "new", _WRITE | os.O_CREAT)
    with fails(errno.ENOTDIR):
        opens(d / "f" / "new", _WRITE | os.O_CREAT)


@behaviour()
def open_with_trailing_slash(d: Path) -> object:
    with fails(errno.EISDIR):
        opens(f"{d}/new/", _WRITE | os.O_CREAT)
    with fails(errno.ENOTDIR):
        opens(f"{d}/f/", _READ)
    with fails(errno.EISDIR):
        opens(f"{d}/f/", _WRITE | os.O_CREAT)
    opens(f"{d}/d/", _READ)
    assert kind_of(d / "new") == "ENOENT"


@behaviour(moves_access_times, answers=False)
def open_without_access_time(d: Path) -> object:
    was = os.stat(d / "f").st_atime_ns
    with opened(d / "f", _READ | os.O_NOATIME) as fd:
        assert os.read(fd, 10) == CONTENT[:10]
    return os.stat(d / "f").st_atime_ns != was


@behaviour()
def open_synchronous(d: Path) -> object:
    for flag in (os.O_SYNC, os.O_DSYNC):
        with opened(d / "f", _WRITE | flag) as fd:
            assert os.write(fd, b"synchronous") == 11
    return (d / "f").read_bytes()[:20]


@behaviour()
def open_direct(d: Path) -> object:
    """Aligned writes and reads past the cache."""
    with mmap.mmap(-1, 8192) as buffer:
        buffer[:] = b"d" * 8192
        with opened(d / "new", _BOTH | os.O_CREAT | os.O_DIRECT) as fd:
            assert os.write(fd, buffer) == 8192
            assert os.preadv(fd, [buffer], 4096) == 4096
    return (d / "new").read_bytes() == b"d" * 8192


@behaviour()
def direct_read_sees_cached_write(d: Path) -> object:
    with mmap.mmap(-1, 4096) as buffer, opened(d / "f", _BOTH) as cached:
        os.pwrite(cached, b"cached", 0)
        with opened(d / "f", _READ | os.O_DIRECT) as fd:
            assert os.preadv(fd, [buffer], 0) == SIZE
        return buffer[:10]


@behaviour()
def status_flags(d: Path) -> object:
    with opened(d / "f", _WRITE | os.O_APPEND) as fd:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        assert flags & os.O_ACCMODE == _WRITE
        assert flags & os.O_APPEND
        fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_APPEND)
        os.write(fd, b"start")
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        os.write(fd, b"end")
    text = (d / "f").read_bytes()
    assert text == b"start" + CONTENT[5:] + b"end"


@behaviour()
def open_relative_to_a_directory(d: Path) -> object:
    with opened(d / "d", os.O_DIRECTORY) as dir_fd:
        with fails(errno.ENOENT):
            os.open("missing", _READ, dir_fd=dir_fd)
        fd = os.open("../f", _READ, dir_fd=dir_fd)
        os.close(fd)
        fd = os.open("new", _WRITE | os.O_CREAT, dir_fd=dir_fd)
        os.close(fd)
    with opened(d / "f") as fd, fails(errno.ENOTDIR):
        os.open("x", _READ, dir_fd=fd)
    return sorted(os.listdir(d / "d"))


@behaviour()
def open_with_neither_read_nor_write(d: Path) -> object:
    """Access mode 3 asks for both permissions and allows neither."""
    with opened(d / "f", 3) as fd:
        with fails(errno.EBADF):
            os.read(fd, 1)
        with fails(errno.EBADF):
            os.write(fd, b"x")
        return os.fstat(fd).st_size


@behaviour()
def open_beneath(d: Path) -> object:
    os.symlink("../f", d / "d" / "out")
    os.symlink("child", d / "d" / "in")
    with opened(d / "d", os.O_PATH) as base:
        os.close(openat2(base, b"in", _READ, resolve=RESOLVE_BENEATH))
        with fails(errno.EXDEV):
            openat2(base, b"out", _READ, resolve=RESOLVE_BENEATH)
        with fails(errno.ELOOP):
            openat2(base, b"in", _READ, resolve=RESOLVE_NO_SYMLINKS)


@behaviour()
def open_many_times(d: Path) -> object:
    fds = [os.open(d / "f", _BOTH) for _ in range(100)]
    for index, fd in enumerate(fds):
        os.pwrite(fd, b"%02d" % index, index * 2)
    for fd in fds:
        os.close(fd)
    return (d / "f").read_bytes()[:200]


@behaviour()
def read_a_directory(d: Path) -> object:
    with opened(d / "d") as fd:
        with fails(errno.EISDIR):
            os.read(fd, 10)
        with fails(errno.EBADF):
            os.write(fd, b"x")
        with fails(errno.EINVAL):
            os.ftruncate(fd, 0)


@behaviour()
def create_needs_no_read_of_the_name(d: Path) -> object:
    """A name that was looked up in vain before is free."""
    for name in ("one", "two", "three"):
        assert not (d / "e" / name).exists()
        opens(d / "e" / name, _WRITE | os.O_CREAT | os.O_EXCL)
        assert (d / "e" / name).exists()
    return sorted(os.listdir(d / "e"))


@behaviour()
def two_processes_create_exclusively(d: Path) -> object:
    """One of them makes the file."""

    def race() -> list[str | None]:
        return [seen(opens, d / "e" / f"{i}", _WRITE | os.O_CREAT | os.O_EXCL) for i in range(50)]

    children = [Child(race) for _ in range(2)]
    answers = [child.answer() for child in children]
    for pair in zip(*answers, strict=True):
        assert sorted(map(str, pair)) == ["EEXIST", "None"]


@behaviour()
def umask_of_the_process(d: Path) -> object:
    def make() -> None:
        for mask in (0, 0o027, 0o077, 0o777):
            os.umask(mask)
            opens(d / f"file{mask:o}", _WRITE | os.O_CREAT, 0o666)
            os.mkdir(d / f"dir{mask:o}", 0o777)
            os.mkfifo(d / f"fifo{mask:o}", 0o666)

    assert in_child(make) is None
    for mask in (0, 0o027, 0o077, 0o777):
        assert mode_of(d / f"file{mask:o}") == 0o666 & ~mask
        assert mode_of(d / f"dir{mask:o}") == 0o777 & ~mask
        assert mode_of(d / f"fifo{mask:o}") == 0o666 & ~mask
    # What is inside is looked at in the end, by whoever runs this.
    os.chmod(d / "dir777", 0o700)
    os.chmod(d / "file777", 0o600)


@behaviour(needs_root_ids)
def owner_of_new_objects(d: Path) -> object:
    os.chmod(d / "e", 0o777)

    def make() -> None:
        opens(d / "e" / "file", _WRITE | os.O_CREAT)
        os.mkdir(d / "e" / "dir")
        os.symlink("x", d / "e" / "link")
        os.mkfifo(d / "e" / "fifo")
        os.mknod(d / "e" / "socket", stat.S_IFSOCK | 0o600)

    assert as_user(ALICE, make) is None
    for name in os.listdir(d / "e"):
        st = os.lstat(d / "e" / name)
        assert (st.st_uid, st.st_gid) == (ALICE, ALICE), name
