"""Lower directories that are empty, as those are on which something is not mounted.

What was mounted there may have had what the upper hides or goes on in. Whether a mount shows
that depends on its options and on who mounts, so it is asked for whatever these are now.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from fuseoverlay.layers.layer import RealDir
from fuseoverlay.layers.stack import LayerStack


def first(stack: LayerStack, reals: Iterable[RealDir]) -> RealDir | None:
    """The first of the directories that is empty."""
    for real in reals:
        with stack.listing_fd(real) as fd, os.scandir(fd) as entries:
            if next(entries, None) is None:
                return real
    return None


def on_the_way(stack: LayerStack, path: bytes) -> RealDir | None:
    """A directory that is empty and the last on the way that an absolute redirect goes in a
    lower. A relative one leads to what is beside its own directory."""
    if not path.startswith(b"/"):
        return None
    return first(stack, (_end(stack, layer.root, path) for layer in stack.lowers))


def _end(stack: LayerStack, real: RealDir, path: bytes) -> RealDir:
    for name in filter(None, path.split(b"/")):
        below = RealDir(real.layer, real, name)
        try:
            stack.fd(below)
        except OSError:
            break
        real = below
    return real
