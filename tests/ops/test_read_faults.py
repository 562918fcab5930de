"""If any one system call of the daemon fails, reading a tree shows it right or returns an error.

What cannot be determined must count neither as absent nor as present: a directory shown as empty
could be removed, and what a whiteout hides would reappear. Each directory is looked at for the
first time while the call fails; afterwards it shows what it should.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.changes import make_layers
from tests.helpers.faults import MANY, Faults
from tests.helpers.mounts import (
    MODE,
    Space,
    fuse_only,
    make_whiteout,
    scratch,
    set_overlay_xattr,
)
from tests.helpers.tree import Tree, compare, record

pytestmark = [
    fuse_only,
    pytest.mark.skipif(MODE != "root", reason="the same calls in each mode"),
]

#: Not compared: the directories for the calls are made at different times.
TIMES = {"mtime_ns"}
ERRORS = (errno.EIO, errno.EINTR, errno.EMFILE, errno.EACCES)


def _marks(base: Path) -> None:
    """Marks that a mount writes: renamed directories and files, metacopies, hard links."""
    os.rename(base / "dir", base / "renamed")
    os.rename(base / "renamed" / "inside", base / "renamed" / "moved")
    os.chmod(base / "big", 0o600)
    os.rename(base / "big", base / "renamed" / "big")
    os.chmod(base / "linked", 0o640)
    os.unlink(base / "copied")
    (base / "copied").mkdir()


def _foreign(top: Path, bottom: Path) -> None:
    """Marks that other programs leave in lowers."""
    for layer in (top, bottom):
        (layer / "hidden").mkdir()
        (layer / "opaque").mkdir()
        (layer / "marked").mkdir()
    (top / "hidden" / ".wh.gone").touch()
    (bottom / "hidden" / "gone").write_bytes(b"must not come back")
    (top / "opaque" / ".wh..wh..opq").touch()
    (bottom / "opaque" / "gone").write_bytes(b"must not come back")
    (top / "marked" / "gone").touch()
    set_overlay_xattr(top / "marked" / "gone", "whiteout", b"y")
    set_overlay_xattr(top / "marked", "opaque", b"x")
    (bottom / "marked" / "gone").write_bytes(b"must not come back")
    # A redirect below an opaque directory, and to a directory of another name.
    (top / "elsewhere").mkdir()
    set_overlay_xattr(top / "elsewhere", "redirect", b"source")
    (bottom / "source").mkdir()
    (bottom / "source" / "kept").write_bytes(b"kept")
    (bottom / "elsewhere").mkdir()
    (bottom / "elsewhere" / "hidden").write_bytes(b"must not come back")
    make_whiteout(top / "source")


def _make(space: Space, names: list[str]) -> None:
    """Make a directory with everything in it for each name."""
    bottom = space.add_lower()
    for name in names:
        parts = [layer / name for layer in (space.lower, bottom, space.upper)]
        for part in parts:
            part.mkdir()
        make_layers(*parts)
        _foreign(*parts[:2])
    mnt = space.mount()
    for name in names:
        _marks(mnt / name)
    space.unmount()


@contextlib.contextmanager
def _made(names: list[str]) -> Iterator[Space]:
    with scratch() as base:
        space = Space(base)
        space.extra = ("redirect_dir=on", "metacopy=on")
        try:
            _make(space, names)
            yield space
        finally:
            space.drop()


def _counted(space: Space, name: str) -> tuple[int, Tree]:
    """How many calls it takes to look at a directory, and what it shows."""
    faults = Faults(space.base / "faults")
    mnt = faults.mount(space)
    with faults.armed(MANY, errno.EIO):
        tree = record(str(mnt / name))
    space.unmount()
    return MANY - faults.left, tree


@pytest.fixture(scope="module")
def made() -> Iterator[tuple[Space, int, Tree]]:
    """A directory for each call that it takes to look at one, the number of these calls, and what
    each directory shows. Reading changes nothing, so the tests share them."""
    with _made(["counted"]) as space:
        count, _ = _counted(space, "counted")
    with _made(["counted", *map(str, range(1, count + 1))]) as space:
        yield space, *_counted(space, "counted")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("error", ERRORS, ids=lambda code: errno.errorcode[code])
def test_what_cannot_be_read_is_an_error(made: tuple[Space, int, Tree], error: int) -> None:
    space, count, expected = made
    assert count > 50
    assert b"renamed/moved" in expected
    assert not [path for path in expected if b"gone" in path and b"child" in path]
    lowers = space.evidence()
    faults = Faults(space.base / "faults")
    mnt = faults.mount(space)
    wrong = []
    for call in range(1, count + 1):
        base = mnt / str(call)
        with faults.armed(call, error):
            try:
                seen = record(str(base))
            except OSError as exc:
                if exc.errno not in (error, errno.EIO, errno.ESTALE):
                    wrong.append(f"call {call} ({faults.failed}): {exc}")
                seen = expected
        failed = f"call {call} ({faults.failed})"
        # Errors of attributes are not `record`'s to raise.
        shown = compare(expected, seen, ignore=TIMES | {"xattrs"})
        wrong += [f"{failed}: {line}" for line in shown]
        later = compare(expected, record(str(base)), ignore=TIMES)
        wrong += [f"after {failed}: {line}" for line in later]
    assert not wrong, "\n".join(wrong[:40])
    space.daemon.check_log()
    space.unmount()
    space.check_lowers(lowers)
