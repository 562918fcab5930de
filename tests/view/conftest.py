"""Fixtures of the tests that look into layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from fuseoverlay.oci.layout import LayoutWriter, Node, layer_tar
from tests.commands.conftest import Cli
from tests.helpers.mounts import detach
from tests.helpers.repeated import skip_repeated
from tests.view.pictures import with_history

_FOLDER = Path(__file__).parent
_ALL = {path.stem for path in _FOLDER.glob("test_*.py")}
#: These mount something, need root for some of it, or find what the user who runs them can read.
_BY_EACH = {
    *("test_builders", "test_directories", "test_extract", "test_same_as_mount", "test_upperdiff"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`skip_repeated`."""
    skip_repeated(items, _FOLDER, without_extension=_ALL, by_anybody=_ALL - _BY_EACH)


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    """The command line with an empty store."""
    made = Cli(tmp_path)
    try:
        yield made
    finally:
        detach(made.mnt)


class Painter:
    """Makes images in layouts below a directory."""

    def __init__(self, base: Path) -> None:
        self._base = base

    def __call__(
        self, name: str, *layers: Sequence[Node] | bytes, steps: Sequence[str] = ()
    ) -> str:
        """The image of these layers, bottom first, each nodes or a plain archive; `steps`: the
        commands that made them. Returns how it is named on the command line."""
        writer = LayoutWriter(self._base / name)
        made = [
            writer.add_layer(layer if isinstance(layer, bytes) else layer_tar(layer), "gzip")
            for layer in layers
        ]
        writer.add_image(made, ref="1")
        if steps:
            with_history(writer, [{"created_by": step} for step in steps])
        return f"{writer.path}:1"


@pytest.fixture
def paint(tmp_path: Path) -> Painter:
    """Makes images."""
    return Painter(tmp_path)
