"""The real object behind an inode, and its status: real, stored and shown.

Everything but the status of a lower object is read through a descriptor whose object was compared
with the one looked up (`pinned_of`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from fuseoverlay.layers import xattrs
from fuseoverlay.layers.layer import Layer, Lower, Place, RealDir, pinned
from fuseoverlay.layers.objects import Sighting, check_sighting, sighting
from fuseoverlay.overlay import places
from fuseoverlay.overlay.identity import Status
from fuseoverlay.overlay.inodes import Directory, File, Held, Inode
from fuseoverlay.overlay.owners import Overlay
from fuseoverlay.system.syscalls import at, fd_path


class Real(NamedTuple):
    """The real object that counts for an inode, valid until the next await.

    Calls on `path` pass `follow_symlinks=follow`: if `follow` is true, the path is a link in /proc
    that leads to the object. Otherwise, in a lower, the path may lead to another object by now: see
    `pinned_of`.
    """

    layer: Layer
    path: bytes
    follow: bool
    st: os.stat_result
    #: The stored status, if it is known already.
    stored: Status | None = None


def path_below(directory: Directory) -> bytes:
    """The absolute path under which a directory is found in the lowers, from the topmost one on:
    the value of an absolute redirect to it."""
    names: list[bytes] = []
    step: Directory | None = directory
    while step is not None and step.parent is not None:
        value = step.redirect or step.name
        if value.startswith(b"/"):
            return value + b"".join(b"/" + name for name in reversed(names))
        names.append(value)
        step = step.parent
    return b"".join(b"/" + name for name in reversed(names))


def real_of(ov: Overlay, inode: Inode) -> Real:
    """The real object behind an inode. Does not suspend. ESTALE if another object is in its place,
    which makes the kernel look the name up again; in a lower that others may change, one of the
    same type is accepted (`check_sighting`)."""
    if inode.held is not None:
        return _held(ov, inode.held)
    if isinstance(inode, Directory):
        real = metadata_dir(ov, inode)
        fd = ov.stack.fd(real)
        # By descriptor: a path would need search permission on the directory itself.
        return Real(real.layer, fd_path(fd), True, os.stat(fd))
    if not isinstance(inode, File):
        raise TypeError(type(inode))
    if inode.upper is None:
        seen = inode.lower_seen
        return places.found(ov.stack, inode, lambda place: _real_below(ov, place, seen))
    found = real_at(ov, inode.upper)
    inode.check_upper(found.st)
    return found


def real_at(ov: Overlay, place: Place) -> Real:
    """What is at the place, unchecked. Errors of stat(2)."""
    fd = ov.stack.fd(place.real)
    st = os.stat(place.name, dir_fd=fd, follow_symlinks=False)
    return Real(place.real.layer, at(fd, place.name), False, st)


def _real_below(ov: Overlay, place: Place, seen: Sighting | None) -> Real:
    real = real_at(ov, place)
    check_sighting(real.st, seen, lasting=ov.config.private)
    return real


def pinned_at(ov: Overlay, place: Place, seen: Sighting | None) -> Lower:
    """Pin the lower object at the place. ESTALE by `check_sighting` with `seen`."""
    fd = ov.stack.fd(place.real)
    return pinned(place.real.layer, place.name, fd, seen, lasting=ov.config.private)


def real_by(lower: Lower) -> Real:
    """The `Real` of a pinned object."""
    return Real(lower.layer, lower.path, True, lower.st)


def lower_of(ov: Overlay, file: File) -> Lower:
    """The pinned lower object of a file that is not in the upper, for use in a `with` block; errors
    of `real_of`."""
    return places.found(ov.stack, file, lambda place: pinned_at(ov, place, file.lower_seen))


@contextlib.contextmanager
def pinned_of(ov: Overlay, inode: Inode) -> Iterator[Real]:
    """`real_of` for reading more than the status: within the block the path of a lower file leads
    to one object, even if the lower is changed. Neither this nor the block may suspend, unless the
    inode is a lower file."""
    if isinstance(inode, File) and not inode.in_upper:
        with lower_of(ov, inode) as lower:
            yield real_by(lower)
    else:
        yield real_of(ov, inode)


def _held(ov: Overlay, held: Held) -> Real:
    layer = ov.writable().upper
    if not held.name:
        return Real(layer, fd_path(held.fd), True, os.stat(held.fd))
    st = os.stat(held.name, dir_fd=held.fd, follow_symlinks=False)
    return Real(layer, at(held.fd, held.name), False, st)


def upper_of(ov: Overlay, inode: Inode) -> Real:
    """The real object of an inode in the upper, to be changed. AssertionError if it is in a lower:
    lowers are never changed. Does not suspend."""
    real = real_of(ov, inode)
    if real.layer is not ov.stack.upper or not inode.in_upper:
        raise AssertionError("what is in a lower is never changed")
    return real


@contextlib.contextmanager
def changing(ov: Overlay, inode: Inode) -> Iterator[Real]:
    """`upper_of` with a path that leads to that one object within the block, even if somebody
    replaces it through the upper's own path. Neither this nor the block may suspend."""
    real = upper_of(ov, inode)
    if real.follow:
        yield real
        return
    with pinned(real.layer, real.path, None, sighting(real.st)) as upper:
        yield real_by(upper)


def metadata_dir(ov: Overlay, directory: Directory) -> RealDir:
    """The real directory whose owner, mode, times and attributes count: the topmost one that a
    layer archive listed (see `xattrs.IMPLIED`), or the last if none did."""
    real = directory.real()
    if not real.layer.implied or real is directory.upper:
        return real
    for real in directory.lowers:
        if not real.layer.implied:
            return real
        if xattrs.get(ov.stack.fd(real), xattrs.IMPLIED) != xattrs.IMPLIED_SELF:
            return real
    return real


def shown_of(ov: Overlay, real: Real) -> Status:
    """The owner, mode and device number to show for a real object."""
    if real.stored is not None:
        return ov.identity.shown_for(real.stored)
    return ov.identity.shown(real.layer, real.path, real.st, follow=real.follow)


def stored_of(ov: Overlay, real: Real) -> Status:
    """The same as stored, for an object to be made from it."""
    return ov.identity.to_copy(real.layer, real.path, real.st, follow=real.follow)
