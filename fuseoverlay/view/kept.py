"""What was found out about the layers of an image, kept in the store: it never changes.

A file of lines of JSON, after those of `store.indexes`: first what is said of all; then a line for
each waste, the most first; then one for each of dive's repeated paths. Who wants only the first of
them reads only those.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import pathlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any, Final, NamedTuple, TypeVar, overload

from fuseoverlay.store import indexes
from fuseoverlay.store.indexes import BadIndexError
from fuseoverlay.store.root import Store
from fuseoverlay.view import dive, waste
from fuseoverlay.view.changes import How
from fuseoverlay.view.dive import Figures, Repeated
from fuseoverlay.view.opened import View
from fuseoverlay.view.stack import Path
from fuseoverlay.view.waste import Cause, Effect, Found, Waste

_MAGIC: Final = b"fuseoverlay found 3\n"
#: What a head can have that is wrong.
_WRONG: Final = (BadIndexError, LookupError, ValueError, TypeError, AttributeError, RecursionError)
_Item_co = TypeVar("_Item_co", covariant=True)
_Each = TypeVar("_Each")


class _Kept(NamedTuple):
    found: Found
    figures: Figures


def found(view: View) -> Found:
    """What was found out about the layers, now or earlier."""
    kept = _kept(view)
    return waste.find(view.stack, view.same) if kept is None else kept.found


def figures(view: View) -> Figures:
    """What dive says of the layers, found out now or earlier."""
    kept = _kept(view)
    return dive.figures(view.stack) if kept is None else kept.figures


def _kept(view: View) -> _Kept | None:
    """What is kept, or can be from now on."""
    if view.key is None or view.store is None:
        return None
    place = indexes.place(view.store, f"{indexes.FOUND}/{view.key}")
    with contextlib.suppress(OSError, *_WRONG):
        return _read(place, len(view.layers))
    if not view.store.is_writable():
        return None
    result = _Kept(waste.find(view.stack, view.same), dive.figures(view.stack))
    _keep(view.store, place, result)
    return result


# reading


class _Lines(Sequence[_Item_co]):
    """Lines of a file, each parsed when it is looked at."""

    def __init__(
        self, data: mmap.mmap, begin: int, count: int, parse: Callable[[bytes], _Item_co]
    ) -> None:
        self._data, self._begin, self._count, self._parse = data, begin, count, parse
        #: Where each line begins, and the last one ends; made for who looks at one by its number.
        self._places: array[int] | None = None

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[_Item_co]:
        return (self._parse(self._data[begin:end]) for begin, end in pairwise(self._ends()))

    def _ends(self) -> Iterator[int]:
        at = self._begin
        yield at
        for _ in range(self._count):
            at = self._data.find(b"\n", at) + 1
            yield at

    @overload
    def __getitem__(self, at: int) -> _Item_co: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[_Item_co]: ...
    def __getitem__(self, at: int | slice) -> _Item_co | Sequence[_Item_co]:
        if isinstance(at, slice):
            begin, end, step = at.indices(self._count)
            if not begin and step == 1:
                return tuple(islice(self, end))
            return tuple(self[place] for place in range(begin, end, step))
        place = range(self._count)[at]
        if self._places is None:
            self._places = array("Q", self._ends())
        return self._parse(self._data[self._places[place] : self._places[place + 1]])


def _read(place: pathlib.Path, layers: int) -> _Kept:
    """What is kept of so many layers. OSError, and what is `_WRONG`."""
    data = indexes.mapped(place)
    with memoryview(data) as view:
        at = indexes.unsealed(view, _MAGIC)
    begin = data.find(b"\n", at) + 1
    head = json.loads(data[at:begin])
    middle = begin + _number(head["length"])
    if middle > len(data):
        raise BadIndexError("cut short")
    wastes = _Lines(data, begin, _counted(data[begin:middle], head["wastes"]), _waste)
    repeated = _Lines(data, middle, _counted(data[middle:], head["repeated"]), _repeated)
    return _Kept(
        Found(
            _of_each(layers, [Effect(*map(_number, effect)) for effect in head["effects"]]),
            wastes,
            tuple(map(_cause, head["causes"])),
        ),
        _figures(head["dive"], layers, repeated),
    )


def _figures(said: Mapping[str, Any], layers: int, repeated: Sequence[Repeated]) -> Figures:
    sizes = _of_each(layers, [_number(size) for size in said["sizes"]])
    return Figures(float(said["efficiency"]), sizes, _number(said["wasted"]), repeated)


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("no number")
    return value


def _counted(lines: bytes, count: Any) -> int:
    """How many lines there are, which must be `count`."""
    found = lines.count(b"\n")
    if found != _number(count) or lines.rpartition(b"\n")[2]:
        raise ValueError("another number of lines")
    return found


def _of_each(layers: int, found: Sequence[_Each]) -> tuple[_Each, ...]:
    if len(found) != layers:
        raise ValueError("of another number of layers")
    return tuple(found)


def _waste(line: bytes) -> Waste:
    path, causes = json.loads(line)
    return Waste(_path(path), tuple(map(_cause, causes)))


def _cause(plain: Sequence[Any]) -> Cause:
    how, by, files, size, of = plain
    counts = {int(layer): _number(count) for layer, count in of.items()}
    return Cause(How(how), _number(by), _number(files), _number(size), counts)


def _repeated(line: bytes) -> Repeated:
    path, count, size = json.loads(line)
    return Repeated(_path(path), count, size)


def _path(names: Iterable[str]) -> Path:
    return tuple(os.fsencode(name) for name in names)


# writing


def _keep(store: Store, place: pathlib.Path, result: _Kept) -> None:
    """Keep it; nothing is lost if that fails."""
    wastes = _lines(
        [_names(one.path), [_plain(cause) for cause in one.causes]] for one in result.found.wastes
    )
    repeated = _lines([_names(one.path), *one[1:]] for one in result.figures.repeated)
    head = _lines([_head(result, wastes, repeated)])
    with contextlib.suppress(OSError), store.workspace() as work:
        (work / "found").write_bytes(indexes.sealed(_MAGIC, [head, wastes, repeated]))
        indexes.publish(store, {place: work / "found"})


def _lines(items: Iterable[Any]) -> bytes:
    return "".join(json.dumps(item) + "\n" for item in items).encode()


def _names(path: Path) -> list[str]:
    return [os.fsdecode(name) for name in path]


def _plain(cause: Cause) -> list[Any]:
    return [str(cause.how), cause.by, cause.files, cause.bytes, cause.of]


def _head(result: _Kept, wastes: bytes, repeated: bytes) -> Mapping[str, Any]:
    said = result.figures
    return {
        "effects": [
            [e.added, e.changed, e.removed, e.same, e.wasted] for e in result.found.effects
        ],
        "causes": [_plain(cause) for cause in result.found.causes],
        "dive": {"efficiency": said.efficiency, "sizes": said.sizes, "wasted": said.wasted},
        "wastes": len(result.found.wastes),
        "length": len(wastes),
        "repeated": len(said.repeated),
    }
