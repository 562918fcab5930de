"""Headers of a tar archive, read by `tarfile` within bounds.

`tarfile` parses all kinds (ustar, GNU, PAX, sparse files). What it would let pass or run
into is refused here: a damaged header in the middle, a header that claims gigabytes, headers
that extend headers without end, global headers that pile up, records that take it time or memory
in the square of their length. Where what it makes of headers is not what POSIX says, or what Go's
archive/tar does, with which images are read everywhere, `Header` is as those.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol, Self, cast

from fuseoverlay.errors import ImageError

#: PAX and GNU headers of one entry together. Attributes and long names stay far below.
_MAX_HEADER: Final = 4 << 20
#: Headers before one entry that extend it: real ones have up to four. `tarfile` recurses.
_MAX_CHAIN: Final = 64

#: The largest offset that a system call takes.
_MAX_SIZE: Final = (1 << 63) - 1

# Of the typeflag in a header; those of PAX records for one entry, for all, and of Solaris.
_TYPE: Final = slice(156, 157)
_PAX_TYPES: Final = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_RECORD: Final = re.compile(rb"([1-9][0-9]{0,9}) ")
_DIGITS: Final = re.compile(rb"[0-9]{1000,}")
_NUMBERS: Final = ("uid", "gid", "size")
_NUMBER: Final = re.compile(r"[+-]?[0-9]+", re.ASCII)
#: Of attributes an empty value is a value.
_XATTR: Final = "SCHILY.xattr."
_SPARSE: Final = "GNU.sparse."
# About a second.
_MOST_STEPS: Final = 10**9

#: Its header errors are documented by name, but left out of the type stubs.
_tar: Final[Any] = tarfile


class HeaderStream(Protocol):
    """What headers are read from. `budget`: the bytes that `read` may still take, None: any."""

    budget: int | None

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes, fewer only at the end; ImageError beyond the budget."""

    def seek(self, position: int) -> int:
        """Go on to `position`; ImageError where it lies behind."""

    def tell(self) -> int:
        """The position."""


class _Records:
    """Passes on what `tarfile` reads, but for PAX records that are none. Those it would look at
    again and again, each time to the end; POSIX, pax, "pax Extended Header"."""

    def __init__(self, stream: HeaderStream) -> None:
        self._stream = stream
        # Whether the next read is of records: a header that says so has just been read.
        self._due = False

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        if self._due:
            _check_records(data)
            self._due = False
        else:
            self._due = size == tarfile.BLOCKSIZE and data[_TYPE] in _PAX_TYPES
        return data

    def seek(self, position: int) -> int:
        return self._stream.seek(position)

    def tell(self) -> int:
        return self._stream.tell()


def _check_records(data: bytes) -> None:
    """ReadError where these are not records "LENGTH KEY=VALUE\\n" and zeros after them."""
    position = 0
    while position < len(data) and data[position]:
        match = _RECORD.match(data, position)
        end = position + int(match[1]) if match else 0
        if not match or end <= match.end() or data[end - 1 : end] != b"\n":
            raise _tar.ReadError("damaged header, a PAX record of a wrong length")
        if data.find(b"=", match.end(), end) < 0:
            raise _tar.ReadError("damaged header, a PAX record without a value")
        position = end
    # Looking for a character set takes Python before 3.13 the square of the number of digits.
    if sum(len(digits) ** 2 for digits in _DIGITS.findall(data)) > _MOST_STEPS:
        raise _tar.ReadError("a PAX record of nothing but digits is too long")


class _Archive(tarfile.TarFile):
    """An archive that knows how many headers it is in the middle of."""

    chain = 0


