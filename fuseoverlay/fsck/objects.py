"""The objects of an upper as the check sees them: their paths and their overlay attributes."""

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

#: Attributes that decide what a mount shows; without the others it loses numbers at most.
_SHOWN: Final = (xattrs.OPAQUE, xattrs.WHITEOUT, xattrs.REDIRECT, xattrs.METACOPY)


class Objects:
    """Reads objects, and remembers in which namespaces it met attributes."""

    def __init__(self, stack: LayerStack, origins: Origins) -> None:
        if stack.upper is None:
            raise ValueError("there is no upper to check")
        self.stack = stack
        self.root = stack.upper.root
        self._origins = origins
        #: Namespaces of attributes that a mount's view depends on, each with the first path.
        self.namespaces: dict[bytes, bytes] = {}
        # Whether any attribute counts, and the root with one of its attributes that do not: see
        # `uncounted`.
        self._counted = False
        self._uncounted: tuple[bytes, bytes] | None = None

    def path(self, real: RealDir, name: bytes = b"") -> bytes:
        """The path for messages."""
        return os.path.join(*filter(None, (real.layer.path, real.path(), name)))

    @property
    def uncounted(self) -> tuple[bytes, bytes] | None:
        """The root and one of its attributes that do not count, if no attribute in the upper
        counts: then its writer used a namespace that this check does not read."""
        return None if self._counted else self._uncounted

    def stat(self, place: Place) -> os.stat_result:
        """lstat(2) of the place: symbolic links are not followed."""
        return os.stat(place.name, dir_fd=self.stack.fd(place.real), follow_symlinks=False)

    def is_opaque(self, real: RealDir) -> bool:
        """Whether an attribute marks the directory as opaque."""
        return whiteout.is_marked_opaque(self.stack.fd(real), real.layer.namespaces)

    def unreadable(self, real: RealDir, name: bytes, exc: OSError) -> Problem:
        """The problem that `name` in the directory cannot be read; an empty name is the directory
        itself."""
        what = f"cannot be checked: {describe(exc)}"
        return Problem(Kind.UNREADABLE, self.path(real, name), what, why="it was not looked at")

    def own(self, real: RealDir, name: bytes) -> list[bytes]:
        """The overlay's attributes that count; those of a nested overlay are left out."""
        every = [
            attribute
            for attribute in xattrs.names(self._target(real, name))
            if attribute.startswith(xattrs.NAMESPACES) and xattrs.to_user(attribute) is None
        ]
        own = [attribute for attribute in every if attribute.startswith(real.layer.namespaces)]
        self._counted = self._counted or bool(own)
        # Below the root anybody with write access may have set them. The root is a good enough
        # sample: a copy-up marks it, too.
        if every and not own and real is self.root and not name:
            self._uncounted = self.path(real), every[0]
        for namespace in xattrs.NAMESPACES:
            if any(namespace + what in own for what in _SHOWN):
                self.namespaces.setdefault(namespace, self.path(real, name))
        return own

    def value(self, real: RealDir, name: bytes, attribute: bytes) -> bytes | None:
        """The value of one attribute; None if the object does not have it."""
        return xattrs.get(self._target(real, name), attribute)

    def _target(self, real: RealDir, name: bytes) -> bytes | int:
        """What `xattrs` takes for `name` in the directory, or for the directory itself. Use it at
        once."""
        fd = self.stack.fd(real)
        return at(fd, name) if name else fd

    def removal(
        self, real: RealDir, name: bytes, attributes: Sequence[bytes]
    ) -> Callable[[], None]:
        """A repair that removes these attributes."""

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
        """Whether the lower file that it was copied from still exists, if one of its `own`
        attributes tells."""
        for attribute in own:
            # The origin attribute of fuse-overlayfs holds a path.
            if attribute not in (xattrs.TRUSTED + xattrs.ORIGIN, xattrs.USER + xattrs.ORIGIN):
                continue
            value = self.value(real, name, attribute)
            # Empty: the copy of something that has no file handle.
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
            # Only inode numbers depend on the origin, and this one gives none.
            yield Problem(
                Kind.ORIGIN, self.path(real, name), what,
                repair=self.removal(real, name, [attribute]) if repairable else None,
                why="it may be in the index of the work directory, which was not named",
                by_lowers=by_lowers,
            )  # fmt: skip
