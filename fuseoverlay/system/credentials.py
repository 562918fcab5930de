"""Make objects that belong to somebody else from the first moment on.

The kernel asks the filesystem ids of the thread whose a new object is. They are set for the call
that makes it, as kernel overlayfs overrides its credentials: nobody, and no crash, ever sees the
object with another owner. The thread keeps its capabilities meanwhile. Sources: setfsuid(2),
setfsgid(2), capabilities(7), "Effect of user ID changes on capabilities" and "The securebits
flags".
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
from collections.abc import Iterator
from ctypes import c_int, c_uint, c_ulong
from typing import Final

from fuseoverlay.errors import os_error

_libc = ctypes.CDLL(None, use_errno=True)
_setfsuid = _libc.setfsuid
_setfsuid.argtypes = (c_uint,)
_setfsuid.restype = c_uint
_setfsgid = _libc.setfsgid
_setfsgid.argtypes = (c_uint,)
_setfsgid.restype = c_uint
_prctl = _libc.prctl
_prctl.argtypes = (c_int, c_ulong, c_ulong, c_ulong, c_ulong)

# linux/prctl.h, linux/securebits.h
_PR_GET_SECUREBITS: Final = 27
_PR_SET_SECUREBITS: Final = 28
_SECBIT_NO_SETUID_FIXUP: Final = 1 << 2
#: No id: nothing is set, and what is set is returned, as always.
_ASK: Final = 2**32 - 1


def keep_capabilities() -> bool:
    """Have a change of ids leave this thread its capabilities; False: it may not, without
    CAP_SETPCAP."""
    bits = int(_prctl(_PR_GET_SECUREBITS, 0, 0, 0, 0))
    if bits < 0:
        return False
    return bool(_prctl(_PR_SET_SECUREBITS, bits | _SECBIT_NO_SETUID_FIXUP, 0, 0, 0) == 0)


@contextlib.contextmanager
def acting_as(uid: int, gid: int) -> Iterator[None]:
    """In the block, which must not suspend, what this thread makes belongs to these. EPERM: it
    takes CAP_SETUID and CAP_SETGID, and ids that the user namespace maps."""
    # They return what was set before, and do not say that they have failed.
    own_gid, own_uid = _setfsgid(gid), _setfsuid(uid)
    try:
        if (_setfsuid(_ASK), _setfsgid(_ASK)) != (uid, gid):
            raise os_error(errno.EPERM)
        yield
    finally:
        _setfsuid(own_uid)
        _setfsgid(own_gid)
