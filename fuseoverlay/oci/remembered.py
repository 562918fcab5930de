"""What is remembered of a layer until its end, and what it takes to find things in that: bounds for
memory and time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fuseoverlay.errors import ImageError
from fuseoverlay.oci.entries import Path

#: A layer of half a million directories stays below.
_ROOM: Final = 512 << 20
#: For different attributes of directories. Real ones have labels and capabilities.
_ROOM_FOR_ATTRIBUTES: Final = 64 << 20
#: Names passed on the way through paths, some 20 ns each. A million files, each ten directories
#: deep below a link, take a tenth.
_STEPS: Final = 1 << 29
#: About what a path takes in tables, and each of its names.
_PATH: Final = 200
_NAME: Final = 48
_POINTER: Final = 8
_ATTRIBUTE: Final = 200


class Remembered:
    """Counts what is remembered. It is never less: what goes again was there once.

    ImageError, with `where`, where it is too much.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._left = _ROOM
        self._left_for_attributes = _ROOM_FOR_ATTRIBUTES
        self._steps_left = _STEPS
        self._attributes: dict[frozenset[tuple[bytes, bytes]], Mapping[bytes, bytes]] = {}

    def path(self, path: Path, parents: int = 0) -> None:
        """Count `path`, and as many paths that lead to it."""
        names = sum(map(len, path)) + _NAME * len(path)
        self._left -= names + (1 + parents) * (_PATH + _POINTER * len(path))
        if self._left < 0:
            raise ImageError(
                "too many directories, hard links or deletions in one layer", where=self._where
            )

    def steps(self, count: int) -> None:
        """Count so many names that were passed. A path is passed again for each member below a
        link, or of a directory that is not there: a small archive could keep us for hours."""
        self._steps_left -= count
        if self._steps_left < 0:
            raise ImageError(
                "too many paths of one layer lead through its links, are deleted in directories "
                "that it has not, or are replaced",
                where=self._where,
            )

    def attributes(self, attributes: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
        """`attributes`, which are kept once however many directories have the same."""
        key = frozenset(attributes.items())
        found = self._attributes.get(key)
        if found is None:
            found = self._attributes[key] = attributes
            self._left_for_attributes -= sum(
                _ATTRIBUTE + len(name) + len(value) for name, value in key
            )
            if self._left_for_attributes < 0:
                raise ImageError(
                    "too large attributes of directories in one layer", where=self._where
                )
        return found
