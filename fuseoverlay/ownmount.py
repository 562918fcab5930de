"""Upper and work directory through a mount of our own, as kernel overlayfs has them.

umount(2) of the overlay returns before the daemon can let go of anything, and who has unmounted may
go on to unmount what the layers lie on: that must not be in use then. Lowers are opened so in any
case, see `layers`. Reading through it moves access times as the overlay's mount says, not as the
one does that others see; where that cannot be, `Layer.reading` does what it can.
"""

from __future__ import annotations

import contextlib
import os

from fuseoverlay import syscalls
from fuseoverlay.layers import Layer, stat_key
from fuseoverlay.syscalls import DIR_FLAGS


def moved(work: bytes, work_fd: int, upper: Layer) -> int:
    """Have `upper` opened through a mount of our own, and the work directory, too, as renames
    between them take: returns a descriptor of that, and closes `work_fd`. Where we may not have
    such a mount that stays, and nothing changes."""
    paths = os.path.realpath(work), os.path.realpath(upper.path)
    top = os.path.commonpath(paths)
    opened: list[int] = []
    try:
        clone = syscalls.clone_mount(top)
        try:
            with contextlib.suppress(OSError):
                syscalls.set_access_times(clone, upper.access_times)
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
    return work_fd
