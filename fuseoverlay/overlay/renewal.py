"""Names that somebody else makes and removes in the lowers of a mount, for `timeout=`.

The index of a directory is good for that long. Then it is asked whether a lower directory has
changed, by its times; if so the lowers are read anew, and the index that is there takes over
what they hold. It stays the same object: listings under way keep their places, and what we
have made or hidden in the upper is not touched, since nobody else changes that. Directories in it
that are known go on in what has come to their names.
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

#: What was changed so shortly before it was read may change once more at the same time, ns.
_TICK: Final = 1_000_000_000

_Stamp = tuple[tuple[int, int], ...]


def watch(ov: Overlay, index: Index) -> bool:
    """Let a new index be good for as long as the mount says; whether that is not for ever."""
    if ov.config.private:
        return False
    index.expires = time.monotonic() + ov.config.timeout
    return True


def is_due(index: Index) -> bool:
    """Whether the index was good long enough; not at all where nobody else changes the layers."""
    return index.expires is not None and time.monotonic() >= index.expires


async def renew(ov: Overlay, directory: Directory, index: Index) -> None:
    """Make an index that is due good again; suspends."""
    stamp, lowers = _stamp(ov, directory), directory.lowers
    if _has_changed(ov, index, stamp):
        try:
            fresh, used = await scan(ov.stack, None, lowers)
        except OSError:
            # A lower directory is gone; what is asked for next says so.
            return
        _take_over(ov, directory, index, lowers, stamp, fresh, used)


def renew_now(ov: Overlay, directory: Directory, index: Index) -> bool:
    """The same without suspending; False: that would take long."""
    stamp, lowers = _stamp(ov, directory), directory.lowers
    if _has_changed(ov, index, stamp):
        try:
            found = scan_soon(ov.stack, None, lowers)
        except OSError:
            return True
        if found is None:
            return False
        _take_over(ov, directory, index, lowers, stamp, *found)
    return True


def is_gone(ov: Overlay, file: File, key: tuple[int, int]) -> bool:
    """Whether this file of a lower has left all places where it is known, so that another one may
    have come to its number; never where nobody else changes the layers."""
    if file.in_upper or file.lower is None or ov.config.private:
        return False
    try:
        fd = ov.stack.fd(file.lower.real)
        st = os.stat(file.lower.name, dir_fd=fd, follow_symlinks=False)
        # An inode whose type changes the kernel takes for a broken one.
        if stat_key(st) == key and sighting(st)[-1] == (file.lower_seen or sighting(st))[-1]:
            return False
    except OSError:
        pass
    return places.find_again(ov.stack, file, file.lower_seen) is None


def is_replaced(ov: Overlay, directory: Directory, found: Found) -> bool:
    """Whether the name of a directory of the lowers, at which that was found just now, leads to
    another one, by its topmost part; never where nobody else changes the layers."""
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
    """When the lower directories were changed; None: that cannot be relied upon. Those that are
    no more no longer count, unless that were all there is."""
    found = {}
    for real in directory.lowers:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found[real] = os.stat(ov.stack.fd(real))
    if len(found) < len(directory.lowers) and (found or directory.in_upper):
        directory.lowers = tuple(found)
    times = tuple((st.st_mtime_ns, st.st_ctime_ns) for st in found.values())
    latest = max(map(max, times), default=0)
    return None if latest > time.time_ns() - _TICK else times


def _has_changed(ov: Overlay, index: Index, stamp: _Stamp | None) -> bool:
    index.expires = time.monotonic() + ov.config.timeout
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
    """Have a directory that stays go on in what is now in the layers below its topmost part."""
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
    # Those that are below an opaque one the index leaves out again.
    inode.lowers = lowers
    ov.prepared.plain.pop(inode.ino, None)
    if inode.index is not None:
        inode.index.stamp, inode.index.expires = None, time.monotonic()


def _keys(ov: Overlay, reals: tuple[RealDir, ...]) -> list[tuple[int, int]]:
    return [stat_key(os.stat(ov.stack.fd(real))) for real in reals]
