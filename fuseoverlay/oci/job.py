"""How to unpack a layer, and the errors of the store."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from fuseoverlay.errors import StoreError, describe

_HINTS: Final = {
    errno.ENOSPC: "make room, or set FUSEOVERLAY_ROOT to a directory with more",
    errno.EDQUOT: "make room in your quota, or set FUSEOVERLAY_ROOT to another directory",
    errno.EROFS: "set FUSEOVERLAY_ROOT to a directory that can be written",
    errno.EACCES: "set FUSEOVERLAY_ROOT to a directory that can be written",
    errno.EPERM: "set FUSEOVERLAY_ROOT to a directory that can be written",
    errno.ENOTDIR: "set FUSEOVERLAY_ROOT to a directory",
    errno.EEXIST: "set FUSEOVERLAY_ROOT to a directory",
    errno.EOPNOTSUPP: "set FUSEOVERLAY_ROOT to a directory where extended attributes can be set",
}


@dataclass(frozen=True, slots=True)
class Job:
    """How to unpack a layer.

    `override`: record owners and modes instead of setting them. `lowers`: the unpacked layers
    below, top first, for hard links into them. `where` names the layer and `place` the directory,
    both for messages. `limit`: bytes that its plain archive may have; None: any number.
    """

    override: bool
    lowers: Sequence[str | os.PathLike[str]] = ()
    warn: Callable[[str], None] = lambda line: None
    where: str = "layer"
    place: str = "store"
    limit: int | None = None


def store_error(exc: OSError, what: str, place: object) -> StoreError:
    """`exc` as a StoreError, with a hint."""
    return StoreError(f"{what}: {describe(exc)}", where=place, hint=_HINTS.get(exc.errno or 0))
