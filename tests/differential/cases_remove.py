"""unlink and rmdir of everything, and what comes to the same names afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tests.differential import calls
from tests.differential.calls import attempt, create, look, names
from tests.differential.designs import KEPT, KEPT_ASIDE, NO_NAMES, TYPES_FIRST, XATTR_WHITEOUTS
from tests.differential.table import Steps, Topic

TOPIC = Topic("remove")

FILES = (
    *("file", "ufile", "ucover", "covered", "link", "ulink", "dirlink", "longlink", "fifo"),
    *("sock", "hard", "uhard", "readonly", "noaccess", "suid", "file_over_dir", "link_over_dir"),
)
DIRECTORIES = (
    *("edir", "uempty", "emptied", "low_emptied", "dir", "udir", "merged", "umerged"),
    *("uopaque", "opaque", "dir_over_file", "white_between", "deep", "xwhite", "odd_names"),
)
SPECIAL = ("char", "block", "caps", "immutable", "append", "immutable_dir")


def _unlink(kind: str) -> Steps:
    def steps(path: Path) -> Iterator[object]:
        yield attempt(os.unlink, path / kind)
        yield look(path / kind)
        yield names(path)
        yield calls.seen(os.lstat(path))

    return steps


def _rmdir(kind: str) -> Steps:
    def steps(path: Path) -> Iterator[object]:
        yield attempt(os.rmdir, path / kind)
        yield look(path / kind)
        yield names(path)

    return steps


def _again(kind: str, make: str) -> Steps:
    """Remove with all content, then make something of the same name."""
    makers = {
        "file": create,
        "directory": os.mkdir,
        "symlink": lambda path: os.symlink("file", path),
        "fifo": os.mkfifo,
    }

    def steps(path: Path) -> Iterator[object]:
        yield attempt(calls.remove, path / kind)
        yield attempt(makers[make], path / kind)
        yield look(path / kind)
        if make == "directory":
            for name in ("child", "sub", "own", "a"):
                yield attempt(create, path / kind / name)
            yield look(path / kind)
        yield names(path)

    return steps


def _fill() -> None:
    for kind in (*FILES, *DIRECTORIES):
        design = {"hard": [KEPT, KEPT_ASIDE], "xwhite": [XATTR_WHITEOUTS]}.get(kind, [])
        TOPIC.add(f"unlink-{kind}", kind, _unlink(kind), *(design if kind == "hard" else ()))
        TOPIC.add(f"rmdir-{kind}", kind, _rmdir(kind))
        TOPIC.add(f"{kind}-then-directory", kind, _again(kind, "directory"), *design)
        TOPIC.add(f"{kind}-then-file", kind, _again(kind, "file"), *design)
    for kind in ("file", "dir", "merged", "uwhite_dir"):
        TOPIC.add(f"{kind}-then-symlink", kind, _again(kind, "symlink"))
        TOPIC.add(f"{kind}-then-fifo", kind, _again(kind, "fifo"))
    for kind in SPECIAL:
        protected = [TYPES_FIRST] if kind in ("immutable", "append") else []
        directory = [TYPES_FIRST] if kind == "immutable_dir" else []
        TOPIC.add(f"unlink-{kind}", kind, _unlink(kind), *directory, root=True)
        TOPIC.add(f"rmdir-{kind}", kind, _rmdir(kind), *protected, root=True)
    for kind in ("white", "white_dir", "uwhite", "uwhite_dir", "uwhite_nothing"):
        TOPIC.add(f"unlink-{kind}", kind, _unlink(kind))
        TOPIC.add(f"rmdir-{kind}", kind, _rmdir(kind))


_fill()


@TOPIC.case("dir")
def dots(path: Path) -> Iterator[object]:
    yield attempt(os.rmdir, f"{path}/dir/.")
    yield attempt(os.rmdir, f"{path}/dir/..")
    yield attempt(os.unlink, f"{path}/dir/..")
    yield attempt(os.rmdir, path / "nothing")
    yield attempt(os.unlink, path / "nothing")
    yield attempt(os.unlink, path / "dir/child/below")
    yield names(path / "dir")


@TOPIC.case("merged umerged deep")
def everything_then_mkdir_p(path: Path) -> Iterator[object]:
    for name in ("merged", "umerged", "deep"):
        yield attempt(calls.remove, path / name)
    yield names(path)
    for name in ("merged/sub", "umerged/sub", "deep/a/b/c/d"):
        yield os.makedirs(path / name)
        yield names(path / name)
    yield names(path / "merged")
    yield names(path / "umerged")


@TOPIC.case("deep")
def inner_directory_then_mkdir_p(path: Path) -> Iterator[object]:
    yield attempt(calls.remove, path / "deep/a/b")
    yield os.makedirs(path / "deep/a/b/c/d")
    yield names(path / "deep/a/b/c/d")
    yield attempt(calls.remove, path / "deep/a/b")
    yield names(path / "deep/a")


@TOPIC.case("dir")
def twice_made_and_removed(path: Path) -> Iterator[object]:
    for _ in range(3):
        yield attempt(calls.remove, path / "dir")
        yield attempt(os.mkdir, path / "dir")
        yield attempt(create, path / "dir/child")
        yield look(path / "dir/child")
    yield names(path / "dir")


@TOPIC.case("dir")
def children_one_by_one(path: Path) -> Iterator[object]:
    yield attempt(os.rmdir, path / "dir")
    yield os.unlink(path / "dir/child")
    yield attempt(os.rmdir, path / "dir")
    yield attempt(os.rmdir, path / "dir/sub")
    yield os.unlink(path / "dir/sub/leaf")
    yield os.rmdir(path / "dir/sub")
    yield names(path / "dir")
    yield os.rmdir(path / "dir")
    yield names(path)


@TOPIC.case("opaque uopaque")
def inside_opaque_directories(path: Path) -> Iterator[object]:
    yield attempt(os.unlink, path / "opaque/own")
    yield attempt(os.unlink, path / "opaque/hidden")
    yield names(path / "opaque")
    yield attempt(os.unlink, path / "uopaque/child")
    yield names(path / "uopaque")
    yield attempt(os.rmdir, path / "opaque")
    yield attempt(calls.remove, path / "uopaque")
    yield names(path)


@TOPIC.case("dir")
def made_then_removed_in_a_lower_directory(path: Path) -> Iterator[object]:
    yield create(path / "dir/new")
    yield os.mkdir(path / "dir/new-dir")
    yield os.unlink(path / "dir/new")
    yield os.rmdir(path / "dir/new-dir")
    yield names(path / "dir")


@TOPIC.case("edir", NO_NAMES)
def open_directory(path: Path) -> Iterator[object]:
    with calls.opened(path / "edir", os.O_DIRECTORY) as fd:
        yield os.rmdir(path / "edir")
        yield os.fstat(fd).st_nlink
        yield os.listdir(fd)
        yield attempt(os.mkdir, "new", dir_fd=fd)
        yield attempt(os.open, "new", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
        yield attempt(os.stat, "..", dir_fd=fd) is not None
        yield attempt(os.symlink, "x", "new", dir_fd=fd)


@TOPIC.case("dir")
def replaced_under_an_open_directory(path: Path) -> Iterator[object]:
    with calls.opened(path / "dir", os.O_DIRECTORY) as fd:
        yield attempt(calls.remove, path / "dir")
        yield os.mkdir(path / "dir")
        yield create(path / "dir/new")
        yield sorted(os.listdir(fd))
        yield attempt(os.stat, "new", dir_fd=fd)
        yield calls.seen(os.fstat(fd))


@TOPIC.case("sticky open_dir", root=True)
def permissions(path: Path) -> Iterator[object]:
    with calls.user():
        yield attempt(os.unlink, path / "sticky/child")
        yield attempt(os.unlink, path / "open_dir/child")
        yield attempt(os.mkdir, path / "new")
    yield names(path / "sticky")
    yield names(path / "open_dir")


@TOPIC.case("dir", root=True)
def no_permission_for_the_directory(path: Path) -> Iterator[object]:
    with calls.user():
        yield attempt(os.unlink, path / "dir/child")
        yield attempt(os.listdir, path / "dir")
        yield attempt(os.rmdir, path / "dir")


@TOPIC.case("file ufile umerged")
def times_of_the_parent(path: Path) -> Iterator[object]:
    long_ago = 1_000_000_000_000_000_000
    os.utime(path / "umerged", ns=(long_ago, long_ago))
    yield os.unlink(path / "umerged/child")
    yield calls.seen(os.lstat(path / "umerged"))
    os.utime(path, ns=(long_ago, long_ago))
    yield os.unlink(path / "ufile")
    yield calls.seen(os.lstat(path))
    os.utime(path, ns=(long_ago, long_ago))
    yield os.unlink(path / "file")
    yield calls.seen(os.lstat(path))


@TOPIC.case("immutable_dir", root=True)
def in_an_immutable_directory(path: Path) -> Iterator[object]:
    yield attempt(os.unlink, path / "immutable_dir/child")
    yield attempt(create, path / "immutable_dir/new")
    yield attempt(os.mkdir, path / "immutable_dir/new")
    yield attempt(os.rmdir, path / "immutable_dir/sub")
    yield attempt(os.chmod, path / "immutable_dir", 0o700)
    yield attempt(calls.put, path / "immutable_dir/child")
    yield names(path / "immutable_dir")
