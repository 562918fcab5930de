"""`diff` of one mount, or of the changes that one has kept: what docker diff prints."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from fuseoverlay.oci.layout import Node, directory, symlink
from tests.commands.conftest import Cli
from tests.commands.dockerd import Docker, missing
from tests.helpers.mounts import MODE, NATIVE, fuse_only, scratch
from tests.view.conftest import Painter
from tests.view.test_builders import base_image

pytestmark = fuse_only

BASE = [
    directory("etc"), Node("etc/conf", data=b"one\n"), Node("etc/same", data=b"same"),
    Node("etc/mode", data=b"m"), directory("gone"), directory("gone/deep"), Node("gone/deep/f"),
    directory("new"), Node("new/old"), directory("a"), directory("a/b"), Node("a/b/c"),
    symlink("link", "etc"), Node("kept", data=b"k"),
]  # fmt: skip
#: What is done, in a shell.
CHANGES = """\
echo two > etc/conf; echo -n same > etc/same; chmod 600 etc/mode; rm -r gone; rm -r new
mkdir new; echo n > new/fresh; mkdir -p dir/in; echo x > dir/in/x; rm a/b/c; rm link; ln -s a link
"""
#: `same` was written with what it had.
EXPECTED = [
    "C /a", "C /a/b", "D /a/b/c", "A /dir", "A /dir/in", "A /dir/in/x", "C /etc", "C /etc/conf",
    "C /etc/mode", "D /gone", "C /link", "C /new", "A /new/fresh", "D /new/old",
]  # fmt: skip


@pytest.fixture
def mounted(cli: Cli, paint: Painter) -> Cli:
    """An image that is mounted with --upper, and changed."""
    image = paint("image", BASE)
    cli.said("mount", "--upper", "mine", image, cli.mnt)
    subprocess.run(["sh", "-euc", CHANGES], cwd=cli.mnt, check=True, timeout=60)
    return cli


def test_a_mount(mounted: Cli) -> None:
    assert mounted.said("diff", mounted.mnt).splitlines() == EXPECTED


def test_what_was_kept(mounted: Cli) -> None:
    """While it is mounted, and later."""
    assert mounted.said("diff", "mine").splitlines() == EXPECTED
    mounted.said("unmount", mounted.mnt)
    assert mounted.said("diff", mounted.base / "mine").splitlines() == EXPECTED
    mounted.refused(7, "a directory, and neither an image nor a mount", "diff", mounted.mnt)


def test_in_numbers_and_in_full(mounted: Cli) -> None:
    # Made anew by a plain user, `new` is not root's any more.
    changed = 4 if MODE == "user" else 3
    assert mounted.said("diff", "--stat", "mine") == (
        f"4 added, {changed} changed, 3 removed; 8B of new content\n"
    )
    rows = [json.loads(line) for line in mounted.said("diff", "--json", "mine").splitlines()]
    found = {row["path"]: row for row in rows}
    assert found["/etc/mode"]["fields"] == ["mode"] and found["/gone"]["kind"] == "removed"
    assert "/etc/same" not in found
    text = mounted.said("diff", "--content", "mine")
    assert "C /etc/conf\n--- /etc/conf\n+++ /etc/conf\n@@ -1 +1 @@\n-one\n+two\n" in text


def test_nothing_changed(cli: Cli, paint: Painter) -> None:
    image = paint("image", BASE)
    cli.said("mount", image, cli.mnt)
    assert cli.said("diff", cli.mnt) == ""
    cli.said("unmount", cli.mnt)
    cli.refused(2, "has no upper directory", "diff", image)
    cli.said("mount", "--read-only", image, cli.mnt)
    cli.refused(2, "has no upper directory", "diff", cli.mnt)


def test_directories(cli: Cli, tmp_path: Path) -> None:
    for name in ("lower/d", "upper/d", "work"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "lower/d/f").write_text("1")
    (tmp_path / "upper/d/g").write_text("2")
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper"
    assert cli.said("diff", "-o", options).splitlines() == ["C /d", "A /d/g"]


@pytest.mark.skipif(MODE != "root" or not NATIVE, reason="Docker's daemon runs once, as root")
@pytest.mark.timeout(180)
def test_as_docker_has_it(cli: Cli) -> None:
    """The same commands in a container of Docker's."""
    if lacking := missing():
        pytest.skip(f"missing tool: {lacking}")
    make = (
        "mkdir -p etc gone/deep new a/b; echo one > etc/conf; echo m > etc/mode; echo o > new/old;"
        " echo f > gone/deep/f; echo c > a/b/c; ln -s etc link"
    )
    change = "; ".join(CHANGES.replace("echo -n same > etc/same; ", "").splitlines())
    # Docker compares times and sizes, no contents.
    change = change.replace("echo two", "echo three")
    with scratch() as base, Docker(base) as docker:
        docker.run("import", "-", "base:1", input=base_image())
        (base / "context").mkdir()
        (base / "context/Dockerfile").write_text(f"FROM base:1\nWORKDIR /\nRUN {make}\n")
        docker.run("build", "--quiet", "--network", "none", "--tag", "it:1", base / "context")
        docker.run("run", "--name", "one", "--network", "none", "it:1", "sh", "-euc", change)
        theirs = docker.said("diff", "one").splitlines()
        docker.run("save", "--output", cli.base / "it.tar", "it:1")
    cli.said("mount", "--upper", "mine", cli.base / "it.tar", cli.mnt)
    subprocess.run(["sh", "-euc", change], cwd=cli.mnt, check=True, timeout=60)
    # Docker's order is that of its storage driver.
    ours = cli.said("diff", cli.mnt).splitlines()
    assert sorted(ours) == sorted(theirs)
    assert ours == sorted(ours, key=lambda line: line[2:].split("/"))
    assert os.path.exists(cli.mnt / "dir/in/x") and len(theirs) > 10
