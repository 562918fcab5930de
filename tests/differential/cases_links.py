"""Hard links, numbers and link counts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tests.differential import calls
from tests.differential.calls import attempt, create, look, names, number, put
from tests.differential.designs import COUNT, KEPT, KEPT_ASIDE, NO_NAMES, RENUMBERED
from tests.differential.table import Steps, Topic

TOPIC = Topic("links")

KINDS = ("file", "ufile", "ucover", "covered", "link", "ulink", "fifo", "sock", "uhard")


def _link(kind: str, where: str = "") -> Steps:
    def steps(path: Path) -> Iterator[object]:
        new = path / where / "new"
        before = number(path / kind)
        yield attempt(os.link, path / kind, new, follow_symlinks=False)
        yield look(path / kind)
        yield look(new)
        yield number(path / kind) == before
        yield attempt(number, new) == before

    return steps


def _onto(target: str) -> Steps:
    def steps(path: Path) -> Iterator[object]:
        yield attempt(os.link, path / "file", path / "dst")
        yield look(path / "file")
        yield look(path / "dst")
        yield names(path)
        assert target

    return steps


def _fill() -> None:
    for kind in KINDS:
        design = [] if kind in ("ufile", "ucover", "ulink", "uhard") else [RENUMBERED]
        TOPIC.add(f"{kind}-in-place", kind, _link(kind), *design)
        TOPIC.add(f"{kind}-into-lower-dir", f"{kind} dir", _link(kind, "dir"), *design)
        TOPIC.add(f"{kind}-into-upper-dir", f"{kind} udir", _link(kind, "udir"), *design)
    for kind in ("dir", "udir", "merged"):
        TOPIC.add(f"{kind}-cannot-be-linked", kind, _link(kind))
    for target in ("white", "uwhite", "uwhite_dir", "file", "ufile", "edir", "link"):
        TOPIC.add(f"onto-{target}", f"file dst={target}", _onto(target))


_fill()


def _numbers(path: Path, kind: str) -> list[object]:
    found = (path / kind, path / f"{kind}-2", path / f"{kind}-dir/{kind}-3")
    return [attempt(lambda name=name: os.lstat(name).st_nlink) for name in found]


@TOPIC.case("hard hard_link hard_fifo")
def lower_counts_at_first_sight(path: Path) -> Iterator[object]:
    yield _numbers(path, "hard")
    yield _numbers(path, "hard_link")
    yield _numbers(path, "hard_fifo")
    yield number(path / "hard") == number(path / "hard-2")


@TOPIC.case("hard", KEPT)
def changed_through_one_read_through_the_other(path: Path) -> Iterator[object]:
    yield put(path / "hard", b"changed")
    yield look(path / "hard-2")
    yield look(path / "hard-dir/hard-3")
    yield _numbers(path, "hard")
    yield number(path / "hard") == number(path / "hard-2")


@TOPIC.case("hard", KEPT)
def one_name_removed(path: Path) -> Iterator[object]:
    yield os.unlink(path / "hard")
    yield _numbers(path, "hard")
    yield put(path / "hard-2", b"changed")
    yield look(path / "hard-dir/hard-3")
    yield _numbers(path, "hard")


@TOPIC.case("hard", KEPT)
def all_names_removed(path: Path) -> Iterator[object]:
    for name in ("hard", "hard-2", "hard-dir/hard-3"):
        yield os.unlink(path / name)
        yield _numbers(path, "hard")
    yield names(path)


@TOPIC.case("hard", KEPT)
def one_more_name(path: Path) -> Iterator[object]:
    yield os.link(path / "hard-2", path / "hard-4")
    yield _numbers(path, "hard")
    yield os.lstat(path / "hard-4").st_nlink
    yield put(path / "hard-4", b"changed")
    yield look(path / "hard")


@TOPIC.case("hard", KEPT)
def one_name_renamed(path: Path) -> Iterator[object]:
    yield os.rename(path / "hard", path / "moved")
    yield _numbers(path, "hard")
    yield put(path / "moved", b"changed")
    yield look(path / "hard-2")


@TOPIC.case("hard ufile", KEPT, KEPT_ASIDE)
def one_name_replaced(path: Path) -> Iterator[object]:
    yield os.rename(path / "ufile", path / "hard-2")
    yield _numbers(path, "hard")
    yield look(path / "hard")


@TOPIC.case("hard", KEPT, KEPT_ASIDE)
def removed_and_made_again(path: Path) -> Iterator[object]:
    yield os.unlink(path / "hard-2")
    yield create(path / "hard-2")
    yield _numbers(path, "hard")
    yield look(path / "hard-2")
    yield look(path / "hard")


@TOPIC.case("hard_link", KEPT)
def symbolic_link_with_two_names(path: Path) -> Iterator[object]:
    yield os.chown(path / "hard_link", 0, 0, follow_symlinks=False)
    yield _numbers(path, "hard_link")
    yield os.unlink(path / "hard_link")
    yield _numbers(path, "hard_link")


@TOPIC.case("hard_fifo", KEPT)
def fifo_with_two_names(path: Path) -> Iterator[object]:
    yield os.chmod(path / "hard_fifo", 0o600)
    yield look(path / "hard_fifo-2")
    yield os.unlink(path / "hard_fifo-2")
    yield _numbers(path, "hard_fifo")


@TOPIC.case("hard", KEPT)
def open_file_with_several_names(path: Path) -> Iterator[object]:
    with calls.opened(path / "hard", os.O_RDWR) as fd:
        yield os.write(fd, b"X")
        yield os.fstat(fd).st_nlink
        yield os.unlink(path / "hard")
        yield os.fstat(fd).st_nlink
        yield os.unlink(path / "hard-2")
        yield os.fstat(fd).st_nlink
        yield os.unlink(path / "hard-dir/hard-3")
        yield os.fstat(fd).st_nlink


@TOPIC.case("uhard")
def upper_names(path: Path) -> Iterator[object]:
    yield _numbers(path, "uhard")
    yield put(path / "uhard", b"changed")
    yield look(path / "uhard-2")
    yield os.unlink(path / "uhard")
    yield look(path / "uhard-2")


@TOPIC.case("file")
def many_names(path: Path) -> Iterator[object]:
    for index in range(20):
        os.link(path / "file", path / f"n{index}")
    yield os.stat(path / "n7").st_nlink
    for index in range(0, 20, 2):
        os.unlink(path / f"n{index}")
    yield os.stat(path / "file").st_nlink
    yield os.unlink(path / "file")
    yield os.stat(path / "n1").st_nlink


@TOPIC.case("file")
def copied_up_twice_linked(path: Path) -> Iterator[object]:
    yield os.link(path / "file", path / "one")
    yield os.link(path / "one", path / "two")
    yield os.unlink(path / "file")
    yield look(path / "one")
    yield os.link(path / "two", path / "file")
    yield look(path / "file")


@TOPIC.case("file", NO_NAMES)
def unlinked_open_file_cannot_be_linked(path: Path) -> Iterator[object]:
    with calls.opened(path / "file") as fd:
        os.unlink(path / "file")
        yield os.fstat(fd).st_nlink
        yield attempt(calls.link_descriptor, fd, path / "new")
    yield names(path)


@TOPIC.case("file link")
def through_a_symbolic_link(path: Path) -> Iterator[object]:
    yield attempt(os.link, path / "link", path / "new")
    yield look(path / "new")
    yield os.lstat(path / "file").st_nlink


@TOPIC.case("ufile")
def long_names(path: Path) -> Iterator[object]:
    yield attempt(os.link, path / "ufile", path / ("x" * 255))
    yield attempt(os.link, path / "ufile", path / ("x" * 256))
    yield os.stat(path / "ufile").st_nlink


@TOPIC.case("immutable append file", root=True)
def protected_files(path: Path) -> Iterator[object]:
    yield attempt(os.link, path / "immutable", path / "new")
    yield attempt(os.link, path / "append", path / "new")
    yield names(path)


@TOPIC.case("merged dir udir", COUNT)
def directories(path: Path) -> Iterator[object]:
    for name in ("merged", "dir", "udir", "merged/sub"):
        yield os.stat(path / name).st_nlink
    os.mkdir(path / "dir/new")
    yield os.stat(path / "dir").st_nlink
    os.mkdir(path / "udir/new")
    yield os.stat(path / "udir").st_nlink


@TOPIC.case("file dir merged link fifo covered")
def numbers_stay_across_copy_up(path: Path) -> Iterator[object]:
    kinds = ("file", "dir", "dir/sub", "merged", "link", "fifo", "covered", "")
    before = {kind: number(path / kind) for kind in kinds}
    for kind in kinds:
        yield attempt(os.chown, path / kind, 0, 0, follow_symlinks=False)
        yield number(path / kind) == before[kind]
    yield put(path / "file", b"x")
    yield number(path / "file") == before["file"]
    listed = {entry.name: entry.ino for entry in calls.listing(path)}
    yield [kind for kind in kinds if listed.get(kind.encode()) == before[kind]]


@TOPIC.case("file dir")
def numbers_stay_across_renames(path: Path) -> Iterator[object]:
    before = number(path / "file")
    os.rename(path / "file", path / "new")
    yield number(path / "new") == before
    os.rename(path / "new", path / "dir/new")
    yield number(path / "dir/new") == before
    create(path / "file")
    yield number(path / "file") != before


@TOPIC.case("file")
def new_file_has_a_new_number(path: Path) -> Iterator[object]:
    before = number(path / "file")
    with calls.opened(path / "file") as fd:
        os.unlink(path / "file")
        create(path / "file")
        yield number(path / "file") != before
        yield os.fstat(fd).st_ino == before


@TOPIC.case("file udir merged")
def all_in_one_filesystem(path: Path) -> Iterator[object]:
    device = os.stat(path).st_dev
    kinds = ("file", "udir", "merged", "udir/child", "merged/child")
    yield [os.stat(path / kind).st_dev == device for kind in kinds]
