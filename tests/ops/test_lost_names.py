"""Lower files with several names, if somebody removes or replaces the name by which the mount found
the file: the other names still lead to it.

A user with a link to somebody else's file in a directory of their own must not be able to make the
file inaccessible.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.mounts import Space, fails, fuse_only

pytestmark = [fuse_only, pytest.mark.timeout(60)]

CONTENT = "genuine"


def _append(path: Path) -> None:
    with path.open("a") as stream:
        stream.write(" more")


#: What is done by the other name, and what it shows then.
CHANGES: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "stat": (os.stat, ""),
    "read": (Path.read_bytes, ""),
    "append": (_append, " more"),
    "mode": (lambda path: path.chmod(0o600), ""),
    "rename": (lambda path: path.rename(path.with_name("moved")).rename(path), ""),
    "link": (lambda path: os.link(path, path.with_name("linked")), ""),
    "remove": (os.unlink, None),
}

TAKEN: dict[str, Callable[[Path], object]] = {
    "removed": os.unlink,
    "replaced": lambda path: path.with_name("other").rename(path),
}


def make_names(base: Path, links: int) -> None:
    """A file `etc/f` with another name `home/x`, and maybe a third, `etc/third`."""
    home, etc = base / "home", base / "etc"
    home.mkdir(parents=True)
    etc.mkdir()
    (home / "other").write_text("forged")
    (etc / "f").write_text(CONTENT)
    os.link(etc / "f", home / "x")
    if links == 3:
        os.link(etc / "f", etc / "third")


def check(shown: Path, added: str | None) -> None:
    """What the other names show after a change of `etc/f`."""
    if added is None:
        assert not (shown / "etc" / "f").exists()
    else:
        assert (shown / "etc" / "f").read_text() == CONTENT + added


@pytest.mark.parametrize("taken", TAKEN)
@pytest.mark.parametrize("seen", [("home/x",), ("home/x", "etc/f"), ("etc/f", "home/x")])
@pytest.mark.parametrize("options", [(), ("index=off",), ("timeout=0",)])
def test_the_name_that_was_looked_up(
    space: Space, options: tuple[str, ...], seen: tuple[str, ...], taken: str
) -> None:
    space.extra = options
    for links in (2, 3):
        for change in CHANGES:
            make_names(space.lower / f"{change}{links}", links)
    space.mount()
    for base in space.lower.iterdir():
        change, links = base.name[:-1], int(base.name[-1])
        shown = space.mnt / base.name
        for name in seen:
            os.stat(shown / name)
        TAKEN[taken](base / "home" / "x")
        act, added = CHANGES[change]
        act(shown / "etc" / "f")
        check(shown, added)
        if links == 3 and "index=off" not in options:
            assert (shown / "etc" / "third").read_text() == CONTENT + (added or "")
        assert (base / "etc" / "f").read_text() == CONTENT
    space.remount()
    for base in space.lower.iterdir():
        shown, (_, added) = space.mnt / base.name, CHANGES[base.name[:-1]]
        check(shown, added)
        if (shown / "etc" / "third").exists() and "index=off" not in options:
            assert (shown / "etc" / "third").read_text() == CONTENT + (added or "")
    space.unmount()


@pytest.fixture(params=[2, 3])
def names(request: pytest.FixtureRequest, space: Space) -> Space:
    """A lower with such a file, with so many names."""
    make_names(space.lower, request.param)
    return space


@pytest.mark.parametrize("taken", TAKEN)
def test_open_file(names: Space, taken: str) -> None:
    """Descriptors opened by the removed name and by another one still lead to that file."""
    mnt = names.mount()
    with (mnt / "etc" / "f").open("r+b", 0) as f, (mnt / "home" / "x").open("rb", 0) as x:
        TAKEN[taken](names.lower / "home" / "x")
        assert x.read() == CONTENT.encode()
        assert os.fstat(f.fileno()).st_ino == os.fstat(x.fileno()).st_ino
        f.write(b"GENUINE")
        x.seek(0)
        assert x.read() == b"GENUINE"
    assert (mnt / "etc" / "f").read_text() == "GENUINE"
    names.remount()
    assert (mnt / "etc" / "f").read_text() == "GENUINE"
    names.unmount()


def test_all_names_are_gone(names: Space) -> None:
    """Then the file is gone; its replacement is not shown with the old attributes."""
    mnt = names.mount()
    with (mnt / "etc" / "f").open("r+b", 0) as f, (mnt / "home" / "x").open("rb", 0) as x:
        for name in ("home/x", "etc/f", "etc/third"):
            (names.lower / name).unlink(missing_ok=True)
        for stream in (f, x):
            with fails(errno.ENOENT):
                stream.read()
        with fails(errno.ENOENT):
            f.write(b"lost")
        assert not [path for path in names.upper.rglob("*") if not path.is_dir()]
    names.unmount()
