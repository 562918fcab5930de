"""Fixtures of the command line tests: run the command, find its daemon, leave nothing."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import warm
from tests.helpers.mounts import (
    BARE_ENV,
    IMPL,
    Space,
    command,
    detach,
    mounts_at,
    scratch,
    wait_for,
)
from tests.helpers.repeated import skip_repeated

_COMMANDS = {b"fuseoverlay", b"mount.fuseoverlay"}
_NUMBERS = itertools.count()


#: Tests of what happens before the first request, and after the last.
_AROUND = {
    *("test_advice", "test_bad_input", "test_bench", "test_fsck", "test_images", "test_mount8"),
    *("test_readme", "test_doors", "test_own_tree", "test_output", "test_command", "test_ends"),
}
#: The picture is drawn by one of them.
_ALL_THE_SAME = {"test_picture"}
#: Messages, and what is checked without a mount.
_THE_USERS = {
    *("test_advice", "test_bad_input", "test_fsck", "test_images", "test_output", "test_readme"),
}
#: What they build is in root's cache, if root's environment was made on this computer.
_INSTALLS = {"test_packaging"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The kernel has no command line; `skip_repeated`."""
    folder = Path(__file__).parent
    skip_repeated(
        items,
        folder,
        without_extension=_AROUND,
        by_anybody=_ALL_THE_SAME,
        by_root=_INSTALLS,
        by_user=_THE_USERS,
    )
    if IMPL == "kernel":
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="tests the command line"))


class Cli:
    """Runs fuseoverlay on one space's directories."""

    def __init__(self, space: Space) -> None:
        self.space = space
        #: What daemons from a warm interpreter are called.
        self._comm = f"fo-{os.getpid()}-{next(_NUMBERS) % 1000}"

    def run(
        self,
        *args: object,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        prefix: tuple[str, ...] = (),
        timeout: float = 30,
    ) -> subprocess.CompletedProcess[str]:
        """Run it and read its output to the end; a daemon that kept the pipe open would hang us."""
        own = {"PATH": os.environ.get("PATH", os.defpath)} if env is None else env
        return warm.run(
            [*prefix, *command(*args)],
            cwd=cwd or self.space.base,
            env={**BARE_ENV, **own},
            errors="surrogateescape",
            timeout=timeout,
            comm=self._comm,
        )

    def mount(self, *args: object, **how: object) -> int:
        """Mount in the background; returns the daemon's pid."""
        done = self.run(*args, **how)
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        assert len(mounts_at(self.space.mnt)) == 1, "it returned before the mount was there"
        (pid,) = self.daemons()
        return pid

    def daemons(self) -> list[int]:
        """Processes with our mount point on their command line, or with our name."""
        found = []
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    argv = Path(entry.path, "cmdline").read_bytes().split(b"\0")
                    ours = {os.path.basename(arg) for arg in argv} & _COMMANDS
                    named = Path(entry.path, "comm").read_text() == f"{self._comm}\n"
                    # A process that has ended has no command line any more.
                    if (ours and os.fsencode(self.space.mnt) in argv) or (named and argv != [b""]):
                        found.append(int(entry.name))
        return found

    def wait_until_gone(self, seconds: float = 10) -> None:
        """The daemon must end by itself."""
        wait_for(lambda: not self.daemons(), seconds, "the end of the daemon")

    def clean(self) -> None:
        """Unmount, and end daemons that are left."""
        detach(self.space.mnt)
        for pid in self.daemons():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.space.drop()


@pytest.fixture
def cli() -> Iterator[Cli]:
    """The command line, on fresh directories with one lower file `f`."""
    with scratch() as base:
        space = Space(base)
        (space.lower / "f").write_bytes(b"from the lower")
        cli = Cli(space)
        try:
            yield cli
        finally:
            cli.clean()
