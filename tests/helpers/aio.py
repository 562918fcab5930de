"""Asynchronous I/O, io_submit(2), without libaio."""

from __future__ import annotations

import ctypes
import mmap
import os
from ctypes import c_int64, c_long, c_uint64
from types import TracebackType
from typing import Final, Self

_libc = ctypes.CDLL(None, use_errno=True)
#: io_setup, io_destroy, io_getevents, io_submit.
_SETUP, _DESTROY, _GETEVENTS, _SUBMIT = (
    (206, 207, 208, 209) if os.uname().machine == "x86_64" else (0, 1, 4, 2)
)
_PWRITE: Final = 1


class _Request(ctypes.Structure):
    """struct iocb of <linux/aio_abi.h>."""

    _fields_ = (
        ("data", c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_uint32),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("fd", ctypes.c_uint32),
        ("buffer", c_uint64),
        ("size", c_uint64),
        ("offset", c_int64),
        ("reserved", c_uint64),
        ("flags", ctypes.c_uint32),
        ("event_fd", ctypes.c_uint32),
    )


def _call(number: int, *args: object) -> None:
    """Make a system call; raises OSError if it fails."""
    if _libc.syscall(c_long(number), *args) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class Writer:
    """Submits writes and waits for their end."""

    def __init__(self) -> None:
        self._context = c_uint64(0)
        _call(_SETUP, c_long(8), ctypes.byref(self._context))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        _call(_DESTROY, self._context)

    def write(self, fd: int, data: mmap.mmap, offset: int) -> int:
        """Write, and return the number of bytes written. `data` begins at a page, as O_DIRECT
        needs."""
        address = ctypes.addressof(ctypes.c_char.from_buffer(data))
        request = _Request(opcode=_PWRITE, fd=fd, buffer=address, size=len(data), offset=offset)
        requests = (ctypes.c_void_p * 1)(ctypes.addressof(request))
        _call(_SUBMIT, self._context, c_long(1), requests)
        # struct io_event: data, request, result, result.
        event = (c_uint64 * 4)()
        _call(_GETEVENTS, self._context, c_long(1), c_long(1), event, None)
        result = c_int64(event[2]).value
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return result
