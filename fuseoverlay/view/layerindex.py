"""What one layer holds: its tree as a table, in memory or mapped from a file.

Each name is a row. The root is row 0; the children of a directory follow one another, sorted by
name, and all that is below a directory is one piece, from `first` to `end`. So a path is found by
bisection, and the size of a tree is the sum of a slice.

A file begins with `MAGIC`, a checksum (see `store.indexes`), the length of a header and the header,
JSON with the place of each column. Columns are arrays of numbers as this machine has them. What
another machine or version has written is not read but made again.

Many rows can have the same attributes, large ones: a global header of an archive gives them to
each. So each name or value of them is there once, and each list of them.
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
from weakref import WeakValueDictionary

from fuseoverlay.store import indexes
from fuseoverlay.store.indexes import BadIndexError

MAGIC: Final = b"fuseoverlay layer index 2\n"
#: The columns, and the type of each as in the module `array`. `mode` holds type and permission
#: bits, 0 where there is nothing but a whiteout. The time is `seconds` and `nanos` on top, because
#: an archive can name years that 64 bits of ns do not reach. `name_at` is where the name begins in
#: `names`, in which a zero byte follows each; `parent` the row of the directory. Of a directory,
#: `count` is the number of its children, `first` the row of the first of them, and `end` the row
#: after the last one below it. Names of one file have the same `ino`. `ref`: of a file, its place
#: among the digests, of a symbolic link, its place among the targets, from 1; 0 for none.
#: `data`: of the content, where it begins in the plain archive, from 1; 0 if it is not there.
#: `attrs`, `copied`: which list, from 1, has the names and values in turn of the attributes, or the
#: path of the content in the layers below; 0 for none. A list begins at `list_at` in `lists`, the
#: numbers of its texts, and a text at `text_at` in `texts`.
COLUMNS: Final[Mapping[str, str]] = {
    "parent": "I", "name_at": "I", "mode": "H", "flags": "B", "uid": "I", "gid": "I", "size": "Q",
    "seconds": "q", "nanos": "I", "rdev": "Q", "first": "I", "end": "I", "count": "I", "ino": "I",
    "nlink": "I", "ref": "I", "data": "Q", "attrs": "I", "copied": "I", "target_at": "I",
    "lists": "I", "list_at": "Q", "text_at": "Q",
}  # fmt: skip
#: Flags. `HIDES`: a whiteout of the name, which hides it in the layers below. `OPAQUE`: a directory
#: that shows nothing of the layers below. `IMPLIED`: a directory that the archive does not list.
#: `REDIRECT`, `METACOPY`: the directory, or the data of the file, goes on elsewhere below. `LINK`:
#: the archive lists it as a hard link. `SPARSE`: the archive has not all of its zeros.
HIDES, OPAQUE, IMPLIED, REDIRECT, METACOPY, LINK, SPARSE = (1 << bit for bit in range(7))
#: Bytes of a digest.
DIGEST: Final = 32
_ALIGNED: Final = 8
_SECOND: Final = 10**9
#: Bytes of the length of the header, with the end of its line, and where the header begins.
_LENGTH: Final = 13
_BEGIN: Final = len(MAGIC) + indexes.SUM + _LENGTH
#: To search one name costs as much as to read so many.
_FEW: Final = 32


#: The indexes that are mapped, by path, identity, inode number, time and size of the file.
_loaded: WeakValueDictionary[tuple[object, ...], LayerIndex] = WeakValueDictionary()


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
            self._texts = view[slice(*places["texts"])]
            self.size: int = header["size"]
        except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError,
                RecursionError) as exc:  # fmt: skip
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
        #: The texts that were asked for, so that all that have them share them.
        self._known: dict[int, bytes] = {}
        self._buffer = buffer
        self._recent = _Recent(-1)
        if not len(self.parent) == len(self.mode) == len(self.name_at) - 1 > 0:
            raise BadIndexError("columns of different lengths")

    @classmethod
    def load(cls, path: str | os.PathLike[str], identity: object = None) -> LayerIndex:
        """Map the file at `path`, which is its identity if there is no other; one that is open
        already, of another image, serves again. OSError, BadIndexError."""
        st = os.stat(path)
        key = os.fspath(path), identity, st.st_ino, st.st_mtime_ns, st.st_size
        known = _loaded.get(key)
        if known is None:
            named = os.fspath(path) if identity is None else identity
            known = _loaded[key] = cls(indexes.mapped(path), named)
        return known

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
            column["seconds"][row] * _SECOND + column["nanos"][row], column["rdev"][row],
            self.nlink[row], self.target(row), self.digest(row), self.xattrs(row),
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
        found = self._list(self._columns["attrs"][row])
        return dict(zip(found[::2], found[1::2], strict=True))

    def copied(self, row: int) -> tuple[bytes, ...] | None:
        """The path in the layers below to which the archive links this file, where it has not its
        content."""
        return self._list(self._columns["copied"][row]) or None

    def _list(self, number: int) -> tuple[bytes, ...]:
        """The texts of a list; none of the list 0."""
        if not number:
            return ()
        at = self._columns["list_at"]
        return tuple(map(self._text, self._columns["lists"][at[number - 1] : at[number]]))

    def _text(self, number: int) -> bytes:
        found = self._known.get(number)
        if found is None:
            at = self._columns["text_at"]
            found = self._known[number] = bytes(self._texts[at[number] : at[number + 1]])
        return found


def encoded(columns: Mapping[str, Any], heaps: Mapping[str, bytes], size: int) -> bytes:
    """The content of a file; `columns`: arrays, `heaps`: names, targets, digests, texts."""
    parts = [(name, columns[name].tobytes()) for name in COLUMNS] + list(heaps.items())
    places, at = {}, 0
    for name, data in parts:
        places[name] = [at, at + len(data)]
        at += len(data) + -len(data) % _ALIGNED
    said = {"order": sys.byteorder, "length": at, "places": places, "size": size}
    header = json.dumps(said).encode()
    # The columns begin at a multiple of their largest item.
    header += b" " * (-(_BEGIN + len(header)) % _ALIGNED)
    pieces = [b"%12d\n" % len(header), header]
    for _, data in parts:
        pieces += [data, bytes(-len(data) % _ALIGNED)]
    return indexes.sealed(MAGIC, pieces)


def _header(view: memoryview) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    """The header, and the place of each column in `view`."""
    begin = indexes.unsealed(view, MAGIC) + _LENGTH
    length = int(bytes(view[begin - _LENGTH : begin]))
    header = json.loads(bytes(view[begin : begin + length]))
    start = begin + length
    if header["order"] != sys.byteorder or start + header["length"] != len(view):
        raise BadIndexError("cut short, or of another machine")
    places = header["places"]
    return header, {name: (start + x, start + y) for name, (x, y) in places.items()}
