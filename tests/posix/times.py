"""Times: setting them, and which operation moves which."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

from fuseoverlay.system.syscalls import AT_FDCWD, RENAME_EXCHANGE, renameat2
from tests.helpers import libc
from tests.helpers.libc import UTIME_NOW, UTIME_OMIT
from tests.helpers.mounts import fails
from tests.posix.table import (
    ATIME,
    KINDS,
    MTIME,
    behaviour,
    expect,
    moved,
    on_each_kind,
    opened,
    opens,
    tick,
)

_NOW, _OMIT = (0, UTIME_NOW), (0, UTIME_OMIT)
_BOTH, _CTIME, _NONE = {"mtime", "ctime"}, {"ctime"}, set()


def _times(path: Path) -> tuple[int, int]:
    st = os.lstat(path)
    return st.st_atime_ns, st.st_mtime_ns


@behaviour()
def set_times_of_each_kind(d: Path) -> object:
    ns = (1_000_000_001, 2_000_000_002)
    got = on_each_kind(d, lambda p: os.utime(p, ns=ns, follow_symlinks=False))
    expect(got)
    for kind in got:
        assert _times(d / KINDS[kind]) == ns, kind


@behaviour()
def set_times_of_descriptors(d: Path) -> object:
    for name in ("f", "d"):
        with opened(d / name) as fd:
            os.utime(fd, ns=(5, 6))
            assert os.fstat(fd).st_mtime_ns == 6
        assert _times(d / name) == (5, 6)


@behaviour()
def set_times_through_a_link(d: Path) -> object:
    was = _times(d / "s")
    os.utime(d / "s", ns=(5, 6))
    assert _times(d / "f") == (5, 6)
    assert _times(d / "s")[1] == was[1]


@behaviour()
def set_one_time_only(d: Path) -> object:
    for name in ("f", "d", "p"):
        libc.utimensat(d / name, (7, 8), _OMIT)
        assert _times(d / name) == (7_000_000_008, MTIME)
        libc.utimensat(d / name, _OMIT, (9, 10))
        assert _times(d / name) == (7_000_000_008, 9_000_000_010)
        libc.utimensat(d / name, _OMIT, _OMIT)
        assert _times(d / name) == (7_000_000_008, 9_000_000_010)


@behaviour()
def set_times_to_now(d: Path) -> object:
    for name, times in (("f", (_NOW, _NOW)), ("d", (_NOW, _OMIT)), ("p", (_OMIT, _NOW))):
        start = time.time_ns() - 20_000_000
        libc.utimensat(d / name, *times)
        for index, before in enumerate((ATIME, MTIME)):
            new = _times(d / name)[index]
            if times[index] is _NOW:
                assert start <= new <= time.time_ns()
            else:
                assert new == before


@behaviour()
def set_times_errors(d: Path) -> object:
    with fails(errno.EINVAL):
        libc.utimensat(d / "f", (0, 1_000_000_000), _NOW)
    with fails(errno.EINVAL):
        libc.utimensat(d / "f", (0, -1), _NOW)
    with fails(errno.ENOENT):
        libc.utimensat(d / "missing", _NOW, _NOW)
    with fails(errno.EINVAL):
        libc.utimensat(d / "f", _NOW, _NOW, 0x1)
    assert _times(d / "f") == (ATIME, MTIME)


@behaviour()
def times_before_1970(d: Path) -> object:
    for ns in (-1, -1_000_000_000, -(2**31) * 10**9, -123_456_789):
        os.utime(d / "f", ns=(ns, ns))
        assert _times(d / "f") == (ns, ns)


@behaviour()
def times_after_2038(d: Path) -> object:
    """How far, is the filesystem's affair."""
    found = []
    for seconds in (2**31 - 1, 2**31, 2**32, 2**33 + 5):
        ns = seconds * 10**9 + 999_999_999
        os.utime(d / "f", ns=(ns, ns))
        found.append(_times(d / "f"))
    assert found[0] == (2**31 * 10**9 - 1, 2**31 * 10**9 - 1)
    return found


@behaviour()
def times_of_no_use(d: Path) -> object:
    """Further away than the filesystem can note."""
    os.utime(d / "f", ns=(0, 0))
    libc.utimensat(d / "f", (2**40, 0), (-(2**40), 0))
    return _times(d / "f")


@behaviour()
def nanoseconds(d: Path) -> object:
    for ns in (1, 999_999_999, 1_234_567_890_123_456_789):
        os.utime(d / "f", ns=(ns, ns + 1))
        assert _times(d / "f") == (ns, ns + 1)


