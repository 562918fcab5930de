"""The map of a sparse file: GNU's old format, and its three formats in PAX records.

Source: the manual of GNU tar, "Storing Sparse Files". Where that leaves a choice, this decides as
Go's archive/tar, with which most tools read images.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from fuseoverlay.oci.records import DamagedError, number

Pieces = tuple[tuple[int, int], ...]

#: The greatest offset that a system call accepts.
MAX_SIZE: Final = (1 << 63) - 1
#: The bound that other headers have, too. A map is kept in memory.
_MAX_MAP: Final = 1 << 20
_BLOCK: Final = 512
_DECIMAL: Final = re.compile(rb"[0-9]{1,19}")

# GNU's old format: where slots begin and how many there are, in a header and in a block that
# continues it; the length of a slot; the field with the file's size.
_SLOTS: Final = (386, 4)
_MORE_SLOTS: Final = (0, 21)
_SLOT: Final = 24
_REAL_SIZE: Final = slice(483, 495)


def old_map(
    block: bytes, read: Callable[[int], bytes], numeric: Callable[[bytes], int]
) -> tuple[int, Pieces]:
    """The size and the pieces in the header `block` of type S and in those that `read` returns
    after it."""
    size = numeric(block[_REAL_SIZE])
    pieces: list[tuple[int, int]] = []
    begin, count = _SLOTS
    while True:
        end = begin + count * _SLOT
        for at in range(begin, end, _SLOT):
            if not block[at]:
                break
            pieces.append((numeric(block[at : at + 12]), numeric(block[at + 12 : at + 24])))
        if not block[end]:
            return size, _checked(pieces, size)
        block = read(_BLOCK)
        begin, count = _MORE_SLOTS
        if len(block) < _BLOCK:
            raise DamagedError("damaged header, the map of a sparse file is cut short")


def is_sparse(records: Mapping[bytes, bytes]) -> bool:
    """Whether `records` describe a sparse file in one of the known formats."""
    version = records.get(b"GNU.sparse.major", b""), records.get(b"GNU.sparse.minor", b"")
    if version == (b"1", b"0"):
        return True
    known = version in ((b"0", b"0"), (b"0", b"1"), (b"", b""))
    return known and bool(records.get(b"GNU.sparse.map"))


def map_in_records(
    records: Mapping[bytes, bytes], size: int, read: Callable[[int], bytes]
) -> tuple[int, Pieces] | None:
    """The size and the pieces of a file with `size` stored bytes; None if it is not sparse.

    In format 1.0 the map comes before the data, and `read` reads it.
    """
    if not is_sparse(records):
        return None
    before = records.get(b"GNU.sparse.major") == b"1"
    said = number(records, b"GNU.sparse.size")
    if said is None:
        said = number(records, b"GNU.sparse.realsize")
    real = size if said is None else said
    numbers = _numbers_before(read) if before else _numbers(records[b"GNU.sparse.map"])
    pieces = list(zip(numbers[::2], numbers[1::2], strict=True))
    return real, _checked(pieces, real)


def _numbers(text: bytes) -> list[int]:
    numbers = [_decimal(word) for word in text.split(b",")]
    if len(numbers) % 2:
        raise DamagedError("damaged header, half a piece in the map of a sparse file")
    return numbers


def _numbers_before(read: Callable[[int], bytes]) -> list[int]:
    """Read the map of format 1.0: the number of pieces, then the offset and the length of each,
    each number on a line, padded to whole blocks."""
    lines = _lines(read)
    count = 2 * _decimal(next(lines))
    if count > _MAX_MAP:
        raise DamagedError("damaged header, the map of a sparse file is too large")
    return [_decimal(next(lines)) for _ in range(count)]


def _lines(read: Callable[[int], bytes]) -> Iterator[bytes]:
    left = b""
    for _ in range(_MAX_MAP // _BLOCK):
        block = read(_BLOCK)
        if len(block) < _BLOCK:
            raise DamagedError("damaged header, the map of a sparse file is cut short")
        *lines, left = (left + block).split(b"\n")
        yield from lines
    raise DamagedError("damaged header, the map of a sparse file is too large")


def _decimal(text: bytes) -> int:
    if not _DECIMAL.fullmatch(text):
        raise DamagedError(f"damaged header, {str(text[:40])[1:]} in the map of a sparse file")
    return int(text)


def _checked(pieces: list[tuple[int, int]], size: int) -> Pieces:
    end = 0
    # Unused slots of the old format are (0, 0).
    kept = tuple(piece for piece in pieces if piece[1])
    for offset, length in kept:
        if offset < end or length < 0:
            raise DamagedError("the map of a sparse file is out of order")
        end = offset + length
    if end > size:
        raise DamagedError("the map of a sparse file goes beyond its end")
    return kept
