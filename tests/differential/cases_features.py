"""redirect_dir, metacopy, data-only lowers: what layers say about other layers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tests.differential.calls import attempt, create, look, names, number, put
from tests.differential.designs import REFUSED
from tests.differential.table import Steps, Topic

TOPIC = Topic("features")

ALL = ("off", "on", "nofollow", "follow")


def _seen(kind: str) -> Steps:
    def steps(path: Path) -> Iterator[object]:
        yield look(path / kind)
        for name in ("child", "own", "sub", "sub/leaf"):
            yield look(path / kind / name)
        yield names(path)

    return steps


def _changed(kind: str) -> Steps:
    def steps(path: Path) -> Iterator[object]:
        before = attempt(number, path / kind)
        yield attempt(os.chmod, path / kind, 0o700)
        yield attempt(create, path / kind / "new")
        yield attempt(put, path / kind / "child", b"changed")
        yield attempt(os.unlink, path / kind / "sub/leaf")
        yield look(path / kind)
        yield attempt(number, path / kind) == before
        yield attempt(os.rename, path / kind, path / "renamed")
        yield look(path / "renamed")
        yield names(path)

    return steps


for _kind in ("redirected", "uredirected"):
    _design = [REFUSED] if _kind == "uredirected" else []
    TOPIC.add(f"{_kind}-seen", _kind, _seen(_kind), *_design, sets=ALL)
    TOPIC.add(f"{_kind}-changed", _kind, _changed(_kind), *_design, sets=ALL)
for _kind in ("dir", "merged", "opaque"):
    TOPIC.add(f"{_kind}-renamed", _kind, _changed(_kind), sets=ALL)


@TOPIC.case("metacopied", sets=("on",))
def metacopy_of_a_lower_seen(path: Path) -> Iterator[object]:
    yield look(path / "metacopied")


@TOPIC.case("metacopied", sets=("on",))
def metacopy_of_a_lower_changed(path: Path) -> Iterator[object]:
    yield os.chmod(path / "metacopied", 0o600)
    yield look(path / "metacopied")
    yield put(path / "metacopied", b"changed")
    yield look(path / "metacopied")


@TOPIC.case("metacopied", sets=("on",))
def metacopy_of_a_lower_renamed(path: Path) -> Iterator[object]:
    yield os.rename(path / "metacopied", path / "renamed")
    yield look(path / "renamed")
    yield os.link(path / "renamed", path / "linked")
    yield look(path / "linked")


def _metadata_only(name: str) -> Steps:
    changes = {
        "chmod": lambda path: os.chmod(path, 0o600),
        "chown": lambda path: os.chown(path, 0, 0),
        "utime": lambda path: os.utime(path, ns=(1, 2)),
        "setxattr": lambda path: os.setxattr(path, "user.x", b"y"),
        "link": lambda path: os.link(path, path.with_name("second")),
    }

    def steps(path: Path) -> Iterator[object]:
        yield attempt(changes[name], path / "big")
        yield os.stat(path / "big").st_size, os.stat(path / "big").st_blocks
        yield look(path / "big")

    return steps


def _then_data(name: str) -> Steps:
    changes = {
        "write": lambda path: put(path, b"changed"),
        "append": lambda path: put(path, b"appended", os.O_APPEND),
        "truncate": lambda path: os.truncate(path, 5),
        "truncate-0": lambda path: os.truncate(path, 0),
        "longer": lambda path: os.truncate(path, 400_000),
        "replace": lambda path: put(path, b"replaced", os.O_TRUNC),
    }

    def steps(path: Path) -> Iterator[object]:
        yield os.chmod(path / "big", 0o600)
        yield attempt(changes[name], path / "big")
        yield look(path / "big")

    return steps


for _name in ("chmod", "chown", "utime", "setxattr", "link"):
    TOPIC.add(f"metadata-only-{_name}", "big", _metadata_only(_name), sets=("off", "on"))
for _name in ("write", "append", "truncate", "truncate-0", "longer", "replace"):
    TOPIC.add(f"metadata-then-{_name}", "big", _then_data(_name), sets=("off", "on"))


@TOPIC.case("big", sets=("on",))
def metacopy_renamed_and_its_name_used_again(path: Path) -> Iterator[object]:
    yield os.rename(path / "big", path / "moved")
    yield create(path / "big")
    yield look(path / "moved")
    yield put(path / "moved", b"X")
    yield look(path / "moved")


@TOPIC.case("data_only", sets=("data-only",))
def data_only_seen(path: Path) -> Iterator[object]:
    yield look(path / "data_only")
    yield names(path)


@TOPIC.case("data_only", sets=("data-only",))
def data_only_metadata_changed(path: Path) -> Iterator[object]:
    yield os.chmod(path / "data_only", 0o600)
    yield look(path / "data_only")
    yield os.rename(path / "data_only", path / "renamed")
    yield look(path / "renamed")


@TOPIC.case("data_only", sets=("data-only",))
def data_only_written(path: Path) -> Iterator[object]:
    yield put(path / "data_only", b"changed")
    yield look(path / "data_only")


@TOPIC.case("data_only", sets=("data-only",))
def data_only_linked_and_truncated(path: Path) -> Iterator[object]:
    yield os.link(path / "data_only", path / "second")
    yield os.truncate(path / "second", 7)
    yield look(path / "data_only")
    yield look(path / "second")


@TOPIC.case("merged", sets=("on",))
def redirected_twice(path: Path) -> Iterator[object]:
    yield os.rename(path / "merged", path / "one")
    yield os.mkdir(path / "merged")
    yield os.rename(path / "one", path / "merged/two")
    yield look(path / "merged/two")
    yield look(path / "merged/two/sub")
    yield os.rename(path / "merged/two/sub", path / "three")
    yield look(path / "three")
    yield names(path / "merged/two")


@TOPIC.case("dir uopaque", sets=("on",))
def redirected_below_an_opaque_directory(path: Path) -> Iterator[object]:
    yield os.rename(path / "dir", path / "uopaque/dir")
    yield look(path / "uopaque/dir")
    yield os.rename(path / "uopaque", path / "new")
    yield look(path / "new/dir")
    yield look(path / "new/dir/child")
