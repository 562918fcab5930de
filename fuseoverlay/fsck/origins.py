"""Whether the lower file that an `overlay.origin` tells of still exists."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from typing import Final

from fuseoverlay import handles
from fuseoverlay.handles import Handle
from fuseoverlay.layers import Layer

_NO_UUID: Final = bytes(16)
# EINVAL, ENOENT: no handle of this filesystem's.
_NONE_SUCH: Final = (errno.ESTALE, errno.EINVAL, errno.ENOENT)


class Origins:
    """The filesystems of the lower layers, asked by file handle; that takes a superuser."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        # One layer of each filesystem speaks for all. What is mounted below one is not asked.
        self._layers = list({os.fstat(layer.root_fd).st_dev: layer for layer in layers}.values())
        #: Whether file handles can be followed on all of them.
        self.known = all(map(_can_follow, self._layers))

    def gone(self, origin: Handle) -> bool:
        """Whether certainly no file of the lowers is meant."""
        return self.known and not any(_has(layer, origin) for layer in self._layers)


def _has(layer: Layer, origin: Handle) -> bool:
    if _NO_UUID not in (layer.uuid, origin.uuid) and layer.uuid != origin.uuid:
        return False
    try:
        handles.status(layer.root_fd, origin)
    except OSError as exc:
        return exc.errno not in _NONE_SUCH
    return True


def _can_follow(layer: Layer) -> bool:
    if layer.crosses or layer.uuid is None:
        return False
    own = handles.encode(layer.root_fd, b"", layer.uuid)
    handle = handles.decode(own) if own is not None else None
    if handle is not None:
        with contextlib.suppress(OSError):
            handles.status(layer.root_fd, handle)
            return True
    return False
