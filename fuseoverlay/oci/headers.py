"""Headers of a tar archive: V7, ustar, star, GNU, PAX, sparse files.

Most tools read images with Go's archive/tar. Where the formats leave a choice, or writers have
disagreed, this module decides as Go does. But global PAX headers count, as POSIX says.

Everything is bounded in memory and time: each header that extends an entry, the number of such
headers before one entry, and the content of global headers, since each entry repeats it.
"""

from __future__ import annotations

import functools
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from fuseoverlay.errors import ImageError
from fuseoverlay.oci import sparse
from fuseoverlay.oci.records import SPARSE, XATTR, DamagedError, number, parse_records

REGULAR, OLD_REGULAR, CONTIGUOUS, OLD_SPARSE = b"0", b"\0", b"7", b"S"
HARD_LINK, SYMBOLIC_LINK, CHARACTER, BLOCK, DIRECTORY, FIFO = b"1", b"2", b"3", b"4", b"5", b"6"
#: No data follows these, whatever their size field says.
_WITHOUT_DATA: Final = (HARD_LINK, SYMBOLIC_LINK, CHARACTER, BLOCK, DIRECTORY, FIFO)
#: Headers that extend the next entry. The second of the PAX types is Solaris's.
_PAX: Final = (b"x", b"X")
_GLOBAL, _LONG_NAME, _LONG_LINK = b"g", b"L", b"K"

_SIZE: Final = 512
_ZEROS: Final = bytes(_SIZE)
_OCTAL: Final = re.compile(rb"[0-7]+")
#: A number as some writers have it.
_PADDED: Final = re.compile(rb" *([0-7]+)[ \0]*")
#: name, mode, uid, gid, size, mtime, checksum, type, linkname, magic, major, minor, the rest.
_LAYOUT: Final = struct.Struct("100s8s8s8s12s12s8sc100s8s64x8s8s167s")
_GNU: Final = b"ustar  \0"

#: The size of one header that extends an entry. Go has the same bound.
_MAX_EXTENSION: Final = 1 << 20
#: The size of all headers of one entry together.
_MAX_HEADER: Final = 4 << 20
#: The number of headers that extend one entry; real entries have up to four.
_MAX_CHAIN: Final = 64
#: The total size of what global headers say, and their number of attributes.
_MAX_SHARED: Final = 64 << 10
_MAX_SHARED_XATTRS: Final = 64


class HeaderStream(Protocol):
    """A stream to read headers from. `budget`: how many bytes `read` may still take; None: any
    number."""

    budget: int | None

    def read(self, size: int) -> bytes:
        """Read exactly `size` bytes, fewer only at the end; ImageError beyond the budget."""

    def seek(self, position: int) -> int:
        """Skip to `position` or to the end, and return the new position. ImageError if it lies
        behind."""

    def tell(self) -> int:
        """The position."""


@dataclass(slots=True)
class Header:
    """What the headers of one entry say.

    `seconds` is the modification time of the header itself, `mtime` that of a record, empty if
    there is none. `size` is the size of the file, holes included. `stored` bytes from `offset` on
    are in the archive: the data of the `pieces` (offset and length in the file), in this order.
    `pieces` is None if the file is not sparse.
    """

    type: bytes
    name: bytes
    linkname: bytes
    mode: int
    uid: int
    gid: int
    size: int
    seconds: int
    major: int = 0
    minor: int = 0
    mtime: bytes = b""
    offset: int = 0
    stored: int = 0
    pieces: sparse.Pieces | None = None
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)


#: What is wrong with what does not even begin as an archive.
NO_TAR: Final = "not a tar archive"


def read_headers(
    stream: HeaderStream, where: str, *, kind: str = "tar archive", hint: str
) -> Iterator[Header]:
    """Headers in the order of the archive. While the caller has one, `stream` has no budget.

    ImageError with `where` and `hint` if `stream` is not a readable `kind`.
    """
    reader = _Reader(stream)
    try:
        stream.budget = _MAX_HEADER
        while (header := reader.next()) is not None:
            stream.budget = None
            yield header
            stream.budget = _MAX_HEADER
    except DamagedError as exc:
        what = f"not a readable {kind}: {exc}" if reader.begun else NO_TAR
        raise ImageError(what, where=where, hint=hint) from exc
    finally:
        stream.budget = None


