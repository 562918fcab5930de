"""Redirects: a directory that goes on, in the layers below, under another path.

`overlay.redirect` on a directory is an absolute path from the layer's root, or the name
of a sibling. Source: kernel Documentation/filesystems/overlayfs.rst, "Renaming
directories"; fs/overlayfs/namei.c for the order in which it meets opaque directories
and whiteouts.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Sequence
from typing import Final, NamedTuple

from fuseoverlay import whiteout, xattrs
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
    """Read a directory's marks. A redirect that no kernel writes is ignored with a warning."""
    path = at(stack.fd(real), b".")
    present = [n for n in xattrs.names(path) if n.startswith(xattrs.NAMESPACES)]
    if not present:
        return _NONE
    opaque = whiteout.is_opaque_value(xattrs.get_overlay(path, xattrs.OPAQUE))
    redirect = xattrs.get_overlay(path, xattrs.REDIRECT)
    if redirect is not None and not _well_formed(redirect):
        log.warning(
            "%s: invalid redirect %r ignored", os.fsdecode(real.layer.path + b"/" + real.path()),
            redirect,
        )  # fmt: skip
        redirect = None
    return Marks(opaque, redirect)


def _well_formed(redirect: bytes) -> bool:
    """An absolute path of proper names, or one proper name: nothing may lead out."""
    names = redirect[1:].split(b"/") if redirect.startswith(b"/") else [redirect]
    return all(name not in (b"", b".", b"..") and b"/" not in name for name in names)


def lowers_of(
    stack: LayerStack, parent_lowers: Sequence[RealDir], reals: Sequence[RealDir]
) -> tuple[RealDir, ...]:
    """`reals`, the directories of one name from top to bottom (the upper's may be first), cut
    below an opaque one and led elsewhere below one with a redirect. Only lowers are returned."""
    kept: list[RealDir] = []
    queue = list(reals)
    while queue:
        real = queue.pop(0)
        if real.layer.number:
            kept.append(real)
        if real.layer.number == len(stack.lowers):
            break
        marks = marks_of(stack, real)
        if marks.opaque:
            break
        if marks.redirect is not None and stack.follow_redirects:
            return (*kept, *_redirected(stack, parent_lowers, real, marks.redirect))
    return tuple(kept)


def _redirected(
    stack: LayerStack, parent_lowers: Sequence[RealDir], real: RealDir, redirect: bytes
) -> tuple[RealDir, ...]:
    """The directories that continue `real`, in the layers below it."""
    if redirect.startswith(b"/"):
        bases = [layer.root for layer in stack.lowers]
        path = redirect[1:].split(b"/")
    else:
        bases, path = list(parent_lowers), [redirect]
    return _walk(stack, [base for base in bases if base.layer.number > real.layer.number], path)


def _walk(stack: LayerStack, bases: Sequence[RealDir], path: list[bytes]) -> tuple[RealDir, ...]:
    found: list[RealDir] = []
    for base in bases:
        real, path, stop = _walk_one(stack, base, path)
        if real is not None:
            found.append(real)
        if stop:
            break
    return tuple(found)


def _walk_one(
    stack: LayerStack, base: RealDir, path: list[bytes]
) -> tuple[RealDir | None, list[bytes], bool]:
    """Follow `path` in one layer: (directory or None, path for the layers below, stop there)."""
    real, stop, below = base, False, path
    for position, name in enumerate(path):
        kind = _kind(stack, real, name)
        if kind is None:
            return None, below, stop
        if kind != stat.S_IFDIR:
            return None, below, True
        real = RealDir(real.layer, real, name)
        if real.layer.number == len(stack.lowers):
            continue
        marks = marks_of(stack, real)
        stop = stop or marks.opaque
        if marks.redirect is not None:
            rest = path[position + 1 :]
            if marks.redirect.startswith(b"/"):
                below = [*marks.redirect[1:].split(b"/"), *rest]
            else:
                below = [*path[:position], marks.redirect, *rest]
    return real, below, stop


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
