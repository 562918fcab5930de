"""Images that podman makes and mounts are the same with fuseoverlay as without."""

from __future__ import annotations

import pytest

from tests.clients.conftest import BASE
from tests.clients.store import Store
from tests.helpers.tree import compare

pytestmark = pytest.mark.timeout(300)


def test_imported_tree(ours: Store, reference: Store) -> None:
    """`podman import` of a debootstrap tree, mounted."""
    expected = reference.mounted(BASE)
    assert len(expected) > 3000
    lines = compare(expected, ours.mounted(BASE))
    assert not lines, "\n".join(lines)


def test_info_shows_the_version(ours: Store) -> None:
    """`podman info` runs the mount program with --version."""
    version = ours.said(ours.base / "fuseoverlay", "--version")
    assert version.startswith("fuseoverlay ")
    shown = ours.podman("info", "--format", "{{range $k, $v := .Store.GraphOptions}}{{$v}}{{end}}")
    assert version in shown
