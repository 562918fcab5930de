"""The commands in README and in the pages about layers, as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fuseoverlay.oci.layout import Node, directory
from tests.commands.conftest import Cli
from tests.helpers.mounts import BARE_ENV, PROJECT
from tests.view.conftest import Painter

BASE = [
    directory("etc"), directory("etc/apt"), Node("etc/apt/sources.list", data=b"deb\n"),
    Node("etc/os-release", data=b"ID=debian\n"), Node("etc/passwd", data=b"root\n"),
]  # fmt: skip
#: What the commands of a page print, among other things.
SAYS = {
    "docs/layers.md": ("RECLAIMABLE", "A etc", "/etc/os-release", "apt/sources.list", "M passwd"),
    "docs/efficiency.md": ("Evaluation:", "PASS"),
}


@pytest.fixture
def place(cli: Cli, paint: Painter) -> Cli:
    """A store with `debian:12` and `app:1`, and the file `image.tar`."""
    image = paint("layout", BASE, [Node("etc/passwd", data=b"user\n")])
    layout, _, ref = image.rpartition(":")
    for name in ("debian:12", "app:1"):
        cli.add(Path(layout), ref, f"docker.io/library/{name}")
    cli.said("save", "-o", cli.base / "image.tar", "debian:12")
    Path(layout).rename(cli.base / "image")
    return cli


def commands(document: str, section: str = "") -> str:
    """All blocks of commands, or those of one section."""
    text = (PROJECT / document).read_text()
    if section:
        text = text.partition(f"## {section}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    assert blocks
    return "".join(blocks)


def run(cli: Cli, script: str) -> subprocess.CompletedProcess[str]:
    env = {
        **BARE_ENV, "FUSEOVERLAY_ROOT": str(cli.root), "HOME": str(cli.base),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=cli.base, env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("document", SAYS)
def test_pages(place: Cli, document: str) -> None:
    script = commands(document)
    if document == "docs/efficiency.md":
        # A few bytes of waste are a large part of a small image.
        (place.base / ".dive-ci").write_text(
            "rules:\n  highestUserWastedPercent: disabled\n  lowestEfficiency: 0\n"
        )
    done = run(place, script)
    assert done.returncode == 0, done.stderr
    for said in SAYS[document]:
        assert said in done.stdout


def test_readme(place: Cli) -> None:
    """All but the full-screen program, which needs a terminal and says so."""
    script = commands("README.md", "Look into layers")
    *lines, explore = script.splitlines()
    done = run(place, "\n".join(lines))
    assert done.returncode == 0, done.stderr
    assert "could save 5B" in done.stdout and "layer 2 changes it" in done.stdout
    assert run(place, explore).returncode == 2
