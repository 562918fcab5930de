"""Whiteouts and `.wh.` names of an upper: those that hide something and those that do not."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from fuseoverlay.fsck.objects import Objects
from fuseoverlay.fsck.problems import Kind, Problem
from fuseoverlay.layers import whiteout
from fuseoverlay.layers.index import Index
from fuseoverlay.layers.layer import Place, RealDir
from fuseoverlay.layers.whiteout import Dialect
from fuseoverlay.overlay.copymetadata import times_kept


class Hiding:
    """Checks whiteouts one by one, and remembers those that hide something."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        #: Whiteouts that hide something, by dialect.
        self.whiteouts: dict[Dialect, list[Place]] = {}
        #: Directories with a `.wh..wh..opq` that hides something.
        self.opaque_files: list[RealDir] = []

    @property
    def count(self) -> int:
        """How many hide something."""
        return sum(map(len, self.whiteouts.values())) + len(self.opaque_files)

    def opaque_file(self, place: Place, *, hides: bool) -> Iterator[Problem]:
        """Check a `.wh..wh..opq`."""
        if hides:
            self.opaque_files.append(place.real)
        else:
            yield self._dangling(place)

    def wh_name(self, place: Place, index: Index, *, assume_hiding: bool) -> Iterator[Problem]:
        """Check a name that begins with `.wh.`, other than `.wh..wh..opq`."""
        target = whiteout.oci_target(place.name)
        if target is None:
            if place.name not in whiteout.WH_HOUSEKEEPING:
                yield self._misnamed(place, "a name that is reserved for whiteouts")
            return
        st = self._objects.stat(place)
        if not (whiteout.is_char_whiteout(st) or (stat.S_ISREG(st.st_mode) and not st.st_size)):
            yield self._misnamed(place, "counts as a whiteout, and what is in it is not shown")
        elif assume_hiding or index.covers(target):
            self.whiteouts.setdefault(Dialect.OCI, []).append(place)
        else:
            yield self._dangling(place)

    def mask(self, place: Place, *, hides: bool) -> Iterator[Problem]:
        """Check a whiteout that has the name of what it hides."""
        if not hides:
            yield self._dangling(place)
            return
        is_char = whiteout.is_char_whiteout(self._objects.stat(place))
        dialect = Dialect.CHAR if is_char else Dialect.XATTR
        # Names too long for an OCI whiteout get another dialect, so they do not count as mixed.
        if whiteout.dialect_for(place.name, Dialect.OCI) is Dialect.OCI:
            self.whiteouts.setdefault(dialect, []).append(place)

    def _misnamed(self, place: Place, what: str) -> Problem:
        path = self._objects.path(*place)
        return Problem(Kind.MISNAMED, path, what, why="it may be somebody's data")

    def _dangling(self, place: Place) -> Problem:
        def remove() -> None:
            fd = self._objects.stack.fd(place.real)
            with times_kept(fd):
                os.unlink(place.name, dir_fd=fd)

        # In an opaque directory a whiteout hides nothing, whatever the lowers have.
        return Problem(
            Kind.DANGLING, self._objects.path(*place), "whiteout that hides nothing", repair=remove,
            by_lowers=not self._objects.is_opaque(place.real),
        )  # fmt: skip