class _Reader:
    """Reads one header after the other."""

    def __init__(self, stream: HeaderStream) -> None:
        self._stream = stream
        self._data_end = 0
        #: Whether there was a header.
        self.begun = False
        #: What global headers say.
        self._shared: dict[bytes, bytes] = {}
        self._shared_xattrs: dict[bytes, bytes] = {}

    def next(self) -> Header | None:
        """The next entry; None at the end."""
        self._skip_data()
        records: dict[bytes, bytes] = {}
        name = linkname = b""
        for _ in range(_MAX_CHAIN):
            block = self._block()
            if block is None:
                # Headers that were to extend an entry are dropped.
                return None
            header = _parse(block)
            self.begun = True
            # Among several headers of one kind the last one counts.
            if header.type in _PAX:
                records = parse_records(self._extension(header))
            elif header.type == _GLOBAL:
                self._share(parse_records(self._extension(header)))
            elif header.type == _LONG_NAME:
                name = _text(self._extension(header))
            elif header.type == _LONG_LINK:
                linkname = _text(self._extension(header))
            else:
                self._apply(header, records)
                header.name = name or header.name
                header.linkname = linkname or header.linkname
                self._find_data(header, block, records)
                return header
        raise DamagedError(f"more than {_MAX_CHAIN} headers for one entry")

    def _skip_data(self) -> None:
        """Skip the data of the last entry. Many writers leave out the padding of the last file and
        the final blocks of zeros; a truncated archive is found by its digest."""
        if self._stream.seek(self._data_end) < self._data_end:
            raise DamagedError("unexpected end of data")
        self._stream.seek(_padded(self._data_end))

    def _block(self) -> bytes | None:
        block = self._stream.read(_SIZE)
        if not block:
            return None
        if block == _ZEROS:
            if self._stream.read(_SIZE).strip(b"\0"):
                raise DamagedError("damaged header, a block of zeros in the middle")
            return None
        if len(block) < _SIZE:
            raise DamagedError("damaged header, cut short")
        return block

    def _extension(self, header: Header) -> bytes:
        if not 0 <= header.size <= _MAX_EXTENSION:
            raise DamagedError("a header that extends an entry is too large")
        data = self._stream.read(_padded(header.size))
        if len(data) < header.size:
            raise DamagedError("damaged header, cut short")
        return data[: header.size]

    def _share(self, records: Mapping[bytes, bytes]) -> None:
        for key, value in records.items():
            if key.startswith(SPARSE):
                continue
            is_xattr = key.startswith(XATTR)
            shared = self._shared_xattrs if is_xattr else self._shared
            name = key[len(XATTR) :] if is_xattr else key
            shared[name] = value
            if not value:
                del shared[name]
        total = sum(
            len(key) + len(value)
            for shared in (self._shared, self._shared_xattrs)
            for key, value in shared.items()
        )
        if total > _MAX_SHARED or len(self._shared_xattrs) > _MAX_SHARED_XATTRS:
            raise DamagedError("the global headers are too large")

    def _apply(self, header: Header, own: Mapping[bytes, bytes]) -> None:
        """Apply PAX records. An empty one deletes what a global header said."""
        if not own and not self._shared and not self._shared_xattrs:
            return
        records = {**self._shared, **own} if self._shared else own
        header.name = records.get(b"path") or header.name
        header.linkname = records.get(b"linkpath") or header.linkname
        header.mtime = records.get(b"mtime", b"")
        uid, gid = number(records, b"uid"), number(records, b"gid")
        size = number(records, b"size")
        header.uid = header.uid if uid is None else uid
        header.gid = header.gid if gid is None else gid
        header.size = header.size if size is None else size
        xattrs = {key[len(XATTR) :]: value for key, value in own.items() if key.startswith(XATTR)}
        if not xattrs:
            header.xattrs = self._shared_xattrs.copy()
            return
        xattrs = {**self._shared_xattrs, **xattrs}
        header.xattrs = {key: value for key, value in xattrs.items() if value}

    def _find_data(self, header: Header, block: bytes, records: Mapping[bytes, bytes]) -> None:
        """Set the type of old headers, and find where the data is."""
        if header.type == OLD_REGULAR:
            header.type = DIRECTORY if header.name.endswith(b"/") else REGULAR
        if header.type in _WITHOUT_DATA:
            header.size = 0
        if not 0 <= header.size <= sparse.MAX_SIZE:
            raise DamagedError("damaged header, no file has this size")
        start, stored = self._stream.tell(), header.size
        found = None
        if header.type == OLD_SPARSE:
            if not _is_gnu(block):
                raise DamagedError("a sparse file of a kind that is not supported")
            found = sparse.old_map(block, self._stream.read, _number)
            start = self._stream.tell()
        elif records and header.type in (REGULAR, CONTIGUOUS) and sparse.is_sparse(records):
            # The name in its own record counts most: the others are made up for programs that do
            # not know sparse files.
            header.name = records.get(b"GNU.sparse.name") or header.name
            found = sparse.map_in_records(records, header.size, self._stream.read)
        header.offset = self._stream.tell()
        header.stored = stored - (header.offset - start)
        self._data_end = start + stored
        if found is not None:
            header.size, header.pieces = found
            if not 0 <= header.size <= sparse.MAX_SIZE:
                raise DamagedError("damaged header, no file has this size")
            if sum(length for _, length in header.pieces) > header.stored:
                raise DamagedError("the map of a sparse file says more than there are data")


