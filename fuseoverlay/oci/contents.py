"""Write the content of one file of a layer, holes included."""

from __future__ import annotations

import os
from typing import Final

from fuseoverlay.oci.entries import Entry
from fuseoverlay.oci.streams import CHUNK, ForwardStream

_ZEROS: Final = bytes(CHUNK)
_HOLE: Final = 4096


def write_data(stream: ForwardStream, entry: Entry, fd: int) -> bool:
    """Write the next data of `stream` as the content of the regular file `entry`; False if it ends
    too early."""
    pieces = ((0, entry.size),) if entry.segments is None else entry.segments
    written = 0
    for offset, length in pieces:
        end = offset
        while end < offset + length:
            data = stream.read_some(min(offset + length - end, CHUNK))
            if not data:
                return False
            # Few archives keep holes, so long runs of zeros become holes again.
            if len(data) < _HOLE or data != _ZEROS[: len(data)]:
                write_all(fd, data, end)
                written = max(written, end + len(data))
            end += len(data)
    if written != entry.size:
        os.ftruncate(fd, entry.size)
    return True


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        offset += count
        view = view[count:]
