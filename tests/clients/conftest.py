"""Fixtures of the clients' tests: a store with fuseoverlay, one with what the clients use else."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.store import REFERENCE, Store, missing
from tests.helpers.layouts import layer_blobs
from tests.helpers.mounts import IMPL, MODE, scratch

#: The name of the image that every store has.
BASE = "localhost/base:latest"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Only where clients run, and fuseoverlay is tested."""
    reason = ""
    if IMPL == "kernel":
        reason = "tests a mount program"
    elif MODE == "userns":
        reason = "clients make their user namespace themselves"
    elif os.environ.get("FUSEOVERLAY_NATIVE") == "0":
        reason = "clients see no difference without the extension, but for the time it takes"
    elif lacking := missing():
        reason = f"missing tool: {lacking}"
    for item in items:
        if reason and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def debian(image: Path) -> Path:
    """The archive of a debootstrap tree: the lowest layer of the real image."""
    return layer_blobs(image / "oci-plain")[0]


@contextlib.contextmanager
def made(driver: str, debian: Path) -> Iterator[Store]:
    """A store that has the image `BASE`, made by `podman import`."""
    with scratch() as base, Store(base, driver) as store:
        store.podman("import", "--quiet", debian, BASE)
        yield store


@pytest.fixture(scope="session")
def ours(debian: Path) -> Iterator[Store]:
    """A store with fuseoverlay as its mount program."""
    with made("fuseoverlay", debian) as store:
        yield store


@pytest.fixture(scope="session")
def reference(debian: Path) -> Iterator[Store]:
    """A store without a mount program: what fuseoverlay's has to be like."""
    with made(REFERENCE, debian) as store:
        yield store


@pytest.fixture(scope="session")
def kernel(debian: Path) -> Iterator[Store]:
    """The same with the kernel's overlayfs, whose upper directories become layers as they are."""
    if MODE != "root":
        pytest.skip("needs the superuser")
    with made("kernel", debian) as store:
        yield store
