"""The log of a mount in the background: a file, syslog, and what lands there."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseoverlay.fuse.daemonlog import _matters
from tests.helpers.mounts import (
    MODE,
    NATIVE,
    daemon_env,
    fails,
    mounts_at,
    set_overlay_xattr,
    unmount,
    wait_for,
)
from tests.mount.conftest import Cli
from tests.mount.test_bad_input import USAGE, refused
from tests.mount.test_bugs import BROKEN

LINE = r"\d{4}-\d\d-\d\d [0-9:,]+ fuseoverlay\[\d+\] [A-Za-z]+: .*"


def test_file_of_a_mount_in_the_background(cli: Cli) -> None:
    """Relative to the caller's directory, appended to, kept to oneself; the caller is told all the
    same what is told before the mount stands."""
    space = cli.space
    log = space.base / "a:log"
    log.write_text("before\n")
    options = f"{space.options()},context=a:b:c,log=a\\:log"
    for _ in range(2):
        done = cli.run("-o", options, space.mnt)
        assert done.returncode == 0
        assert re.fullmatch(r"fuseoverlay: warning: option context=[^\n]*\n", done.stderr)
        unmount(space.mnt)
        cli.wait_until_gone()
    first, *lines = log.read_text().splitlines()
    assert first == "before"
    assert len(lines) == 4, lines
    assert all(re.fullmatch(LINE, line) for line in lines), lines
    assert "warning: option context=" in lines[0]
    assert "INFO: " in lines[1]
    assert "extension" in lines[1]


def test_new_file_is_not_for_others(cli: Cli) -> None:
    space = cli.space
    cli.mount("-o", f"{space.options()},log=log", space.mnt)
    assert (space.base / "log").stat().st_mode & 0o777 == 0o600


def test_file_that_cannot_be_written(cli: Cli) -> None:
    """Found before anything is mounted."""
    space = cli.space
    for name, why in (("upper", "Is a directory"), ("none/log", "No such file or directory")):
        word = f"{name}: log= cannot be written: {why}; name a file that you may write"
        refused(cli, USAGE, "-o", f"{space.options()},log={name}", space.mnt, word=word)
    refused(cli, USAGE, "-o", f"{space.options()},log=", space.mnt, word="empty path in log=")


def test_in_the_foreground_both(cli: Cli) -> None:
    space = cli.space
    words = ("-f", "-o", f"{space.options()},log={space.base}/other")
    with _started(cli, *words) as process:
        # It logs before it reads the first request; an unmount is none.
        os.stat(space.mnt / "f")
        unmount(space.mnt)
        _, err = process.communicate(timeout=30)
    assert re.fullmatch(r"fuseoverlay: INFO: .*extension.*\n", err)
    assert re.fullmatch(LINE + "\n", (space.base / "other").read_text())


NAME = b"a\n1999-01-01 00:00:00,000 fuseoverlay[1] ERROR: forged \x1b[31m\x80"


@pytest.mark.parametrize("debug", [(), ("-d",)])
def test_names_write_no_lines(cli: Cli, debug: tuple[str, ...]) -> None:
    """What a layer's name holds stays on the line that tells of it, and moves no cursor."""
    space = cli.space
    space.add_lower()
    odd = Path(os.fsdecode(os.fsencode(space.lower) + b"/" + NAME))
    odd.mkdir()
    set_overlay_xattr(odd, "redirect", b"/x/../y")
    with _started(cli, "-f", *debug, "-o", f"{space.options()},log={space.base}/log") as process:
        with fails(errno.EACCES):
            os.listdir(space.mnt / odd.name)
        unmount(space.mnt)
        _, err = process.communicate(timeout=30)
    text = (space.base / "log").read_text()
    for line in text.splitlines():
        assert re.fullmatch(LINE, line), line
    for said in (text, err):
        assert "forged" in said
        assert all(line.isprintable() for line in said.splitlines()), said
        assert not any(line.startswith("1999-01-01 00:00:00,000") for line in said.splitlines())


def test_tracebacks_hold_no_lines_like_others(cli: Cli) -> None:
    """What a bug has to say may come from a layer, too."""
    space = cli.space
    said = "RuntimeError('first\\n1999-01-01 00:00:00,000 fuseoverlay[1] ERROR: forged \\x1b[31m')"
    argv = _broken(cli, "make", "make", said)
    _run(argv, "-o", f"{space.options()},log=log", space.mnt, cwd=space.base)
    with fails(errno.EIO):
        os.mkdir(space.mnt / "boom")
    lines = (space.base / "log").read_text().splitlines()
    assert any("forged \\x1b[31m" in line for line in lines), lines
    assert all(re.fullmatch(f"{LINE}|  .*", line) for line in lines), lines
    assert all(line.isprintable() for line in lines), lines


@contextlib.contextmanager
def _started(cli: Cli, *words: object) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-m", "fuseoverlay", *map(str, words), str(cli.space.mnt)]
    process = subprocess.Popen(argv, env=daemon_env(), stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: mounts_at(cli.space.mnt), 20, "mounting")
        yield process
    finally:
        process.kill()
        process.wait()


