"""The files of an upper: the origins of copies, and metacopies, whose data is elsewhere."""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterator, Sequence, Set

from fuseoverlay.fsck.objects import Objects
from fuseoverlay.fsck.problems import Kind, Problem
from fuseoverlay.layers import redirect, xattrs
from fuseoverlay.layers.layer import Place, RealDir
from fuseoverlay.layers.objects import stat_key
from fuseoverlay.system.syscalls import at


class Files:
    """Checks files one by one, and counts the names of those with several links."""

    def __init__(self, objects: Objects, indexed: Set[tuple[int, int]] | None) -> None:
        """`indexed`: the files of the index, which is checked later; None: the index is not
        known."""
        self._objects = objects
        self._indexed = indexed
        #: How many names each real file with several links has in the upper.
        self.names: Counter[tuple[int, int]] = Counter()

    def problems(self, place: Place, lowers: Sequence[RealDir]) -> Iterator[Problem]:
        """What is wrong with one file; `lowers` are the lower directories of its directory."""
        st = self._objects.stat(place)
        if st.st_nlink > 1:
            self.names[stat_key(st)] += 1
        own = self._objects.own(*place)
        if not own:
            return
        if not (self._indexed and stat_key(st) in self._indexed):
            unsure = self._indexed is None and st.st_nlink > 1
            yield from self._objects.origin(*place, own, repairable=not unsure)
        if not stat.S_ISREG(st.st_mode):
            return
        if not st.st_size and _has(own, xattrs.WHITEOUT):
            yield Problem(
                Kind.UNMARKED, self._objects.path(*place),
                "whiteout attribute, and the directory is not marked for such whiteouts",
                why="nothing is found at its name, but kernel overlayfs lists it",
            )  # fmt: skip
        if _has(own, xattrs.METACOPY):
            yield from self._metacopy(place, lowers)

    def _metacopy(self, place: Place, lowers: Sequence[RealDir]) -> Iterator[Problem]:
        try:
            path = at(self._objects.stack.fd(place.real), place.name)
            redirect.is_metacopy(place, path)
            redirect.data_of(self._objects.stack, lowers, place, path)
        except PermissionError:
            yield Problem(
                Kind.DATA, self._objects.path(*place),
                "metacopy file, to whose data redirect_dir=nofollow does not follow",
                why="a mount without nofollow, and with metacopy=on, shows it",
            )  # fmt: skip
        except OSError:
            yield Problem(
                Kind.DATA, self._objects.path(*place), "metacopy file, and no layer has its data",
                why="the data is lost, or in a layer that was not named",
            )  # fmt: skip


def _has(own: Sequence[bytes], what: bytes) -> bool:
    return any(namespace + what in own for namespace in xattrs.NAMESPACES)
