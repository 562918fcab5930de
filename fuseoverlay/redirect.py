"""Redirects: a directory that goes on, in the layers below, under another path.

`overlay.redirect` on a directory is an absolute path from the layer's root, or the name
of a sibling. Source: kernel Documentation/filesystems/overlayfs.rst, "Renaming
directories"; fs/overlayfs/namei.c for the order in which it meets opaque directories
and whiteouts.
"""

from __future__ import annotations

import errno
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


class Marks(NamedTuple):
    """What a real directory says about the layers below it."""

    opaque: bool
    redirect: bytes | None


_NONE: Final = Marks(False, None)


def marks_of(stack: LayerStack, real: RealDir) -> Marks:
    """Read a directory's marks, if there are layers below it. A redirect that no kernel
    writes is ignored with a warning."""
    if real.layer.number >= len(stack.lowers):
        return _NONE
    fd = stack.fd(real)
    present = [n for n in xattrs.names(fd) if n.startswith(xattrs.NAMESPACES)]
    if not present:
        return _NONE
    opaque = whiteout.is_opaque_value(xattrs.get_overlay(fd, xattrs.OPAQUE))
    redirect = xattrs.get_overlay(fd, xattrs.REDIRECT)
    if redirect is not None and not well_formed(redirect):
        log.warning(
            "%s: invalid redirect %r ignored", os.fsdecode(real.layer.path + b"/" + real.path()),
            redirect,
        )  # fmt: skip
        redirect = None
    return Marks(opaque, redirect)


def well_formed(redirect: bytes) -> bool:
    """An absolute path of proper names, or one proper name: nothing may lead out."""
    names = redirect[1:].split(b"/") if redirect.startswith(b"/") else [redirect]
    return all(name not in (b"", b".", b"..") and b"/" not in name for name in names)


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
        if marks.redirect is not None and stack.follow_redirects:
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
    bases, path = _start(stack, parent_lowers, place.real, redirect)
    for base in bases:
        real, directory_path, stop = _walk_one(stack, base, path[:-1])
        if real is not None:
            kind = _kind(stack, real, path[-1])
            if kind == stat.S_IFREG:
                found = Place(real, path[-1])
                if not is_metacopy(stack, found):
                    return found
                onward = _redirect_at(stack, found)
                if onward is not None:
                    onward_path = onward[1:].split(b"/")
                    path = onward_path if onward.startswith(b"/") else [*directory_path, onward]
                    directory_path = path[:-1]
            elif kind is not None:
                break
        if stop:
            break
        path = [*directory_path, path[-1]]
    if redirect.startswith(b"/"):
        for layer in stack.data_only:
            real, _, _ = _walk_one(stack, layer.root, path[:-1])
            if real is not None and _kind(stack, real, path[-1]) == stat.S_IFREG:
                return Place(real, path[-1])
    raise OSError(errno.EIO, os.strerror(errno.EIO), place.name)


def is_metacopy(stack: LayerStack, place: Place) -> bool:
    """Whether the regular file at `place` has its data in a layer below."""
    if not stack.data_only and place.real.layer.number == len(stack.lowers):
        return False
    path = at(stack.fd(place.real), place.name)
    return xattrs.get_overlay(path, xattrs.METACOPY) is not None


def file_redirect(stack: LayerStack, place: Place | None) -> bytes | None:
    """Redirect of a lower metacopy file, for its copy; None: it is an ordinary file."""
    if place is None or not is_metacopy(stack, place):
        return None
    return _redirect_at(stack, place)


def _redirect_at(stack: LayerStack, place: Place) -> bytes | None:
    redirect = xattrs.get_overlay(at(stack.fd(place.real), place.name), xattrs.REDIRECT)
    if redirect is not None and not well_formed(redirect):
        raise OSError(errno.EIO, os.strerror(errno.EIO), place.name)
    return redirect


def _walk_one(
    stack: LayerStack, base: RealDir, path: list[bytes]
) -> tuple[RealDir | None, list[bytes], bool]:
    """Follow `path` in one layer: (directory or None, path for the layers below, stop there)."""
    real, stop, onward = base, False, path
    for position, name in enumerate(path):
        kind = _kind(stack, real, name)
        if kind is None:
            return None, onward, stop
        if kind != stat.S_IFDIR:
            return None, onward, True
        real = RealDir(real.layer, real, name)
        marks = marks_of(stack, real)
        stop = stop or marks.opaque
        if marks.redirect is not None:
            rest = path[position + 1 :]
            if marks.redirect.startswith(b"/"):
                onward = [*marks.redirect[1:].split(b"/"), *rest]
            else:
                onward = [*path[:position], marks.redirect, *rest]
    return real, onward, stop


def _kind(stack: LayerStack, real: RealDir, name: bytes) -> int | None:
    """Type of `name`; a whiteout counts as something that is no directory."""
    fd = stack.fd(real)
    for candidate in (whiteout.WH_PREFIX + name, name):
        try:
            st = os.stat(candidate, dir_fd=fd, follow_symlinks=False)
        except OSError:
            continue
        if stat.S_ISDIR(st.st_mode) and candidate != name:
            continue
        return stat.S_IFMT(st.st_mode)
    return None
