"""Standard output and standard error that are closed, full, or read by nobody: one line where
there is somewhere to write it, the right exit code, no traceback; and the mount stands."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.helpers.mounts import BARE_ENV, command, make_whiteout, mounts_at, unmount
from tests.mount.conftest import Cli
from tests.mount.test_bad_input import LOWER, UPPER
from tests.mount.test_images import Images

UNFORESEEN = 1
LOST = "fuseoverlay: error: the output cannot be written: {}; give it somewhere else to go\n"


def _prefix(redirection: str) -> tuple[str, ...]:
    return ("sh", "-c", f'exec "$@" {redirection}', "sh")


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full", ">&- 2>&-"])
def test_image_is_mounted_without_stderr(cli: Cli, stderr: str) -> None:
    images = Images(cli)
    cli.mount("mount", images.image, images.mnt, env=images.env, prefix=_prefix(stderr))
    assert (images.mnt / "f").read_bytes() == b"from the image"
    images.unmount()


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
def test_exit_codes_without_stderr(cli: Cli, stderr: str) -> None:
    """And no message goes to stdout instead."""
    images = Images(cli)
    prefix = _prefix(stderr)
    for code, words in (
        (UPPER, ("fsck", "--upper", "nothing", images.image)),
        (LOWER, ("mount", "-o", "lowerdir=nothing", images.mnt)),
        (0, ("--version",)),
    ):
        done = cli.run(*words, env=images.env, prefix=prefix, cwd=images.base)
        assert (done.returncode, done.stderr) == (code, ""), words
        assert done.stdout.startswith("fuseoverlay ") if code == 0 else done.stdout == ""


def test_warnings_that_nobody_can_see(cli: Cli) -> None:
    """In the foreground, too, the daemon ends as it should."""
    space = cli.space
    words = ("-f", "-o", f"{space.options()},nonsense,context=a:b:c", space.mnt)
    argv = [*_prefix("2>/dev/full"), *command(*words)]
    process = subprocess.Popen(argv, env={**BARE_ENV, "PATH": os.environ["PATH"]})
    try:
        while not mounts_at(space.mnt):
            assert process.poll() is None
        unmount(space.mnt)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


LINES = ("--help", "--version", "version -v", "mount --help", "unmount --help", "help fsck",
         "fsck upper -o lowerdir=l0")  # fmt: skip


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize(
    ("stdout", "why"),
    [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")],
)
def test_output_that_is_lost(cli: Cli, line: str, stdout: str, why: str) -> None:
    make_whiteout(cli.space.upper / "whiteout")
    done = cli.run(*line.split(), prefix=_prefix(stdout))
    assert (done.returncode, done.stderr) == (UNFORESEEN, LOST.format(why))


@pytest.mark.parametrize("line", [*LINES, "mounts", "completion bash"])
def test_output_that_nobody_reads(cli: Cli, line: str) -> None:
    """Nothing is said, as other programs do that `head` has enough of."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as stdout:
        done = subprocess.run(
            command(*line.split()), env=BARE_ENV, cwd=cli.space.base, stdout=stdout,
            stderr=subprocess.PIPE, text=True, timeout=30, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (UNFORESEEN, "")


@pytest.mark.parametrize("descriptors", ["<&-", "<&- >&- 2>&-"])
def test_daemon_without_descriptors(cli: Cli, descriptors: str) -> None:
    """All three lead nowhere."""
    pid = cli.mount("-o", cli.space.options(), cli.space.mnt, prefix=_prefix(descriptors))
    found = {os.readlink(Path(f"/proc/{pid}/fd/{fd}")) for fd in range(3)}
    assert found == {os.devnull}
