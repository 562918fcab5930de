"""Skips tests that would find the same in another mode of the same run."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import pytest

from tests.helpers.mounts import MODE

#: Which mode runs the tests for which modes make no difference: the first of these that takes part
#: in the run; for those `by_root`, the last.
_FIRST = ("user", "userns", "root")
_MARK = pytest.mark.skip(reason="the same in another mode, which runs it")


def skip_repeated(
    items: list[pytest.Item],
    folder: Path,
    *,
    without_extension: Collection[str],
    by_anybody: Collection[str] = (),
    by_root: Collection[str] = (),
    by_user: Collection[str] = (),
) -> None:
    """Skip modules of the folder. `without_extension`: the extension plays no part in them.
    `by_anybody`: nor does it matter who runs them. `by_root`: the same, but root takes least time.
    `by_user`: they find the same as root of a user namespace and as the user who makes it. A single
    mode, or a direct call of pytest, skips nothing."""
    others = os.environ.get("FUSEOVERLAY_TEST_MODES", "").split()
    plain = os.environ.get("FUSEOVERLAY_NATIVE") == "0"
    repeated: set[str] = set()
    for names, order in ((by_anybody, _FIRST), (by_root, _FIRST[::-1])):
        first = next((mode for mode in order if mode in others), MODE)
        if first != MODE or (plain and first in others):
            repeated |= {*names}
    if MODE == "userns" and "user" in others:
        repeated |= {*by_user}
    if plain and MODE in others:
        repeated |= {*without_extension}
    for item in items:
        if item.path.parent == folder and item.path.stem in repeated:
            item.add_marker(_MARK)
