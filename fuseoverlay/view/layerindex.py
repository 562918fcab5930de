"""What one layer holds: its tree as a table, in memory or mapped from a file.

Each name is a row. The root is row 0; the children of a directory follow one another, sorted by
name, and all that is below a directory is one piece, from `first` to `end`. So a path is found by
bisection, and the size of a tree is the sum of a slice.

A file begins with `MAGIC`, the length of a header and the header, JSON with the place of each
column. Columns are arrays of numbers as this machine has them. What another machine or version has
written is not read but made again.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, cast

MAGIC: Final = b"fuseoverlay layer index 1\n"
#: The columns, and the type of each as in the module `array`. `mode` holds type and permission
#: bits, 0 where there is nothing but a whiteout. `mtime` is in ns. `name_at` is where the name
#: begins in `names`, in which a zero byte follows each; `parent` the row of the directory. Of a
#: directory, `count` is the number of its children, `first` the row of the first of them, and `end`
#: the row after the last one below it. Names of one file have the same `ino`. `ref`: of a file, its
#: place among the digests, of a symbolic link, its place among the targets, from 1; 0 for none.
#: `data`: of the content, where it begins in the plain archive, from 1; 0 if it is not there.
COLUMNS: Final[Mapping[str, str]] = {
    "parent": "I", "name_at": "I", "mode": "H", "flags": "B", "uid": "I", "gid": "I", "size": "Q",
    "mtime": "q", "rdev": "Q", "first": "I", "end": "I", "count": "I", "ino": "I", "nlink": "I",
    "ref": "I", "data": "Q", "target_at": "I",
}  # fmt: skip
#: Flags. `HIDES`: a whiteout of the name, which hides it in the layers below. `OPAQUE`: a directory
#: that shows nothing of the layers below. `IMPLIED`: a directory that the archive does not list.
#: `REDIRECT`, `METACOPY`: the directory, or the data of the file, goes on elsewhere below. `LINK`:
#: the archive lists it as a hard link. `SPARSE`: the archive has not all of its zeros.
HIDES, OPAQUE, IMPLIED, REDIRECT, METACOPY, LINK, SPARSE = (1 << bit for bit in range(7))
#: Bytes of a digest.
DIGEST: Final = 32
_ALIGNED: Final = 8
#: To search one name costs as much as to read so many.
_FEW: Final = 32


class Entry(NamedTuple):
    """What a layer has at one name. `mode` is 0 for a whiteout; `mtime` in ns; `link` is the target
    of a symbolic link; `digest` the sha256 of the content, if that is known."""

    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    rdev: int
    nlink: int
    link: bytes
    digest: bytes | None
    xattrs: Mapping[bytes, bytes]


class BadIndexError(Exception):
    """A file that is no index of this version, or is damaged."""


@dataclass(slots=True)
class _Recent:
    """The directory that was asked for last, how often, and what it has once that is worth it."""

    row: int
    asks: int = 0
    rows: dict[bytes, int] = field(default_factory=dict)


class LayerIndex:
    """The table of one layer; see `COLUMNS`. A closed one must not be used any more."""

    def __init__(self, buffer: bytes | mmap.mmap, identity: object = None) -> None:
        """`identity`: what two indexes of the same layer have in common. Raises
        `BadIndexError`."""
        self.identity = self if identity is None else identity
        view = memoryview(buffer)
        try:
            header, places = _header(view)
            columns: dict[str, Any] = {}
            for name, kind in COLUMNS.items():
                begin, end = places[name]
                columns[name] = view[begin:end].cast(cast(Any, kind))
            self.names = view[slice(*places["names"])]
            self._targets = view[slice(*places["targets"])]
            self._digests = view[slice(*places["digests"])]
            self.size: int = header["size"]
            self._xattrs: dict[str, dict[str, str]] = header["xattrs"]
            self._copied: dict[str, str] = header["copied"]
        except (KeyError, ValueError, TypeError, IndexError, OverflowError) as exc:
            raise BadIndexError(str(exc)) from exc
        self.parent: Sequence[int] = columns["parent"]
        self.name_at: Sequence[int] = columns["name_at"]
        self.mode: Sequence[int] = columns["mode"]
        self.flags: Sequence[int] = columns["flags"]
        self.sizes: Sequence[int] = columns["size"]
        self.first: Sequence[int] = columns["first"]
        self.end: Sequence[int] = columns["end"]
        self.count: Sequence[int] = columns["count"]
        self.ino: Sequence[int] = columns["ino"]
        self.nlink: Sequence[int] = columns["nlink"]
        self.data: Sequence[int] = columns["data"]
        self._columns = columns
        self._buffer = buffer
        self._recent = _Recent(-1)
        if not len(self.parent) == len(self.mode) == len(self.name_at) - 1 > 0:
            raise BadIndexError("columns of different lengths")

    @classmethod
    def load(cls, path: str | os.PathLike[str], identity: object = None) -> LayerIndex:
        """Map the file at `path`, which is its identity if there is no other. OSError,
        BadIndexError."""
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise BadIndexError("empty")
            found = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return cls(found, os.fspath(path) if identity is None else identity)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.mode)

    def name(self, row: int) -> bytes:
        """The name of a row; empty for the root."""
        return bytes(self.names[self.name_at[row] : self.name_at[row + 1] - 1])

    def path(self, row: int) -> tuple[bytes, ...]:
        """The names from the root to the row."""
        found = []
        while row:
            found.append(self.name(row))
            row = self.parent[row]
        return tuple(reversed(found))

    def children(self, row: int) -> range:
        """The rows of what is in a directory."""
        return range(self.first[row], self.first[row] + self.count[row])

    def names_in(self, row: int) -> list[bytes]:
        """The names in a directory, in order: much quicker than one by one."""
        first, count = self.first[row], self.count[row]
        if not count:
            return []
        begin, end = self.name_at[first], self.name_at[first + count]
        return bytes(self.names[begin : end - 1]).split(b"\0")

    def child(self, row: int, name: bytes) -> int | None:
        """The row of `name` in the directory."""
        rows = self.children(row)
        at = bisect_left(rows, name, key=self.name)
        return rows[at] if at < len(rows) and self.name(rows[at]) == name else None

    def at(self, row: int, name: bytes) -> int:
        """The row of a name that the directory is known to have."""
        recent = self._recent
        if recent.row != row:
            recent = self._recent = _Recent(row)
        recent.asks += 1
        if not recent.rows and recent.asks * _FEW >= self.count[row]:
            recent.rows = dict(zip(self.names_in(row), self.children(row), strict=True))
        found = recent.rows[name] if recent.rows else self.child(row, name)
        if found is None:
            raise KeyError(name)
        return found

    def find(self, path: Sequence[bytes]) -> int | None:
        """The row of a path, through directories of this layer only."""
        row: int | None = 0
        for name in path:
            if row is None or not self.is_dir(row):
                return None
            row = self.child(row, name)
        return row

    def is_dir(self, row: int) -> bool:
        """Whether the row is of a directory."""
        return self.mode[row] & 0o170000 == 0o040000

    def is_file(self, row: int) -> bool:
        """Whether the row is of a regular file."""
        return self.mode[row] & 0o170000 == 0o100000

    def below(self, row: int) -> range:
        """The rows of all that is below a directory."""
        return range(self.first[row], self.end[row])

    def entry(self, row: int) -> Entry:
        """All that is known of a row."""
        column = self._columns
        return Entry(
            self.mode[row], column["uid"][row], column["gid"][row], self.sizes[row],
            column["mtime"][row], column["rdev"][row], self.nlink[row], self.target(row),
            self.digest(row), self.xattrs(row),
        )  # fmt: skip

    def digest(self, row: int) -> bytes | None:
        """The sha256 of the content of a regular file."""
        ref = self._columns["ref"][row]
        if not ref or not self.is_file(row):
            return None
        return bytes(self._digests[(ref - 1) * DIGEST : ref * DIGEST])

    def target(self, row: int) -> bytes:
        """The target of a symbolic link."""
        ref = self._columns["ref"][row]
        if not ref or self.mode[row] & 0o170000 != 0o120000:
            return b""
        at = self._columns["target_at"]
        return bytes(self._targets[at[ref - 1] : at[ref]])

    def xattrs(self, row: int) -> Mapping[bytes, bytes]:
        """The extended attributes of a row."""
        if not self._xattrs:
            return {}
        found = self._xattrs.get(str(row), {})
        return {bytes.fromhex(name): bytes.fromhex(value) for name, value in found.items()}

    def copied(self, row: int) -> tuple[bytes, ...] | None:
        """The path in the layers below to which the archive links this file, where it has not its
        content."""
        found = self._copied.get(str(row))
        return None if found is None else tuple(bytes.fromhex(found).split(b"/"))


def encoded(
    columns: Mapping[str, Any], heaps: Mapping[str, bytes], size: int,
    xattrs: Mapping[int, Mapping[bytes, bytes]], copied: Mapping[int, Sequence[bytes]],
) -> bytes:  # fmt: skip
    """The content of a file; `columns`: arrays, `heaps`: names, targets, digests."""
    parts = [(name, columns[name].tobytes()) for name in COLUMNS] + list(heaps.items())
    places, at = {}, 0
    for name, data in parts:
        places[name] = [at, at + len(data)]
        at += len(data) + -len(data) % _ALIGNED
    said = {
        row: {name.hex(): value.hex() for name, value in found.items()}
        for row, found in xattrs.items()
    }
    header = json.dumps(
        {
            "order": sys.byteorder, "length": at, "places": places, "size": size, "xattrs": said,
            "copied": {row: b"/".join(path).hex() for row, path in copied.items()},
        }
    ).encode()  # fmt: skip
    start = MAGIC + b"%12d\n" % len(header) + header
    pieces = [start + b" " * (-len(start) % _ALIGNED)]
    pieces += [data + bytes(-len(data) % _ALIGNED) for _, data in parts]
    return b"".join(pieces)


def _header(view: memoryview) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    """The header, and the place of each column in `view`."""
    begin = len(MAGIC) + 13
    if bytes(view[: len(MAGIC)]) != MAGIC:
        raise BadIndexError("of another version")
    length = int(bytes(view[len(MAGIC) : begin]))
    header = json.loads(bytes(view[begin : begin + length]))
    start = begin + length + -(begin + length) % _ALIGNED
    if header["order"] != sys.byteorder or start + header["length"] != len(view):
        raise BadIndexError("cut short, or of another machine")
    places = header["places"]
    return header, {name: (start + x, start + y) for name, (x, y) in places.items()}
