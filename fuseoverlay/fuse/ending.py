"""The end of a mount: the daemon lets go of the layers as soon as the kernel ends the connection.

umount(2) returns while the daemon still runs, and the next thing to be unmounted may be the
filesystem that the layers are on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from fuseoverlay.overlay.owners import Overlay
from fuseoverlay.system import syscalls


class Ending:
    """The work that is left once the mount is gone, in the process that served it."""

    def __init__(
        self, owners: contextlib.ExitStack, ov: Overlay, at_exit: Callable[[], None] | None
    ) -> None:
        """`owners` hold the layers."""
        self._owners = owners
        self._at_exit = at_exit
        self._disk: int | None = None
        if ov.workdir is not None and ov.config.durable:
            self._disk = os.dup(ov.workdir.fd)

    def finish(self) -> None:
        """Do that work; a second call does nothing. Locks go first, so that a new mount need not
        wait for the disk."""
        self._owners.close()
        at_exit, self._at_exit = self._at_exit, None
        if at_exit is not None:
            at_exit()
        disk, self._disk = self._disk, None
        if disk is not None:
            with contextlib.suppress(OSError):
                syscalls.syncfs(disk)
            os.close(disk)