class Header(tarfile.TarInfo):
    """A header block that ends the archive only where an archive ends.

    A PAX record without a value deletes: what counts is the field of the header itself. Of
    several headers of one kind before an entry the last one counts; a long name in GNU's form
    more than a record.
    """

    #: The header's own fields, where global headers may have replaced them.
    _fields: Mapping[str, object] = MappingProxyType({})
    #: Records that say nothing, as there is a long name in GNU's form.
    _long: frozenset[str] = frozenset()
    #: Whether the records that come are those of the global headers; whether its own came.
    _shared = False
    _extended = False
    #: Where its data begin, the map of a sparse file included.
    _start = 0

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        """Parse the next header, with those before it that extend it."""
        archive = cast("_Archive", tarfile)
        shared: dict[str, str] = cast(Any, archive).pax_headers
        for key in [key for key, value in shared.items() if not value]:
            del shared[key]
        archive.chain += 1
        try:
            if archive.chain > _MAX_CHAIN:
                raise _tar.ReadError(f"more than {_MAX_CHAIN} headers for one entry")
            found = super().fromtarfile(tarfile)
        except _tar.EOFHeaderError:
            if cast("_Records", archive.fileobj).read(_tar.BLOCKSIZE).strip(b"\0"):
                raise _tar.ReadError("damaged header, a block of zeros in the middle") from None
            raise
        except _tar.EmptyHeaderError as exc:
            # Many writers leave the two zero blocks out: the digest vouches for the end.
            raise _tar.EOFHeaderError(str(exc)) from exc
        except (_tar.HeaderError, ValueError, ArithmeticError, LookupError) as exc:
            raise _tar.ReadError(f"damaged header, {exc}") from exc
        finally:
            archive.chain -= 1
        own = cast("dict[str, str]", found.pax_headers)
        for key in [key for key in shared if not own.get(key, key)]:
            del own[key]
        return found

    def _proc_builtin(self, tarfile: tarfile.TarFile) -> Self:
        if tarfile.pax_headers:
            self._fields = {key: getattr(self, key) for key in _tar.PAX_FIELDS}
        self._shared = True
        found = cast("Self", super()._proc_builtin(tarfile))  # type: ignore[misc]
        self._shared = False
        self._start = self.offset_data
        return found

    def _proc_gnulong(self, tarfile: tarfile.TarFile) -> Self:
        archive = cast("_Archive", tarfile)
        data = cast("_Records", archive.fileobj).read(self._block(self.size))  # type: ignore[attr-defined]
        name = data.partition(b"\0")[0].decode("utf-8", "surrogateescape")
        found = self._next(archive)
        field, record = (
            ("name", "path") if self.type == _tar.GNUTYPE_LONGNAME else ("linkname", "linkpath")
        )
        if name and record not in found._long:
            setattr(found, field, name.rstrip("/") if field == "name" and found.isdir() else name)
            found._long |= {record}
        return found

    def _proc_pax(self, tarfile: tarfile.TarFile) -> Self:
        found = cast("Self", super()._proc_pax(tarfile))  # type: ignore[misc]
        records = found.pax_headers
        stored, sizes = records.get("size"), ("GNU.sparse.size", "GNU.sparse.realsize")
        if found.sparse is not None and stored and found._start:
            # `tarfile` takes that for the size of the file, and looks behind it for the next.
            found.size = next((int(records[key]) for key in sizes if key in records), found.size)
            tarfile.offset = found._start + found._block(int(stored))  # type: ignore[attr-defined]
        return found

    def _next(self, archive: _Archive) -> Self:
        """The header that this one extends."""
        try:
            return self.fromtarfile(archive)
        except _tar.EOFHeaderError as exc:
            raise _tar.ReadError("damaged header, nothing comes after it") from exc

    # What comes after `found` is not the same in all versions of Python.

    def _proc_gnusparse_00(self, found: Header, *records: object) -> None:
        if not found._extended:
            super()._proc_gnusparse_00(found, *records)  # type: ignore[misc]
            # A size alone makes no sparse file.
            found.sparse = found.sparse or None

    def _proc_gnusparse_01(self, found: Header, records: dict[str, str], *rest: object) -> None:
        if records["GNU.sparse.map"].count(",") % 2 == 0:
            raise _tar.ReadError("damaged header, half a piece in the map of a sparse file")
        if not found._extended:
            super()._proc_gnusparse_01(found, records, *rest)  # type: ignore[misc]

    def _proc_gnusparse_10(self, found: Header, *rest: object) -> None:
        if not found._extended:
            super()._proc_gnusparse_10(found, *rest)  # type: ignore[misc]

    def _apply_pax_info(self, records: dict[str, str], encoding: str, errors: str) -> None:
        if self._extended:
            return
        self._extended = not self._shared
        counting = {}
        passed_over = set(self._long)
        if self.sparse is not None and records.get("GNU.sparse.name"):
            # What counts most; a long name that is still to come counts less, too.
            passed_over.add("path")
            self._long |= {"path"}
        for key, value in records.items():
            if value and key in _NUMBERS and not _NUMBER.fullmatch(value):
                raise _tar.ReadError(f"damaged header, {key}={value[:40]!r} is no number")
            if key in passed_over or (key.startswith(_SPARSE) and self.sparse is None):
                # The second: of a kind that nobody knows, and so a file like any other.
                continue
            if value or key.startswith(_XATTR):
                counting[key] = value
            elif key in self._fields:
                setattr(self, key, self._fields[key])
        super()._apply_pax_info(counting, encoding, errors)  # type: ignore[misc]


def read_headers(
    stream: HeaderStream, where: str, *, kind: str = "tar archive", hint: str
) -> Iterator[tarfile.TarInfo]:
    """Headers in the order of the archive; while one is looked at `stream` has no budget.

    ImageError that says `where` and `hint` when `stream` is no readable `kind`.
    """
    stream.budget = _MAX_HEADER
    try:
        archive = _Archive(
            fileobj=cast("tarfile._Fileobj", _Records(stream)),
            tarinfo=Header,
            encoding="utf-8",
            errors="surrogateescape",
        )
        while (info := archive.next()) is not None:
            # The archive keeps every header it saw; nobody needs them.
            archive.members.clear()  # type: ignore[attr-defined]
            _check_globals(archive)
            stream.budget = None
            yield info
            stream.budget = _MAX_HEADER
    except tarfile.TarError as exc:
        raise ImageError(f"not a readable {kind}: {exc}", where=where, hint=hint) from exc
    finally:
        stream.budget = None


def _check_globals(archive: tarfile.TarFile) -> None:
    """Global headers stay, and are copied into each entry."""
    if sum(len(key) + len(value) for key, value in archive.pax_headers.items()) > _MAX_HEADER:
        raise _tar.ReadError("the global headers are too large")


def sparse_map(info: tarfile.TarInfo, where: str) -> tuple[tuple[int, int], ...] | None:
    """Offset and length of the pieces of a sparse file, in order; None: it is whole."""
    if not 0 <= info.size <= _MAX_SIZE:
        raise ImageError("no file has this size", where=where)
    if info.sparse is None:
        return None
    end = 0
    # tarfile keeps unused slots of the old GNU form as (0, 0).
    pieces = [piece for piece in cast("list[tuple[int, int]]", info.sparse) if piece[1]]
    for offset, length in pieces:
        if offset < end or length < 0:
            raise ImageError("the map of a sparse file is out of order", where=where)
        end = offset + length
    if end > info.size:
        raise ImageError("the map of a sparse file goes beyond its end", where=where)
    return tuple(pieces)
