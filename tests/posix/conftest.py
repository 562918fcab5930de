"""The filesystems on which the table runs: one mount each for all its functions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.mounts import MODE, Space, scratch
from tests.helpers.tree import Tree
from tests.ops.conftest import ORIGINS, copy_up
from tests.posix.table import TABLE, name_of, populate

PROJECT = Path(__file__).resolve().parents[2]
#: (implementation, where the objects are).
PLACES = [("plain", "")] + [(impl, where) for impl in ("kernel", "fuse") for where in ORIGINS]
#: With these a merged directory can be renamed and a hard link survives its copy-up, as on
#: any other filesystem. In a user namespace the kernel has none of them.
FEATURES = ("redirect_dir=on", "index=on")


class Reference:
    """What the functions answer on a plain directory."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._answers: dict[str, object] = {}

    def answer(self, name: str) -> object:
        """The answer; each function runs once."""
        if name not in self._answers:
            # Stays where the function fails.
            self._answers[name] = pytest.fail.Exception(f"{name} fails on a plain directory")
            d = self._base / name
            d.mkdir()
            populate(d)
            self._answers[name] = run(name, d)
        answer = self._answers[name]
        if isinstance(answer, BaseException):
            raise answer
        return answer


def run(name: str, d: Path) -> object:
    """Call a function of the table with its directory; the answer or the errno's name."""
    os.umask(0o022)
    try:
        return TABLE[name].function(d)
    except OSError as exc:
        return f"fails with {name_of(exc.errno)}"
    finally:
        os.umask(0o022)
        os.chdir(PROJECT)


class Place:
    """A mounted overlay with a directory for every function of the table."""

    def __init__(self, space: Space, impl: str, where: str) -> None:
        self.space, self.impl, self.where = space, impl, where
        if impl == "fuse" or MODE == "root":
            space.features = FEATURES
        for name in TABLE:
            layer = space.upper if where == "upper" else space.lower
            (layer / name).mkdir()
            populate(layer / name)
        self._before: list[Tree] = space.evidence()
        space.mount(impl=impl)

    def lacks_features(self) -> bool:
        """Whether objects of the lower cannot be renamed or linked as anywhere else."""
        return self.where != "upper" and not self.space.features

    def answer(self, name: str) -> object:
        """What the function answers here."""
        if not self.space.alive():
            self.space.drop()
            self.space.mount(impl=self.impl)
        if self.space.daemon is not None:
            self.space.daemon.rearm()
        d = self.space.mnt / name
        if self.where == "copied":
            copy_up(d)
        answer = run(name, d)
        if self.space.daemon is not None:
            assert self.space.alive(), f"the daemon died:\n{self.space.daemon.text()}"
            self.space.daemon.check_log()
        return answer

    def finish(self) -> None:
        """The lowers are as they were, and after a remount the tree is the same."""
        if self.impl == "fuse":
            self.space.settle()
        else:
            self.space.unmount()
        self.space.check_lowers(self._before)


@pytest.fixture(scope="module")
def reference() -> Iterator[Reference]:
    """A plain directory."""
    with scratch() as base:
        yield Reference(base)


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """The overlay of a pair in `PLACES`."""
    impl, where = request.param
    with scratch() as base:
        space = Space(base)
        os.umask(0o022)
        try:
            place = Place(space, impl, where)
            yield place
            place.finish()
        finally:
            space.drop()
