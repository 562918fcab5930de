"""The deletions of a layer: whiteouts and opaque directories, made when the rest of it is
unpacked."""

from __future__ import annotations

from fuseoverlay.layers import whiteout
from fuseoverlay.oci.below import Below
from fuseoverlay.oci.entries import Path
from fuseoverlay.oci.made import Made


class Deletions:
    """Notes deletions while a layer is unpacked, and makes them at the end."""

    def __init__(self, made: Made, below: Below) -> None:
        self._made = made
        self._below = below

    def add_opaque(self, path: Path) -> None:
        """Note that the directory `path` hides everything below it."""
        # As with whiteouts: anything but a directory already hides everything that was below.
        if not self._made.is_replaced(path):
            self._made.remembered.path(path)
            self._made.opaque.add(path)

    def add_whiteout(self, parent: Path, name: bytes) -> None:
        """Note the deletion of what the `.wh.` file `name` in `parent` hides."""
        target = whiteout.oci_target(name)
        if target in (None, b".", b".."):
            raise self._made.bad("a whiteout of nothing, '.' or '..'")
        place = self._made.follow(parent)
        if self._made.is_replaced(place):
            # `umoci repack` deletes the children of a directory that it replaces by a file.
            return
        if place != parent and place not in self._made.dirs and not self._below.is_directory(place):
            # A link of this layer leads nowhere: there is nothing to delete, so nothing is made.
            return
        self._made.remembered.path((*place, name))
        self._made.whiteouts.setdefault(place, set()).add(target or b"")

    def finish(self) -> None:
        """Make the deletions, once everything else is there."""
        self._need_places_of_whiteouts()
        # A directory `a` of the layer stays although there is a whiteout of `a`, but shows nothing
        # from below.
        for parent, names in self._made.whiteouts.items():
            own = {(*parent, name) for name in names}
            self._made.opaque |= own & self._made.dirs.keys()
        for parent, names in self._made.whiteouts.items():
            if parent not in self._made.opaque:
                for name in sorted(names):
                    self._whiteout(parent, name)
        for path in self._made.opaque:
            self._made.current = path
            self._made.target.set_opaque(path)

    def _need_places_of_whiteouts(self) -> None:
        """Make the directories that contain deletions, unless they are deleted themselves: that
        hides their content already, and some builders list all of it."""
        for place in sorted(self._made.whiteouts.keys() | self._made.opaque, key=len):
            self._made.current = place
            if self._is_deleted(place) or self._made.is_replaced(place):
                self._made.whiteouts.pop(place, None)
                self._made.opaque.discard(place)
            else:
                self._made.need_directory(place)

    def _is_deleted(self, path: Path) -> bool:
        """Whether this layer lacks `path` and deletes it or a directory above it."""
        while path not in self._made.dirs:
            self._made.remembered.steps(len(path))
            if path[-1] in self._made.whiteouts.get(path[:-1], ()):
                return True
            path = path[:-1]
        return False

    def _whiteout(self, parent: Path, name: bytes) -> None:
        self._made.current = (*parent, name)
        if not self._made.exists((*parent, name)):
            self._made.target.whiteout((*parent, name))
