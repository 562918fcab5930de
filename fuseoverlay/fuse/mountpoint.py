"""Whether a directory will do as a mount point."""

from __future__ import annotations

import os
import stat

from fuseoverlay.errors import MountpointError, describe
from fuseoverlay.fuse.unmount import fuse_mount
from fuseoverlay.layers.objects import stat_key
from fuseoverlay.layers.roots import enclosing
from fuseoverlay.overlay import owners
from fuseoverlay.overlay.owners import Overlay


def check(mountpoint: bytes) -> bytes:
    """Return the absolute path. It must be a directory on which no FUSE filesystem is mounted."""
    try:
        st = os.stat(mountpoint)
    except FileNotFoundError:
        raise MountpointError(
            "mount point does not exist", where=mountpoint, hint="create the directory"
        ) from None
    except OSError as exc:
        raise MountpointError(
            f"mount point cannot be used: {describe(exc)}",
            where=mountpoint,
            hint="a daemon that was killed leaves its mount behind: fusermount3 -u it",
        ) from None
    if not stat.S_ISDIR(st.st_mode):
        raise MountpointError("mount point is not a directory", where=mountpoint)
    if _is_in_proc(st):
        raise MountpointError(
            "mount point is in /proc, where fuseoverlay itself has to look",
            where=mountpoint,
            hint="mount somewhere else",
        )
    path = os.path.realpath(mountpoint)
    if fuse_mount(path):
        raise MountpointError(
            "mount point is busy: a FUSE filesystem is mounted on it",
            where=mountpoint,
            hint="unmount that first: fuseoverlay unmount MNT",
        )
    return path


def _is_in_proc(st: os.stat_result) -> bool:
    try:
        return st.st_dev == os.stat("/proc/self").st_dev
    except FileNotFoundError:
        return False


def check_outside(mountpoint: bytes, ov: Overlay) -> None:
    """Refuse a mount point inside a layer: the daemon would wait for itself. That cannot happen in
    a layer that it reaches through a mount of its own."""
    roots = owners.roots_of(ov.stack, ov.workdir)
    for layer in ov.stack.all():
        if layer.detached:
            del roots[stat_key(os.fstat(layer.root_fd))]
    around = roots.get(stat_key(os.stat(mountpoint))) or enclosing(mountpoint, roots)
    if around is not None:
        raise MountpointError(
            f"mount point is inside {os.fsdecode(around)}, which belongs to the mount",
            where=mountpoint,
            hint="mount somewhere else",
        )