@behaviour()
def times_of_new_objects(d: Path) -> object:
    makers: list[tuple[str, Callable]] = [
        ("file", lambda path: opens(path, os.O_CREAT | os.O_WRONLY)),
        ("dir", os.mkdir),
        ("fifo", os.mkfifo),
        ("link", lambda path: os.symlink("x", path)),
    ]
    for name, make in makers:
        # The kernel's clock lags behind by up to a tick.
        start = time.time_ns() - 20_000_000
        make(d / "e" / name)
        st = os.lstat(d / "e" / name)
        for value in (st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns):
            assert start <= value <= time.time_ns(), name


@behaviour()
def set_times_survive_close(d: Path) -> object:
    """Times set after a write are not overwritten by what comes later."""
    with opened(d / "f", os.O_RDWR) as fd:
        os.write(fd, b"x" * 10_000)
        os.utime(fd, ns=(5, 6))
        assert _times(d / "f")[1] == 6
        os.fsync(fd)
    with opened(d / "f") as fd:
        os.fsync(fd)
    assert _times(d / "f")[1] == 6


@behaviour()
def change_time_goes_forward(d: Path) -> object:
    """It cannot be set, and never goes back."""
    seen_times = [os.stat(d / "f").st_ctime_ns]
    for step in (
        lambda: os.utime(d / "f", ns=(5, 6)),
        lambda: os.chmod(d / "f", 0o600),
        lambda: (d / "f").write_bytes(b"x"),
        lambda: os.rename(d / "f", d / "f2") or os.rename(d / "f2", d / "f"),
        lambda: os.setxattr(d / "f", "user.x", b"y"),
    ):
        tick()
        step()
        seen_times.append(os.stat(d / "f").st_ctime_ns)
    assert seen_times == sorted(set(seen_times))


@behaviour()
def listing_does_not_modify(d: Path) -> object:
    # Copy-up of what is in a directory may have moved its times before.
    os.listdir(d / "d")
    assert moved(d / "d", lambda: os.listdir(d / "d")) == _NONE
    assert moved(d / "f", (d / "f").read_bytes) == _NONE
    assert moved(d / "s", lambda: os.readlink(d / "s")) == _NONE


@behaviour()
def reading_an_old_file_moves_its_access_time(d: Path) -> object:
    """relatime: the access time is older than the modification."""
    (d / "new").write_bytes(b"new")
    os.utime(d / "new", ns=(ATIME, MTIME))
    tick()
    (d / "new").read_bytes()
    return os.stat(d / "new").st_atime_ns > ATIME


@behaviour()
def copying_up_keeps_times(d: Path) -> object:
    """A change of one attribute leaves the other times of the object and of what is around."""
    outside = _times(d / "d" / "sub"), _times(d / "d")
    os.chmod(d / "d" / "sub" / "leaf", 0o600)
    assert _times(d / "d" / "sub" / "leaf") == (ATIME, MTIME)
    os.setxattr(d / "d" / "child", "user.x", b"y")
    assert _times(d / "d" / "child")[1] == MTIME
    assert (_times(d / "d" / "sub")[1], _times(d / "d")[1]) == (outside[0][1], outside[1][1])


def _moves(name: str, path: str, wanted: set[str], act: Callable[[Path], object]) -> None:
    """Put into the table: the act changes these times of `path`."""

    def row(d: Path) -> object:
        return moved(d / path, lambda: act(d))

    row.__name__ = f"times_of_{name}"
    row.__doc__ = f"The act changes {sorted(wanted) or 'neither time'} of {path}."
    behaviour(answers=wanted)(row)


def _write(d: Path, data: bytes, flags: int = 0) -> None:
    with opened(d / "f", os.O_WRONLY | flags) as fd:
        os.write(fd, data)


def _exchange(one: Path, two: Path) -> None:
    renameat2(AT_FDCWD, bytes(one), AT_FDCWD, bytes(two), RENAME_EXCHANGE)