def _broken(
    cli: Cli, module: str, function: str, exception: str = "KeyError('injected')"
) -> list[str]:
    """The command line with a bug, under a name by which `Cli.daemons` finds it."""
    script = cli.space.base / "fuseoverlay"
    code = BROKEN.format(module=module, function=function, exception=exception)
    script.write_text(code)
    return [sys.executable, str(script)]


def _run(argv: list[str], *words: object, cwd: Path) -> None:
    words = tuple(map(str, words))
    done = subprocess.run([*argv, *words], env=daemon_env(), cwd=cwd, timeout=30, check=False,
                          capture_output=True, text=True)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def _meet_a_bug(cli: Cli, log: str) -> None:
    """Mount with `log=`, and have one request fail by a bug."""
    space = cli.space
    argv = _broken(cli, "make", "make")
    _run(argv, "-o", f"{space.options()},log={log}", space.mnt, cwd=space.base)
    with fails(errno.EIO):
        os.mkdir(space.mnt / "boom")


def test_bugs_land_in_the_file(cli: Cli) -> None:
    """A failed request with its traceback, and what ends the daemon."""
    space = cli.space
    _meet_a_bug(cli, "log")
    unmount(space.mnt)
    cli.wait_until_gone()
    text = (space.base / "log").read_text()
    assert re.search(r"ERROR: bug in mkdir\(.*boom", text), text
    assert "Traceback" in text
    assert "KeyError: 'injected'" in text


#: Breaks what runs when the mount has gone.
BROKEN_END = """
import sys
from fuseoverlay.fuse import ending

def broken(self):
    print("a library says", file=sys.stderr, flush=True)
    raise KeyError("at the end")

ending.Ending.finish = broken
from fuseoverlay.commands.dispatch import main
sys.exit(main(sys.argv[1:]))
"""


def test_what_ends_the_daemon_lands_in_the_file(cli: Cli) -> None:
    space = cli.space
    script = space.base / "fuseoverlay"
    script.write_text(BROKEN_END)
    words = ("-o", f"{space.options()},log=log", space.mnt)
    _run([sys.executable, str(script)], *words, cwd=space.base)
    unmount(space.mnt)
    cli.wait_until_gone()
    text = (space.base / "log").read_text()
    assert "a library says\n" in text
    assert "CRITICAL: the daemon ends by a bug" in text
    assert "KeyError: 'at the end'" in text
    if NATIVE:
        # The extension has it called when the kernel lets go of the mount.
        assert re.search(r"ERROR: bug in <function .*ended", text), text
    assert "Exception ignored" not in text


@pytest.mark.skipif(MODE == "user", reason="needs mount(2)")
@pytest.mark.parametrize("option", ["", ",log=syslog"])
def test_syslog(cli: Cli, option: str) -> None:
    """Without log=, warnings and what is worse; with log=syslog all."""
    space = cli.space
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(str(space.base / "socket"))
    listening.settimeout(20)
    devices = "".join(
        f": > dev/{name}; mount --bind /dev/{name} dev/{name}; "
        for name in ("null", "urandom", "fuse")
    )
    script = f"mkdir dev; mount -t tmpfs tmpfs dev; {devices} ln -s {space.base}/socket dev/log; "
    script += 'mount --rbind dev /dev; exec "$@"'
    argv = ["unshare", "-m", "sh", "-euc", script, "sh", *_broken(cli, "make", "make")]
    _run(argv, "-o", space.options() + option, space.mnt, cwd=space.base)
    (pid,) = cli.daemons()
    with fails(errno.EIO):
        os.mkdir(f"/proc/{pid}/root{space.mnt}/boom")
    os.kill(pid, 15)
    cli.wait_until_gone()
    listening.setblocking(False)
    lines = []
    with contextlib.suppress(BlockingIOError):
        while True:
            lines.append(listening.recv(1 << 16).decode())
    (bug,) = (line for line in lines if "bug in" in line)
    others = [line for line in lines if line != bug]
    assert re.match(rf"<27>fuseoverlay\[{pid}\]: bug in mkdir\(", bug)
    assert "KeyError: 'injected'" in bug
    assert all(line.startswith(f"<30>fuseoverlay[{pid}]: ") for line in others), lines
    assert any("extension" in line for line in lines) == bool(option)


def test_without_anybody_who_listens(cli: Cli) -> None:
    """No syslog, and no file: the mount is none the worse for it."""
    space = cli.space
    _meet_a_bug(cli, "syslog")
    (space.mnt / "fine").mkdir()
    unmount(space.mnt)
    cli.wait_until_gone()


def test_an_answer_that_nobody_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    """pyfuse3 complains if a mount ends before a RELEASE is answered; all else is logged."""
    logger = logging.getLogger("pyfuse3")
    logger.addFilter(_matters)
    try:
        logger.error("fuse_release(): fuse_reply_* failed with No such file or directory")
        logger.error("fuse_write(): fuse_reply_* failed with No such file or directory")
        logger.error("fuse_release(): fuse_reply_* failed with Invalid argument")
    finally:
        logger.removeFilter(_matters)
    said = [record.getMessage().partition("(")[0] for record in caplog.records]
    assert said == ["fuse_write", "fuse_release"]
