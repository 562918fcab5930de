"""Fixtures of the tests with registries, which need neither root nor a mount."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.repeated import skip_repeated
from tests.registry.daemon import Daemon
from tests.registry.hostile import certificate

_FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`skip_repeated`."""
    all_of_them = {path.stem for path in _FOLDER.glob("test_*.py")}
    skip_repeated(items, _FOLDER, without_extension=(), by_anybody=all_of_them)


@pytest.fixture(scope="session")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate with its key in one file; beside it the certificate alone, cert.pem."""
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def trusting(tmp_path_factory: pytest.TempPathFactory, certified: Path) -> Path:
    """A directory as those in certs.d, which says that `certified` is to be trusted."""
    directory = tmp_path_factory.mktemp("certs")
    (directory / "ca.crt").write_bytes((certified.parent / "cert.pem").read_bytes())
    return directory


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A real registry that anybody may use."""
    with Daemon(tmp_path_factory.mktemp("registry")) as running:
        yield running
