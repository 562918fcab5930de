"""Open layers through mounts of our own, as kernel overlayfs does.

Then what is mounted below a lower does not show, above all the mount that is being made. Nor do we
keep the filesystems of the layers busy: umount(2) of the overlay returns before the daemon can
close anything, and the user may go on to unmount them. Reading through our mounts moves access
times as the overlay's own mount says, not as the mounts that others see; without such a mount
`Layer.reading` does what it can.
"""

from __future__ import annotations

import errno
import os

from fuseoverlay.errors import LayerError, describe
from fuseoverlay.layers.layer import Layer
from fuseoverlay.layers.objects import stat_key
from fuseoverlay.system import syscalls
from fuseoverlay.system.clones import Clones
from fuseoverlay.system.syscalls import DIR_FLAGS


def enter(layer: Layer, clones: Clones, *, submounts: bool = False) -> None:
    """Through a mount of our own, reopen a layer that is never written. If we may not have such a
    mount, nothing changes.

    `submounts`: include what is mounted below the layer; `LayerError` if that is impossible. In a
    user namespace the kernel does not let us leave it out.
    """
    try:
        clone, recursive = _entered(layer, clones, submounts)
    except OSError as exc:
        if submounts:
            raise LayerError(
                f"what is mounted below it cannot be had: {describe(exc)}",
                where=layer.path,
                hint="leave submounts out, or mount as root or where user namespaces are allowed",
            ) from None
        return
    os.close(layer.root_fd)
    layer.root_fd = clone
    layer.detached = True
    layer.crosses = recursive


def _entered(layer: Layer, clones: Clones, submounts: bool) -> tuple[int, bool]:
    """A copy of the layer's mount, and whether it includes what is mounted below."""
    try:
        return clones.of(layer.root_fd, layer.access_times, recursive=submounts), submounts
    except OSError as exc:
        if submounts or exc.errno != errno.EINVAL:
            raise
    return clones.of(layer.root_fd, layer.access_times, recursive=True), True


def moved(work: bytes, work_fd: int, upper: Layer, clones: Clones) -> int:
    """Reopen `upper` and the work directory through one mount of our own, since renames between
    them need the same mount. Returns a descriptor of the work directory and closes `work_fd`. If we
    may not have such a mount, returns `work_fd`, and nothing changes."""
    paths = os.path.realpath(work), os.path.realpath(upper.path)
    opened: list[int] = []
    try:
        top = os.path.commonpath(paths)
        clone = _clone_of(top, upper, clones)
        try:
            for path in paths:
                opened.append(syscalls.open_beneath(clone, os.path.relpath(path, top), DIR_FLAGS))
        finally:
            os.close(clone)
    except OSError:
        pass
    # Something else may be mounted on the way.
    if [stat_key(os.fstat(fd)) for fd in opened] != [
        stat_key(os.fstat(fd)) for fd in (work_fd, upper.root_fd)
    ]:
        for fd in opened:
            os.close(fd)
        return work_fd
    os.close(work_fd)
    os.close(upper.root_fd)
    work_fd, upper.root_fd = opened
    upper.detached = True
    return work_fd


def _clone_of(path: bytes, upper: Layer, clones: Clones) -> int:
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return clones.of(fd, upper.access_times)
    finally:
        os.close(fd)
