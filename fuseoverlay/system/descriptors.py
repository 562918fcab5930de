"""Make room for a descriptor when the limit of open files is reached.

Caches of descriptors are bounded, so normally there is room. When there is none all the same, the
caches close what nobody uses, and the call is repeated.
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
#: What to call when descriptors run short, with the only thread that may call it.
_caches: list[tuple[int, Callable[[], None]]] = []


@contextlib.contextmanager
def shed_by(*caches: Callable[[], None]) -> Iterator[None]:
    """Inside the block, `caches` are called when descriptors run short, in this thread only; each
    closes descriptors that nobody uses."""
    mine = [(threading.get_ident(), cache) for cache in caches]
    _caches.extend(mine)
    try:
        yield
    finally:
        for cache in mine:
            _caches.remove(cache)


def with_room(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of a call that takes a descriptor. If none is left, makes room and repeats the
    call once. EMFILE or ENFILE if there is still none."""
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
    """`os.open` through `with_room`."""
    return with_room(os.open, path, flags, mode, dir_fd=dir_fd)
