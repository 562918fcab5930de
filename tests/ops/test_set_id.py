"""When setuid, setgid and capabilities are cleared: a table compared with kernel overlayfs.

Modes x callers x operations, on a file of the lower and one of the upper, with and without modes
kept in attributes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers.libc import FALLOC_FL_KEEP_SIZE, fallocate
from tests.helpers.mounts import NATIVE, Space, fuse_only, root_only, scratch
from tests.ops.test_users import ALICE, BOB, STAFF, run_all_as

pytestmark = [root_only, fuse_only, pytest.mark.timeout(400)]

MODES = (0o2666, 0o2676, 0o4666, 0o6666, 0o6777, 0o0666)
CAPABILITY = b"\1\0\0\2" + bytes.fromhex("0020000000000000") + bytes(8)


class Caller(NamedTuple):
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


#: The file belongs to Alice and to the group of staff.
CALLERS = {
    "root": Caller(0, 0),
    "owner in the group": Caller(ALICE, ALICE, (STAFF,)),
    "owner outside": Caller(ALICE, ALICE),
    "member": Caller(BOB, STAFF),
    "member besides": Caller(BOB, BOB, (7, STAFF)),
    "stranger": Caller(BOB, BOB, (7,)),
}


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def _write(path: Path) -> None:
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"x")


def _append(path: Path) -> None:
    with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b"x")


def _write_directly(path: Path) -> None:
    with opened(path, os.O_WRONLY | os.O_DIRECT) as fd, contextlib.suppress(OSError):
        os.write(fd, b"x")


def _ftruncate(path: Path) -> None:
    with opened(path, os.O_WRONLY) as fd:
        os.ftruncate(fd, 3)


def _open_truncate(path: Path) -> None:
    with opened(path, os.O_WRONLY | os.O_TRUNC):
        pass


def _fallocate(path: Path) -> None:
    with opened(path, os.O_WRONLY) as fd:
        fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 100)


def _copy_range(path: Path) -> None:
    with opened(path.with_name("source"), os.O_RDONLY) as source, opened(path, os.O_WRONLY) as fd:
        os.copy_file_range(source, fd, 3)


def _write_twice(path: Path) -> None:
    """At the second write the file is in the upper and open."""
    _write(path)
    _write(path)


OPERATIONS: dict[str, Callable[[Path], None]] = {
    "write": _write,
    "write twice": _write_twice,
    "append": _append,
    "truncate": lambda path: os.truncate(path, 3),
    "truncate to the same size": lambda path: os.truncate(path, 7),
    "ftruncate": _ftruncate,
    "open with O_TRUNC": _open_truncate,
    "chown to nobody": lambda path: os.chown(path, -1, -1),
    "chown to the same": lambda path: os.chown(path, ALICE, STAFF),
    "chgrp to her own": lambda path: os.chown(path, -1, ALICE),
    "chgrp to the same": lambda path: os.chown(path, -1, STAFF),
    "chmod to the same": lambda path: os.chmod(path, stat.S_IMODE(os.stat(path).st_mode)),
    "utime": lambda path: os.utime(path),
    "setxattr": lambda path: os.setxattr(path, "user.x", b"y"),
    **({"fallocate": _fallocate, "copy_file_range": _copy_range} if NATIVE else {}),
}


class Cell(NamedTuple):
    where: str
    mode: int
    capable: bool
    caller: str
    operation: str


def _populate(layer: Path, cells: dict[str, Cell]) -> None:
    layer.chmod(0o777)
    (layer / "source").write_bytes(b"abcdef")
    for name, cell in cells.items():
        path = layer / name
        path.write_bytes(b"content")
        os.chown(path, ALICE, STAFF)
        os.chmod(path, cell.mode)
        if cell.capable:
            os.setxattr(path, "security.capability", CAPABILITY)


def _keep_capabilities(layer: Path) -> None:
    """Move capabilities to where they count if owners are kept in a `user.` attribute."""
    for path in layer.iterdir():
        if "security.capability" in os.listxattr(path):
            os.removexattr(path, "security.capability")
            os.setxattr(path, "user.containers.override_security.capability", CAPABILITY)


def _table(mnt: Path, cells: dict[str, Cell]) -> dict[str, tuple[object, ...]]:
    """For each cell the errno, and the state of the file afterwards."""
    codes: dict[str, int] = {}
    for caller, who in CALLERS.items():
        names = [name for name, cell in cells.items() if cell.caller == caller]
        works = [partial(OPERATIONS[cells[name].operation], mnt / name) for name in names]
        found = run_all_as(who.uid, works, *who.groups, gid=who.gid)
        codes.update(zip(names, found, strict=True))
    return {name: (code, *_shown(mnt / name)) for name, code in codes.items()}


def _shown(path: Path) -> tuple[str, bool]:
    return oct(stat.S_IMODE(os.stat(path).st_mode)), "security.capability" in os.listxattr(path)


CELLS = {
    f"{where} {mode:04o} {capable} {caller} {operation}": Cell(
        where, mode, capable, caller, operation
    )
    for where in ("lower", "upper")
    for mode in MODES
    for capable in (False, True)
    for caller in CALLERS
    for operation in OPERATIONS
    if not capable or mode in (0o2666, 0o666)
}


def _made(impl: str, option: str) -> dict[str, tuple[object, ...]]:
    """The result of an implementation for every cell of the table."""
    with scratch() as base:
        space = Space(base)
        for where, layer in (("lower", space.lower), ("upper", space.upper)):
            _populate(layer, {n: cell for n, cell in CELLS.items() if cell.where == where})
        if option:
            space.extra = (option,)
        if option == "xattr_permissions=2":
            _keep_capabilities(space.upper)
        try:
            space.mount(impl=impl)
            return _table(space.mnt, CELLS)
        finally:
            space.drop()


@pytest.fixture(scope="module")
def kernel() -> dict[str, tuple[object, ...]]:
    return _made("kernel", "")


@pytest.mark.parametrize("option", ["", "xattr_permissions=1", "xattr_permissions=2"])
def test_table(kernel: dict[str, tuple[object, ...]], option: str) -> None:
    assert len(kernel) > 1000
    differing = [
        f"{name}: kernel {kernel[name]}, here {result}"
        for name, result in _made("fuse", option).items()
        if result != kernel[name] and not _is_design(name, kernel[name], result)
    ]
    assert not differing, "\n" + "\n".join(differing)


def _is_design(name: str, kernel: tuple[object, ...], ours: tuple[object, ...]) -> bool:
    """Whether a difference is by design: the kernel's FUSE does not check permission for a chown(2)
    that changes neither owner nor group, so nothing is changed instead of EPERM."""
    unchanged = kernel[0] == errno.EPERM and ours[:2] == (0, kernel[1])
    return name.endswith("chown to nobody") and unchanged
