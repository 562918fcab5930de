"""The extension, and what it is like without: the log and `--version -v` say which."""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from fuseoverlay import __version__
from tests.helpers.mounts import NATIVE, PROJECT, Daemon, command, unmount
from tests.mount.conftest import Cli

needs_extension = pytest.mark.skipif(not NATIVE, reason="needs the extension")

#: As the linker writes it: no library.
BROKEN = b"no ELF header"


def _used(cli: Cli, *program: object, options: str = "") -> str:
    """Mount with this program and more options, write, read and list; what it logged."""
    space = cli.space
    argv = ["env", *map(str, program), "-f", "-o", space.options() + options, str(space.mnt)]
    daemon = Daemon(argv, space.mnt, space.log)
    try:
        daemon.wait_until_mounted(1)
        assert (space.mnt / "f").read_bytes() == b"from the lower"
        with (space.mnt / "f").open("ab") as file:
            file.write(b", changed")
        (space.mnt / "d").mkdir()
        (space.mnt / "d" / "new").write_bytes(b"new")
        os.rename(space.mnt / "d" / "new", space.mnt / "d" / "other")
        assert sorted(os.listdir(space.mnt)) == ["d", "f"]
        assert os.listdir(space.mnt / "d") == ["other"]
        assert (space.mnt / "d" / "other").read_bytes() == b"new"
        assert (space.mnt / "f").read_bytes() == b"from the lower, changed"
        unmount(space.mnt)
        daemon.finish()
    finally:
        daemon.kill()
    assert (space.upper / "f").read_bytes() == b"from the lower, changed"
    assert (space.lower / "f").read_bytes() == b"from the lower"
    return daemon.text()


def _without_effect(reason: str) -> str:
    text = f"extension not in effect ({reason}): OPEN and the like come through"
    return f"fuseoverlay: INFO: {text}\n"


#: An editable installation finds what a package in PYTHONPATH has not.
NOT_EDITABLE = """\
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
"""


def _copy(base: Path) -> Path:
    """The package without its extension, as a place for PYTHONPATH."""
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "csrc")
    shutil.copytree(PROJECT / "fuseoverlay", base / "copy" / "fuseoverlay", ignore=ignore)
    (base / "copy" / "sitecustomize.py").write_text(NOT_EDITABLE)
    return base / "copy"


def _break(copy: Path) -> None:
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    (copy / "fuseoverlay" / "native" / f"_native{suffix}").write_bytes(BROKEN)


@needs_extension
def test_in_effect(cli: Cli) -> None:
    log = _used(cli, *command())
    line = re.fullmatch(
        r"fuseoverlay: INFO: FUSE 7\.(\d+) \(kernel 7\.(\d+)\), extension in effect: "
        r"no OPEN, OPENDIR, FLUSH, ACCESS; umask left to us; setuid left to us; "
        r"symbolic links cached\n",
        log,
    )
    assert line, log
    assert int(line[1]) <= int(line[2])
    assert int(line[2]) >= 33, "older ones have no FUSE_HANDLE_KILLPRIV_V2"


@needs_extension
def test_where_layers_change_directories_are_opened(cli: Cli) -> None:
    log = _used(cli, *command(), options=",timeout=1")
    assert "extension in effect: no OPEN, FLUSH, ACCESS; " in log


@needs_extension
def test_the_log_begins_with_it(cli: Cli) -> None:
    """Before the first request's line."""
    lines = _used(cli, *command(), "-d").splitlines()
    assert "extension in effect" in lines[0]
    assert any(line.startswith("lookup(") for line in lines[1:])


def test_turned_off(cli: Cli) -> None:
    log = _used(cli, "FUSEOVERLAY_NATIVE=0", *command())
    assert log == _without_effect("turned off by FUSEOVERLAY_NATIVE=0")


def test_not_built(cli: Cli) -> None:
    path = f"PYTHONPATH={_copy(cli.space.base)}"
    assert _used(cli, "-u", "FUSEOVERLAY_NATIVE", path, *command()) == _without_effect("not built")


def test_cannot_be_loaded(cli: Cli) -> None:
    copy = _copy(cli.space.base)
    _break(copy)
    log = _used(cli, "-u", "FUSEOVERLAY_NATIVE", f"PYTHONPATH={copy}", *command())
    assert re.search(r"INFO: extension not in effect \(.*_native.*\): OPEN", log), log


@needs_extension
def test_pyfuse3_was_first(cli: Cli) -> None:
    """pyfuse3 has libfuse's functions by then: the filter is never attached."""
    program = "import pyfuse3; from fuseoverlay.__main__ import main; main()"
    log = _used(cli, sys.executable, "-c", program)
    assert log == _without_effect("pyfuse3 was loaded before it")


def _versions(cli: Cli, *arguments: str, **env: str) -> list[str]:
    done = cli.run(*arguments, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"fuseoverlay {__version__}"
    return lines


@pytest.mark.parametrize("arguments", [("--version", "-v"), ("-v", "--version"), ("-Vv",)])
def test_version_of_everything(cli: Cli, arguments: tuple[str, ...]) -> None:
    lines = _versions(cli, *arguments)
    assert len(lines) == 6
    assert re.fullmatch(r"pyfuse3 3\.\d+\.\d+, libfuse 3\.\d+\.\d+.*", lines[1])
    assert re.fullmatch(r"trio \d+\.\d+.*", lines[2])
    assert lines[3] == f"Python {sys.version.split()[0]}"
    assert lines[4] == " ".join([os.uname().sysname, os.uname().release, os.uname().machine])
    assert (lines[5] == "extension: built and loaded") == NATIVE


def test_version_says_why_there_is_no_extension(cli: Cli) -> None:
    off = "extension: not in effect (turned off by FUSEOVERLAY_NATIVE=0)"
    assert _versions(cli, "--version", "-v", FUSEOVERLAY_NATIVE="0")[5] == off
    copy = _copy(cli.space.base)
    env = {"FUSEOVERLAY_NATIVE": "", "PYTHONPATH": str(copy)}
    assert _versions(cli, "--version", "-v", **env)[5] == "extension: not in effect (not built)"
    _break(copy)
    assert re.fullmatch(
        r"extension: not in effect \(.*_native.*\)", _versions(cli, "--version", "-v", **env)[5]
    )
