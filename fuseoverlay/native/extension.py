"""What the extension offers Python: the filter between /dev/fuse and libfuse, and its functions.

Without it (not built, turned off by FUSEOVERLAY_NATIVE=0, or not in effect) everything works,
slower. docs/native.md explains how and why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fuseoverlay.native.loader import absence as _absence
from fuseoverlay.native.loader import module as _extension


def setup(timeout: float, max_write: int | None) -> int | None:
    """Have the filter attach to the next mount. The kernel may then keep what it is told for
    `timeout` seconds, and write at most `max_write` bytes at once (None: what libfuse allows).

    Returns an eventfd(2) that counts requests for `take_all`; None without the extension.
    """
    if _extension is None:
        return None
    count: int = _extension.setup(round(timeout * 1e9), max_write or 0)
    return count


def name_strangers(strangers: tuple[int, int], shown: tuple[int, int]) -> None:
    """Tell the extension which user and group id a status has for owners that the user namespace
    does not map, and which ids to show instead."""
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
    """Have the extension answer requests from the overlay's `Prepared` tables and about listed
    files. It enters listed files in `entries` and finds them through `descriptors` of real
    directories.

    `read_listed`: it may read listed files without asking the overlay. `acls`: the mount has ACLs.
    """
    if _extension is not None:
        _extension.prepare(bound, names, plain, entries, descriptors, read_listed, acls)


def call(opcode: int, function: Callable[..., Any]) -> None:
    """Have requests with this opcode answered by `function(nodeid, uid, gid, pid, body)`, at
    once."""
    if _extension is not None:
        _extension.call(opcode, function)


def log(function: Callable[[int, int, int, int, int, bytes, int, int], None]) -> None:
    """Have `function(opcode, nodeid, uid, gid, pid, body, error, absent)` called for each request
    that was answered without pyfuse3. `absent`: the answer to LOOKUP was a negative entry, not an
    error."""
    if _extension is not None:
        _extension.log(function)


def at_end(function: Callable[[], None]) -> None:
    """Have the extension call `function` as soon as the kernel has ended the connection."""
    if _extension is not None:
        _extension.at_end(function)


def listing(size: int) -> Any:
    """An empty reply to READDIRPLUS of at most `size` bytes. Only if the extension is loaded."""
    if _extension is None:
        raise RuntimeError("no extension")
    return _extension.Listing(size)


def open_real(real: Any, descriptors: dict[Any, int], flags: int) -> int:
    """Open a real directory, starting from its nearest ancestor in `descriptors`. Returns -1 if the
    caller has to open it otherwise: there was an error, or there is no extension."""
    return _extension.open_real(real, descriptors, flags) if _extension is not None else -1


def merge(
    names: dict[bytes, Any], closed: set[bytes], reals: tuple[Any, ...], position: int,
    descriptors: dict[Any, int], limit: int,
) -> tuple[int, bool]:  # fmt: skip
    """Add the directories from `position` on to `names` and `closed`, as `merged.Merged.add` does.

    Returns (position, full): the position of the first directory that was not added, and whether
    the only reason is that there were more than `limit` entries. Otherwise that directory has to be
    read by Python: it is special or large or cannot be read, or there is no extension.
    """
    if _extension is None:
        return position, False
    result: tuple[int, bool] = _extension.merge(names, closed, reals, position, descriptors, limit)
    return result


def waiter() -> Callable[[], bool] | None:
    """A function that waits at most a millisecond for a request and says whether one has come; None
    if the filter is not in effect."""
    if _extension is None or not _extension.attached():
        return None
    wait: Callable[[], bool] = _extension.another_request
    return wait


def take_all() -> list[bytes]:
    """The requests that have arrived since the last call, each whole. Each needs a `reply`."""
    if _extension is None:
        return []
    requests: list[bytes] = _extension.taken[:]
    _extension.taken.clear()
    return requests


def reply(unique: int, error: int, payload: bytes = b"") -> None:
    """Answer a request from `take_all`; `error` is an errno, 0 for success."""
    if _extension is not None:
        _extension.reply(unique, error, payload)


def absence() -> str:
    """Why there is no extension, for people; empty if it is loaded."""
    return _absence
