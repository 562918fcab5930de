"""Fixtures of the image tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseoverlay.removal import remove_tree
from tests.oci.helpers import Unpacker, owner_possible

with tempfile.TemporaryDirectory() as _probe:
    #: Real owners can be set by root only; noting them works for everybody.
    WAYS = ["real", "override"] if owner_possible(Path(_probe)) else ["override"]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of which the tree may be deeper than a path can name."""
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
