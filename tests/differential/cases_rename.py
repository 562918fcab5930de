"""rename: every source onto every target, plainly, exchanged, and onto nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from fuseoverlay.system.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.differential import calls
from tests.differential.calls import attempt, create, look, names, number, put
from tests.differential.designs import KEPT, LONG_PATH, NO_TRACE, NO_TRACE_OF_MERGED
from tests.differential.table import Steps, Topic

TOPIC = Topic("rename")
RENAME_WHITEOUT = 4

SOURCES = (
    *("file", "ufile", "ucover", "link", "ulink", "fifo", "hard"),
    *("edir", "uempty", "dir", "udir", "merged", "umerged", "uopaque", "opaque"),
)
TARGETS = (
    *("white", "uwhite", "uwhite_dir", "file", "ufile", "ucover", "link", "fifo"),
    *("edir", "uempty", "emptied", "low_emptied", "dir", "udir"),
)
EXCHANGED = ("file", "ufile", "link", "dir", "udir", "merged", "uopaque", "emptied", "hard")


def _steps(flags: int, src: str = "src", dst: str = "dst") -> Steps:
    def steps(path: Path) -> Iterator[object]:
        before = attempt(number, path / src)
        yield attempt(calls.rename, path / src, path / dst, flags)
        yield look(path / src)
        yield look(path / dst)
        yield attempt(number, path / dst) == before
        yield names(path)

    return steps


#: Renames that fail with index=off, so that nothing becomes of the hard links.
FAILING = {
    *("rename-hard-onto-edir", "rename-hard-onto-uempty", "rename-hard-onto-emptied"),
    *("rename-hard-onto-low_emptied", "rename-hard-onto-dir", "rename-hard-onto-udir"),
    *("rename-hard-noreplace-file", "rename-hard-noreplace-emptied"),
    "rename-hard-exchange-white",
    *(f"rename-hard-exchange-{kind}" for kind in ("dir", "merged", "emptied")),
    *(f"rename-{kind}-exchange-hard" for kind in ("dir", "merged", "emptied")),
}
DIRECTORIES = {"edir", "dir", "merged", "umerged", "uopaque", "opaque"}


def _add(name: str, needs: str, steps: Steps) -> None:
    design = []
    if "=hard" in needs and f"rename-{name}" not in FAILING:
        design = [KEPT]
    elif name.endswith("-onto-udir") and name.removesuffix("-onto-udir") in DIRECTORIES:
        design = [NO_TRACE if name.startswith("uopaque") else NO_TRACE_OF_MERGED]
    TOPIC.add(name, needs, steps, *design)


def _fill() -> None:
    for source in SOURCES:
        for where in ("nothing", "lower-dir", "upper-dir"):
            target = {"nothing": "dst", "lower-dir": "dir/dst", "upper-dir": "udir/dst"}[where]
            above = target.removesuffix("dst").strip("/")
            _add(f"{source}-to-{where}", f"src={source} {above}", _steps(0, dst=target))
        for target in TARGETS:
            _add(f"{source}-onto-{target}", f"src={source} dst={target}", _steps(0))
        for target in ("white", "file", "emptied"):
            needs = f"src={source} dst={target}"
            _add(f"{source}-noreplace-{target}", needs, _steps(RENAME_NOREPLACE))
    for first in EXCHANGED:
        for second in EXCHANGED:
            needs = f"src={first} dst={second}"
            _add(f"{first}-exchange-{second}", needs, _steps(RENAME_EXCHANGE))
        _add(f"{first}-exchange-white", f"src={first} dst=white", _steps(RENAME_EXCHANGE))
    for flags, name in (
        (RENAME_WHITEOUT, "whiteout-flag"),
        (RENAME_EXCHANGE | RENAME_NOREPLACE, "exchange-noreplace"),
        (1 << 10, "unknown-flag"),
    ):
        TOPIC.add(name, "src=file", _steps(flags))
        TOPIC.add(f"{name}-existing", "src=file dst=ufile", _steps(flags))


_fill()


@TOPIC.case("file")
def onto_itself(path: Path) -> Iterator[object]:
    yield attempt(calls.rename, path / "file", path / "file")
    yield look(path / "file")


@TOPIC.case("file edir")
def dots_and_missing(path: Path) -> Iterator[object]:
    yield attempt(os.rename, path / "nothing", path / "file")
    yield attempt(os.rename, path / "file", path / "nothing/below")
    yield attempt(os.rename, path / "file", path / "file/below")
    yield attempt(os.rename, f"{path}/edir/.", path / "new")
    yield attempt(os.rename, f"{path}/edir/..", path / "new")
    yield attempt(os.rename, path / "file", f"{path}/edir/..")
    yield attempt(os.rename, f"{path}/file/", path / "new")
    yield attempt(os.rename, path / "file", f"{path}/new/")
    yield names(path)


@TOPIC.case("udir")
def into_itself(path: Path) -> Iterator[object]:
    yield attempt(os.rename, path / "udir", path / "udir/sub/new")
    yield attempt(calls.rename, path / "udir", path / "udir/sub", RENAME_EXCHANGE)
    yield look(path / "udir")


@TOPIC.case("dir")
def lower_into_itself(path: Path) -> Iterator[object]:
    yield attempt(os.rename, path / "dir", path / "dir/sub/new")
    yield look(path / "dir")


@TOPIC.case("uhard")
def onto_its_other_name(path: Path) -> Iterator[object]:
    yield attempt(os.rename, path / "uhard", path / "uhard-2")
    yield names(path)
    yield look(path / "uhard")


@TOPIC.case("hard", KEPT)
def lower_onto_its_other_name(path: Path) -> Iterator[object]:
    yield attempt(os.rename, path / "hard", path / "hard-2")
    yield names(path)


@TOPIC.case("hard", KEPT)
def copied_onto_its_other_name(path: Path) -> Iterator[object]:
    yield os.chmod(path / "hard", 0o600)
    yield attempt(os.rename, path / "hard", path / "hard-2")
    yield names(path)


@TOPIC.case("uhard")
def exchange_of_two_names_of_one_file(path: Path) -> Iterator[object]:
    yield attempt(calls.rename, path / "uhard", path / "uhard-2", RENAME_EXCHANGE)
    yield look(path / "uhard")


@TOPIC.case("file")
def there_and_back(path: Path) -> Iterator[object]:
    before = number(path / "file")
    yield os.rename(path / "file", path / "other")
    yield os.rename(path / "other", path / "file")
    yield look(path / "file")
    yield number(path / "file") == before
    yield names(path)


@TOPIC.case("dir")
def directory_there_and_back(path: Path) -> Iterator[object]:
    yield attempt(os.rename, path / "dir", path / "other")
    yield attempt(os.rename, path / "other", path / "dir")
    yield look(path / "dir")
    yield names(path)


@TOPIC.case("dir udir")
def directory_twice_and_deeper(path: Path) -> Iterator[object]:
    yield attempt(os.rename, path / "dir", path / "udir/first")
    yield attempt(os.rename, path / "udir/first", path / "second")
    yield attempt(os.rename, path / "second/sub", path / "udir/third")
    yield look(path / "second")
    yield look(path / "udir/third")
    yield look(path / "udir/third/leaf")


@TOPIC.case("merged")
def children_of_a_renamed_directory(path: Path) -> Iterator[object]:
    yield attempt(os.rename, path / "merged", path / "new")
    for name in ("child", "only-top", "only-bottom", "sub/leaf", "gone", "gone-dir"):
        yield look(path / "new" / name)
        yield attempt(put, path / "new" / name, b"changed")
    yield attempt(os.unlink, path / "new/only-middle")
    yield names(path / "new")
    yield attempt(os.mkdir, path / "merged")
    yield names(path / "merged")


@TOPIC.case("dir")
def old_name_used_again(path: Path) -> Iterator[object]:
    yield attempt(os.rename, path / "dir", path / "moved")
    yield attempt(os.mkdir, path / "dir")
    yield attempt(create, path / "dir/fresh")
    yield names(path / "dir")
    yield names(path / "moved")


@TOPIC.case("file")
def old_file_name_used_again(path: Path) -> Iterator[object]:
    yield os.rename(path / "file", path / "moved")
    yield names(path)
    yield create(path / "file")
    yield look(path / "file")
    yield look(path / "moved")


@TOPIC.case("file edir")
def file_name_becomes_a_directory(path: Path) -> Iterator[object]:
    yield os.rename(path / "file", path / "moved")
    yield os.mkdir(path / "file")
    yield create(path / "file/child")
    yield look(path / "file")


@TOPIC.case("dir")
def lower_child_out_of_its_directory(path: Path) -> Iterator[object]:
    yield os.rename(path / "dir/child", path / "child")
    yield os.rename(path / "dir/sub/leaf", path / "dir/child")
    yield look(path / "dir")
    yield look(path / "dir/child")
    yield look(path / "child")
    yield calls.seen(os.lstat(path / "dir"))


@TOPIC.case("ufile umerged")
def times_of_the_parents(path: Path) -> Iterator[object]:
    long_ago = 1_000_000_000_000_000_000
    for name in ("", "umerged"):
        os.utime(path / name, ns=(long_ago, long_ago))
    yield os.rename(path / "ufile", path / "umerged/ufile")
    yield calls.seen(os.lstat(path))
    yield calls.seen(os.lstat(path / "umerged"))
    yield calls.seen(os.lstat(path / "umerged/ufile"))


@TOPIC.case("file")
def chain_of_names(path: Path) -> Iterator[object]:
    previous = path / "file"
    for index in range(20):
        os.rename(previous, path / f"n{index}")
        previous = path / f"n{index}"
    yield names(path)
    yield look(previous)


@TOPIC.case("file covered")
def swap_through_a_third(path: Path) -> Iterator[object]:
    yield os.rename(path / "file", path / "temporary")
    yield os.rename(path / "covered", path / "file")
    yield os.rename(path / "temporary", path / "covered")
    yield look(path / "file")
    yield look(path / "covered")
    yield names(path)


@TOPIC.case("file")
def replaced_as_editors_do(path: Path) -> Iterator[object]:
    yield create(path / ".file.new", b"edited")
    yield os.rename(path / ".file.new", path / "file")
    yield look(path / "file")


@TOPIC.case("file")
def replaced_with_a_backup_link(path: Path) -> Iterator[object]:
    yield os.link(path / "file", path / "file~")
    yield create(path / ".file.new", b"edited")
    yield os.rename(path / ".file.new", path / "file")
    yield look(path / "file")
    yield look(path / "file~")


@TOPIC.case("long_name", LONG_PATH)
def long_names(path: Path) -> Iterator[object]:
    for length in (255, 256):
        [name] = os.listdir(path)
        yield attempt(os.rename, path / name, path / ("x" * length))
    yield names(path)


@TOPIC.case("sticky", root=True)
def sticky_directory(path: Path) -> Iterator[object]:
    with calls.user():
        yield attempt(os.rename, path / "sticky/child", path / "sticky/new")
        yield attempt(create, path / "sticky/mine")
        yield attempt(os.rename, path / "sticky/mine", path / "sticky/child")
        yield attempt(os.rename, path / "sticky/mine", path / "sticky/renamed")
    yield names(path / "sticky")


@TOPIC.case("immutable src=immutable_dir file", root=True)
def immutable_objects(path: Path) -> Iterator[object]:
    yield attempt(os.rename, path / "immutable", path / "new")
    yield attempt(os.rename, path / "file", path / "immutable")
    yield attempt(os.rename, path / "file", path / "src/new")
    yield attempt(os.rename, path / "src/child", path / "new")
    yield attempt(os.rename, path / "src", path / "new")
    yield names(path)
    yield names(path / "src")
