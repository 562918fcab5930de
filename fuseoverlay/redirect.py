"""Redirects: a directory that goes on, in the layers below, under another path.

`overlay.redirect` on a directory is an absolute path from the layer's root, or the name
of a sibling. Source: kernel Documentation/filesystems/overlayfs.rst, "Renaming
directories"; fs/overlayfs/namei.c for the order in which it meets opaque directories
and whiteouts.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
from collections.abc import Sequence
from typing import Final, NamedTuple

from fuseoverlay import whiteout, xattrs
from fuseoverlay.inodes import Place
from fuseoverlay.layers import LayerStack, RealDir
from fuseoverlay.syscalls import at

log = logging.getLogger("fuseoverlay")

#: A longer absolute redirect is not written, as by the kernel.
MAX_LENGTH: Final = 256
# struct ovl_metacopy: version, length, flags, digest algorithm; then the digest.
_METACOPY_HEADER: Final = 4


class Marks(NamedTuple):
    """What a real directory says about the layers below it."""

    opaque: bool
    redirect: bytes | None


NONE: Final = Marks(False, None)


def marks_of(stack: LayerStack, real: RealDir) -> Marks:
    """Read a directory's marks, if there are layers below it. Errors of `_checked`."""
    if real.layer.number >= len(stack.lowers):
        return NONE
    fd = stack.fd(real)
    counted = real.layer.namespaces
    wanted = [name + what for name in counted for what in (xattrs.OPAQUE, xattrs.REDIRECT)]
    if not xattrs.present(fd, wanted):
        return NONE
    if whiteout.is_opaque_value(xattrs.get_overlay(fd, xattrs.OPAQUE, counted)):
        return Marks(True, None)
    redirect = xattrs.get_overlay(fd, xattrs.REDIRECT, counted)
    return Marks(False, None if redirect is None else _checked(stack, real, b"", redirect))


def _checked(stack: LayerStack, real: RealDir, name: bytes, value: bytes) -> bytes:
    """The redirect of `real`, or of the file `name` in it, up to a NUL: an absolute path or the
    name of a sibling. As by the kernel EINVAL; EACCES for "." and "..", which could lead out;
    EPERM where no redirect may count."""
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
    """The error to raise for what a layer holds at `name` in `real` (empty: for `real` itself),
    after a warning."""
    _warn(os.fsdecode(os.path.join(real.layer.path, real.path(), name)), why)
    return OSError(code, os.strerror(code), name)


@functools.lru_cache(1024)
def _warn(path: str, why: str) -> None:
    """Say it once, not at every look-up."""
    log.warning("%s: refused, %s", path, why)


def merged(
    stack: LayerStack, parent_lowers: Sequence[RealDir], upper: RealDir | None,
    same_name: Sequence[RealDir],
) -> tuple[Marks, tuple[RealDir, ...]]:  # fmt: skip
    """Marks of the topmost real directory of a merged one, and its directories in the lowers.

    `same_name` are those that the directories of the parent hold, as for `below`.
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

    `same_name` are those of its own name: what counts unless it or one of them is opaque or
    has a redirect. `parent_lowers` are those of its parent, for redirects to a sibling.
    """
    found: list[RealDir] = []
    queue = list(same_name)
    while not marks.opaque:
        if marks.redirect is not None:
            bases, path = _start(stack, parent_lowers, above, marks.redirect)
            return (*found, *_walk(stack, bases, path))
        if not queue:
            break
        above = queue.pop(0)
        found.append(above)
        marks = marks_of(stack, above)
    return tuple(found)


def _start(
    stack: LayerStack, parent_lowers: Sequence[RealDir], above: RealDir, redirect: bytes
) -> tuple[list[RealDir], list[bytes]]:
    """From which directories, below the layer of `above`, a redirect leads on which path."""
    if redirect.startswith(b"/"):
        bases = [layer.root for layer in stack.lowers]
        path = redirect[1:].split(b"/")
    else:
        bases, path = list(parent_lowers), [redirect]
    return [base for base in bases if base.layer.number > above.layer.number], path


def _walk(stack: LayerStack, bases: Sequence[RealDir], path: list[bytes]) -> tuple[RealDir, ...]:
    found: list[RealDir] = []
    for base in bases:
        real, path, stop = _walk_one(stack, base, path)
        if real is not None:
            found.append(real)
        if stop:
            break
    return tuple(found)


