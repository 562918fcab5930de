"""Fixtures of the image tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseoverlay.system.removal import remove_tree
from tests.helpers.repeated import skip_repeated
from tests.oci.helpers import Unpacker, owner_possible

#: Modules whose tests mount nothing.
_READ = {
    *("test_blobs", "test_headers", "test_layout", "test_malformed", "test_model"),
    *("test_reference", "test_streams"),
}
#: The last ones mount to see what was unpacked.
_UNPACK = {
    "test_unpack",
    "test_unpack_bad",
    "test_references",
    "test_real_image",
    "test_treetarget",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`skip_repeated`."""
    skip_repeated(
        items,
        Path(__file__).parent,
        without_extension=_UNPACK,
        by_anybody=_READ,
        by_user={"test_real_image"},
    )


with tempfile.TemporaryDirectory() as _probe:
    #: Only root can set real owners; everybody can note them in attributes.
    WAYS = ["real", "override"] if owner_possible(Path(_probe)) else ["override"]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose tree may be deeper than a path can name."""
    path = Path(tempfile.mkdtemp(prefix="fo-oci-"))
    yield path
    # shutil.rmtree recurses: the deepest of these trees would be too much for it.
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    remove_tree(fd, os.fsencode(path.name))
    os.close(fd)


@pytest.fixture(params=WAYS)
def unpacker(request: pytest.FixtureRequest, place: Path) -> Unpacker:
    """Unpacks with real owners and with noted ones."""
    return Unpacker(place, request.param == "override")
