"""Fixtures of the tests of the store."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseoverlay.store import garbage
from fuseoverlay.store.images import Images
from fuseoverlay.store.root import Store
from tests.helpers.repeated import skip_repeated
from tests.oci.conftest import place  # noqa: F401  # a fixture
from tests.store.pictures import Painter, painter

#: Modules in which it does not matter who runs them. `test_layers` sets real owners as root.
_ALL_THE_SAME = {
    *("test_content", "test_garbage", "test_images", "test_kills", "test_load", "test_names"),
    *("test_pull", "test_push", "test_save", "test_verify"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`skip_repeated`."""
    folder = Path(__file__).parent
    skip_repeated(
        items,
        folder,
        without_extension={"test_full", "test_layers", "test_root", "test_use"},
        by_anybody=_ALL_THE_SAME,
    )


@pytest.fixture(autouse=True)
def nothing_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other program is about to name a blob."""
    monkeypatch.setattr(garbage, "_NEW", 0)


@pytest.fixture
def kept(place: Path) -> Store:  # noqa: F811  # the fixture above
    """A new store."""
    store = Store(place / "store")
    store.prepare()
    return store


@pytest.fixture
def paint(kept: Store) -> Painter:
    """Makes images in that store."""
    return painter(kept)


@pytest.fixture
def images(kept: Store) -> Images:
    """The images in it."""
    return Images(kept)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 4 MiB."""
    where = tmp_path / "small"
    where.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,mode=777", "tmpfs", where], capture_output=True
    )
    if done.returncode:
        pytest.skip("no mount for this user")
    yield where
    subprocess.run(["umount", where], check=True)
