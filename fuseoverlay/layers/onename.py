"""What one layer's directory says about one name, without listing it.

`merge` reads whole directories; code that follows a path step by step asks here.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import Final

from fuseoverlay.layers import whiteout

#: No file type has this number.
WHITEOUT: Final = -1


def kind_of(dir_fd: int, name: bytes, counted: Sequence[bytes]) -> tuple[int | None, bool]:
    """(type, hides). The file type (S_IFDIR and so on) of `name`, WHITEOUT, or None if there is
    nothing; and whether a `.wh.NAME` beside it hides it in the layers below. `counted` as for
    `xattrs.get_overlay`."""
    st = _status(dir_fd, name)
    hides = _status(dir_fd, whiteout.WH_PREFIX + name) is not None
    if st is None:
        return None, hides
    if whiteout.is_char_whiteout(st) or whiteout.is_xattr_whiteout(dir_fd, name, counted, st):
        return WHITEOUT, hides
    return stat.S_IFMT(st.st_mode), hides


def is_opaque(dir_fd: int, counted: Sequence[bytes]) -> bool:
    """Whether the directory hides those of the layers below, in any dialect."""
    return whiteout.is_marked_opaque(dir_fd, counted) or is_oci_opaque(dir_fd)


def is_oci_opaque(dir_fd: int) -> bool:
    """Whether it does so by `.wh..wh..opq`."""
    return _status(dir_fd, whiteout.WH_OPAQUE) is not None


def _status(dir_fd: int, name: bytes) -> os.stat_result | None:
    """The status of `name`; None if there is nothing. Any other error is raised, because it does
    not mean absence: what a layer does not show today may be there tomorrow, and must not be
    removed as empty meanwhile."""
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except OSError as exc:
        if exc.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
            raise
        return None
