"""What the kernel and the extension agree on at INIT, and the flags of the requests that follow.

Numbers: <linux/fuse.h>.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Final, NamedTuple

from fuseoverlay.native import opcodes
from fuseoverlay.native.loader import absence as _absence
from fuseoverlay.native.loader import is_late as _is_late
from fuseoverlay.native.loader import module as _extension

_ATOMIC_O_TRUNC: Final = 1 << 3
_DONT_MASK: Final = 1 << 6
_AUTO_INVAL_DATA: Final = 1 << 12
_ASYNC_DIO: Final = 1 << 15
_CACHE_SYMLINKS: Final = 1 << 23
_HANDLE_KILLPRIV_V2: Final = 1 << 28
_WRITE_KILL_SUIDGID: Final = 1 << 2
_SETATTR_KILL_SUIDGID: Final = 1 << 11
_SETATTR_NOW: Final = 1 << 7 | 1 << 8
_KILL_SUIDGID: Final = _WRITE_KILL_SUIDGID | _SETATTR_KILL_SUIDGID
# Flags that the answer to INIT may have set, in words for people.
_TERMS: Final = (
    (_DONT_MASK, "umask left to us"),
    (_HANDLE_KILLPRIV_V2, "setuid left to us"),
    (_CACHE_SYMLINKS, "symbolic links cached"),
)


def agree(taken: Iterable[int], *, private: bool) -> bool:
    """Called when the kernel's INIT has arrived: do without file handles if the kernel can, and
    keep requests with the opcodes `taken` for `take_all`. Returns whether the kernel can.

    If so, it makes no OPEN, FLUSH and ACCESS, O_TRUNC arrives as a SETATTR, the umask is not yet
    applied, and `kills_privileges` says which changes end setuid.

    `private`: nobody else changes the layers, so the data in the page cache stays valid when the
    kernel learns of a new mtime, and it needs no OPENDIR either.
    """
    if _extension is None or not _extension.attached():
        return False
    offered = _extension.protocol()[3]
    if not offered & _HANDLE_KILLPRIV_V2:
        _extension.init_flags(0, _ASYNC_DIO)
        return False
    refused = _ASYNC_DIO | _ATOMIC_O_TRUNC | (_AUTO_INVAL_DATA if private else 0)
    _extension.init_flags(_DONT_MASK | _CACHE_SYMLINKS | _HANDLE_KILLPRIV_V2, refused)
    refuse((opcodes.OPEN, opcodes.FLUSH, opcodes.ACCESS))
    if private:
        # The kernel then also caches listings, until it changes the directory itself.
        refuse([opcodes.OPENDIR])
    # The kernel still sends these for what CREATE or OPENDIR has opened.
    for opcode in (opcodes.RELEASE, opcodes.RELEASEDIR):
        _extension.answer(opcode, 0)
    for opcode in taken:
        _extension.take(opcode)
    return True


def refuse(opcodes: Iterable[int]) -> None:
    """Answer such requests with ENOSYS, so that the kernel makes no more; the overlay is not
    asked."""
    if _extension is not None:
        for opcode in opcodes:
            _extension.answer(opcode, errno.ENOSYS)


def terms(*, private: bool) -> str:
    """What the kernel, libfuse and the extension have agreed on, for people. Only after INIT.
    `private` as for `agree`."""
    reason = _absence or _detachment()
    protocol = ""
    if _extension is not None and _extension.attached():
        major, minor, agreed, offered, flags = _extension.protocol()
        protocol = f"FUSE {major}.{min(minor, agreed)} (kernel {major}.{minor}), "
        if offered & _HANDLE_KILLPRIV_V2:
            agreed_on = [text for flag, text in _TERMS if flags & flag]
            requests = f"no OPEN, {'OPENDIR, ' if private else ''}FLUSH, ACCESS"
            return f"{protocol}extension in effect: {'; '.join([requests, *agreed_on])}"
        reason = "the kernel has no FUSE_HANDLE_KILLPRIV_V2"
    return f"{protocol}extension not in effect ({reason}): OPEN and the like come through"


def _detachment() -> str:
    if _is_late:
        return "pyfuse3 was loaded before it"
    return "libfuse is older than 3.13 or a part of pyfuse3"


def kills_privileges() -> bool:
    """Whether the write or truncation that has just arrived ends setuid, setgid and capabilities.
    Ask before anything suspends."""
    return _extension is not None and bool(_extension.last_flags() & _KILL_SUIDGID)


class Caller(NamedTuple):
    """Filesystem uid and gid, and pid, of the process that made a request."""

    uid: int
    gid: int
    pid: int


def caller() -> Caller:
    """Who made the write or truncation that has just arrived. Ask before anything suspends."""
    return Caller(*_extension.last_caller()) if _extension is not None else Caller(0, 0, 0)


def is_touch() -> bool:
    """Whether the SETATTR that has just arrived asks for the current time for both times, as
    touch(1) does. Ask before anything suspends."""
    return _extension is not None and _extension.last_flags() & _SETATTR_NOW == _SETATTR_NOW
