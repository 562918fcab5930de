"""The optional extension `_native`: what FUSE can do and pyfuse3 does not pass on.

Importing this module before pyfuse3 puts a filter between /dev/fuse and libfuse. Without it
(not built, turned off by FUSEOVERLAY_NATIVE=0, or not in effect) everything works, slower.
docs/native.md explains how and why. Numbers: <linux/fuse.h>.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, Final, NamedTuple

_OPEN, _RELEASE, _FLUSH, _OPENDIR, _RELEASEDIR, _ACCESS = 14, 18, 25, 27, 29, 34

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


# What the answer to INIT can have agreed on, for people.
_TERMS: Final = (
    (_DONT_MASK, "umask left to us"),
    (_HANDLE_KILLPRIV_V2, "setuid left to us"),
    (_CACHE_SYMLINKS, "symbolic links cached"),
)


def _load() -> tuple[ModuleType | None, str]:
    """The extension, or why there is none."""
    if os.environ.get("FUSEOVERLAY_NATIVE") == "0":
        return None, "turned off by FUSEOVERLAY_NATIVE=0"
    flags = sys.getdlopenflags()
    # Its `fuse_session_mount` must be found before libfuse's.
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
    try:
        import fuseoverlay.native._native as extension
    except ModuleNotFoundError:
        return None, "not built"
    except ImportError as exc:
        return None, str(exc)
    finally:
        sys.setdlopenflags(flags)
    return extension, ""


_is_late: Final = "pyfuse3" in sys.modules
_extension, _absence = _load()


def setup(timeout: float, max_write: int | None) -> int | None:
    """Have the filter attach to the next mount, whose kernel may keep what it is told for
    `timeout` seconds, and may write no more than `max_write` bytes at once.

    Returns an eventfd(2) that counts requests for `take_all`.
    """
    if _extension is None:
        return None
    count: int = _extension.setup(round(timeout * 1e9), max_write or 0)
    return count


def name_strangers(strangers: tuple[int, int], shown: tuple[int, int]) -> None:
    """Tell the extension what user and group a status has of whom the user namespace does not
    map, and what to show instead."""
    if _extension is not None:
        _extension.name_strangers(*strangers, *shown)


def prepare(
    bound: dict[int, int],
    names: dict[int, dict[bytes, int]],
    plain: dict[int, Any],
    entries: dict[int, Any],
    descriptors: dict[Any, int],
    *,
    read_listed: bool,
    acls: bool,
) -> None:
    """Have the extension answer requests from the overlay's `Prepared` and of listed
    files, which it enters in `entries` and finds by open real directories.
    `read_listed`: they are read without asking the overlay; `acls`: the mount has ACLs."""
    if _extension is not None:
        _extension.prepare(bound, names, plain, entries, descriptors, read_listed, acls)


def call(opcode: int, function: Callable[..., Any]) -> None:
    """Have such requests answered by `function(nodeid, uid, gid, pid, body)`, at once."""
    if _extension is not None:
        _extension.call(opcode, function)


def log(function: Callable[[int, int, int, int, int, bytes, int, int], None]) -> None:
    """Have `function(opcode, nodeid, uid, gid, pid, body, error, absent)` called for each request
    that was answered without pyfuse3; `absent`: by an entry that says that there is none."""
    if _extension is not None:
        _extension.log(function)


def at_end(function: Callable[[], None]) -> None:
    """Have the extension call this at once when the kernel has ended the connection."""
    if _extension is not None:
        _extension.at_end(function)


def listing(size: int) -> Any:
    """An empty reply to READDIRPLUS. Only where the extension is in effect."""
    if _extension is None:
        raise RuntimeError("no extension")
    return _extension.Listing(size)


def open_real(real: Any, descriptors: dict[Any, int], flags: int) -> int:
    """Open a real directory from the nearest one of those that are open; -1: that has to be done
    otherwise, because of an error, or there is no extension."""
    return _extension.open_real(real, descriptors, flags) if _extension is not None else -1


def merge(
    names: dict[bytes, Any], closed: set[bytes], reals: tuple[Any, ...], position: int,
    descriptors: dict[Any, int], limit: int,
) -> tuple[int, bool]:  # fmt: skip
    """Add the directories from `position` on to `names` and `closed`, as `merge.Merged.add` does.

    Returns the position of the first that was not added, and whether only because there were
    more than `limit` entries: else that one has to be looked at otherwise, since it holds
    something special, or is large, or there is no extension.
    """
    if _extension is None:
        return position, False
    result: tuple[int, bool] = _extension.merge(names, closed, reals, position, descriptors, limit)
    return result


def waiter() -> Callable[[], bool] | None:
    """A function that waits for a request for a millisecond at most, and says whether one is
    there; None where the filter is not in effect."""
    if _extension is None or not _extension.attached():
        return None
    wait: Callable[[], bool] = _extension.another_request
    return wait


def agree(taken: Iterable[int], *, private: bool) -> bool:
    """When the kernel's INIT has come: do without handles, if that is possible, and keep
    requests with the opcodes `taken` for `take_all`.

    `private`: nobody else changes the layers, so data that the kernel has stays good when it
    learns of a new mtime. Then nobody opens or closes any more, O_TRUNC arrives as a setattr,
    the umask is not yet applied, and `kills_privileges` says which changes end setuid.
    """
    if _extension is None or not _extension.attached():
        return False
    offered = _extension.protocol()[3]
    if not offered & _HANDLE_KILLPRIV_V2:
        _extension.init_flags(0, _ASYNC_DIO)
        return False
    refused = _ASYNC_DIO | _ATOMIC_O_TRUNC | (_AUTO_INVAL_DATA if private else 0)
    _extension.init_flags(_DONT_MASK | _CACHE_SYMLINKS | _HANDLE_KILLPRIV_V2, refused)
    refuse((_OPEN, _FLUSH, _ACCESS))
    if private:
        # The kernel then keeps listings, too, until it changes the directory itself.
        refuse([_OPENDIR])
    # Asked only of files that were created.
    for opcode in (_RELEASE, _RELEASEDIR):
        _extension.answer(opcode, 0)
    for opcode in taken:
        _extension.take(opcode)
    return True


def refuse(opcodes: Iterable[int]) -> None:
    """Tell the kernel not to make such requests, ENOSYS, without asking the overlay."""
    if _extension is not None:
        for opcode in opcodes:
            _extension.answer(opcode, errno.ENOSYS)


def take_all() -> list[bytes]:
    """Requests that have arrived, whole; each wants a `reply`."""
    if _extension is None:
        return []
    requests: list[bytes] = _extension.taken[:]
    _extension.taken.clear()
    return requests


def reply(unique: int, error: int, payload: bytes = b"") -> None:
    """Answer a request that was taken; `error` is an errno, 0: success."""
    if _extension is not None:
        _extension.reply(unique, error, payload)


def absence() -> str:
    """Why there is no extension, for people; empty if it is loaded."""
    return _absence


def terms() -> str:
    """What the kernel, libfuse and the extension have agreed on, for people; after INIT."""
    reason = _absence or _detachment()
    protocol = ""
    if _extension is not None and _extension.attached():
        major, minor, agreed, offered, flags = _extension.protocol()
        protocol = f"FUSE {major}.{min(minor, agreed)} (kernel {major}.{minor}), "
        if offered & _HANDLE_KILLPRIV_V2:
            agreed_on = [text for flag, text in _TERMS if flags & flag]
            requests = "no OPEN, OPENDIR, FLUSH, ACCESS"
            return f"{protocol}extension in effect: {'; '.join([requests, *agreed_on])}"
        reason = "the kernel has no FUSE_HANDLE_KILLPRIV_V2"
    return f"{protocol}extension not in effect ({reason}): OPEN and the like come through"


def _detachment() -> str:
    if _is_late:
        return "pyfuse3 was loaded before it"
    return "libfuse is older than 3.13 or a part of pyfuse3"


def kills_privileges() -> bool:
    """Whether the write or truncation that has just arrived ends setuid, setgid and
    capabilities. To be asked before anything suspends."""
    return _extension is not None and bool(_extension.last_flags() & _KILL_SUIDGID)


class Caller(NamedTuple):
    """Filesystem ids and process of who asks."""

    uid: int
    gid: int
    pid: int


def caller() -> Caller:
    """Whose the write or truncation is that has just arrived. To be asked before anything
    suspends."""
    return Caller(*_extension.last_caller()) if _extension is not None else Caller(0, 0, 0)


def is_touch() -> bool:
    """Whether the setattr that has just arrived sets both times to the current one and says
    so. To be asked before anything suspends."""
    return _extension is not None and _extension.last_flags() & _SETATTR_NOW == _SETATTR_NOW
