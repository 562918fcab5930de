"""Fixtures of the tests of the commands for images."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseoverlay.oci.layout import LayoutWriter, Node, directory, layer_tar
from tests.helpers import warm
from tests.helpers.mounts import command, daemon_env, detach
from tests.helpers.repeated import skip_repeated

_FOLDER = Path(__file__).parent
_ALL = {path.stem for path in _FOLDER.glob("test_*.py")}
#: It makes no difference who runs them; one of the last needs root.
_THE_SAME = {"test_completion", "test_import", "test_listing", "test_push", "test_removal"}
_BY_ROOT = {"test_save"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`skip_repeated`."""
    skip_repeated(
        items,
        _FOLDER,
        without_extension=_ALL,
        by_anybody=_THE_SAME,
        by_root=_BY_ROOT,
        by_user=_ALL,
    )


class Cli:
    """The command line with a store of its own."""

    def __init__(self, base: Path) -> None:
        self.base, self.root, self.mnt = base, base / "store", base / "mnt"
        self.mnt.mkdir()
        self.env: dict[str, str] = {}

    def run(self, *argv: object, input: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        env = daemon_env(FUSEOVERLAY_ROOT=str(self.root), **self.env)
        return warm.run(command(*argv), cwd=self.base, env=env, input=input)

    def said(self, *argv: object, input: str = "") -> str:
        """What a command prints, which must exit with 0."""
        done = self.run(*argv, input=input)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, code: int, word: str, *argv: object) -> None:
        """The command exits with `code` and says `word` in its one line of error."""
        done = self.run(*argv)
        assert done.returncode == code, done.stderr
        *_, line = done.stderr.splitlines()
        assert line.startswith("fuseoverlay: error: ") and word in line, line

    def add(self, layout: Path, ref: str, name: str) -> None:
        """Have skopeo copy an image of a layout into the store."""
        self.said("images")
        argv = ["skopeo", "copy", "--quiet", f"oci:{layout}:{ref}", f"oci:{self.root}:{name}"]
        subprocess.run(argv, check=True, timeout=60)


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    """The command line with an empty store."""
    cli = Cli(tmp_path)
    try:
        yield cli
    finally:
        detach(cli.mnt)


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """Two images, `one` and `two`, that share their lowest layer."""
    writer = LayoutWriter(tmp_path / "layout")
    base = writer.add_layer(layer_tar([directory("etc"), Node("etc/base", data=b"b" * 1000)]))
    for name in ("one", "two"):
        data = name.encode() * 100
        layer = writer.add_layer(layer_tar([Node(name, data=data)]), "gzip")
        writer.add_image([base, layer], ref=name)
    return writer.path
