"""Whether the lowers that were named are those that the upper belongs to.

With a layer missing, wrong or not mounted nearly every whiteout seems to hide nothing, and
removing them brings back what was deleted. A whiteout too many harms nobody, so the check
gives in early: where more of them miss than meet something, be it only one of one.
"""

from __future__ import annotations

import os

from fuseoverlay.errors import printable
from fuseoverlay.fsck.origins import Origins
from fuseoverlay.fsck.problems import Kind
from fuseoverlay.fsck.upper import UpperCheck
from fuseoverlay.layers import LayerStack

_BY_NAME = (Kind.DANGLING, Kind.REDIRECT)
_HINT = "name the layers as for the mount and see that they are mounted, or say --force"


def about(stack: LayerStack, origins: Origins) -> str | None:
    """Why the lowers may be the wrong ones, as one line; None: nothing speaks for that."""
    upper = UpperCheck(stack, origins, indexed=None)
    missing = sum(problem.by_lowers and problem.kind in _BY_NAME for problem in upper.problems())
    if not missing:
        return None
    for layer in stack.lowers:
        with stack.listing_fd(layer.root) as fd, os.scandir(fd) as entries:
            if next(entries, None) is None:
                return f"the lower directory {printable(layer.path)} is empty; {_HINT}"
    met = sum(map(len, upper.whiteouts.values())) + len(upper.opaque_files) + upper.redirected
    if missing <= met:
        return None
    return f"{missing} of {missing + met} whiteouts and redirects meet nothing; {_HINT}"
