"""Every case of the table: fuseoverlay does what kernel overlayfs does, or says why not."""

from __future__ import annotations

import pytest

from tests.differential import report, results
from tests.differential.cases import TABLE
from tests.differential.results import BY_NAME, Key, Results
from tests.helpers.mounts import IMPL, MODE, NATIVE

if MODE == "user":
    pytest.skip("a plain user cannot mount kernel overlayfs", allow_module_level=True)

pytestmark = [
    # The first test runs the table for all.
    pytest.mark.timeout(300),
    pytest.mark.skipif(IMPL == "kernel", reason="mounts both"),
]


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Results:
    """Results of the cases that were asked for."""
    keys: list[Key] = []
    for item in request.session.items:
        if isinstance(item, pytest.Function) and item.originalname == "test_case":
            keys.append(item.callspec.params["key"])
    return results.collect(keys)


@pytest.mark.parametrize("key", results.everything(), ids="-".join)
def test_case(table: Results, key: Key) -> None:
    found = table.unexpected(key)
    lines = [f"{what}: {line}" for what, how in found.items() for line in how]
    assert not lines, "\n".join(lines[:40])


@pytest.mark.parametrize("name", [case.name for case in TABLE if case.design])
def test_reason_for_differing_is_still_true(table: Results, name: str) -> None:
    assert table.stale(BY_NAME[name]) == []


def test_lowers_are_as_they_were(table: Results) -> None:
    assert table.touched == []


def test_names_are_unique() -> None:
    assert len(BY_NAME) == len(TABLE)


@pytest.mark.skipif(MODE != "root" or not NATIVE, reason="the document is about other mounts")
def test_document_is_what_the_table_says(table: Results) -> None:
    if not table.complete:
        pytest.skip("only a part of the table was run")
    assert report.current() == report.rendered(table, keep_peer=True)
