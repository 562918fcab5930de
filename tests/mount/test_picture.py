"""The picture of a session at the top of README."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from tests.helpers.mounts import PROJECT, fuse_only
from tests.mount.conftest import Cli

pytestmark = fuse_only

PICTURE = PROJECT / "docs" / "terminal.svg"


def test_picture_is_a_run_of_now(cli: Cli) -> None:
    """The session goes as it is drawn; where whiteouts cannot be devices it goes in another way."""
    try:
        os.mknod(cli.space.base / "device", stat.S_IFCHR, os.makedev(0, 0))
    except PermissionError:
        pytest.skip("this filesystem keeps no whiteouts that are devices")
    done = subprocess.run(
        [sys.executable, str(PROJECT / "scripts" / "terminal"), "--svg"],
        env={**os.environ, "TMPDIR": str(cli.space.base)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert PICTURE.read_text() == done.stdout, "stale: run scripts/terminal --write"


def test_picture_needs_nothing_else() -> None:
    """GitHub shows it as an image: no scripts, no fonts of its own, nothing that is fetched."""
    root = ElementTree.parse(PICTURE).getroot()
    names = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert names <= {"svg", "title", "rect", "path", "circle", "g", "text", "tspan"}
    assert not [name for element in root.iter() for name in element.attrib if "href" in name]
    before_sections = (PROJECT / "README.md").read_text().partition("\n## ")[0]
    assert "](docs/terminal.svg)" in before_sections
