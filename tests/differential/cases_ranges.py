"""Ranges of a file: fallocate, holes, copy_file_range; on lower, upper and copied-up files."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tests.differential.calls import attempt, look, opened, put, user
from tests.differential.designs import FUSE_MODES, LATE, PYFUSE3
from tests.differential.table import Steps, Topic
from tests.helpers import libc

TOPIC = Topic("ranges")

KEEP, PUNCH, COLLAPSE, ZERO, INSERT, UNSHARE = 1, 2, 8, 16, 32, 64
MODES = {
    "allocate": 0,
    "allocate-keeping-size": KEEP,
    "punch": PUNCH | KEEP,
    "zero": ZERO,
    "zero-keeping-size": ZERO | KEEP,
}
#: What kernel overlayfs hands to the upper, and the kernel's FUSE to nobody.
NOT_ASKED = {"collapse": COLLAPSE, "insert": INSERT}
#: Inside, across the end, behind it; of sizes that are no blocks.
RANGES = ((0, 1), (100, 200), (1000, 5000), (20000, 10))
KINDS = ("big", "sparse", "ufile", "file", "empty")


def _allocate(kind: str, mode: int) -> Steps:
    def steps(path: Path) -> Iterator[object]:
        with opened(path / kind, os.O_RDWR) as fd:
            for start, length in RANGES:
                yield attempt(libc.fallocate, fd, mode, start, length)
                yield os.fstat(fd).st_size
                yield os.pread(fd, 1 << 21, 0)[:30000].rstrip(b"\0")
        yield look(path / kind)

    return steps


for _kind in KINDS:
    for _name, _mode in MODES.items():
        TOPIC.add(f"{_kind}-{_name}", _kind, _allocate(_kind, _mode), PYFUSE3)
    for _name, _mode in NOT_ASKED.items():
        TOPIC.add(f"{_kind}-{_name}", _kind, _allocate(_kind, _mode), FUSE_MODES, LATE)


@TOPIC.case("file ufile", PYFUSE3)
def wrong_arguments_of_fallocate(path: Path) -> Iterator[object]:
    for name in ("ufile", "file"):
        put(path / name)
        with opened(path / name, os.O_RDWR) as fd:
            for mode, start, length in (
                *((0, 0, 0), (0, -1, 1), (0, 0, -1), (KEEP, 0, 0)),
                *((PUNCH, 0, 1), (PUNCH | ZERO | KEEP, 0, 1), (1 << 12, 0, 1), (0, 1 << 62, 1)),
            ):
                yield attempt(libc.fallocate, fd, mode, start, length)
        with opened(path / name) as fd:
            yield attempt(libc.fallocate, fd, 0, 0, 1)
        yield look(path / name)


@TOPIC.case("suid_owned", PYFUSE3, root=True)
def setuid_and_ranges(path: Path) -> Iterator[object]:
    def mode() -> str:
        return oct(stat.S_IMODE(os.stat(path / "suid_owned").st_mode))

    with opened(path / "suid_owned", os.O_RDWR) as fd:
        libc.fallocate(fd, 0, 0, 100)
        yield mode()
        os.copy_file_range(fd, fd, 4, 0, 50)
        yield mode()
    with user(), opened(path / "suid_owned", os.O_RDWR) as fd:
        libc.fallocate(fd, KEEP, 0, 100)
        yield mode()
        os.chmod(path / "suid_owned", 0o6775)
        yield mode()
        os.copy_file_range(fd, fd, 4, 0, 50)
        yield mode()


@TOPIC.case("append immutable", PYFUSE3, root=True)
def ranges_of_protected_files(path: Path) -> Iterator[object]:
    with contextlib.suppress(PermissionError), opened(path / "immutable", os.O_RDWR) as fd:
        libc.fallocate(fd, 0, 0, 100)
    yield look(path / "immutable")
    with opened(path / "append", os.O_RDWR | os.O_APPEND) as fd:
        for mode in (PUNCH | KEEP, ZERO, ZERO | KEEP, KEEP, 0):
            yield attempt(libc.fallocate, fd, mode, 0, 100)
            yield os.fstat(fd).st_size
        yield attempt(os.copy_file_range, fd, fd, 2, 0, 100)
    yield look(path / "append")


def _holes(kind: str, change: bool) -> Steps:
    def steps(path: Path) -> Iterator[object]:
        if change:
            with opened(path / kind, os.O_RDWR) as fd:
                os.pwrite(fd, b"more", 1 << 19)
                os.ftruncate(fd, 3 << 19)
        with opened(path / kind) as fd:
            start, end = 1 << 18, (1 << 18) + 4096
            for position in (
                *(0, 1, start - 1, start, start + 1, end - 1, end, end + 1),
                *((1 << 19) - 1, 1 << 19, (1 << 19) + 4096, 1 << 20, (1 << 20) + 1),
                *((3 << 19) - 1, 3 << 19, (3 << 19) + 1, 1 << 40, -1),
            ):
                yield position, [attempt(os.lseek, fd, position, how) for how in _HOW]
            yield os.lseek(fd, 0, os.SEEK_CUR) >= 0

    return steps


_HOW = (os.SEEK_DATA, os.SEEK_HOLE)
for _kind in ("sparse", "empty", "big", "ufile"):
    # The kernel does not keep all holes when it copies a file up.
    for _change in (False, True) if _kind != "sparse" else (False,):
        _name = f"holes-of-{_kind}" + ("-changed" if _change else "")
        _design = [PYFUSE3] if _change or _kind == "sparse" else []
        TOPIC.add(_name, _kind, _holes(_kind, _change), *_design)


def _copy(source: str, target: str) -> Steps:
    def steps(path: Path) -> Iterator[object]:
        with opened(path / source) as one, opened(path / target, os.O_RDWR) as two:
            size = os.fstat(one).st_size
            for length, start, place in (
                *((1, 0, 0), (size, 0, 3), (5000, 100, 10000), (10, size - 3, 20000)),
                *((10, size, 0), (10, size + 5, 0), (0, 0, 0)),
            ):
                yield attempt(os.copy_file_range, one, two, length, max(start, 0), place)
                yield os.fstat(two).st_size
            # With the positions of the descriptors.
            yield attempt(os.copy_file_range, one, two, 7)
            yield os.lseek(one, 0, os.SEEK_CUR), os.lseek(two, 0, os.SEEK_CUR)
            yield os.pread(two, 1 << 20, 0).rstrip(b"\0")
        yield look(path / source), look(path / target)

    return steps


for _source in ("big", "file", "ufile", "sparse", "empty"):
    for _target in ("uother=ufile", "other=file", "none=empty"):
        _needs = f"{_source} {_target}"
        _steps = _copy(_source, _target.partition("=")[0])
        _design = [LATE] if _source == "empty" and _target != "uother=ufile" else []
        TOPIC.add(f"copy-{_source}-to-{_target.partition('=')[0]}", _needs, _steps, *_design)


@TOPIC.case("big")
def copy_within_a_file(path: Path) -> Iterator[object]:
    with opened(path / "big", os.O_RDWR) as fd:
        os.pwrite(fd, b"!", 5)
        for length, start, place in (
            *((1000, 0, 1000), (1000, 0, 999), (1000, 999, 0), (1000, 5, 5)),
            (4096, 0, 1 << 20),
        ):
            yield attempt(os.copy_file_range, fd, fd, length, start, place)
        yield os.fstat(fd).st_size
    yield look(path / "big")


@TOPIC.case("file ufile udir")
def wrong_arguments_of_copy_file_range(path: Path) -> Iterator[object]:
    with opened(path / "ufile", os.O_RDWR) as both, opened(path / "udir") as directory:
        with opened(path / "file") as source:
            yield attempt(os.copy_file_range, both, source, 5)
            yield attempt(os.copy_file_range, directory, both, 5)
            yield attempt(os.copy_file_range, source, both, 5, 0, 1 << 62)
        with opened(path / "ufile", os.O_WRONLY | os.O_APPEND) as end:
            yield attempt(os.copy_file_range, both, end, 5)
    yield look(path / "ufile")
