"""Descriptors of directories: few are kept, and those in use stay open."""

from __future__ import annotations

import os
from pathlib import Path

from fuseoverlay.layers.layer import RealDir
from fuseoverlay.layers.stack import LayerStack


def _chain(stack: LayerStack, top: bytes, depth: int) -> RealDir:
    real = RealDir(stack.lowers[0], stack.lowers[0].root, top)
    for _ in range(depth):
        real = RealDir(real.layer, real, b"d")
    return real


def test_two_deep_directories_at_once(tmp_path: Path) -> None:
    """A rename needs both; opening the second must not close the first."""
    depth = 60
    for top in ("a", "b"):
        (tmp_path / top / Path(*["d"] * depth)).mkdir(parents=True)
    with LayerStack(None, [os.fsencode(tmp_path)]) as stack:
        stack.limit = 16
        first, second = _chain(stack, b"a", depth), _chain(stack, b"b", depth)
        fds = stack.fd(first), stack.fd(second)
        for fd, top in zip(fds, ("a", "b"), strict=True):
            assert os.path.samestat(os.stat(fd), os.stat(tmp_path / top / Path(*["d"] * depth)))
