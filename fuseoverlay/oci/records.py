"""PAX records: "LENGTH KEY=VALUE\\n"; POSIX, pax, "pax Extended Header"."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

#: Prefix of records of extended attributes as star, GNU tar and Go write them, with raw bytes. None
#: of those reads libarchive's own, `LIBARCHIVE.xattr.`; libarchive writes both.
XATTR: Final = b"SCHILY.xattr."
SPARSE: Final = b"GNU.sparse."
_FIELDS: Final = frozenset((b"path", b"linkpath", b"uid", b"gid", b"size", b"mtime"))

_LENGTH: Final = re.compile(rb"([1-9][0-9]{0,9}) ")
#: No 64-bit number is that long.
_NUMBER: Final = re.compile(rb"[+-]?[0-9]{1,99}")


class DamagedError(Exception):
    """What was read is not a valid tar archive."""


def parse_records(data: bytes) -> dict[bytes, bytes]:
    """The records in `data` that matter here. An empty value cancels what is said elsewhere. The
    last of equal keys counts."""
    found: dict[bytes, bytes] = {}
    pieces: list[bytes] = []
    for key, value in _records(data):
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            # One of each per piece of a sparse file in format 0.0.
            if (len(pieces) % 2 == 0) != key.endswith(b"offset") or b"," in value:
                raise DamagedError("damaged header, half a piece in the map of a sparse file")
            pieces.append(value)
        elif key in _FIELDS or key.startswith((XATTR, SPARSE)):
            found[key] = value
    if pieces:
        found[b"GNU.sparse.map"] = b",".join(pieces)
    return found


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 0
    # Zeros may follow the records.
    while position < len(data) and data[position]:
        match = _LENGTH.match(data, position)
        end = position + int(match[1]) if match else 0
        if not match or end <= match.end() or data[end - 1 : end] != b"\n":
            raise DamagedError("damaged header, a PAX record of a wrong length")
        key, equals, value = data[match.end() : end - 1].partition(b"=")
        if not equals:
            raise DamagedError("damaged header, a PAX record without a value")
        yield key, value
        position = end


def number(records: Mapping[bytes, bytes], key: bytes) -> int | None:
    """The number in the record `key`; None if there is none or it is empty."""
    text = records.get(key)
    if not text:
        return None
    if not _NUMBER.fullmatch(text):
        raise DamagedError(f"damaged header, {key.decode()}={str(text[:40])[1:]} is no number")
    return int(text)
