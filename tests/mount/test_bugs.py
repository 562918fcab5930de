"""A bug in the overlay is one failed request: logged, answered EIO, and the mount goes on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.mounts import Daemon, daemon_env, fails, mounts_at, unmount
from tests.mount.conftest import Cli
from tests.mount.test_bad_input import FUSE

#: Breaks one function for names that say "boom", then runs the command line.
BROKEN = """
import sys
from fuseoverlay.overlay import {module} as module
real = module.{function}

def broken(ov, *args, **kwargs):
    if any(isinstance(arg, bytes) and b"boom" in arg for arg in args):
        raise {exception}
    return real(ov, *args, **kwargs)

module.{function} = broken
from fuseoverlay.commands.dispatch import main
sys.exit(main(sys.argv[1:]))
"""


def _write(path: Path) -> None:
    with open(path, "r+b", buffering=0) as stream:
        stream.write(b"boom")


CASES = {
    "make": lambda mnt: os.mkdir(mnt / "boom"),
    "link": lambda mnt: os.link(mnt / "f", mnt / "boom"),
    "rename": lambda mnt: os.rename(mnt / "f", mnt / "boom"),
    "setxattr": lambda mnt: os.setxattr(mnt / "f", "user.boom", b"x"),
    "getxattr": lambda mnt: os.getxattr(mnt / "f", "user.boom"),
    "write": lambda mnt: _write(mnt / "f"),
}
MODULES = {
    "make": "make",
    "link": "make",
    "rename": "rename",
    "setxattr": "attributes",
    "getxattr": "attributes",
    "write": "files",
}


@pytest.mark.parametrize("function", CASES)
@pytest.mark.parametrize(
    "exception",
    ["KeyError('injected')", "AssertionError()", "ExceptionGroup('g', [OSError(1, 'x')])"],
)
def test_bug_is_one_failed_request(cli: Cli, function: str, exception: str) -> None:
    space = cli.space
    code = BROKEN.format(module=MODULES[function], function=function, exception=exception)
    argv = [sys.executable, "-c", code, "-f", "-o", space.options(), str(space.mnt)]
    daemon = Daemon(argv, space.mnt, space.base / "log")
    try:
        daemon.wait_until_mounted(1)
        with fails(errno.EIO):
            CASES[function](space.mnt)
        assert daemon.alive()
        assert os.listdir(space.mnt) == ["f"]
        (space.mnt / "after").write_bytes(b"goes on")
        assert (space.upper / "after").read_bytes() == b"goes on"
        text = daemon.text()
        assert "bug" in text
        assert exception.partition("(")[0] in text
    finally:
        daemon.kill()


def test_oserror_without_errno_is_eio(cli: Cli) -> None:
    space = cli.space
    code = BROKEN.format(module="make", function="make", exception="OSError('no number')")
    argv = [sys.executable, "-c", code, "-f", "-o", space.options(), str(space.mnt)]
    daemon = Daemon(argv, space.mnt, space.base / "log")
    try:
        daemon.wait_until_mounted(1)
        with fails(errno.EIO):
            os.mkdir(space.mnt / "boom")
        os.mkdir(space.mnt / "fine")
        unmount(space.mnt)
    finally:
        daemon.kill()


#: Breaks the first request that any mount gets.
BROKEN_ROOT = """
import sys
from fuseoverlay.overlay import attributes

def broken(*args):
    raise KeyError("injected")

attributes.attr_of = broken
from fuseoverlay.commands.dispatch import main
sys.exit(main(sys.argv[1:]))
"""


def test_mount_that_answers_nothing_is_no_success(cli: Cli) -> None:
    """The caller is told, and nothing stays mounted."""
    space = cli.space
    script = space.base / "fuseoverlay"
    script.write_text(BROKEN_ROOT)
    argv = [sys.executable, str(script), "-o", f"{space.options()},log=log", str(space.mnt)]
    done = subprocess.run(argv, env=daemon_env(), cwd=space.base, timeout=30, check=False,
                          capture_output=True, text=True)  # fmt: skip
    problem = "the mount answers with an error, Input/output error; log=FILE tells more"
    assert (done.returncode, done.stderr) == (FUSE, f"fuseoverlay: error: {problem}\n")
    assert mounts_at(space.mnt) == []
    cli.wait_until_gone()
    assert "KeyError: 'injected'" in (space.base / "log").read_text()
