"""Fixtures of the file operation tests.

`space` is a private, unmounted overlay. `case` is one directory in an overlay that all tests of a
module share, because a mount takes longer than most tests. Each test has its own copy of the
objects that `populate` makes: lower-only, upper-only or copied up (`where`). At the end of the
module the whole tree is checked after a remount, and as kernel overlayfs shows the same upper.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.mounts import Space, scratch, traces
from tests.helpers.repeated import skip_repeated
from tests.helpers.tree import compare

#: In which order changes reach the disk the extension has no part in.
_ORDER = {"test_crash", "test_durable"}
#: Neither capabilities nor who mounts play a part in them: what is read and listed, requests,
#: layers that others change.
_READ = {
    *("test_changed_layers", "test_concurrent", "test_dialects", "test_direct_io"),
    *("test_edited_layers", "test_exchanged", "test_listing", "test_listing_ends"),
    *("test_lost_names", "test_odd_layers", "test_readahead", "test_requests"),
}

CONTENT = b"content of f\n" * 100
#: Times with nanoseconds, long ago: a changed time is never equal by accident.
ATIME, MTIME = 1_100_000_000_123_456_789, 1_200_000_000_987_654_321
ORIGINS = ("lower", "upper", "copied")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`skip_repeated`."""
    skip_repeated(items, Path(__file__).parent, without_extension=_ORDER, by_user=_READ)


def populate(base: Path) -> None:
    """Make the objects that each test has: files f and g, directories d (full) and e (empty), link
    s, fifo p, socket k."""
    (base / "f").write_bytes(CONTENT)
    (base / "f").chmod(0o640)
    os.setxattr(base / "f", "user.colour", b"red")
    (base / "g").write_bytes(b"content of g\n")
    (base / "d" / "sub").mkdir(parents=True)
    (base / "d" / "child").write_bytes(b"child")
    (base / "d" / "sub" / "leaf").write_bytes(b"leaf")
    (base / "d").chmod(0o750)
    (base / "e").mkdir()
    os.symlink("f", base / "s")
    os.mkfifo(base / "p", 0o620)
    make_socket(base / "k")
    for name in ("f", "g", "d/child", "d/sub/leaf", "d/sub", "d", "e", "s", "p", "k"):
        os.utime(base / name, ns=(ATIME, MTIME), follow_symlinks=False)


def make_socket(path: Path) -> None:
    """Bind a socket by a short address, however long the path is."""
    fd = os.open(path.parent, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(f"/proc/self/fd/{fd}/{path.name}")
    finally:
        os.close(fd)


def copy_up(base: Path) -> None:
    """Make the mount copy up everything that `populate` made, changing nothing visible."""
    for path in [*base.rglob("*")]:
        st = path.lstat()
        os.chown(path, st.st_uid, st.st_gid, follow_symlinks=False)
        if not path.is_symlink():
            os.chmod(path, st.st_mode & 0o7777)
        os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns), follow_symlinks=False)


@dataclass
class Case:
    """One test's directory: seen through the mount, in the lower, in the upper."""

    space: Space
    name: str
    where: str

    @property
    def path(self) -> Path:
        """Through the mount."""
        return self.space.mnt / self.name

    @property
    def lower(self) -> Path:
        """In the lower directory."""
        return self.space.lower / self.name

    @property
    def upper(self) -> Path:
        """In the upper directory."""
        return self.space.upper / self.name

    def is_up(self, name: str) -> bool:
        """Whether the upper has this name."""
        return os.path.lexists(self.upper / name)


class Shared:
    """The mount that the tests of one module share."""

    def __init__(self, space: Space, cases: dict[str, str]) -> None:
        self.space = space
        for name, where in cases.items():
            (space.lower / name).mkdir()
            if where == "upper":
                (space.upper / name).mkdir()
                populate(space.upper / name)
            else:
                populate(space.lower / name)
        self.before = space.evidence()
        space.mount()

    def case(self, name: str, where: str) -> Case:
        """The directory `name`; mounts again if the mount no longer answers."""
        if not self.space.alive():
            self.space.drop()
            self.space.mount()
        if self.space.daemon is not None:
            self.space.daemon.rearm()
        case = Case(self.space, name, where)
        if where == "copied":
            copy_up(case.path)
        return case

    def check(self, case: Case) -> None:
        """After a test: its part of the lower is unchanged, and the daemon is alive and has logged
        no bug."""
        prefix = os.fsencode(case.name) + b"/"
        was = {
            path.removeprefix(prefix): about
            for path, about in self.before[0].items()
            if path.startswith(prefix)
        }
        now = traces(case.lower)
        now.pop(b".")
        lines = compare(was, now)
        assert not lines, "the lower was touched:\n" + "\n".join(lines)
        if self.space.daemon is not None:
            assert self.space.alive(), f"the daemon died:\n{self.space.daemon.text()}"
            self.space.daemon.check_log()

    def finish(self) -> None:
        """At the end of the module: same tree after a remount, lowers as they were."""
        self.space.settle()
        self.space.check_lowers(self.before)


def _case_name(item: pytest.Item) -> str:
    return re.sub(r"[^\w.-]+", "_", item.name)


def _cases_of(module: types.ModuleType, session: pytest.Session) -> dict[str, str]:
    cases = {}
    for item in session.items:
        if isinstance(item, pytest.Function) and item.module is module:
            params = item.callspec.params if hasattr(item, "callspec") else {}
            if "case" in item.fixturenames:
                cases[_case_name(item)] = params.get("where", "lower")
    return cases


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest) -> Iterator[Shared]:
    """The module's overlay, with a directory for every test that asks for `case`."""
    with scratch() as base:
        space = Space(base)
        space.kernel_reads = getattr(request.module, "KERNEL_READS", True)
        os.umask(0o022)
        try:
            shared = Shared(space, _cases_of(request.module, request.session))
            yield shared
            shared.finish()
        finally:
            space.drop()


@pytest.fixture(params=ORIGINS)
def where(request: pytest.FixtureRequest) -> str:
    """Where the objects of `case` live."""
    return request.param


@pytest.fixture
def case(request: pytest.FixtureRequest, shared: Shared) -> Iterator[Case]:
    """A directory of the shared mount for this test alone; lower-only unless `where` says."""
    callspec = getattr(request.node, "callspec", None)
    origin = callspec.params.get("where", "lower") if callspec else "lower"
    case = shared.case(_case_name(request.node), origin)
    try:
        yield case
    finally:
        with contextlib.suppress(OSError):
            os.umask(0o022)
    shared.check(case)
