"""Room for another descriptor where the limit of open files is reached.

What the owners keep open only to be quick is bounded, so that there is room as a rule. Where
there is none all the same, they let go of it, and the call is made again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_SHORTAGE: Final = (errno.EMFILE, errno.ENFILE)
#: What to call where descriptors are short, and the thread that may do so.
_caches: list[tuple[int, Callable[[], None]]] = []


@contextlib.contextmanager
def shed_by(*caches: Callable[[], None]) -> Iterator[None]:
    """Inside the block these calls, in this thread alone, let go of descriptors that nobody
    uses."""
    mine = [(threading.get_ident(), cache) for cache in caches]
    _caches.extend(mine)
    try:
        yield
    finally:
        for cache in mine:
            _caches.remove(cache)


def with_room(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Result of a call that takes a descriptor, made once more with room for it; EMFILE, ENFILE
    if there still is none."""
    try:
        return call(*args, **kwargs)
    except OSError as exc:
        if exc.errno not in _SHORTAGE:
            raise
    for thread, shed in _caches:
        if thread == threading.get_ident():
            shed()
    return call(*args, **kwargs)


def open_file(path: bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    """`os.open` with room for the descriptor."""
    return with_room(os.open, path, flags, mode, dir_fd=dir_fd)
