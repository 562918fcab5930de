"""How to unpack a layer, and the errors of the store."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from fuseoverlay.errors import StoreError, describe

_HINTS: Final = {
    errno.ENOSPC: "make room, or set XDG_DATA_HOME to a directory with more",
    errno.EDQUOT: "make room in your quota, or set XDG_DATA_HOME to another directory",
    errno.EROFS: "set XDG_DATA_HOME to a directory that can be written",
    errno.EACCES: "set XDG_DATA_HOME to a directory that can be written",
    errno.EPERM: "set XDG_DATA_HOME to a directory that can be written",
    errno.ENOTDIR: "set XDG_DATA_HOME to a directory",
    errno.EEXIST: "set XDG_DATA_HOME to a directory",
    errno.EOPNOTSUPP: "set XDG_DATA_HOME to a directory on a filesystem with extended attributes",
}


@dataclass(frozen=True, slots=True)
class Job:
    """How to unpack a layer.

    `override`: record owners and modes instead of setting them. `lowers`: the unpacked layers
    below, top first, for hard links into them. `where` names the layer and `place` the directory,
    both for messages.
    """

    override: bool
    lowers: Sequence[str | os.PathLike[str]] = ()
    warn: Callable[[str], None] = lambda line: None
    where: str = "layer"
    place: str = "store"


def store_error(exc: OSError, what: str, place: object) -> StoreError:
    """`exc` as a StoreError, with a hint."""
    return StoreError(f"{what}: {describe(exc)}", where=place, hint=_HINTS.get(exc.errno or 0))
