"""With `timeout=`: notices names that somebody else creates or removes in the lowers of a mount.

The index of a directory is valid for that time. Then the times of the lower directories tell
whether one has changed; if so, the lowers are read again, and the existing index takes over their
names. It remains the same object: listings under way keep their positions, and what we have created
or hidden in the upper is untouched, since nobody else changes that. Known subdirectories continue
in the lower directories that now have their names.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Final

from fuseoverlay.layers import onename, redirect
from fuseoverlay.layers.index import Found, Index
from fuseoverlay.layers.layer import RealDir
from fuseoverlay.layers.merge import scan, scan_soon
from fuseoverlay.layers.objects import sighting, stat_key
from fuseoverlay.overlay import places
from fuseoverlay.overlay.inodes import Directory, File
from fuseoverlay.overlay.owners import Overlay

#: How old a modification must be to be relied on, ns: timestamps are coarse, so a directory changed
#: more recently may change again without getting another time.
_TICK: Final = 1_000_000_000

_Stamp = tuple[tuple[int, int], ...]


def watch(ov: Overlay, index: Index) -> bool:
    """Set when a new index expires, as the mount says; returns whether it does at all."""
    if ov.config.private:
        return False
    index.expires = time.monotonic() + ov.config.timeout
    return True


def is_due(index: Index) -> bool:
    """Whether the index has expired; never if nobody else changes the layers."""
    return index.expires is not None and time.monotonic() >= index.expires


async def renew(ov: Overlay, directory: Directory, index: Index) -> None:
    """Bring an expired index up to date. Suspends."""
    stamp, lowers = _stamp(ov, directory), directory.lowers
    # So that requests that come meanwhile do not read the lowers, too.
    watch(ov, index)
    if _has_changed(index, stamp):
        try:
            fresh, used = await scan(ov.stack, None, lowers)
        except OSError:
            # A lower directory is gone; the operation that follows will report it.
            return
        _take_over(ov, directory, index, lowers, stamp, fresh, used)


def renew_now(ov: Overlay, directory: Directory, index: Index) -> bool:
    """The same without suspending; False: it would take long, so the lowers were not read."""
    stamp, lowers = _stamp(ov, directory), directory.lowers
    if _has_changed(index, stamp):
        try:
            found = scan_soon(ov.stack, None, lowers)
        except OSError:
            return True
        if found is None:
            return False
        _take_over(ov, directory, index, lowers, stamp, *found)
    watch(ov, index)
    return True


def is_gone(ov: Overlay, file: File, key: tuple[int, int]) -> bool:
    """Whether this lower file, with the real (device, inode) pair `key`, is gone from all places
    where it is known, so that another file may have got its number. Never if nobody else changes
    the layers."""
    if file.in_upper or file.lower is None or ov.config.private:
        return False
    try:
        fd = ov.stack.fd(file.lower.real)
        st = os.stat(file.lower.name, dir_fd=fd, follow_symlinks=False)
        # The kernel treats an inode whose type changes as broken.
        if stat_key(st) == key and sighting(st)[-1] == (file.lower_seen or sighting(st))[-1]:
            return False
    except OSError:
        pass
    return places.find_again(ov.stack, file, file.lower_seen) is None


def is_replaced(ov: Overlay, directory: Directory, found: Found) -> bool:
    """Whether the name of a directory that only lowers have now leads to another directory, judging
    by the topmost of those `found` there. Never if nobody else changes the layers."""
    if directory.in_upper or ov.config.private:
        return False
    if not found.lower_dirs:
        return True
    try:
        fd = ov.stack.fd(found.lower_dirs[0])
        top = os.stat(directory.name, dir_fd=fd, follow_symlinks=False)
        return stat_key(top) != stat_key(os.stat(ov.stack.fd(directory.lowers[0])))
    except OSError:
        return True


def _stamp(ov: Overlay, directory: Directory) -> _Stamp | None:
    """The modification and change times of the lower directories; None: they are too recent to be
    relied on. Lower directories that are gone are dropped, unless nothing else would be left."""
    found = {}
    for real in directory.lowers:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found[real] = os.stat(ov.stack.fd(real))
    if len(found) < len(directory.lowers) and (found or directory.in_upper):
        directory.lowers = tuple(found)
    times = tuple((st.st_mtime_ns, st.st_ctime_ns) for st in found.values())
    latest = max(map(max, times), default=0)
    return None if latest > time.time_ns() - _TICK else times


def _has_changed(index: Index, stamp: _Stamp | None) -> bool:
    return stamp is None or stamp != index.stamp


def _take_over(
    ov: Overlay, directory: Directory, index: Index, lowers: tuple[RealDir, ...],
    stamp: _Stamp | None, fresh: Index, used: int,
) -> None:  # fmt: skip
    if directory.lowers is not lowers or directory.removed:
        return
    directory.lowers = lowers[:used]
    index.stamp = stamp
    names = index.lower.keys() | fresh.lower.keys()
    index.relower(fresh.lower)
    for name in names:
        inode = ov.inodes.subdirectory(directory, name)
        if inode is not None:
            with contextlib.suppress(OSError):
                _renew_parts(ov, directory, index, name, inode)


def _renew_parts(
    ov: Overlay, parent: Directory, index: Index, name: bytes, inode: Directory
) -> None:
    """Let a directory whose topmost part is the same continue in the directories that the layers
    below it have now."""
    found = index.find(name)
    if found is None or is_replaced(ov, inode, found):
        return
    upper = inode.upper
    if upper is not None and onename.is_opaque(ov.stack.fd(upper), upper.layer.namespaces):
        return
    same_name = [RealDir(real.layer, real, name) for real in found.lower_dirs]
    _, lowers = redirect.merged(ov.stack, parent.lowers, inode.upper, same_name)
    if _keys(ov, lowers) == _keys(ov, inode.lowers):
        return
    # Merging drops those below an opaque directory again.
    inode.lowers = lowers
    ov.prepared.plain.pop(inode.ino, None)
    if inode.index is not None:
        inode.index.stamp, inode.index.expires = None, time.monotonic()


def _keys(ov: Overlay, reals: tuple[RealDir, ...]) -> list[tuple[int, int]]:
    return [stat_key(os.stat(ov.stack.fd(real))) for real in reals]
