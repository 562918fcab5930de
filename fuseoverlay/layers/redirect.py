"""Redirects: a directory that continues under another path in the layers below.

`overlay.redirect` on a directory is an absolute path from the layer's root, or the name of a
sibling. Source: kernel Documentation/filesystems/overlayfs.rst, "Renaming directories";
fs/overlayfs/namei.c for its order relative to opaque directories and whiteouts.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from fuseoverlay.errors import os_error
from fuseoverlay.layers import onename, whiteout, xattrs
from fuseoverlay.layers.layer import Layer, Lower, Place, RealDir, pinned
from fuseoverlay.layers.stack import LayerStack

log = logging.getLogger("fuseoverlay")

#: Longer absolute redirects are not written; the kernel has the same limit.
MAX_LENGTH: Final = 256
# struct ovl_metacopy: version, length, flags, digest algorithm; then the digest.
_METACOPY_HEADER: Final = 4


class Marks(NamedTuple):
    """What a real directory says about the layers below it."""

    opaque: bool
    redirect: bytes | None


NONE: Final = Marks(False, None)
#: Where data is, and the status of the file that was found there.
Found = tuple[Place, os.stat_result]


def marks_of(stack: LayerStack, real: RealDir) -> Marks:
    """Read a directory's marks if there are layers below it. Errors of `_checked`."""
    if real.layer.number >= len(stack.lowers):
        return NONE
    fd = stack.fd(real)
    counted = real.layer.namespaces
    wanted = [name + what for name in counted for what in (xattrs.OPAQUE, xattrs.REDIRECT)]
    if not xattrs.present(fd, wanted):
        return NONE
    if whiteout.is_marked_opaque(fd, counted):
        return Marks(True, None)
    redirect = xattrs.get_overlay(fd, xattrs.REDIRECT, counted)
    return Marks(False, None if redirect is None else _checked(stack, real, b"", redirect))


def _checked(stack: LayerStack, real: RealDir, name: bytes, value: bytes) -> bytes:
    """The redirect of `real`, or of the file `name` in it, up to a NUL: an absolute path or the
    name of a sibling. EINVAL if it is malformed, as in the kernel; EACCES for "." and "..", which
    could lead out of the layer; EPERM if redirects are not followed."""
    redirect = value.partition(b"\0")[0]
    names = redirect[1:].split(b"/") if redirect.startswith(b"/") else [redirect]
    why = f"its redirect {value!r} is invalid"
    if not value or (redirect and b"" in names) or any(b"/" in n for n in names):
        raise refused(real, name, errno.EINVAL, why)
    if not stack.follow_redirects:
        raise refused(real, name, errno.EPERM, "its redirect counts only without nofollow")
    if not {b"", b".", b".."}.isdisjoint(names):
        raise refused(real, name, errno.EACCES, why)
    return redirect


def refused(real: RealDir, name: bytes, code: int, why: str) -> OSError:
    """Warn of what a layer holds at `name` in `real` (empty: `real` itself), and return the error
    to raise."""
    _warn(os.fsdecode(os.path.join(real.layer.path, real.path(), name)), why)
    return os_error(code, name)


@functools.lru_cache(1024)
def _warn(path: str, why: str) -> None:
    """Warn once per path, not at every look-up."""
    log.warning("%s: refused, %s", path, why)


def merged(
    stack: LayerStack, parent_lowers: Sequence[RealDir], upper: RealDir | None,
    same_name: Sequence[RealDir],
) -> tuple[Marks, tuple[RealDir, ...]]:  # fmt: skip
    """The marks of a merged directory's topmost real directory, and its directories in the lowers.

    `same_name`: the directories of this name that those of the parent hold, as for `below`.
    """
    reals = list(same_name)
    top = upper or reals.pop(0)
    marks = marks_of(stack, top)
    lowers = below(stack, parent_lowers, top, marks, reals)
    return marks, lowers if upper is not None else (top, *lowers)


def below(
    stack: LayerStack, parent_lowers: Sequence[RealDir], above: RealDir, marks: Marks,
    same_name: Sequence[RealDir],
) -> tuple[RealDir, ...]:  # fmt: skip
    """The directories that continue `above` in the layers below it, top first.

    `same_name`: the directories of the same name there. They count up to the first that is opaque
    or has a redirect, `above` included. `parent_lowers`: the lower directories of the parent, for
    redirects to a sibling.
    """
    found: list[RealDir] = []
    queue = list(same_name)
    while not marks.opaque:
        if marks.redirect is not None:
            trail = _Trail(stack, parent_lowers, above.layer, marks.redirect)
            return (*found, *trail.directories())
        if not queue:
            break
        above = queue.pop(0)
        found.append(above)
        marks = marks_of(stack, above)
    return tuple(found)


