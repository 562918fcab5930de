"""Making objects: modes, owners, umask, inheritance, errnos."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tests.differential import calls
from tests.differential.calls import attempt, create, look, names
from tests.differential.designs import UMASK
from tests.differential.table import Steps, Topic
from tests.ops.conftest import make_socket

TOPIC = Topic("create")

PARENTS = (
    *("dir", "udir", "merged", "umerged", "opaque", "uopaque", "sgid_dir", "sticky"),
    *("dir_over_file", "white_between"),
)
MAKERS = {
    "file": lambda path: create(path, mode=0o6777),
    "directory": lambda path: os.mkdir(path, 0o3777),
    "symlink": lambda path: os.symlink("file", path),
    "fifo": lambda path: os.mkfifo(path, 0o666),
    "socket": make_socket,
}


def _made(parent: str, maker: str) -> Steps:
    def steps(path: Path) -> Iterator[object]:
        yield attempt(MAKERS[maker], path / parent / "new")
        yield look(path / parent / "new")
        yield calls.seen(os.lstat(path / parent))
        yield attempt(MAKERS[maker], path / parent / "new")
        yield attempt(MAKERS[maker], path / parent / "child")

    return steps


for _parent in PARENTS:
    for _maker in MAKERS:
        TOPIC.add(f"{_maker}-in-{_parent}", _parent, _made(_parent, _maker))


@TOPIC.case("file dir link ufile")
def exclusively(path: Path) -> Iterator[object]:
    for name in ("file", "dir", "link", "ufile"):
        yield attempt(create, path / name)
        yield attempt(os.mkdir, path / name)
        yield attempt(os.symlink, "x", path / name)
        yield attempt(os.mkfifo, path / name)
    yield look(path / "file")


@TOPIC.case("dir")
def in_places_that_are_not_there(path: Path) -> Iterator[object]:
    for name in ("nothing/new", "dir/child/new", "dir/nothing/new", "dir/new/"):
        yield attempt(create, f"{path}/{name}")
        yield attempt(os.mkdir, f"{path}/{name}")
        yield attempt(os.symlink, "x", f"{path}/{name}")
    yield names(path / "dir")


@TOPIC.case("sgid_dir", root=True)
def group_of_the_directory(path: Path) -> Iterator[object]:
    with calls.user():
        yield attempt(create, path / "sgid_dir/file", mode=0o2775)
        yield attempt(os.mkdir, path / "sgid_dir/dir")
        yield attempt(os.symlink, "x", path / "sgid_dir/link")
        yield attempt(os.mkfifo, path / "sgid_dir/fifo")
        yield attempt(create, path / "sgid_dir/dir/below")
        yield attempt(os.chmod, path / "sgid_dir/file", 0o2771)
    for name in ("file", "dir", "link", "fifo", "dir/below"):
        yield look(path / "sgid_dir" / name)


@TOPIC.case("open_dir", root=True)
def owner_is_who_makes_it(path: Path) -> Iterator[object]:
    with calls.user(1000, 1001):
        yield attempt(create, path / "open_dir/file", mode=0o4755)
        yield attempt(os.mkdir, path / "open_dir/dir")
        yield attempt(os.symlink, "x", path / "open_dir/link")
        yield attempt(os.mkfifo, path / "open_dir/fifo")
        yield attempt(os.link, path / "open_dir/file", path / "open_dir/hard")
        yield attempt(os.mknod, path / "open_dir/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    for name in ("file", "dir", "link", "fifo", "hard", "null"):
        yield look(path / "open_dir" / name)


@TOPIC.case("dir")
def umask(path: Path) -> Iterator[object]:
    for mask in (0, 0o027, 0o777):
        with calls.umask(mask):
            yield attempt(create, path / f"dir/file-{mask:o}", mode=0o777)
            yield attempt(os.mkdir, path / f"dir/dir-{mask:o}", 0o777)
            yield attempt(os.mkfifo, path / f"dir/fifo-{mask:o}", 0o777)
    yield look(path / "dir")
    for name in sorted(os.listdir(path / "dir")):
        yield look(path / "dir" / name)


@TOPIC.case("default_acl")
def default_acl_without_umask(path: Path) -> Iterator[object]:
    with calls.umask(0):
        yield create(path / "default_acl/file", mode=0o666)
        yield os.mkdir(path / "default_acl/dir", 0o777)
        yield create(path / "default_acl/dir/file", mode=0o640)
        yield os.mkfifo(path / "default_acl/fifo", 0o666)
        yield os.symlink("x", path / "default_acl/link")
    for name in ("file", "dir", "dir/file", "fifo", "link"):
        yield look(path / "default_acl" / name)


@TOPIC.case("default_acl", UMASK)
def default_acl_and_umask(path: Path) -> Iterator[object]:
    with calls.umask(0o077):
        yield create(path / "default_acl/file", mode=0o666)
        yield os.mkdir(path / "default_acl/dir", 0o777)
    for name in ("file", "dir"):
        yield look(path / "default_acl" / name)


@TOPIC.case("dir")
def symbolic_links(path: Path) -> Iterator[object]:
    for index, target in enumerate(("x", "/absolute", "../..", "t" * 4095, "", "t" * 4096)):
        yield attempt(os.symlink, target, path / f"dir/{index}")
        yield look(path / f"dir/{index}")


@TOPIC.case("link dirlink file dir")
def through_symbolic_links(path: Path) -> Iterator[object]:
    yield attempt(calls.put, path / "link", b"through", os.O_TRUNC)
    yield look(path / "file")
    yield look(path / "link")
    yield attempt(create, path / "dirlink/new")
    yield look(path / "dir")
    yield attempt(os.open, path / "link", os.O_RDONLY | os.O_NOFOLLOW)
    yield attempt(os.open, path / "dirlink", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    yield attempt(os.rmdir, path / "dirlink")
    yield attempt(os.unlink, f"{path}/dirlink/")


@TOPIC.case("link")
def through_a_dangling_link(path: Path) -> Iterator[object]:
    yield attempt(create, path / "link")
    yield attempt(calls.put, path / "link", b"made", os.O_CREAT)
    yield look(path / "file")
    yield look(path / "link")


@TOPIC.case("dir", root=True)
def devices(path: Path) -> Iterator[object]:
    yield attempt(os.mknod, path / "dir/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    yield attempt(os.mknod, path / "dir/loop", stat.S_IFBLK | 0o600, os.makedev(7, 201))
    yield attempt(os.mknod, path / "dir/far", stat.S_IFCHR | 0o600, os.makedev(4000, 500000))
    yield look(path / "dir/null")
    yield look(path / "dir/loop")
    yield look(path / "dir/far")
    yield attempt(calls.put, path / "dir/null", b"goes nowhere")
    yield attempt(calls.get, path / "dir/null")


@TOPIC.case("noaccess_dir open_dir", root=True)
def without_permission(path: Path) -> Iterator[object]:
    with calls.user():
        yield attempt(create, path / "new")
        yield attempt(create, path / "noaccess_dir/new")
        yield attempt(os.stat, path / "noaccess_dir/child")
        yield attempt(os.listdir, path / "noaccess_dir")
        yield attempt(os.mkdir, path / "open_dir/mine", 0o555)
        yield attempt(create, path / "open_dir/mine/new")
        yield attempt(os.chmod, path / "open_dir", 0o700)
        yield attempt(os.rename, path / "open_dir/child", path / "open_dir/renamed")
    yield names(path / "open_dir")


@TOPIC.case("odd_names")
def odd_names(path: Path) -> Iterator[object]:
    base = os.fsencode(path / "odd_names")
    for name in (b"tab\t", b"\x01", b"\xc3\x28", b"...", b" ", b"*?[", b"trusted.overlay", b"~"):
        yield attempt(os.mkdir, base + b"/" + name)
        with calls.opened(base + b"/" + name + b"-file", os.O_CREAT | os.O_WRONLY) as fd:
            yield os.write(fd, name)
    yield names(base)


@TOPIC.case("udir")
def deeper_than_a_path(path: Path) -> Iterator[object]:
    fd = os.open(path / "udir", os.O_DIRECTORY)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=fd)
        below = os.open("d" * 200, os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    yield os.listdir(fd)
    os.close(fd)
    # Gone again: the recordings go by path.
    _remove_deep(path / "udir" / ("d" * 200))
    yield names(path / "udir")


def _remove_deep(path: Path) -> None:
    import shutil

    shutil.rmtree(path)
