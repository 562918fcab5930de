"""Whether the upper belongs to the lowers that were named.

If a layer is missing, wrong or not mounted, whiteouts seem to hide nothing, and removing them would
bring back what was deleted. A whiteout too many harms nobody, so fsck doubts the lowers early: if
the last mount was over other lowers; if more whiteouts miss than hide something, be it only one of
one; or if a whiteout misses and a lower directory on the way to it is empty, because something may
not be mounted there.
"""

from __future__ import annotations

from fuseoverlay.fsck.empty import first
from fuseoverlay.fsck.origins import Origins
from fuseoverlay.fsck.problems import Kind, shown
from fuseoverlay.fsck.upper import UpperCheck
from fuseoverlay.layers import usedlowers
from fuseoverlay.layers.stack import LayerStack

_BY_NAME = (Kind.DANGLING, Kind.REDIRECT)
_HINT = (
    "name the layers as for the mount and see that they, and what is below them, are mounted, "
    "or say --force"
)


def about(stack: LayerStack, origins: Origins, work_fd: int | None) -> str | None:
    """Why the lowers may be the wrong ones, as one line; None if nothing suggests it."""
    upper = UpperCheck(stack, origins, indexed=None)
    missing = sum(problem.by_lowers and problem.kind in _BY_NAME for problem in upper.problems())
    if upper.objects.uncounted is not None:
        return "attributes of the upper do not count; name userxattr in -o, or say --force"
    empty = upper.empty
    if empty is None and missing:
        empty = first(stack, (layer.root for layer in stack.lowers))
    if empty is not None:
        return f"the lower directory {shown(upper.objects.path(empty))} is empty; {_HINT}"
    met = upper.hiding.count + upper.redirected
    if missing > met:
        return f"{missing} of {missing + met} whiteouts and redirects meet nothing; {_HINT}"
    if missing and work_fd is not None and usedlowers.are_others(work_fd, stack.below):
        return f"the last mount was over other lower directories; {_HINT}"
    return None
