"""Copy-up of every kind of object by every cause."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.differential import calls
from tests.differential.calls import attempt, look, number, put
from tests.differential.designs import KEPT, RENUMBERED, TOUCH
from tests.differential.layers import posix_acl
from tests.differential.table import Steps, Topic

TOPIC = Topic("copyup")

FILES = ("file", "covered", "big", "empty", "sparse", "suid", "hard", "readonly", "noaccess")
WITH_ATTRIBUTES = ("caps", "acl")
OTHERS = ("link", "fifo", "sock", "edir", "merged", "sticky", "sgid_dir", "noaccess_dir")
DEVICES = ("char", "block")
UPPER = ("ufile", "ucover", "umerged", "ulink")


def _truncate(size: int) -> Callable[[Path], object]:
    return lambda path: os.truncate(path, size)


def _write_at(path: Path) -> int:
    with calls.opened(path, os.O_RDWR) as fd:
        return os.pwrite(fd, b"in the middle", 7)


def _utime(path: Path) -> None:
    os.utime(path, ns=(1_400_000_000_000_000_001, 1_500_000_000_000_000_002), follow_symlinks=False)


def _touch(path: Path) -> None:
    os.utime(path, follow_symlinks=False)


DATA: dict[str, Callable[[Path], object]] = {
    "write": _write_at,
    "append": lambda path: put(path, b"appended", os.O_APPEND),
    "replace": lambda path: put(path, b"replaced", os.O_TRUNC),
    "open-truncate": lambda path: put(path, b"", os.O_TRUNC),
    "truncate-0": _truncate(0),
    "truncate-shorter": _truncate(5),
    "truncate-longer": _truncate(5000),
}
METADATA: dict[str, Callable[[Path], object]] = {
    "chmod": lambda path: os.chmod(path, 0o1751),
    "chown": lambda path: os.chown(path, 0, 0, follow_symlinks=False),
    "utime": _utime,
    "touch": _touch,
    "setxattr": lambda path: os.setxattr(path, "user.new", b"value"),
    "setfacl": lambda path: os.setxattr(
        path, "system.posix_acl_access", posix_acl(group=0o6, other=0o4)
    ),
}
NAMES: dict[str, Callable[[Path], object]] = {
    "link": lambda path: os.link(path, path.with_name("other"), follow_symlinks=False),
    "rename": lambda path: os.rename(path, path.with_name("other")),
}


def _steps(kind: str, cause: Callable[[Path], object]) -> Steps:
    def steps(path: Path) -> Iterator[object]:
        subject = path / kind
        before = attempt(number, subject)
        yield look(subject)
        yield attempt(cause, subject)
        yield look(subject)
        yield look(path / "other")
        now = attempt(number, subject)
        yield now == before or now
        yield calls.seen(os.lstat(path))

    return steps


def _fill() -> None:
    for kind in FILES:
        design = [KEPT] if kind == "hard" else []
        for name, cause in (DATA | METADATA | NAMES).items():
            TOPIC.add(f"{kind}-{name}", kind, _steps(kind, cause), *design)
    for kind in (*OTHERS, *UPPER):
        for name, cause in (METADATA | NAMES).items():
            # Of a symbolic link chmod, user attributes and ACLs are the target's.
            if kind not in ("link", "ulink") or name not in ("chmod", "setxattr", "setfacl"):
                TOPIC.add(f"{kind}-{name}", kind, _steps(kind, cause))
    for kind in (*WITH_ATTRIBUTES, *DEVICES):
        for name, cause in (METADATA | NAMES).items():
            TOPIC.add(f"{kind}-{name}", kind, _steps(kind, cause), root=True)
    for kind in WITH_ATTRIBUTES:
        for name, cause in DATA.items():
            TOPIC.add(f"{kind}-{name}", kind, _steps(kind, cause), root=True)
    for kind in ("immutable", "append"):
        for name, cause in (DATA | METADATA | NAMES).items():
            design = [TOUCH] if (kind, name) == ("append", "touch") else []
            TOPIC.add(f"{kind}-{name}", kind, _steps(kind, cause), *design, root=True)


_fill()


@TOPIC.case("file")
def read_only_open_copies_nothing(path: Path) -> Iterator[object]:
    with calls.opened(path / "file") as fd:
        yield os.read(fd, 10)
        yield calls.seen(os.fstat(fd))


@TOPIC.case("deep")
def ancestors(path: Path) -> Iterator[object]:
    yield put(path / "deep/a/b/c/d/leaf-bottom", b"x")
    for part in ("deep", "deep/a", "deep/a/b", "deep/a/b/c", "deep/a/b/c/d"):
        yield look(path / part)


@TOPIC.case("deep")
def new_file_below_lower_directories(path: Path) -> Iterator[object]:
    before = [number(path / part) for part in ("deep", "deep/a", "deep/a/b")]
    yield calls.create(path / "deep/a/b/new")
    yield before == [number(path / part) for part in ("deep", "deep/a", "deep/a/b")]
    for part in ("deep", "deep/a", "deep/a/b"):
        yield calls.seen(os.lstat(path / part))


@TOPIC.case("odd_names")
def odd_names(path: Path) -> Iterator[object]:
    base = os.fsencode(path / "odd_names")
    for entry in sorted(os.listdir(base)):
        full = base + b"/" + entry
        if os.path.isdir(full):
            with calls.opened(full + b"/new", os.O_CREAT | os.O_WRONLY) as fd:
                yield os.write(fd, b"x")
        else:
            yield os.chmod(full, 0o600)
    yield calls.names(base)


@TOPIC.case("file", root=True)
def chown_to_others(path: Path) -> Iterator[object]:
    for owner in ((1000, 1000), (-1, 2000), (2000, -1), (-1, -1)):
        yield os.chown(path / "file", *owner)
        yield look(path / "file")


@TOPIC.case("link", root=True)
def lchown_of_a_link(path: Path) -> Iterator[object]:
    yield os.chown(path / "link", 1000, 1001, follow_symlinks=False)
    yield look(path / "link")


@TOPIC.case("merged", root=True)
def chown_of_a_directory(path: Path) -> Iterator[object]:
    yield os.chown(path / "merged", 1000, 1001)
    yield look(path / "merged")


@TOPIC.case("file")
def removexattr_of_a_lower_attribute(path: Path) -> Iterator[object]:
    yield os.removexattr(path / "file", "user.colour")
    yield look(path / "file")
    yield attempt(os.removexattr, path / "file", "user.colour")


@TOPIC.case("file")
def failed_removexattr(path: Path) -> Iterator[object]:
    yield attempt(os.removexattr, path / "file", "user.none")
    yield look(path / "file")


@TOPIC.case("file")
def times_of_the_copy(path: Path) -> Iterator[object]:
    before = os.stat(path / "file")
    os.chmod(path / "file", 0o600)
    after = os.stat(path / "file")
    yield before.st_mtime_ns == after.st_mtime_ns
    yield calls.fold(after.st_atime_ns)
    yield calls.fold(after.st_ctime_ns)
    yield after.st_ctime_ns > before.st_ctime_ns
    yield calls.seen(os.stat(path))


@TOPIC.case("big")
def write_and_append_and_truncate(path: Path) -> Iterator[object]:
    with calls.opened(path / "big", os.O_RDWR) as fd:
        yield os.pwrite(fd, b"X" * 5000, 100_000)
        yield os.pread(fd, 20, 99_990)
        yield os.ftruncate(fd, 120_000)
        yield os.pwrite(fd, b"behind the end", 130_000)
        yield os.fsync(fd)
        yield calls.seen(os.fstat(fd))


@TOPIC.case("covered")
def every_layer_has_it(path: Path) -> Iterator[object]:
    yield look(path / "covered")
    yield put(path / "covered", b"+", os.O_APPEND)
    yield look(path / "covered")


@TOPIC.case("file", RENUMBERED)
def two_names_made_then_one_changed(path: Path) -> Iterator[object]:
    yield os.link(path / "file", path / "second")
    yield put(path / "second", b"changed")
    yield look(path / "file")
    yield number(path / "file") == number(path / "second")


@TOPIC.case("dir")
def chmod_then_child(path: Path) -> Iterator[object]:
    yield os.chmod(path / "dir", 0o700)
    yield put(path / "dir/child", b"changed")
    yield os.mkdir(path / "dir/new")
    yield look(path / "dir")
    yield look(path / "dir/child")


@TOPIC.case("edir", root=True)
def default_acl_set(path: Path) -> Iterator[object]:
    value = posix_acl(group=0o7, other=0o5)
    yield os.setxattr(path / "edir", "system.posix_acl_default", value)
    yield look(path / "edir")
    yield os.removexattr(path / "edir", "system.posix_acl_default")
    yield look(path / "edir")


@TOPIC.case("acl")
def acl_removed(path: Path) -> Iterator[object]:
    yield os.removexattr(path / "acl", "system.posix_acl_access")
    yield look(path / "acl")


@TOPIC.case("acl")
def chmod_changes_the_mask(path: Path) -> Iterator[object]:
    yield os.chmod(path / "acl", 0o604)
    yield look(path / "acl")