def data_of(stack: LayerStack, parent_lowers: Sequence[RealDir], place: Place) -> Place:
    """Where the data of the metacopy file at `place` is. EIO where it is nowhere.

    Source: kernel Documentation/filesystems/overlayfs.rst, "Metadata only copy up" and
    "Data-only lower layers".
    """
    redirect = _redirect_at(stack, place) or place.name
    absolute = redirect.startswith(b"/")
    bases, path = _start(stack, parent_lowers, place.real, redirect)
    while bases:
        real, directory_path, stop = _walk_one(stack, bases.pop(0), path[:-1])
        path = [*directory_path, path[-1]]
        if real is not None:
            kind, hides = _kind(stack, real, path[-1])
            stop = stop or hides
            if kind == stat.S_IFREG:
                found = Place(real, path[-1])
                if not is_metacopy(stack, found):
                    return found
                onward = _redirect_at(stack, found)
                if onward is not None and onward.startswith(b"/"):
                    absolute = True
                    bases, path = _start(stack, (), real, onward)
                elif onward is not None:
                    path[-1] = onward
            elif kind is not None:
                break
        if stop:
            break
    if absolute:
        for layer in stack.data_only:
            real, _, _ = _walk_one(stack, layer.root, path[:-1])
            if real is not None and _kind(stack, real, path[-1])[0] == stat.S_IFREG:
                return Place(real, path[-1])
    raise refused(place.real, place.name, errno.EIO, "its data is in no layer below")


def is_metacopy(stack: LayerStack, place: Place) -> bool:
    """Whether the regular file at `place` has its data in a layer below. EIO for a mark that
    is neither empty nor as long as the kernel's."""
    path = at(stack.fd(place.real), place.name)
    layer = place.real.layer
    mark = xattrs.get_overlay(path, xattrs.METACOPY, layer.namespaces, upper=layer.number == 0)
    if mark is not None and 0 < len(mark) < _METACOPY_HEADER:
        raise refused(place.real, place.name, errno.EIO, "its metacopy mark is invalid")
    return mark is not None


def _redirect_at(stack: LayerStack, place: Place) -> bytes | None:
    path = at(stack.fd(place.real), place.name)
    redirect = xattrs.get_overlay(path, xattrs.REDIRECT, place.real.layer.namespaces)
    return None if redirect is None else _checked(stack, place.real, place.name, redirect)


def _walk_one(
    stack: LayerStack, base: RealDir, path: list[bytes]
) -> tuple[RealDir | None, list[bytes], bool]:
    """Follow `path` in one layer: (directory or None, path for the layers below, stop there)."""
    real, stop, onward = base, _is_oci_opaque(stack, base), path
    for position, name in enumerate(path):
        kind, hides = _kind(stack, real, name)
        stop = stop or hides
        if kind is None:
            return None, onward, stop
        if kind != stat.S_IFDIR:
            return None, onward, True
        real = RealDir(real.layer, real, name)
        marks = marks_of(stack, real)
        stop = stop or marks.opaque or _is_oci_opaque(stack, real)
        if marks.redirect is not None:
            rest = path[position + 1 :]
            if marks.redirect.startswith(b"/"):
                onward = [*marks.redirect[1:].split(b"/"), *rest]
            else:
                onward = [*path[:position], marks.redirect, *rest]
    return real, onward, stop


def _kind(stack: LayerStack, real: RealDir, name: bytes) -> tuple[int | None, bool]:
    """Type of `name`, None where there is nothing; whether a `.wh.NAME` beside it hides it in
    the layers below. A whiteout at the name itself is something that is no directory."""
    st = _status(stack, real, name)
    hides = _status(stack, real, whiteout.WH_PREFIX + name) is not None
    return None if st is None else stat.S_IFMT(st.st_mode), hides


def _is_oci_opaque(stack: LayerStack, real: RealDir) -> bool:
    return _status(stack, real, whiteout.WH_OPAQUE) is not None


def _status(stack: LayerStack, real: RealDir, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=stack.fd(real), follow_symlinks=False)
    except OSError:
        return None
