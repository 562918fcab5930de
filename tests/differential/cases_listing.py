"""Listings: what is in them, how they go on when the directory changes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from tests.differential import calls
from tests.differential.calls import attempt, create, listing, names
from tests.differential.layers import LONG
from tests.differential.table import Steps, Topic
from tests.helpers.libc import Stream

TOPIC = Topic("listing")

DIRECTORIES = (
    *("merged", "umerged", "dir", "udir", "edir", "uempty", "emptied", "low_emptied"),
    *("opaque", "uopaque", "dir_over_file", "white_between", "many", "odd_names", "xwhite"),
    *("deep", "noaccess_dir", "sgid_dir"),
)


def _entries(path: Path, directory: str) -> list[object]:
    """Name, type, and whether the number is that of stat."""
    found: list[object] = []
    for entry in listing(path / directory):
        st = os.lstat(os.fsencode(path / directory) + b"/" + entry.name)
        found.append((entry.name, entry.kind, st.st_mode >> 12 == entry.kind, st.st_ino > 0))
    return found


def _list(directory: str) -> Steps:
    def steps(path: Path) -> Iterator[object]:
        yield attempt(_entries, path, directory)
        yield attempt(create, path / directory / "new")
        yield attempt(os.mkdir, path / directory / "new-dir")
        yield attempt(_entries, path, directory)
        if entries := [entry.name for entry in listing(path / directory) if entry.kind == 8]:
            yield attempt(os.unlink, os.fsencode(path / directory) + b"/" + entries[0])
        yield names(path / directory)

    return steps


for _directory in DIRECTORIES:
    TOPIC.add(_directory, _directory, _list(_directory))


@TOPIC.case("file ufile link fifo sock dir merged uempty")
def kinds(path: Path) -> Iterator[object]:
    yield _entries(path, "")


@TOPIC.case("char block", root=True)
def kinds_of_devices(path: Path) -> Iterator[object]:
    yield _entries(path, "")


@TOPIC.case("merged")
def dot_and_dot_dot(path: Path) -> Iterator[object]:
    for where in ("merged", "merged/sub"):
        with Stream(path / where) as stream:
            dots = {entry.name: entry for entry in stream if entry.name in (b".", b"..")}
        yield sorted(dots)
        yield dots[b"."].ino == os.stat(path / where).st_ino
        yield dots[b".."].ino == os.stat(path / where / "..").st_ino
        yield [entry.kind for entry in dots.values()]


@TOPIC.case("many")
def removed_while_listed(path: Path) -> Iterator[object]:
    seen: list[bytes] = []
    with Stream(path / "many") as stream:
        for entry in stream:
            if entry.name not in (b".", b".."):
                seen.append(entry.name)
                os.unlink(os.fsencode(path / "many") + b"/" + entry.name)
    yield len(seen) == len(set(seen))
    yield sorted(seen)
    yield names(path / "many")
    yield os.rmdir(path / "many")


@TOPIC.case("many")
def every_other_removed_while_listed(path: Path) -> Iterator[object]:
    expected = set(names(path / "many"))
    seen: list[bytes] = []
    with Stream(path / "many") as stream:
        for entry in stream:
            if entry.name in expected:
                seen.append(entry.name)
                if int(entry.name[1:]) % 2:
                    os.unlink(os.fsencode(path / "many") + b"/" + entry.name)
    yield sorted(seen) == sorted(expected)


@TOPIC.case("many")
def made_while_listed(path: Path) -> Iterator[object]:
    expected = set(names(path / "many"))
    seen: list[bytes] = []
    with Stream(path / "many") as stream:
        for index, entry in enumerate(stream):
            seen.append(entry.name)
            if index < 60:
                create(path / "many" / f"new{index}")
    yield len(seen) == len(set(seen))
    yield expected <= set(seen)
    yield len(names(path / "many"))


@TOPIC.case("many")
def renamed_while_listed(path: Path) -> Iterator[object]:
    untouched = {name for name in names(path / "many") if name >= b"n050"}
    seen: list[bytes] = []
    with Stream(path / "many") as stream:
        for entry in stream:
            seen.append(entry.name)
            if entry.name < b"n050" and len(entry.name) == 4:
                old = os.fsencode(path / "many") + b"/" + entry.name
                os.rename(old, old + b"-renamed")
    yield untouched <= set(seen)
    yield len(seen) == len(set(seen))
    yield len(names(path / "many"))


@TOPIC.case("many")
def rewound(path: Path) -> Iterator[object]:
    with Stream(path / "many") as stream:
        first = sorted(entry.name for entry in stream)
        create(path / "many/new")
        os.unlink(path / "many/n001")
        stream.rewind()
        second = sorted(entry.name for entry in stream)
    yield first
    yield set(second) - set(first)
    yield set(first) - set(second)


@TOPIC.case("many")
def sought(path: Path) -> Iterator[object]:
    with Stream(path / "many") as stream:
        stream.take(50)
        middle = stream.tell()
        rest = [entry.name for entry in stream]
        stream.seek(middle)
        yield [entry.name for entry in stream] == rest
        stream.seek(middle)
        yield stream.take(3) == sorted(rest[:3])
        stream.rewind()
        yield len(list(stream))


@TOPIC.case("many")
def every_offset_can_be_sought(path: Path) -> Iterator[object]:
    with Stream(path / "many") as stream:
        order = [(entry.name, entry.offset) for entry in stream]
        right = 0
        for (_, offset), (following, _) in itertools.pairwise(order):
            stream.seek(offset)
            entry = stream.next()
            right += entry is not None and entry.name == following
        yield right == len(order) - 1


@TOPIC.case("many")
def two_streams_at_once(path: Path) -> Iterator[object]:
    with Stream(path / "many") as one, Stream(path / "many") as two:
        first, second = [], []
        for entry in one:
            first.append(entry.name)
            second += two.take(2)
        yield sorted(first) == sorted(second)


@TOPIC.case("dir")
def removed_directory(path: Path) -> Iterator[object]:
    with Stream(path / "dir") as stream:
        yield stream.take(1) != []
        calls.remove(path / "dir")
        stream.rewind()
        yield attempt(stream.take, 5)


@TOPIC.case("dir merged")
def renamed_directory(path: Path) -> Iterator[object]:
    os.mkdir(path / "new")
    create(path / "new/inside")
    with Stream(path / "new") as stream:
        os.rename(path / "new", path / "dir/moved")
        yield sorted(stream.take(10))
        create(path / "dir/moved/more")
        stream.rewind()
        yield sorted(stream.take(10))


@TOPIC.case("long_name")
def long_names(path: Path) -> Iterator[object]:
    yield names(path)
    yield attempt(os.stat, path / LONG) is not None
    yield attempt(os.stat, path / ("x" * 256))
    yield attempt(os.stat, path / ("x" * 255))
    yield attempt(create, path / ("y" * 255))
    yield attempt(create, path / ("y" * 256))
    yield attempt(os.mkdir, path / ("z" * 255))
    yield attempt(os.mkdir, path / ("z" * 256))
    yield attempt(os.symlink, "x", path / ("s" * 256))
    yield attempt(os.unlink, path / LONG)
    yield names(path)


@TOPIC.case("merged")
def changed_after_listing(path: Path) -> Iterator[object]:
    yield names(path / "merged")
    create(path / "merged/gone")
    yield names(path / "merged")
    os.mkdir(path / "merged/gone-dir")
    yield names(path / "merged")
    yield names(path / "merged/gone-dir")
    os.unlink(path / "merged/child")
    os.rename(path / "merged/only-top", path / "merged/child")
    yield names(path / "merged")
    yield _entries(path, "merged")


@TOPIC.case("dir file")
def not_a_directory(path: Path) -> Iterator[object]:
    yield attempt(os.listdir, path / "file")
    yield attempt(os.listdir, path / "nothing")
    yield attempt(os.listdir, path / "dir/child")
    yield attempt(os.stat, path / "file/below")
    yield attempt(os.stat, f"{path}/file/")
    yield attempt(os.open, path / "dir", os.O_WRONLY)
    yield attempt(os.open, path / "dir", os.O_CREAT)
    with calls.opened(path / "dir", os.O_DIRECTORY) as fd:
        yield attempt(os.read, fd, 1)
        yield attempt(os.fsync, fd)


@TOPIC.case("dir", root=True)
def permissions(path: Path) -> Iterator[object]:
    os.chmod(path / "dir/sub", 0o711)
    os.chmod(path / "dir", 0o744)
    with calls.user():
        yield names(path / "dir")
        yield attempt(os.stat, path / "dir/child")
        yield attempt(os.listdir, path / "dir/sub")
    os.chmod(path / "dir", 0o711)
    with calls.user():
        yield names(path / "dir")
        yield calls.get(path / "dir/child")
        yield names(path / "dir/sub")
        yield calls.get(path / "dir/sub/leaf")
