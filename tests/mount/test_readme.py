"""The commands of README as they stand, one after the other in one directory.

Those of its section on podman are in tests/clients/test_readme.py, those of images in
tests/commands/test_pull.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.mounts import BARE_ENV, PROJECT, detach, fuse_only, mounts_at
from tests.mount.conftest import Cli
from tests.mount.test_images import BASE, make_image
from tests.mount.test_mount8 import Host, host, needs_mount

__all__ = ["host"]

pytestmark = fuse_only

README = (PROJECT / "README.md").read_text()
SECTIONS = ("Mount directories", "See and keep changes")


def block(section: str, kind: str = "sh") -> str:
    """The block of commands in this section, or one of another kind."""
    text = README.partition(f"## {section}\n")[2].partition("\n## ")[0]
    blocks: list[tuple[str, str]] = re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)
    (found,) = (body for language, body in blocks if language == kind)
    return found


@pytest.fixture
def place(cli: Cli) -> Iterator[Path]:
    """A directory with an image in it."""
    base = cli.space.base / "readme"
    base.mkdir()
    make_image(base / "image", BASE)
    yield base
    detach(base / "mnt")


def test_what_readme_says_can_be_done(place: Path) -> None:
    env = {
        **BARE_ENV,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_DATA_HOME": str(place / "data"),
    }
    said = {}
    for section in SECTIONS:
        done = subprocess.run(
            ["sh", "-euc", block(section)],
            cwd=place, env=env, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), section
        assert mounts_at(place / "mnt") == [], f"{section} leaves a mount"
        said[section] = done.stdout
    assert (place / "changes" / "new").read_text() == "hello\n"
    assert said["Mount directories"].startswith("clean")
    added, checked = said["See and keep changes"].splitlines()
    assert added == "added" and checked.startswith("clean")
    assert (place / "mine" / "diff" / "added").exists()


@needs_mount
def test_fstab_of_readme(cli: Cli, host: Host) -> None:
    """On a machine that has these lines, and what they name below /srv."""
    srv = cli.space.base / "srv"
    for name in ("top", "bottom", "changes", "work", "a", "b", "images"):
        (srv / name).mkdir(parents=True)
    (srv / "bottom" / "f").touch()
    layout = make_image(cli.space.base / "image", BASE)
    archive = srv / "images" / "app.tar"
    subprocess.run(["tar", "-C", layout, "-cf", archive, "."], check=True, timeout=30)
    host.start(*block("/etc/fstab", "").splitlines())
    host.done("mount", "--bind", srv, "/srv")
    *mounts, umount = block("/etc/fstab").splitlines()
    assert len(mounts) == 2
    for line in mounts:
        host.done("sh", "-euc", line)
    host.done("sh", "-euc", "cat /srv/b/linked2 >> /srv/a/f; ! touch /srv/b/f 2> /dev/null")
    host.done("sh", "-euc", umount)
    assert (srv / "changes" / "f").read_text() == "two names"