class _Trail:
    """A search down through the layers, from the first redirect on.

    `bases` are the directories to search next, one per layer, top first; `path` is what to look for
    there. Each redirect on the way changes the path for the layers below its own: a relative one
    changes its own component; an absolute one replaces the whole path. The search then restarts at
    the roots, and opaque directories above no longer end it.
    """

    def __init__(
        self, stack: LayerStack, parent_lowers: Sequence[RealDir], layer: Layer, redirect: bytes,
        fits: Callable[[Lower], bool] | None = None,
    ) -> None:  # fmt: skip
        """Start below `layer`, in which something has this redirect. `parent_lowers`: the lower
        directories of its parent. `fits`: asked about the first file found when searching data."""
        self._stack = stack
        self._fits = fits
        self.bases = [real for real in parent_lowers if real.layer.number > layer.number]
        self.path = [b""]
        self.ended = False
        #: Whether it has restarted at the roots.
        self.absolute = False
        self.turn(layer, 0, redirect)

    def turn(self, layer: Layer, left: int, redirect: bytes) -> None:
        """Below `layer`, follow the redirect of the path component that has `left` components after
        it."""
        # Count from the end: another redirect may have changed the path before.
        end = len(self.path) - left
        rest = self.path[end:]
        if redirect.startswith(b"/"):
            self.path = [*redirect[1:].split(b"/"), *rest]
            self.bases = [low.root for low in self._stack.lowers if low.number > layer.number]
            self.absolute = True
            self.ended = False
        else:
            self.path = [*self.path[: end - 1], redirect, *rest]

    def directories(self) -> Iterator[RealDir]:
        """The directories that the path leads to, layer by layer."""
        while self.bases and not self.ended:
            real = self.walk(self.bases.pop(0), self.path)
            if real is not None:
                yield real

    def walk(self, base: RealDir, names: Sequence[bytes]) -> RealDir | None:
        """Follow `names`, with which the path begins, in one layer; None if there is no such
        directory."""
        real = base
        self.ended = self.ended or onename.is_opaque(self._stack.fd(base), base.layer.namespaces)
        left = len(self.path)
        for name in names:
            left -= 1
            kind, hides = _kind(self._stack, real, name)
            if kind != stat.S_IFDIR:
                self.ended = self.ended or hides or kind is not None
                return None
            real = RealDir(real.layer, real, name)
            marks = marks_of(self._stack, real)
            if marks.opaque or onename.is_oci_opaque(self._stack.fd(real)):
                self.ended = True
            elif marks.redirect is not None:
                self.turn(real.layer, left, marks.redirect)
            else:
                self.ended = self.ended or hides
        return real

    @contextlib.contextmanager
    def _regular(self, place: Place) -> Iterator[Lower]:
        """The regular file at the place. ESTALE if another object is there by now, or if it is the
        first file found and does not fit."""
        with pinned(place.real.layer, place.name, self._stack.fd(place.real), None) as lower:
            if not stat.S_ISREG(lower.st.st_mode):
                raise os_error(errno.ESTALE, place.name)
            if self._fits is not None and not self._fits(lower):
                why = "there is another file now where the data of a copy was"
                raise refused(place.real, place.name, errno.ESTALE, why)
            self._fits = None
            yield lower

    def data(self) -> Found | None:
        """The first file that has data of its own, past metacopy files."""
        while self.bases and not self.ended:
            real = self.walk(self.bases.pop(0), self.path[:-1])
            if real is None:
                continue
            found = Place(real, self.path[-1])
            kind, hides = _kind(self._stack, *found)
            if kind == stat.S_IFREG:
                with self._regular(found) as lower:
                    if not is_metacopy(found, lower.path, follow=True):
                        return found, lower.st
                    redirect = _redirect_at(self._stack, found, lower.path, follow=True)
                if redirect is not None:
                    self.turn(real.layer, 0, redirect)
                    continue
            self.ended = self.ended or hides or kind not in (None, stat.S_IFREG)
        return None

    def data_only(self) -> Found | None:
        """The same in the data-only layers, unless something hides them."""
        for layer in self._stack.data_only if self.absolute and not self.ended else ():
            real = self.walk(layer.root, self.path[:-1])
            if real is not None and _kind(self._stack, real, self.path[-1])[0] == stat.S_IFREG:
                found = Place(real, self.path[-1])
                with self._regular(found) as lower:
                    return found, lower.st
        return None


def data_of(
    stack: LayerStack, parent_lowers: Sequence[RealDir], place: Place, path: bytes, *,
    follow: bool = False, fits: Callable[[Lower], bool] | None = None,
) -> Found:  # fmt: skip
    """Where the data of the metacopy file at `place` is, and the status found there. EIO if no
    layer has it; ESTALE if the first file found does not fit. `path` and `follow` lead to the
    metacopy file.

    Source: kernel Documentation/filesystems/overlayfs.rst, "Metadata only copy up" and "Data-only
    lower layers".
    """
    redirect = _redirect_at(stack, place, path, follow=follow) or place.name
    trail = _Trail(stack, parent_lowers, place.real.layer, redirect, fits)
    found = trail.data() or trail.data_only()
    if found is None:
        raise refused(place.real, place.name, errno.EIO, "its data is in no layer below")
    return found


def is_metacopy(place: Place, path: bytes, *, follow: bool = False) -> bool:
    """Whether the regular file at `place`, to which `path` leads, has its data in a layer below.
    EIO for a mark that is neither empty nor as long as the kernel's header."""
    layer = place.real.layer
    mark = xattrs.get_overlay(
        path, xattrs.METACOPY, layer.namespaces, follow=follow, upper=layer.number == 0
    )
    if mark is not None and 0 < len(mark) < _METACOPY_HEADER:
        raise refused(place.real, place.name, errno.EIO, "its metacopy mark is invalid")
    return mark is not None


def _redirect_at(stack: LayerStack, place: Place, path: bytes, *, follow: bool) -> bytes | None:
    counted = place.real.layer.namespaces
    redirect = xattrs.get_overlay(path, xattrs.REDIRECT, counted, follow=follow)
    return None if redirect is None else _checked(stack, place.real, place.name, redirect)


def _kind(stack: LayerStack, real: RealDir, name: bytes) -> tuple[int | None, bool]:
    return onename.kind_of(stack.fd(real), name, real.layer.namespaces)
