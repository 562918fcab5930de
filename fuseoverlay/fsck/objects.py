"""The objects of an upper as a check sees them: where they are, and their overlay attributes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from fuseoverlay.errors import describe
from fuseoverlay.fsck.origins import Origins
from fuseoverlay.fsck.problems import Kind, Problem
from fuseoverlay.layers import whiteout, xattrs
from fuseoverlay.layers.layer import Place, RealDir
from fuseoverlay.layers.stack import LayerStack
from fuseoverlay.system import handles
from fuseoverlay.system.syscalls import at, fd_path

#: Attributes that say what a mount shows; of the others it loses numbers at most.
_SHOWN: Final = (xattrs.OPAQUE, xattrs.WHITEOUT, xattrs.REDIRECT, xattrs.METACOPY)


class Objects:
    """Reads them, and remembers in which namespaces attributes were met."""

    def __init__(self, stack: LayerStack, origins: Origins) -> None:
        if stack.upper is None:
            raise ValueError("there is no upper to check")
        self.stack = stack
        self.root = stack.upper.root
        self._origins = origins
        #: Namespaces of attributes that a view depends on, each with the first path.
        self.namespaces: dict[bytes, bytes] = {}
        # Whether any attribute counts, and the root with one that does not: see `uncounted`.
        self._counted = False
        self._uncounted: tuple[bytes, bytes] | None = None

    def path(self, real: RealDir, name: bytes = b"") -> bytes:
        """Path for messages."""
        return os.path.join(*filter(None, (real.layer.path, real.path(), name)))

    @property
    def uncounted(self) -> tuple[bytes, bytes] | None:
        """The root and an attribute of it that does not count, where no other in the upper does
        either: somebody whose attributes are others wrote it."""
        return None if self._counted else self._uncounted

    def stat(self, place: Place) -> os.stat_result:
        """Status of what is at the place, never of what a link leads to."""
        return os.stat(place.name, dir_fd=self.stack.fd(place.real), follow_symlinks=False)

    def is_opaque(self, real: RealDir) -> bool:
        """Whether it is marked so by attribute."""
        value = whiteout.opaque_value(self.stack.fd(real), real.layer.namespaces)
        return whiteout.is_opaque_value(value)

    def unreadable(self, real: RealDir, name: bytes, exc: OSError) -> Problem:
        """The problem that `name` in the directory (empty: the directory itself) cannot be read."""
        what = f"cannot be checked: {describe(exc)}"
        return Problem(Kind.UNREADABLE, self.path(real, name), what, why="it was not looked at")

    def own(self, real: RealDir, name: bytes) -> list[bytes]:
        """Attributes of the overlay; those of a nested one are none."""
        every = [
            attribute
            for attribute in xattrs.names(self._target(real, name))
            if attribute.startswith(xattrs.NAMESPACES) and xattrs.to_user(attribute) is None
        ]
        own = [attribute for attribute in every if attribute.startswith(real.layer.namespaces)]
        self._counted = self._counted or bool(own)
        # Below the root whoever may write there may have set them; a copy-up marks the root, too.
        if every and not own and real is self.root and not name:
            self._uncounted = self.path(real), every[0]
        for namespace in xattrs.NAMESPACES:
            if any(namespace + what in own for what in _SHOWN):
                self.namespaces.setdefault(namespace, self.path(real, name))
        return own

    def value(self, real: RealDir, name: bytes, attribute: bytes) -> bytes | None:
        """Value of one of its attributes; None: it has none such."""
        return xattrs.get(self._target(real, name), attribute)

    def _target(self, real: RealDir, name: bytes) -> bytes | int:
        """For `xattrs`: `name` in the directory, or the directory itself. Valid at once only."""
        fd = self.stack.fd(real)
        return at(fd, name) if name else fd

    def removal(
        self, real: RealDir, name: bytes, attributes: Sequence[bytes]
    ) -> Callable[[], None]:
        """A repair: remove these attributes."""

        def remove() -> None:
            target = self._target(real, name)
            for attribute in attributes:
                if isinstance(target, int):
                    os.removexattr(fd_path(target), attribute)
                else:
                    os.removexattr(target, attribute, follow_symlinks=False)

        return remove

    def origin(
        self, real: RealDir, name: bytes, own: Sequence[bytes], *, repairable: bool = True
    ) -> Iterator[Problem]:
        """Whether what it was copied from still exists, if one of its `own` attributes tells."""
        for attribute in own:
            # That of fuse-overlayfs is a path.
            if attribute not in (xattrs.TRUSTED + xattrs.ORIGIN, xattrs.USER + xattrs.ORIGIN):
                continue
            value = self.value(real, name, attribute)
            # Empty: a copy of something that had no handle.
            if not value:
                continue
            origin = handles.decode(value)
            by_lowers = False
            if origin is None:
                what = f"{attribute.decode()} is malformed"
            elif self._origins.gone(origin):
                what = f"{attribute.decode()} tells of a file that is no more"
                by_lowers = True
            else:
                continue
            # Only numbers depend on it, and this one gives none.
            yield Problem(
                Kind.ORIGIN, self.path(real, name), what,
                repair=self.removal(real, name, [attribute]) if repairable else None,
                why="it may be in the index of the work directory, which was not named",
                by_lowers=by_lowers,
            )  # fmt: skip
