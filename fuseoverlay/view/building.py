"""Make the index of a layer from its directories, depth first."""

from __future__ import annotations

import stat
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from fuseoverlay.view import layerindex
from fuseoverlay.view.layerindex import COLUMNS

_SECOND: Final = 10**9
_OF_LISTS: Final = ("lists", "list_at", "text_at")


class Listed(NamedTuple):
    """One name in a directory, as it goes into the index; fields as in `layerindex.COLUMNS`. Names
    of one file have the same `file`, any object that can be a key, None for one name alone."""

    name: bytes
    mode: int
    flags: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    rdev: int = 0
    target: bytes = b""
    digest: bytes | None = None
    data: int = 0
    xattrs: Mapping[bytes, bytes] = {}
    file: object = None
    #: Where the content of the file is in the layers below.
    copied: tuple[bytes, ...] | None = None


class Source(Protocol):
    """Something that can be listed: one directory, and those in it."""

    def root(self) -> Listed:
        """The root itself; its name is empty."""

    def children(self, path: tuple[bytes, ...]) -> Iterable[Listed]:
        """What is in the directory, in any order."""


def built(source: Source, size: int | None = None) -> bytes:
    """The index of all that `source` lists, encoded; `size`: what the files have together, if that
    is known."""
    builder = _Builder()
    builder.add(0, source.root())
    # (row, path); a stack, because directories may be nested without bounds.
    waiting: list[tuple[int, tuple[bytes, ...]]] = [(0, ())]
    open_rows: list[int] = []
    while waiting:
        row, path = waiting.pop()
        if row < 0:
            builder.close(open_rows.pop())
            continue
        open_rows.append(row)
        waiting.append((-1, ()))
        children = sorted(source.children(path), key=lambda child: child.name)
        first = builder.begin(row, len(children))
        inside = []
        for at, child in enumerate(children, first):
            builder.add(row, child)
            if stat.S_ISDIR(child.mode):
                inside.append((at, (*path, child.name)))
        waiting += reversed(inside)
    return builder.encoded(size)


def nothing() -> layerindex.LayerIndex:
    """The index of a layer that holds nothing."""
    return layerindex.LayerIndex(built(_Nothing()))


class _Nothing:
    def root(self) -> Listed:
        return Listed(b"", stat.S_IFDIR | 0o755, layerindex.IMPLIED)

    def children(self, _path: tuple[bytes, ...]) -> Iterable[Listed]:
        return ()


class _Builder:
    def __init__(self) -> None:
        self._columns: dict[str, Any] = {name: array(kind) for name, kind in COLUMNS.items()}
        self._append: Final = {name: column.append for name, column in self._columns.items()}
        self._names = bytearray()
        self._targets = bytearray()
        self._digests = bytearray()
        self._columns["target_at"].append(0)
        self._inodes: dict[object, int] = {}
        self._links: dict[int, list[int]] = {}
        self._lists = _Lists()
        self._size = 0

    def add(self, parent: int, listed: Listed) -> None:
        """Append a row."""
        append = self._append
        row = len(self._columns["mode"])
        append["parent"](parent)
        append["name_at"](len(self._names))
        self._names += listed.name + b"\0"
        append["mode"](listed.mode)
        append["flags"](listed.flags)
        append["uid"](listed.uid)
        append["gid"](listed.gid)
        append["size"](listed.size)
        seconds, nanos = divmod(listed.mtime, _SECOND)
        append["seconds"](seconds)
        append["nanos"](nanos)
        append["rdev"](listed.rdev)
        append["first"](row)
        append["end"](row)
        append["count"](0)
        append["ino"](self._inode(row, listed))
        append["nlink"](1)
        append["ref"](self._ref(listed))
        append["data"](listed.data)
        append["attrs"](self._lists.attributes(listed.xattrs) if listed.xattrs else 0)
        append["copied"](self._lists.number(listed.copied) if listed.copied else 0)

    def _inode(self, row: int, listed: Listed) -> int:
        first = row if listed.file is None else self._inodes.setdefault(listed.file, row)
        # The content of a metacopy file is in another layer.
        if first == row and not (stat.S_ISDIR(listed.mode) or listed.flags & layerindex.METACOPY):
            self._size += listed.size
        if listed.file is None:
            return row
        self._links.setdefault(first, []).append(row)
        return first

    def _ref(self, listed: Listed) -> int:
        if listed.digest is not None:
            self._digests += listed.digest
            return len(self._digests) // layerindex.DIGEST
        if listed.target:
            self._targets += listed.target
            self._columns["target_at"].append(len(self._targets))
            return len(self._columns["target_at"]) - 1
        return 0

    def begin(self, row: int, count: int) -> int:
        """The children of the directory `row` come next; returns the row of the first."""
        first = len(self._columns["mode"])
        self._columns["first"][row], self._columns["count"][row] = first, count
        return first

    def close(self, row: int) -> None:
        """All that is below the directory `row` has come."""
        self._columns["end"][row] = len(self._columns["mode"])

    def encoded(self, size: int | None) -> bytes:
        """The content of the file."""
        self._columns["name_at"].append(len(self._names))
        for rows in self._links.values():
            for row in rows:
                self._columns["nlink"][row] = len(rows)
        self._columns |= self._lists.columns
        heaps = {
            "names": bytes(self._names),
            "targets": bytes(self._targets),
            "digests": bytes(self._digests),
            "texts": bytes(self._lists.texts),
        }
        return layerindex.encoded(self._columns, heaps, self._size if size is None else size)


class _Lists:
    """Lists of texts: each list once, and each text."""

    def __init__(self) -> None:
        self.columns: Final = {name: array(COLUMNS[name]) for name in _OF_LISTS}
        self.texts: Final = bytearray()
        self.columns["list_at"].append(0)
        self.columns["text_at"].append(0)
        self._numbers: dict[tuple[int, ...], int] = {}
        self._known: dict[bytes, int] = {}

    def attributes(self, found: Mapping[bytes, bytes]) -> int:
        """The number of the list of names and values in turn."""
        return self.number([text for item in sorted(found.items()) for text in item])

    def number(self, texts: Sequence[bytes]) -> int:
        """The number of a list, from 1."""
        key = tuple(map(self._text, texts))
        found = self._numbers.get(key)
        if found is None:
            found = self._numbers[key] = len(self._numbers) + 1
            self.columns["lists"].extend(key)
            self.columns["list_at"].append(len(self.columns["lists"]))
        return found

    def _text(self, text: bytes) -> int:
        found = self._known.get(text)
        if found is None:
            found = self._known[text] = len(self._known)
            self.texts.extend(text)
            self.columns["text_at"].append(len(self.texts))
        return found
