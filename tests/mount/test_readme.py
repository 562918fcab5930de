"""The commands of README as they stand, one after the other in one directory."""

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

pytestmark = fuse_only

README = (PROJECT / "README.md").read_text()
SECTIONS = ("Mount directories", "Mount an image", "See and keep changes", "Check what was kept")


def commands(section: str) -> str:
    """The block of commands in this section."""
    text = README.partition(f"## {section}\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    return block


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
            ["sh", "-euc", commands(section)],
            cwd=place, env=env, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), section
        assert mounts_at(place / "mnt") == [], f"{section} leaves a mount"
        said[section] = done.stdout
    assert (place / "changes" / "new").read_text() == "hello\n"
    assert said["See and keep changes"] == "added\n"
    assert (place / "mine" / "diff" / "added").exists()
    assert [line.startswith("clean") for line in said["Check what was kept"].splitlines()] == [
        True,
        True,
    ]
