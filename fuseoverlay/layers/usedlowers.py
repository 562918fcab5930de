"""Over which lowers an upper was mounted last: noted at its work directory, for fsck.

Nothing else tells a layer that was left out from one that has become smaller.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Sequence
from typing import Final

from fuseoverlay.layers import xattrs
from fuseoverlay.layers.layer import Layer
from fuseoverlay.system import syscalls

_NOTE: Final = b"user.fuseoverlay.lowers"


def note(work_fd: int, lowers: Sequence[Layer]) -> None:
    """They are mounted. On a filesystem that keeps no such attribute nothing is noted."""
    with contextlib.suppress(OSError):
        os.setxattr(work_fd, _NOTE, _told_apart(lowers))


def are_others(work_fd: int, lowers: Sequence[Layer]) -> bool:
    """Whether these are not the ones that were noted."""
    noted = xattrs.get(syscalls.fd_path(work_fd), _NOTE, follow=True)
    return noted is not None and noted != _told_apart(lowers)


def _told_apart(lowers: Sequence[Layer]) -> bytes:
    """Their number, and what their roots are: device numbers change, UUIDs do not."""
    roots = ((layer.uuid or b"", os.fstat(layer.root_fd).st_ino) for layer in lowers)
    return b"%d %08x" % (len(lowers), zlib.crc32(b"".join(b"%b %d\n" % root for root in roots)))
