"""Whether the lower file that an `overlay.origin` names still exists."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Final

from fuseoverlay.errors import describe
from fuseoverlay.fsck.problems import shown
from fuseoverlay.layers.layer import Layer
from fuseoverlay.system import handles
from fuseoverlay.system.handles import Handle

_NO_UUID: Final = bytes(16)
# EINVAL, ENOENT: the handle is not from this filesystem.
_NONE_SUCH: Final = (errno.ESTALE, errno.EINVAL, errno.ENOENT)


class Origins:
    """Looks for file handles on the filesystems of the lower layers, which takes a superuser."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        # One layer of each filesystem is enough. Filesystems mounted below a layer are not asked.
        self._layers = list({os.fstat(layer.root_fd).st_dev: layer for layer in layers}.values())
        #: Why file handles cannot be followed on one of the filesystems; None if they can on all.
        self.unknown = next(filter(None, map(_obstacle, self._layers)), None)

    def gone(self, origin: Handle) -> bool:
        """Whether the origin is certainly no file of the lowers."""
        return self.unknown is None and not any(_has(layer, origin) for layer in self._layers)


def _has(layer: Layer, origin: Handle) -> bool:
    if _NO_UUID not in (layer.uuid, origin.uuid) and layer.uuid != origin.uuid:
        return False
    try:
        handles.status(layer.root_fd, origin)
    except OSError as exc:
        return exc.errno not in _NONE_SUCH
    return True


def _obstacle(layer: Layer) -> str | None:
    """Why file handles of the layer cannot be followed; None if they can."""
    path = shown(layer.path)
    own = handles.encode(layer.root_fd, b"", layer.uuid or _NO_UUID)
    handle = handles.decode(own) if own is not None else None
    if handle is None:
        return f"there are no file handles in {path}"
    try:
        handles.status(layer.root_fd, handle)
    except PermissionError:
        return "needs root, outside of a user namespace"
    except OSError as exc:
        return f"file handles cannot be followed in {path}: {describe(exc)}"
    if layer.crosses:
        return f"what is mounted below {path} shows"
    if layer.uuid is None:
        return f"another lower has the same UUID as {path}"
    return None
