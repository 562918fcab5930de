"""Records at the work directory over which lowers the upper was last mounted, for fsck.

Only this tells a layer that was left out from one that has become smaller.
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
    """Record `lowers`. Records nothing on a filesystem without such attributes."""
    with contextlib.suppress(OSError):
        os.setxattr(work_fd, _NOTE, _told_apart(lowers))


def are_others(work_fd: int, lowers: Sequence[Layer]) -> bool:
    """Whether `lowers` differ from those recorded."""
    noted = xattrs.get(syscalls.fd_path(work_fd), _NOTE, follow=True)
    return noted is not None and noted != _told_apart(lowers)


def _told_apart(lowers: Sequence[Layer]) -> bytes:
    """Identifies the lowers by their number and their roots, not by device numbers, which change,
    but by UUIDs, which do not."""
    roots = ((layer.uuid or b"", os.fstat(layer.root_fd).st_ino) for layer in lowers)
    return b"%d %08x" % (len(lowers), zlib.crc32(b"".join(b"%b %d\n" % root for root in roots)))