def _padded(size: int) -> int:
    return size + -size % _SIZE


def _text(data: bytes) -> bytes:
    return data.partition(b"\0")[0] if data[:1] != b"\0" else b""


def _is_gnu(block: bytes) -> bool:
    return block[257:265] == _GNU


def _parse(block: bytes) -> Header:
    """Parse one header block."""
    fields = _LAYOUT.unpack(block)
    name, mode, uid, gid, size, seconds, checksum, kind, linkname = fields[:9]
    magic, major, minor, rest = fields[9:]
    if not _sum_is_right(block, checksum):
        raise DamagedError("damaged header, bad checksum")
    header = Header(
        kind,
        _text(name),
        _text(linkname),
        _repeated(mode),
        _repeated(uid),
        _repeated(gid),
        _number(size),
        _repeated(seconds),
    )
    is_gnu = magic == _GNU
    if is_gnu or magic.startswith(b"ustar\0"):
        header.major, header.minor = _repeated(major), _repeated(minor)
        # Nearly all have none.
        prefix = rest[0] and (_gnu_prefix(block) if is_gnu else _ustar_prefix(block))
        if prefix:
            header.name = prefix + b"/" + header.name
    return header


def _sum_is_right(block: bytes, checksum: bytes) -> bool:
    """Whether the checksum is right: the sum of all bytes, with spaces in place of the checksum.
    Some writers took the bytes for signed."""
    said = _number(checksum)
    found = _sum(block[:256]) + _sum(block[256:]) - _sum(checksum) + 8 * 0x20
    if said == found:
        return True
    return said == found - 256 * sum(byte > 127 for byte in block[:148] + block[156:])


def _sum(data: bytes) -> int:
    """The sum of at most 256 bytes. The lower half of Adler-32 is their sum modulo 65521, which so
    few do not reach; Python's `sum` takes ten times as long."""
    return zlib.adler32(data, 0) & 0xFFFF


def _ustar_prefix(block: bytes) -> bytes:
    """The ustar prefix; star has times in the last 24 bytes of it."""
    is_star = block[508:] == b"tar\0"
    return _text(block[345 : 345 + 131] if is_star else block[345:500])


def _gnu_prefix(block: bytes) -> bytes:
    """The prefix that Go once wrote where GNU tar has times."""
    try:
        for field_ in (block[345:357], block[357:369]):
            if field_[0]:
                _number(field_)
    except DamagedError:
        prefix = _text(block[345:500])
        return prefix if prefix.isascii() else b""
    return b""


def _number(data: bytes) -> int:
    """A number in octal digits, or in binary if the first bit is set."""
    digits = data.rstrip(b" \0")
    if digits.isdigit():
        # Most are. Of what `int` takes, and is no octal digit, nothing is left.
        try:
            return int(digits, 8)
        except ValueError:
            pass
    if padded := _PADDED.fullmatch(data):
        return int(padded[1], 8)
    if data[0] & 0x80:
        negative = data[0] & 0x40
        value = int.from_bytes(data, "big", signed=True)
        value += 0 if negative else 1 << (8 * len(data) - 1)
        if not -(1 << 63) <= value < 1 << 63:
            raise DamagedError("damaged header, a number of more than 64 bits")
        return value
    text = _text(data.strip(b" \0")).strip(b" ")
    if not text:
        return 0
    if not _OCTAL.fullmatch(text):
        raise DamagedError(f"damaged header, {str(data)[1:]} is no number")
    return int(text, 8)


#: `_number` of a field that has the same value in many headers.
_repeated: Final = functools.lru_cache(maxsize=1024)(_number)
