"""Files that are made without a name (O_TMPFILE), and times of birth."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.differential import calls
from tests.differential.calls import attempt, create, look, names, opened, seen, user
from tests.differential.designs import PYFUSE3, UMASK
from tests.differential.table import Steps, Topic
from tests.helpers import libc

TOPIC = Topic("nameless")

TMPFILE = os.O_TMPFILE | os.O_RDWR
DIRECTORIES = ("dir", "udir", "merged", "umerged", "opaque", "sgid_dir", "default_acl")


def _opens(*args: Any, **kwargs: Any) -> None:
    os.close(os.open(*args, **kwargs))


def _made_in(kind: str, *, linked: bool) -> Steps:
    def steps(path: Path) -> Iterator[object]:
        with opened(path / kind, TMPFILE, 0o640) as fd:
            yield seen(os.fstat(fd))
            yield os.write(fd, b"without a name"), os.pread(fd, 100, 0)
            yield attempt(os.fchmod, fd, 0o604), attempt(os.setxattr, fd, "user.x", b"y")
            yield attempt(os.ftruncate, fd, 10), attempt(os.utime, fd, (1, 1))
            yield attempt(libc.fallocate, fd, 0, 0, 5000)
            yield attempt(os.fsync, fd)
            yield seen(os.fstat(fd)), os.listxattr(fd)
            yield names(path / kind)
            if linked:
                yield attempt(calls.link_descriptor, fd, path / kind / "named")
                yield attempt(calls.link_descriptor, fd, path / kind / "named")
                yield attempt(calls.link_descriptor, fd, path / "twice")
                yield os.fstat(fd).st_ino == os.stat(path / "twice").st_ino
                yield os.write(fd, b"more"), seen(os.fstat(fd))
        yield look(path / kind)
        yield look(path / kind / "named"), look(path / "twice")

    return steps


for _kind in DIRECTORIES:
    _root = _kind == "sgid_dir"
    for _linked in (False, True):
        _name = f"{_kind}-linked" if _linked else _kind
        TOPIC.add(_name, _kind, _made_in(_kind, linked=_linked), PYFUSE3, root=_root)


@TOPIC.case("dir", PYFUSE3)
def exclusive_file_never_gets_a_name(path: Path) -> Iterator[object]:
    with opened(path / "dir", TMPFILE | os.O_EXCL) as fd:
        yield attempt(calls.link_descriptor, fd, path / "named")
    yield names(path)


@TOPIC.case("dir", PYFUSE3)
def modes_of_nameless_files(path: Path) -> Iterator[object]:
    for mode in (0, 0o444, 0o7777, 0o200):
        with calls.umask(0o027), opened(path / "dir", TMPFILE, mode) as fd:
            yield seen(os.fstat(fd))
            yield attempt(os.write, fd, b"text")
            yield attempt(calls.link_descriptor, fd, path / f"with-{mode:o}")
        yield look(path / f"with-{mode:o}")


@TOPIC.case("default_acl", PYFUSE3, UMASK)
def default_acl_of_nameless_files(path: Path) -> Iterator[object]:
    with calls.umask(0o077), opened(path / "default_acl", TMPFILE, 0o666) as fd:
        yield seen(os.fstat(fd))
        yield attempt(calls.link_descriptor, fd, path / "default_acl/named")
    yield look(path / "default_acl/named")


@TOPIC.case("dir file white uwhite link noaccess_dir open_dir", PYFUSE3, root=True)
def where_nameless_files_can_be_made(path: Path) -> Iterator[object]:
    for name in ("file", "white", "nothing"):
        yield attempt(_opens, path / name, TMPFILE)
    yield attempt(_opens, path / "dir", os.O_TMPFILE | os.O_RDONLY)
    with user():
        yield attempt(_opens, path / "dir", TMPFILE)
        yield attempt(_opens, path / "noaccess_dir", TMPFILE)
        with opened(path / "open_dir", TMPFILE, 0o600) as fd:
            yield seen(os.fstat(fd))
            yield attempt(calls.link_descriptor, fd, path / "open_dir/mine")
            yield attempt(calls.link_descriptor, fd, path / "dir/mine")
    yield look(path / "open_dir/mine")
    yield look(path / "dir")


@TOPIC.case("dir uwhite", PYFUSE3)
def nameless_file_over_a_whiteout(path: Path) -> Iterator[object]:
    os.unlink(path / "dir/child")
    with opened(path / "dir", TMPFILE) as fd:
        yield os.write(fd, b"new")
        yield attempt(calls.link_descriptor, fd, path / "dir/child")
        yield attempt(calls.link_descriptor, fd, path / "uwhite")
    yield look(path / "dir/child"), look(path / "uwhite")


@TOPIC.case("udir", PYFUSE3)
def nameless_file_in_a_removed_directory(path: Path) -> Iterator[object]:
    os.mkdir(path / "gone")
    with opened(path / "gone", os.O_RDONLY) as directory:
        os.rmdir(path / "gone")
        yield attempt(_opens, ".", TMPFILE, dir_fd=directory)


@TOPIC.case("dir", PYFUSE3)
def nameless_file_loses_its_name_again(path: Path) -> Iterator[object]:
    with opened(path / "dir", TMPFILE) as fd:
        yield os.write(fd, b"text")
        yield attempt(calls.link_descriptor, fd, path / "named")
        yield attempt(os.unlink, path / "named")
        yield seen(os.fstat(fd)), os.pread(fd, 100, 0)
        yield attempt(calls.link_descriptor, fd, path / "named")
    yield names(path)


# Times of birth


def _birth(path: Path) -> object:
    """The time of birth in seconds, asked with all the rest."""
    found = subprocess.run(["stat", "-c", "%W", str(path)], capture_output=True, check=False)
    return int(found.stdout)


@TOPIC.case("file dir link ufile udir fifo merged", PYFUSE3)
def births(path: Path) -> Iterator[object]:
    """Of objects in layers that both sides share: the very second."""
    for name in ("file", "dir", "link", "fifo", "merged"):
        yield _birth(path / name)
    for name in ("ufile", "udir"):
        yield _birth(path / name) > 0


@TOPIC.case("file dir", PYFUSE3)
def births_after_copy_up(path: Path) -> Iterator[object]:
    """What was copied was born then."""
    before = [_birth(path / name) for name in ("file", "dir")]
    yield min(before) > 0
    os.chmod(path / "file", 0o600)
    os.chmod(path / "dir", 0o700)
    yield [old <= _birth(path / name) for old, name in zip(before, ("file", "dir"), strict=True)]
    yield _birth_of_upper_is_shown(path / "file")
    create(path / "new")
    yield _birth(path / "new") >= before[0]


def _birth_of_upper_is_shown(path: Path) -> bool:
    """A birth is never later than a change."""
    return _birth(path) <= int(os.stat(path).st_ctime)