# The object itself
_moves("a_written_file", "f", _BOTH, lambda d: _write(d, b"x"))
_moves("an_appended_file", "f", _BOTH, lambda d: _write(d, b"x", os.O_APPEND))
_moves("a_file_opened_to_write", "f", _NONE, lambda d: opens(d / "f", os.O_RDWR))
_moves("a_truncated_file", "f", _BOTH, lambda d: os.truncate(d / "f", 5))
_moves("a_file_truncated_to_its_size", "f", _BOTH, lambda d: os.truncate(d / "f", 1300))
_moves(
    "a_file_opened_with_truncation", "f", _BOTH, lambda d: opens(d / "f", os.O_WRONLY | os.O_TRUNC)
)
_moves("chmod", "f", _CTIME, lambda d: os.chmod(d / "f", 0o600))
_moves("chmod_of_a_directory", "d", _CTIME, lambda d: os.chmod(d / "d", 0o700))
_moves("chmod_to_the_same", "f", _CTIME, lambda d: os.chmod(d / "f", 0o640))
_moves("chown", "f", _CTIME, lambda d: os.chown(d / "f", os.getuid(), os.getgid()))
_moves("setxattr", "f", _CTIME, lambda d: os.setxattr(d / "f", "user.x", b"y"))
_moves("removexattr", "f", _CTIME, lambda d: os.removexattr(d / "f", "user.colour"))
_moves("utime_of_atime", "f", _CTIME, lambda d: libc.utimensat(d / "f", (5, 5), _OMIT))
_moves("utime_of_nothing", "f", _NONE, lambda d: libc.utimensat(d / "f", _OMIT, _OMIT))
_moves("link", "f", _CTIME, lambda d: os.link(d / "f", d / "new"))
_moves(
    "rename",
    "f",
    _CTIME,
    lambda d: os.rename(d / "f", d / "e" / "new") or os.rename(d / "e" / "new", d / "f"),
)
_moves(
    "unlink_of_another_name",
    "f",
    _CTIME,
    lambda d: os.link(d / "f", d / "new") or os.unlink(d / "new"),
)

# The directory around it
_moves("create_in_a_directory", "e", _BOTH, lambda d: (d / "e" / "new").touch())
_moves("mkdir_in_a_directory", "e", _BOTH, lambda d: os.mkdir(d / "e" / "new"))
_moves("symlink_in_a_directory", "e", _BOTH, lambda d: os.symlink("x", d / "e" / "new"))
_moves("mkfifo_in_a_directory", "e", _BOTH, lambda d: os.mkfifo(d / "e" / "new"))
_moves("link_into_a_directory", "e", _BOTH, lambda d: os.link(d / "f", d / "e" / "new"))
_moves("unlink_in_a_directory", "d", _BOTH, lambda d: os.unlink(d / "d" / "child"))
_moves("rename_into_a_directory", "e", _BOTH, lambda d: os.rename(d / "f", d / "e" / "new"))
_moves("rename_out_of_a_directory", "d", _BOTH, lambda d: os.rename(d / "d" / "child", d / "new"))
_moves(
    "rename_within_a_directory", "d", _BOTH, lambda d: os.rename(d / "d" / "child", d / "d" / "new")
)
_moves("write_below_a_directory", "d", _NONE, lambda d: (d / "d" / "child").write_bytes(b"x"))
_moves("chmod_below_a_directory", "d", _NONE, lambda d: os.chmod(d / "d" / "child", 0o600))
_moves("create_far_below_a_directory", "d", _NONE, lambda d: (d / "d" / "sub" / "new").touch())
_moves("exchange_in_a_directory", "d", _BOTH, lambda d: _exchange(d / "d" / "child", d / "f"))


@behaviour()
def times_of_a_directory_that_loses_one(d: Path) -> object:
    os.mkdir(d / "e" / "new")
    assert moved(d / "e", lambda: os.rmdir(d / "e" / "new")) == _BOTH


# Nothing moves where nothing happens.
_moves("failed_create", "d", _NONE, lambda d: opens(d / "d" / "child", os.O_CREAT | os.O_EXCL))
_moves("failed_mkdir", "d", _NONE, lambda d: os.mkdir(d / "d" / "sub"))
_moves("failed_unlink", "d", _NONE, lambda d: os.unlink(d / "d" / "missing"))
_moves("failed_rmdir", "d", _NONE, lambda d: os.rmdir(d / "d" / "sub"))
_moves("failed_rename", "d", _NONE, lambda d: os.rename(d / "d" / "sub", d / "f"))
_moves("failed_link", "f", _NONE, lambda d: os.link(d / "f", d / "g"))
_moves("failed_truncate", "f", _NONE, lambda d: os.truncate(d / "f", -1))
_moves(
    "failed_setxattr",
    "f",
    _NONE,
    lambda d: os.setxattr(d / "f", "user.colour", b"x", os.XATTR_CREATE),
)
