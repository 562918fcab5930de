"""Which unit tests run in which mode."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.repeated import skip_repeated

#: Tests that read the project's files, or test functions that use no filesystem.
_ALL_THE_SAME = {
    *("test_benchmarks", "test_documents", "test_imports", "test_option_table", "test_parsers"),
    *("test_abi", "test_handlers", "test_scripts", "test_turns", "test_inodes"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`skip_repeated`."""
    folder = Path(__file__).parent
    skip_repeated(items, folder, without_extension=(), by_anybody=_ALL_THE_SAME)
