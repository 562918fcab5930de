"""Tests that would find the same in another mode are not run twice."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import pytest

from tests.helpers.mounts import MODE

_MARK = pytest.mark.skip(reason="the same in another mode, which runs it")


def skip_repeated(
    items: list[pytest.Item],
    folder: Path,
    *,
    without_extension: Collection[str],
    by_anybody: Collection[str],
) -> None:
    """Skip modules of the folder: `without_extension` are those in which it plays no part,
    `by_anybody` those of which it is also all the same who runs them; a plain user himself does."""
    if os.environ.get("FUSEOVERLAY_NATIVE") == "0":
        repeated = {*without_extension, *by_anybody}
    else:
        repeated = set(by_anybody) if MODE == "userns" else set()
    for item in items:
        if item.path.parent == folder and item.path.stem in repeated:
            item.add_marker(_MARK)
