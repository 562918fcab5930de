"""Make one call of a daemon fail, or exchange two files right before it: see faults.c."""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fuseoverlay.system.syscalls import AT_FDCWD, RENAME_EXCHANGE, renameat2
from tests.helpers.mounts import Daemon, Space, command

_SOURCE = Path(__file__).with_name("faults.c")
# armed, left, error, full, times, fired; name, two paths
_CONTROL = struct.Struct("=6i40s1024s1024s")
NOTHING = (b"", b"", b"")
#: More than the calls that any change makes.
MANY = 1 << 20


@functools.cache
def _library() -> str:
    """Compile faults.c once per run; the path of the library."""
    path = os.path.join(tempfile.mkdtemp(prefix="fuseoverlay-test-faults-"), "faults.so")
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-fno-builtin"]
    subprocess.run(["gcc", *flags, "-o", path, str(_SOURCE)], check=True, timeout=60)
    os.chmod(os.path.dirname(path), 0o755)
    return path


class Faults:
    """The file that tells a daemon which call is to fail."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.write_bytes(bytes(4096))
        with path.open("r+b") as file:
            self._control = mmap.mmap(file.fileno(), 4096)

    def mount(self, space: Space) -> Path:
        """Mount with a daemon that reads this file; returns the mount point."""
        argv = command("-f", "-o", space.options(), space.mnt)
        env = {"LD_PRELOAD": _library(), "FUSEOVERLAY_FAULTS": str(self._path)}
        space.daemon = Daemon(argv, space.mnt, space.log, env=env)
        space.daemon.wait_until_mounted(1)
        return space.mnt

    @contextlib.contextmanager
    def armed(self, left: int, error: int, *, full: bool = False, times: int = 1) -> Iterator[None]:
        """In the block, the call at which the count `left` ends fails with `error`, and so do the
        next ones until `times` calls have failed. With `full` only calls that take room on the disk
        are counted, and all of them fail from there on."""
        self._control[: _CONTROL.size] = _CONTROL.pack(1, left, error, full, times, 0, *NOTHING)
        try:
            yield
        finally:
            self._control[:4] = bytes(4)

    @contextlib.contextmanager
    def exchanging(self, left: int, one: Path, two: Path, *, times: int = 0) -> Iterator[None]:
        """In the block, exchange two paths before the call at which the count `left` ends. They are
        exchanged back once `times` calls have been made from there on, or when the block ends."""
        paths = os.fsencode(one), os.fsencode(two)
        self._control[: _CONTROL.size] = _CONTROL.pack(1, left, 0, 0, times, 0, b"", *paths)
        try:
            yield
        finally:
            self._control[:4] = bytes(4)
            if _CONTROL.unpack_from(self._control)[5] == 1:
                renameat2(AT_FDCWD, paths[0], AT_FDCWD, paths[1], RENAME_EXCHANGE)

    @property
    def left(self) -> int:
        """How many calls were left to count when it was disarmed."""
        return int(_CONTROL.unpack_from(self._control)[1])

    @property
    def failed(self) -> str:
        """The first call that failed, or at which paths were exchanged; empty if there was none."""
        fields = _CONTROL.unpack_from(self._control)
        return fields[6].rstrip(b"\0").decode() if fields[5] else ""
