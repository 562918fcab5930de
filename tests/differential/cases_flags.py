"""Flags that chattr(1) sets, in the mount: on lower, upper and copied-up files and directories."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.differential.calls import attempt, create, look, put
from tests.differential.designs import PYFUSE3
from tests.differential.layers import get_flags
from tests.differential.table import Steps, Topic

TOPIC = Topic("flags")

KINDS = ("file", "ufile", "ucover", "empty", "dir", "udir", "merged", "umerged", "link", "fifo")


def _chattr(change: str, path: Path) -> int:
    """chattr(1) of e2fsprogs; its exit code."""
    return subprocess.run(
        ["chattr", change, str(path)], capture_output=True, check=False
    ).returncode


def _lsattr(path: Path) -> object:
    """lsattr(1): the letters, which come from FS_IOC_GETFLAGS."""
    found = subprocess.run(["lsattr", "-d", str(path)], capture_output=True, check=False, text=True)
    return found.stdout.split()[:1] if found.returncode == 0 else found.returncode


def _project(path: Path) -> object:
    """lsattr -p: the project, which comes from FS_IOC_FSGETXATTR."""
    found = subprocess.run(
        ["lsattr", "-dp", str(path)], capture_output=True, check=False, text=True
    )
    return found.stdout.split()[:2] if found.returncode == 0 else found.returncode


def _changes(path: Path) -> Iterator[object]:
    """What the flags allow of a file or directory."""
    yield attempt(os.chmod, path, 0o700)
    yield attempt(os.utime, path)
    yield attempt(os.utime, path, (1, 1))
    yield attempt(os.setxattr, path, "user.y", b"z")
    yield attempt(os.link, path, path.parent / "second-name")
    if path.is_dir():
        yield attempt(create, path / "new")
        yield attempt(os.unlink, path / "child")
        yield attempt(os.rename, path / "new", path / "newer")
    else:
        yield attempt(os.truncate, path, 3)
        yield attempt(put, path, b"appended", os.O_APPEND)
        yield attempt(put, path, b"written")
    yield attempt(os.rename, path, path.parent / "moved")
    yield attempt(os.rename, path.parent / "moved", path)


def _set(kind: str, letter: str) -> Steps:
    def steps(path: Path) -> Iterator[object]:
        yield _lsattr(path / kind), _project(path / kind)
        yield _chattr(f"+{letter}", path / kind)
        yield _lsattr(path / kind), _project(path / kind)
        yield from _changes(path / kind)
        yield look(path / kind)

    return steps


def _set_and_clear(kind: str, letter: str) -> Steps:
    def steps(path: Path) -> Iterator[object]:
        yield _chattr(f"+{letter}", path / kind)
        yield _chattr(f"-{letter}", path / kind)
        yield _lsattr(path / kind), _project(path / kind)
        yield from _changes(path / kind)
        yield look(path / kind)

    return steps


for _kind in KINDS:
    # Of links and special files the kernel asks nobody.
    _design = [] if _kind in ("link", "fifo") else [PYFUSE3]
    for _letter in "iadAS":
        _root = _letter in "ia"
        TOPIC.add(f"{_kind}-{_letter}", _kind, _set(_kind, _letter), *_design, root=_root)
        _name = f"{_kind}-{_letter}-cleared"
        TOPIC.add(_name, _kind, _set_and_clear(_kind, _letter), *_design, root=_root)


def _freed(kind: str, letter: str) -> Steps:
    def steps(path: Path) -> Iterator[object]:
        yield _lsattr(path / kind), _project(path / kind)
        yield _chattr(f"-{letter}", path / kind)
        yield _lsattr(path / kind), _project(path / kind)
        yield from _changes(path / kind)
        yield look(path / kind)

    return steps


for _kind, _letter in (("immutable", "i"), ("append", "a"), ("immutable_dir", "i")):
    TOPIC.add(f"{_kind}-freed", _kind, _freed(_kind, _letter), PYFUSE3, root=True)


@TOPIC.case("flagged flagged_dir", PYFUSE3)
def flags_of_copies(path: Path) -> Iterator[object]:
    for name in ("flagged", "flagged_dir"):
        yield _lsattr(path / name)
        yield attempt(os.chmod, path / name, 0o700)
        yield _lsattr(path / name)


@TOPIC.case("file udir", PYFUSE3)
def protection_is_not_for_everybody(path: Path) -> Iterator[object]:
    """Only who has CAP_LINUX_IMMUTABLE in the first user namespace may do that."""
    for name in ("file", "udir"):
        for letter in "ia":
            if os.geteuid() or Path("/proc/self/uid_map").read_text().split()[2] != "4294967295":
                yield _chattr(f"+{letter}", path / name)
        yield _lsattr(path / name)


@TOPIC.case("ufile", PYFUSE3, root=True)
def protection_while_open(path: Path) -> Iterator[object]:
    fd = os.open(path / "ufile", os.O_RDWR)
    yield os.pwrite(fd, b"before", 0)
    yield _chattr("+i", path / "ufile")
    yield attempt(put, path / "ufile")
    yield _chattr("-i", path / "ufile")
    yield os.pwrite(fd, b"after!", 0)
    os.close(fd)
    yield look(path / "ufile")


@TOPIC.case("file", PYFUSE3)
def wrong_flags(path: Path) -> Iterator[object]:
    put(path / "file", b"x")
    before = get_flags(path / "file")
    yield before
    for letter in "FNV":
        yield _chattr(f"+{letter}", path / "file")
    yield get_flags(path / "file") == before
