"""Tests that would find the same in another mode are not run twice."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import pytest

from tests.helpers.mounts import MODE

#: Who runs what is all the same, if he runs at all: the first of these, or the last.
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
    """Skip modules of the folder: `without_extension` are those in which it plays no part,
    `by_anybody` those of which it is also all the same who runs them; of `by_root`, too, but
    root has the least to do; `by_user` those that find the same as root of a user namespace and as
    the user who makes it. A mode that runs by itself, or where pytest was called directly,
    leaves nothing out."""
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
