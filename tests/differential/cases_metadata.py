"""Owners, modes, times, permissions, statfs."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tests.differential import calls
from tests.differential.calls import attempt, look, put
from tests.differential.designs import KEPT, TOUCH
from tests.differential.table import Steps, Topic
from tests.helpers import libc

TOPIC = Topic("metadata")

KINDS = ("file", "ufile", "ucover", "dir", "merged", "udir", "fifo", "hard")
TIMES = {
    "epoch": (0, 0),
    "nanoseconds": (1_000_000_000_000_000_001, 1_000_000_000_999_999_999),
    "before-1970": (-5_000_000_001, -1),
    "after-2038": (5_000_000_000_000_000_005, 6_000_000_000_000_000_006),
    "far-away": (15_000_000_000_000_000_000, 15_000_000_000_000_000_001),
    "long-ago": (-2_000_000_000_000_000_000, -2_100_000_000_000_000_000),
}


def _times(kind: str, times: tuple[int, int]) -> Steps:
    def steps(path: Path) -> Iterator[object]:
        yield attempt(os.utime, path / kind, ns=times)
        st = os.stat(path / kind)
        yield calls.fold(st.st_atime_ns), calls.fold(st.st_mtime_ns)
        yield look(path / kind)

    return steps


def _modes(kind: str) -> Steps:
    def steps(path: Path) -> Iterator[object]:
        for mode in (0, 0o7777, 0o1000, 0o2010, 0o2000, 0o4001, 0o644):
            yield attempt(os.chmod, path / kind, mode)
            yield oct(os.lstat(path / kind).st_mode)

    return steps


def _owners(kind: str) -> Steps:
    def steps(path: Path) -> Iterator[object]:
        os.chmod(path / kind, 0o6775)
        for uid, gid in ((-1, -1), (1000, -1), (-1, 1000), (0, 0), (65534, 2**31)):
            yield attempt(os.chown, path / kind, uid, gid)
            yield look(path / kind)
            os.chmod(path / kind, 0o6775)

    return steps


for _kind in KINDS:
    _design = [KEPT] if _kind == "hard" else []
    TOPIC.add(f"modes-of-{_kind}", _kind, _modes(_kind), *_design)
    TOPIC.add(f"owners-of-{_kind}", _kind, _owners(_kind), *_design, root=True)
for _kind in ("file", "ufile", "merged"):
    for _name, _ns in TIMES.items():
        TOPIC.add(f"{_kind}-times-{_name}", _kind, _times(_kind, _ns))


@TOPIC.case("file")
def one_time_only(path: Path) -> Iterator[object]:
    now, omit = (1 << 30) - 1, (1 << 30) - 2
    for times in (
        (1_300_000_000, 5, 0, omit),
        (0, omit, 1_300_000_001, 6),
        (0, now, 0, omit),
        (0, omit, 0, omit),
        (0, omit, 0, now),
        (0, 1_000_000_000, 0, 0),
    ):
        yield attempt(libc.utimensat, path / "file", times[:2], times[2:])
        st = os.stat(path / "file")
        yield calls.fold(st.st_atime_ns), calls.fold(st.st_mtime_ns)


@TOPIC.case("file link")
def times_of_a_link(path: Path) -> Iterator[object]:
    yield os.utime(path / "link", ns=(1, 2), follow_symlinks=False)
    yield calls.seen(os.lstat(path / "link"))
    yield os.utime(path / "link", ns=(3, 4))
    yield calls.seen(os.lstat(path / "link"))
    yield calls.seen(os.lstat(path / "file"))


@TOPIC.case("file ufile")
def change_time(path: Path) -> Iterator[object]:
    for kind in ("file", "ufile"):
        for change in (
            lambda name: os.chmod(name, 0o600),
            lambda name: os.utime(name, ns=(1, 1)),
            lambda name: os.setxattr(name, "user.x", b"y"),
            lambda name: put(name, b"data"),
            lambda name: os.link(name, f"{name}-2"),
            lambda name: os.rename(name, f"{name}-3"),
        ):
            before = os.stat(path / kind).st_ctime_ns
            yield attempt(change, path / kind)
            target = path / kind
            target = target if os.path.lexists(target) else Path(f"{target}-3")
            yield os.stat(target).st_ctime_ns >= before


@TOPIC.case("ufile file")
def data_times(path: Path) -> Iterator[object]:
    for kind in ("ufile", "file"):
        for change in (
            lambda name: put(name, b"data"),
            lambda name: os.truncate(name, 2),
            lambda name: os.truncate(name, 2),
            lambda name: put(name, b"", os.O_TRUNC),
            lambda name: put(name, b""),
            lambda name: os.chmod(name, 0o600),
        ):
            os.utime(path / kind, ns=(10**18, 10**18))
            yield attempt(change, path / kind)
            yield calls.fold(os.stat(path / kind).st_mtime_ns)


@TOPIC.case("owned file open_to_all readonly", root=True)
def rules_for_others(path: Path) -> Iterator[object]:
    with calls.user():
        for kind in ("owned", "file", "open_to_all", "readonly"):
            yield attempt(os.chmod, path / kind, 0o600)
            yield attempt(os.chown, path / kind, 1000, -1)
            yield attempt(os.chown, path / kind, -1, 1000)
            yield attempt(os.chown, path / kind, -1, 2000)
            yield attempt(os.chown, path / kind, 2000, -1)
            yield attempt(os.utime, path / kind)
            yield attempt(os.utime, path / kind, ns=(1, 2))
            yield attempt(os.truncate, path / kind, 1)
            yield attempt(put, path / kind, b"data")
            yield attempt(calls.get, path / kind)
            yield attempt(os.setxattr, path / kind, "user.x", b"y")
    for kind in ("owned", "file", "open_to_all", "readonly"):
        yield look(path / kind)


@TOPIC.case("owned suid noaccess dir", root=True)
def access(path: Path) -> Iterator[object]:
    for uid in (1000, 2000):
        with calls.user(uid, uid):
            for kind in ("owned", "suid", "noaccess", "dir"):
                allowed = [
                    os.access(path / kind, mode, effective_ids=True)
                    for mode in (os.F_OK, os.R_OK, os.W_OK, os.X_OK)
                ]
                yield kind, allowed


@TOPIC.case("suid_owned", root=True)
def setuid_is_lost_by_the_owners_write(path: Path) -> Iterator[object]:
    for change in (
        lambda name: put(name, b"x"),
        lambda name: os.truncate(name, 2),
        lambda name: put(name, b"x", os.O_TRUNC),
        lambda name: put(name, b"x", os.O_APPEND),
    ):
        os.chmod(path / "suid_owned", 0o6775)
        with calls.user():
            yield attempt(change, path / "suid_owned")
        yield look(path / "suid_owned")


@TOPIC.case("suid usuid", root=True)
def setuid_and_roots_write(path: Path) -> Iterator[object]:
    for kind in ("suid", "usuid"):
        for change in (
            lambda name: put(name, b"x"),
            lambda name: os.truncate(name, 2),
            lambda name: put(name, b"x", os.O_TRUNC),
        ):
            yield attempt(change, path / kind)
            yield oct(os.stat(path / kind).st_mode)


@TOPIC.case("suid_owned", root=True)
def setuid_is_lost_by_chown(path: Path) -> Iterator[object]:
    for mode in (0o6775, 0o6765, 0o2655, 0o4755):
        os.chmod(path / "suid_owned", mode)
        yield attempt(os.chown, path / "suid_owned", 1000, 1000)
        yield oct(os.stat(path / "suid_owned").st_mode)


@TOPIC.case("owned", root=True)
def setgid_for_a_group_one_is_not_in(path: Path) -> Iterator[object]:
    os.chown(path / "owned", 1000, 2000)
    with calls.user():
        yield attempt(os.chmod, path / "owned", 0o2775)
    yield look(path / "owned")


@TOPIC.case("sticky", root=True)
def sticky_directories(path: Path) -> Iterator[object]:
    with calls.user():
        yield attempt(calls.create, path / "sticky/mine", mode=0o666)
    with calls.user(2000, 2000):
        yield attempt(os.unlink, path / "sticky/mine")
        yield attempt(os.rename, path / "sticky/mine", path / "sticky/yours")
        yield attempt(put, path / "sticky/mine", b"data")
        yield attempt(put, path / "sticky/mine", b"data", os.O_CREAT)
    with calls.user():
        yield attempt(os.unlink, path / "sticky/mine")
    yield look(path / "sticky")


@TOPIC.case("file")
def statfs(path: Path) -> Iterator[object]:
    one, two = os.statvfs(path), os.statvfs(path / "file")
    yield one.f_bsize, one.f_frsize, one.f_namemax, one.f_blocks, one.f_files
    yield one.f_blocks == two.f_blocks
    yield one.f_bavail <= one.f_bfree <= one.f_blocks


@TOPIC.case("file sparse big")
def blocks(path: Path) -> Iterator[object]:
    for kind in ("file", "sparse", "big"):
        before = os.stat(path / kind)
        yield before.st_blocks, before.st_blksize
        os.chmod(path / kind, 0o600)
        yield os.stat(path / kind).st_blocks >= before.st_blocks
        put(path / kind, b"x")
        after = os.stat(path / kind)
        yield after.st_size, after.st_blocks * 512 >= min(after.st_size, 4096)
    yield os.stat(path / "sparse").st_blocks * 512 < os.stat(path / "sparse").st_size


@TOPIC.case("merged dir udir")
def sizes_of_directories(path: Path) -> Iterator[object]:
    yield [os.stat(path / kind).st_size > 0 for kind in ("merged", "dir", "udir")]
    yield [os.stat(path / kind).st_blksize for kind in ("merged", "dir", "udir")]


@TOPIC.case("file noaccess", root=True)
def no_access_at_all(path: Path) -> Iterator[object]:
    with calls.user():
        yield attempt(calls.get, path / "noaccess")
        yield attempt(put, path / "noaccess")
        yield attempt(os.stat, path / "noaccess") != "EACCES"
    yield attempt(calls.get, path / "noaccess")
    yield attempt(put, path / "noaccess", b"by root")
    yield look(path / "noaccess")


@TOPIC.case("immutable append immutable_dir", TOUCH, root=True)
def protected_files(path: Path) -> Iterator[object]:
    for kind in ("immutable", "append", "immutable_dir"):
        yield attempt(os.chmod, path / kind, 0o600)
        yield attempt(os.chown, path / kind, 1, 1)
        yield attempt(os.utime, path / kind)
        yield attempt(os.utime, path / kind, ns=(1, 2))
        yield look(path / kind)


@TOPIC.case("file")
def chmod_of_a_link(path: Path) -> Iterator[object]:
    os.symlink("file", path / "new-link")
    yield attempt(os.chmod, path / "new-link", 0o601)
    yield oct(os.stat(path / "file").st_mode)
    yield oct(os.lstat(path / "new-link").st_mode)


@TOPIC.case("char", root=True)
def device_numbers(path: Path) -> Iterator[object]:
    st = os.stat(path / "char")
    yield os.major(st.st_rdev), os.minor(st.st_rdev)
    os.chmod(path / "char", 0o600)
    st = os.stat(path / "char")
    yield os.major(st.st_rdev), os.minor(st.st_rdev), stat.S_ISCHR(st.st_mode)
    yield attempt(calls.get, path / "char")
