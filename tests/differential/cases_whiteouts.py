"""Whiteouts and opaque directories wherever they may be, and what is made over them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tests.differential import calls
from tests.differential.calls import attempt, create, look, names, put
from tests.differential.designs import HIDDEN, OCI, XATTR_WHITEOUTS
from tests.differential.table import Steps, Topic

TOPIC = Topic("whiteouts")

HIDING = (
    *("white", "white_dir", "uwhite", "uwhite_dir", "uwhite_nothing", "file_over_dir"),
    *("dir_over_file", "link_over_dir", "white_between", "opaque", "uopaque", "low_emptied"),
    *("emptied", "xwhite"),
)
MAKERS = {
    "file": create,
    "directory": os.mkdir,
    "symlink": lambda path: os.symlink("file", path),
    "fifo": os.mkfifo,
    "opened": lambda path: put(path, b"opened", os.O_CREAT),
    "link": lambda path: os.link(path.with_name("ufile"), path),
    "null": lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
    "whiteout": lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(0, 0)),
    "block-0-0": lambda path: os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(0, 0)),
}


def _seen(kind: str) -> Steps:
    def steps(path: Path) -> Iterator[object]:
        yield look(path / kind)
        for name in ("child", "sub", "own", "hidden", "hidden-dir"):
            yield look(path / kind / name)
        yield names(path)

    return steps


def _made(kind: str, maker: str) -> Steps:
    def steps(path: Path) -> Iterator[object]:
        yield attempt(MAKERS[maker], path / kind)
        yield look(path / kind)
        for name in ("child", "sub"):
            yield look(path / kind / name)
        yield attempt(create, path / kind / "sub")
        yield names(path)

    return steps


def _fill() -> None:
    for kind in HIDING:
        TOPIC.add(kind, kind, _seen(kind))
    for kind in ("white", "white_dir", "uwhite", "uwhite_dir", "uwhite_nothing"):
        for maker in MAKERS:
            root = maker in ("null", "block-0-0")
            TOPIC.add(f"{kind}-then-{maker}", f"{kind} ufile", _made(kind, maker), root=root)
    for kind in ("file", "dir"):
        for maker in ("file", "directory", "opened", "whiteout"):
            TOPIC.add(f"{maker}-where-{kind}-is", f"{kind} ufile", _made(kind, maker))


_fill()


@TOPIC.case("opaque_white low_white", HIDDEN)
def whiteouts_that_hide_nothing(path: Path) -> Iterator[object]:
    for name in ("opaque_white", "low_white"):
        yield names(path / name)
        yield attempt(os.stat, path / name / "hidden")
        yield attempt(os.stat, path / name / "nothing")


@TOPIC.case("low_white")
def over_a_whiteout_that_hides_nothing(path: Path) -> Iterator[object]:
    yield attempt(create, path / "low_white/nothing")
    yield look(path / "low_white/nothing")


@TOPIC.case("opaque_white")
def over_a_whiteout_in_an_opaque_directory(path: Path) -> Iterator[object]:
    yield attempt(os.mkdir, path / "opaque_white/hidden")
    yield names(path / "opaque_white/hidden")


@TOPIC.case("udir")
def mknod_of_a_whiteout_in_an_upper_directory(path: Path) -> Iterator[object]:
    device = os.makedev(0, 0)
    yield attempt(os.mknod, path / "udir/new", stat.S_IFCHR | 0o600, device)
    yield attempt(os.mknod, path / "udir/child", stat.S_IFCHR | 0o600, device)
    yield attempt(os.mknod, path / "udir/new", stat.S_IFREG | 0o600)
    yield attempt(os.mknod, path / "udir/socket", stat.S_IFSOCK | 0o600)
    yield attempt(os.mknod, path / "udir/fifo", stat.S_IFIFO | 0o600)
    yield attempt(os.mknod, path / "udir/bad", stat.S_IFDIR | 0o600)
    yield look(path / "udir")


@TOPIC.case("dir merged")
def hidden_again_and_again(path: Path) -> Iterator[object]:
    for name in ("dir/child", "merged/child", "merged/sub/leaf"):
        for _ in range(3):
            yield attempt(os.unlink, path / name)
            yield attempt(create, path / name)
    yield look(path / "dir")
    yield look(path / "merged")


@TOPIC.case("umerged")
def the_upper_name_goes_the_lower_stays_hidden(path: Path) -> Iterator[object]:
    yield os.unlink(path / "umerged/child")
    yield names(path / "umerged")
    yield create(path / "umerged/gone")
    yield os.unlink(path / "umerged/gone")
    yield names(path / "umerged")


@TOPIC.case("uopaque")
def inside_an_opaque_upper_directory(path: Path) -> Iterator[object]:
    yield os.unlink(path / "uopaque/child")
    yield create(path / "uopaque/child")
    yield os.unlink(path / "uopaque/child")
    yield names(path / "uopaque")


@TOPIC.case("opaque")
def inside_an_opaque_lower_directory(path: Path) -> Iterator[object]:
    yield create(path / "opaque/hidden")
    yield os.unlink(path / "opaque/hidden")
    yield os.unlink(path / "opaque/own")
    yield names(path / "opaque")
    yield attempt(os.rmdir, path / "opaque")
    yield os.mkdir(path / "opaque")
    yield names(path / "opaque")


@TOPIC.case("xwhite")
def over_attribute_whiteouts(path: Path) -> Iterator[object]:
    yield create(path / "xwhite/hidden")
    yield os.mkdir(path / "xwhite/hidden-dir")
    yield names(path / "xwhite/hidden-dir")
    yield os.unlink(path / "xwhite/child")
    yield names(path / "xwhite")
    yield os.unlink(path / "xwhite/hidden")
    yield names(path / "xwhite")


@TOPIC.case("xwhite", XATTR_WHITEOUTS)
def attribute_whiteouts_and_removal(path: Path) -> Iterator[object]:
    yield attempt(os.rmdir, path / "xwhite/sub")
    yield attempt(calls.remove, path / "xwhite")
    yield os.mkdir(path / "xwhite")
    yield names(path / "xwhite")


@TOPIC.case("dir", OCI)
def names_of_oci_whiteouts(path: Path) -> Iterator[object]:
    yield attempt(create, path / "dir/.wh.child")
    yield attempt(os.mkdir, path / "dir/.wh..wh..opq")
    yield attempt(os.rename, path / "dir/child", path / "dir/.wh.sub")
    yield names(path / "dir")


@TOPIC.case("white_dir")
def directory_over_a_whiteout_shows_nothing_below(path: Path) -> Iterator[object]:
    yield os.mkdir(path / "white_dir")
    yield os.mkdir(path / "white_dir/sub")
    yield names(path / "white_dir/sub")
    yield os.rmdir(path / "white_dir/sub")
    yield os.rmdir(path / "white_dir")
    yield names(path)


@TOPIC.case("merged")
def look_up_of_hidden_names(path: Path) -> Iterator[object]:
    for name in ("gone", "gone-dir", "gone-dir/child", "never"):
        yield attempt(os.stat, path / "merged" / name)
        yield attempt(os.open, path / "merged" / name, os.O_RDONLY)
        yield attempt(os.unlink, path / "merged" / name)
        yield attempt(os.rename, path / "merged" / name, path / "new")
        yield attempt(os.link, path / "merged" / name, path / "new")
    yield names(path / "merged")
