"""Access times in upper and lower, for each mount option, as the kernel's overlay handles them.

It obeys the flags of its own mount, never those of the mount that holds the upper.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Set
from pathlib import Path

import pytest

from tests.helpers.mounts import IMPL, MODE, Space, detach, scratch

DAY = 86400 * 10**9


def _read(path: Path) -> None:
    assert path.read_bytes()


def _map(path: Path) -> None:
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[0]


def _execute(path: Path) -> None:
    subprocess.run([path], check=True, timeout=20)


def _write(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("r+b") as stream:
        stream.write(b"#")


#: Ways to access objects; each has an object of its own, named after it.
LOOKS: dict[str, Callable[[Path], object]] = {
    "read": _read,
    "map": _map,
    "execute": _execute,
    "readlink": os.readlink,
    "follow": os.stat,
    "list": os.listdir,
    # Neither of these is an access.
    "stat": os.stat,
    "lookup": lambda path: (path / "child").stat(),
    "write": _write,
}
LINKS = {"readlink", "follow"}
NONE = {"stat", "lookup", "write"}


def _make(layer: Path, name: str) -> Path:
    path = layer / name
    kind = name.rpartition("-")[2]
    if kind in LINKS:
        os.symlink("target", path)
    elif kind in ("list", "lookup"):
        path.mkdir()
        (path / "child").write_bytes(b"x")
    else:
        path.write_bytes(b"#!/bin/true\n" * 10)
        path.chmod(0o755)
    return path


def _stamp(path: Path, age: str) -> None:
    """Give it an access time that relatime updates, or (`new`) one that it leaves alone: later than
    all other times and not older than a day."""
    now = time.time_ns()
    times = (now - DAY // 2, now) if age == "old" else (now + DAY, now - DAY)
    os.utime(path, ns=times, follow_symlinks=False)


def _fill(space: Space) -> None:
    (space.lower / "target").write_bytes(b"x")
    for age in ("old", "new"):
        for look in LOOKS:
            for where, layer in (("lower", space.lower), ("upper", space.upper)):
                _stamp(_make(layer, f"{age}-{where}-{look}"), age)
        for layer in (space.lower, space.upper):
            path = layer / f"{age}-merged-list"
            path.mkdir()
            (path / layer.name).write_bytes(b"x")
        for layer in (space.lower, space.upper):
            _stamp(layer / f"{age}-merged-list", age)


def _times(space: Space) -> dict[tuple[str, str], int]:
    layers = {"lower": space.lower, "upper": space.upper, "shown": space.mnt}
    return {
        (where, entry.name): entry.stat(follow_symlinks=False).st_atime_ns
        for where, layer in layers.items()
        for entry in os.scandir(layer)
    }


def _moved(space: Space, unseen: Set[tuple[str, str]] = frozenset()) -> set[tuple[str, str]]:
    """Access everything once; returns whose access time has changed, in which layer. The mount must
    show each change but those in `unseen`."""
    before = _times(space)
    for name in sorted(os.listdir(space.mnt)):
        look = LOOKS.get(name.rpartition("-")[2])
        if look is not None:
            look(space.mnt / name)
    after = _times(space)
    for name in os.listdir(space.mnt):
        where = "upper" if ("upper", name) in after else "lower"
        kept = (where, name) in unseen
        assert after["shown", name] == (before["shown", name] if kept else after[where, name]), name
    return {
        (where, name)
        for where, name in before
        if where != "shown" and after[where, name] != before[where, name]
    }


def _expected(options: str) -> set[tuple[str, str]]:
    """What the kernel's overlay does with these options."""
    given = set(options.split(","))
    if given & {"ro", "noatime"}:
        return set()
    looks = set(LOOKS) - NONE - ({"list"} if "nodiratime" in given else set())
    ages = ("old", "new") if "strictatime" in given else ("old",)
    moved = {("upper", f"{age}-upper-{look}") for age in ages for look in looks}
    if "list" in looks:
        moved |= {("upper", f"{age}-merged-list") for age in ages}
    return moved


@pytest.fixture
def filesystem(request: pytest.FixtureRequest) -> Iterator[Space]:
    """Layers on a filesystem that we have mounted ourselves, with the requested option."""
    if MODE == "user":
        pytest.skip("a plain user mounts no filesystem")
    with scratch() as base:
        below = base / "fs"
        below.mkdir()
        argv = ["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", str(below)]
        subprocess.run(argv, check=True, timeout=20)
        space = Space(below)
        try:
            yield space
        finally:
            space.drop()
            detach(below)


#: What the same options say in the end.
MEANING = {
    "relatime": "",
    "atime": "",
    "norelatime": "",
    "diratime": "",
    "lazytime": "",
    "noatime": "noatime",
    "strictatime": "strictatime",
    "nodiratime": "nodiratime",
    "nodiratime,strictatime": "nodiratime,strictatime",
    "strictatime,noatime": "strictatime",
    "noatime,strictatime,nostrictatime": "noatime",
    "noatime,atime,nodiratime,diratime": "",
    "ro": "ro",
    "ro,strictatime": "ro",
}
ON_OTHERS = [(on, option) for on in ("noatime", "strictatime") for option in ("relatime", on)]


@pytest.mark.parametrize(
    ("filesystem", "options"),
    [*ON_OTHERS, *(("relatime", options) for options in MEANING)],
    indirect=["filesystem"],
)
def test_access_times_move_as_the_mount_says(filesystem: Space, options: str) -> None:
    _fill(filesystem)
    filesystem.features = (options,)
    filesystem.mount()
    shown = os.statvfs(filesystem.mnt).f_flag & os.ST_NOATIME
    assert bool(shown) == (MEANING[options] == "noatime")
    assert _moved(filesystem) == _expected(MEANING[options])


@pytest.mark.parametrize("options", ["", "noatime", "nodiratime", "ro"])
def test_on_a_mount_that_is_not_ours_to_change(space: Space, options: str) -> None:
    """Reading a symbolic link there follows that mount's flags, which cannot be avoided."""
    beyond = set()
    if MODE != "root" and IMPL != "kernel":
        beyond = {(where, f"old-{where}-{look}") for where in ("upper", "lower") for look in LINKS}
    _fill(space)
    space.features = (options,) if options else ()
    space.mount()
    # The kernel does not ask again for times that a read-only mount cannot change.
    unseen = beyond if options == "ro" else frozenset()
    assert _moved(space, unseen) == _expected(options) | beyond


@pytest.mark.parametrize("options", ["noatime", "relatime"])
@pytest.mark.parametrize("name", ["free", "hidden"])
def test_a_file_that_was_just_made(space: Space, name: str, options: str) -> None:
    (space.lower / "hidden").write_bytes(b"x")
    space.features = (options,)
    path = space.mount() / name
    path.unlink(missing_ok=True)
    with path.open("wb") as stream:
        stream.write(b"x" * 10000)
        stream.flush()
        os.fsync(stream.fileno())
        # Data in the page cache is read without a request.
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = (space.upper / name).stat().st_atime_ns
    time.sleep(0.02)
    assert len(path.read_bytes()) == 10000
    assert ((space.upper / name).stat().st_atime_ns != before) == (options == "relatime")
