"""Every function of the table on a plain directory, on kernel overlayfs and on fuseoverlay.

On the overlays the objects are in the lower, in the upper, or copied up. All must agree;
`differences.py` lists where they may not.
"""

from __future__ import annotations

import importlib
import os

import pytest

from tests.helpers.mounts import IMPL, MODE
from tests.posix import MODULES
from tests.posix.conftest import PLACES, Place, Reference
from tests.posix.differences import DIFFERENT, LIMITATIONS, NOT_IN_PYFUSE3, WANT_FEATURES
from tests.posix.table import TABLE

for _module in MODULES:
    importlib.import_module(f"tests.posix.{_module}")

pytestmark = pytest.mark.skipif(IMPL == "kernel", reason="mounts both")
ROWS = [pytest.param(name, marks=row.marks) for name, row in TABLE.items()]
no_kernel = [
    pytest.mark.skipif(MODE == "user", reason="a plain user cannot mount kernel overlayfs"),
    pytest.mark.skipif(
        os.environ.get("FUSEOVERLAY_NATIVE") == "0",
        reason="the kernel's answers do not depend on the extension; another mode gets them",
    ),
]
OVERLAYS = [
    pytest.param(pair, id="-".join(pair), marks=no_kernel if pair[0] == "kernel" else [])
    for pair in PLACES[1:]
]


def _expected(name: str, impl: str, where: str, reference: Reference) -> object:
    """What the function must answer on this overlay."""
    answer = reference.answer(name)
    if impl == "fuse" and name in NOT_IN_PYFUSE3:
        return f"fails with {NOT_IN_PYFUSE3[name]}"
    for different in DIFFERENT.get((name, impl), ()):
        if where in different.origins and MODE in different.modes:
            assert different.answer != answer, "no difference: take it out of the list"
            return different.answer
    return answer


@pytest.mark.parametrize("name", ROWS)
def test_on_a_plain_directory(name: str, reference: Reference) -> None:
    answer = reference.answer(name)
    assert not str(answer).startswith("fails with"), answer
    if TABLE[name].answers is not None:
        assert answer == TABLE[name].answers


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("place", OVERLAYS, indirect=True)
def test_on_an_overlay(
    place: Place, name: str, reference: Reference, request: pytest.FixtureRequest
) -> None:
    if place.lacks_features() and name in WANT_FEATURES:
        pytest.skip("no redirect_dir and no index in a user namespace")
    if place.impl == "fuse" and name in LIMITATIONS:
        request.applymarker(pytest.mark.xfail(reason=LIMITATIONS[name], strict=True))
    expected = _expected(name, place.impl, place.where, reference)
    assert place.answer(name) == expected


def test_the_lists_name_functions_of_the_table() -> None:
    """Guards the lists of differences against names that nothing has."""
    listed = {name for name, _ in DIFFERENT}
    assert listed | set(NOT_IN_PYFUSE3) | set(LIMITATIONS) | WANT_FEATURES <= set(TABLE)


def test_the_table_is_long() -> None:
    assert len(TABLE) >= 250
