"""`save`: what is written, and what others read of it."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.commands.conftest import Cli
from tests.helpers.mounts import MODE, command, daemon_env

ONE, TWO = "docker.io/library/one:1", "localhost:5000/team/two:2"


@pytest.fixture
def filled(cli: Cli, layout: Path) -> Cli:
    """A store with two images."""
    cli.add(layout, "one", ONE)
    cli.add(layout, "two", TWO)
    return cli


def ids(cli: Cli) -> list[str]:
    """Name and id of all images."""
    form = "{{.Repository}}:{{.Tag}} {{.ID}} {{.Digest}}"
    return sorted(cli.said("images", "--no-trunc", "--digests", "--format", form).splitlines())


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci"])
def test_there_and_back(filled: Cli, form: str) -> None:
    """By our own `load`: ids stay, and in the OCI forms digests."""
    before = ids(filled)
    assert filled.said("save", "--format", form, "-o", "out", "one:1", TWO) == ""
    shutil.rmtree(filled.root)
    filled.said("load", "-q", "-i", "out")
    after = ids(filled)
    if form == "docker-archive":
        before, after = ([line.rpartition(" ")[0] for line in lines] for lines in (before, after))
    assert after == before


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_standard_output(filled: Cli, form: str) -> None:
    """The same bytes, with and without `-`."""
    filled.said("save", "--format", form, "-o", "out", "one:1")
    for words in ((), ("-o", "-")):
        done = subprocess.run(
            command("save", "--format", form, *words, "one:1"),
            env=daemon_env(FUSEOVERLAY_ROOT=str(filled.root)),
            capture_output=True, timeout=60, check=True, cwd=filled.base,
        )  # fmt: skip
        assert done.stdout == (filled.base / "out").read_bytes()


def test_a_terminal_is_refused(filled: Cli) -> None:
    leader, follower = pty.openpty()
    try:
        done = subprocess.run(
            command("save", "one:1"),
            env=daemon_env(FUSEOVERLAY_ROOT=str(filled.root)),
            stdout=follower, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(follower)
        os.close(leader)
    assert done.returncode == 2
    assert "write -o FILE, or redirect" in done.stderr
    filled.refused(2, "write -o DIR", "save", "--format", "oci", "one:1")


def test_what_cannot_be_written(filled: Cli) -> None:
    """One line, and nothing is left; what was there stays."""
    (filled.base / "old.tar").write_text("old")
    filled.refused(7, "no such image", "save", "-o", "old.tar", "one:1", "three")
    assert (filled.base / "old.tar").read_text() == "old"
    filled.refused(9, "No space left on device; make room", "save", "-o", "/dev/full", "one:1")
    filled.refused(
        9, "there is no directory nowhere; make it", "save", "-o", "nowhere/out.tar", "one:1"
    )
    filled.refused(9, "Is a directory; name a file in it", "save", "-o", filled.base, "one:1")
    assert not list(filled.base.glob(".*"))


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci"])
def test_a_disk_that_is_full(filled: Cli, form: str) -> None:
    """In the middle of a file. Nothing is left."""
    before = set(filled.base.rglob("*"))
    done = subprocess.run(
        ["prlimit", "--fsize=100", "--", *command("save", "--format", form, "-o", "out", "one:1")],
        env=daemon_env(FUSEOVERLAY_ROOT=str(filled.root)),
        capture_output=True, text=True, timeout=60, check=False, cwd=filled.base,
    )  # fmt: skip
    assert done.returncode == 9 and "cannot save: File too large" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert set(filled.base.rglob("*")) == before


@pytest.mark.parametrize("transport", ["docker-archive", "oci-archive", "oci"])
def test_skopeo_copies_it(filled: Cli, transport: str) -> None:
    filled.said("save", "--format", transport, "-o", "out", "one:1")
    argv = ["skopeo", "--insecure-policy", "--tmpdir", str(filled.base), "copy", "--quiet"]
    subprocess.run(
        [*argv, f"{transport}:{filled.base}/out:{ONE}", f"dir:{filled.base}/copy"],
        check=True, timeout=60,
    )  # fmt: skip
    config = filled.said("images", "--no-trunc", "-q", "one:1").strip().partition(":")[2]
    assert (filled.base / "copy" / config).exists()


#: Podman allows only short paths for what it keeps while it runs.
_LOAD = """\
mount -t tmpfs none /run && podman() { command podman --root "$1" --runroot /run/p \
    --storage-driver vfs "${@:2}"; }
podman "$1" load -q -i "$2" >&2
podman "$1" images --no-trunc --format "{{.Repository}}:{{.Tag}} {{.ID}}"
"""


@pytest.mark.skipif(MODE != "root", reason="podman needs no rights here, but a place of its own")
@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_podman_loads_it(filled: Cli, form: str) -> None:
    """With the same id."""
    if shutil.which("podman") is None:
        pytest.skip("missing tool: podman")
    (expected,) = (line.split() for line in ids(filled) if line.startswith(f"{TWO} "))
    filled.said("save", "--format", form, "-o", "out", TWO)
    argv = ["unshare", "-m", "bash", "-euc", _LOAD, "podman", filled.base / "podman", "out"]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=60, check=False, cwd=filled.base
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [TWO, expected[1]]
