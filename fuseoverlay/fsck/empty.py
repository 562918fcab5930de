"""Empty lower directories: something that should be mounted there may not be.

The missing filesystem may have held what the upper hides or merges with. Whether a mount shows
filesystems below a layer depends on its options and on who mounts, so the check does not depend on
the options given now.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from fuseoverlay.layers.layer import RealDir
from fuseoverlay.layers.stack import LayerStack


def first(stack: LayerStack, reals: Iterable[RealDir]) -> RealDir | None:
    """The first of the directories that is empty; None if none is."""
    for real in reals:
        with stack.listing_fd(real) as fd, os.scandir(fd) as entries:
            if next(entries, None) is None:
                return real
    return None


def on_the_way(stack: LayerStack, path: bytes) -> RealDir | None:
    """Follow an absolute redirect in each lower as far as its path exists; the first directory so
    reached that is empty, None if none is. A relative redirect is not followed: it leads to a
    sibling of its own directory."""
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
