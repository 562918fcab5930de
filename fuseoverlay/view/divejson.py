"""What `dive --json` writes of an image, line by line: all of it may be large.

Fields and their order are dive's. A layer's index has neither owner and mode of whiteouts, which
are 0 here, nor modes of symbolic links, nor names as the archive spells them. Bytes that are not
UTF-8 become U+FFFD, as in Go.

Source: wagoodman/dive, cmd/dive/cli/internal/command/export/export.go, dive/filetree/file_info.go,
as of May 2025; Go's os.FileMode.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from fuseoverlay.view.dive import WHITEOUT, Counted, Figures
from fuseoverlay.view.layerindex import HIDES, IMPLIED
from fuseoverlay.view.opened import Layer, View

#: What Go's os.FileMode has for each type, and the letter of the type in an archive.
_TYPES: Final[Mapping[int, tuple[int, str]]] = {
    stat.S_IFREG: (0, "0"),
    stat.S_IFLNK: (1 << 27, "2"),
    stat.S_IFCHR: (1 << 26 | 1 << 21, "3"),
    stat.S_IFBLK: (1 << 26, "4"),
    stat.S_IFDIR: (1 << 31, "5"),
    stat.S_IFIFO: (1 << 25, "6"),
}
_LINK: Final = ord("1")
_BITS: Final = ((stat.S_ISUID, 1 << 23), (stat.S_ISGID, 1 << 22), (stat.S_ISVTX, 1 << 20))
#: What dive takes away from the commands of layers, and has where there is none.
_SHELL: Final = "/bin/sh -c "
_NO_COMMAND: Final = "(missing)"


def export(view: View, figures: Figures) -> Iterator[str]:
    """The lines of the text; some have several lines."""
    yield '{\n  "layer": ['
    last = len(view.layers) - 1
    pairs = zip(view.layers, view.stack.layers, strict=False)
    for number, (layer, index) in enumerate(pairs):
        yield from _layer(layer, Counted(index), figures.sizes[number])
        yield "    }" if number == last else "    },"
    yield '  ],\n  "image": {'
    yield from _fields(
        {
            "sizeBytes": sum(figures.sizes),
            "inefficientBytes": figures.wasted,
            "efficiencyScore": _number(figures.efficiency),
        },
        4,
    )
    rows = (
        {"count": row.times, "sizeBytes": row.bytes, "file": "/" + _text(b"/".join(row.path))}
        for row in figures.repeated
    )
    yield from _list("fileReference", rows, 4)
    yield "  }\n}"


def _layer(layer: Layer, counted: Counted, size: int) -> Iterator[str]:
    yield "    {"
    yield from _fields(
        {
            "index": layer.number - 1,
            "id": layer.name.partition(":")[2] or layer.name,
            "digestId": layer.name,
            "sizeBytes": size,
            "command": layer.step.created_by.removeprefix(_SHELL) or _NO_COMMAND,
        },
        6,
    )
    yield from _list("fileList", _Files(counted).files(), 6)


class _Files:
    """The nodes of one layer in dive's order: what a directory holds comes before it."""

    def __init__(self, counted: Counted) -> None:
        self._counted = counted
        self._index: Final = counted.index
        #: Of each file with several names: the one that is no link.
        self._first = {
            self._index.ino[row]: row
            for row, nlink in enumerate(self._index.nlink)
            if nlink > 1 and row not in counted.links
        }

    def files(self) -> Iterator[dict[str, Any]]:
        """What dive has of each node."""
        waiting = [(self._inside(0), 0, "")]
        while waiting:
            inside, row, path = waiting[-1]
            name, child = next(inside, (b"", -1))
            if child >= 0:
                inner = (path + "/" if path else "") + _text(name)
                if self._counted.count[child] and not self._is_whiteout(name, child):
                    waiting.append((self._inside(child), child, inner))
                else:
                    yield self._file(name, child, inner)
                continue
            waiting.pop()
            if row:
                yield self._file(self._index.name(row), row, path)

    def _inside(self, row: int) -> Iterator[tuple[bytes, int]]:
        """Names as in the archive, and rows."""
        found = []
        for name, child in self._counted.names(row):
            if self._index.flags[child] & HIDES:
                found.append((WHITEOUT + name, child))
            if self._index.mode[child]:
                found.append((name, child))
        return iter(sorted(found))

    def _is_whiteout(self, name: bytes, row: int) -> bool:
        return name != self._index.name(row)

    def _file(self, name: bytes, row: int, path: str) -> dict[str, Any]:
        index = self._index
        if index.flags[row] & IMPLIED:
            return _described("", 0, "", 0, 0, 0, 0, is_dir=False)
        if self._is_whiteout(name, row):
            return _described(path, ord("0"), "", 0, 0, 0, 0, is_dir=False)
        entry = index.entry(row)
        kind, letter = _TYPES.get(stat.S_IFMT(entry.mode), (0, "0"))
        flag, target = ord(letter), entry.link
        if row in self._counted.links:
            kind, flag, target = 0, _LINK, self._target(row)
        mode = kind | entry.mode & 0o777 | sum(go for bit, go in _BITS if entry.mode & bit)
        return _described(
            path, flag, _text(target), self._counted.size(row), mode, entry.uid, entry.gid,
            is_dir=stat.S_ISDIR(entry.mode),
        )  # fmt: skip

    def _target(self, row: int) -> bytes:
        first = self._first.get(self._index.ino[row])
        path = self._index.copied(row) if first is None else self._index.path(first)
        return b"/".join(path or ())


def _described(
    path: str, flag: int, link: str, size: int, mode: int, uid: int, gid: int, *, is_dir: bool
) -> dict[str, Any]:
    return {
        "path": path, "typeFlag": flag, "linkName": link, "size": size, "fileMode": mode,
        "uid": uid, "gid": gid, "isDir": is_dir,
    }  # fmt: skip


def _list(name: str, items: Iterable[dict[str, Any]], indent: int) -> Iterator[str]:
    """A field that is a list of objects, the last one of its object."""
    space = " " * indent
    held = ""
    for item in items:
        yield f"{held}," if held else f'{space}"{name}": ['
        text = json.dumps(item, indent=2).replace("\n", f"\n{space}  ")
        held = f"{space}  {text}"
    yield f"{held}\n{space}]" if held else f'{space}"{name}": []'


def _fields(fields: Mapping[str, Any], indent: int) -> Iterator[str]:
    space = " " * indent
    return (f'{space}"{name}": {json.dumps(value)},' for name, value in fields.items())


def _number(value: float) -> float | int:
    """Go writes a whole number without a point."""
    return int(value) if value.is_integer() else value


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")
