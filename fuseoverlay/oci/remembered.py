"""Bounds for the memory that a layer takes until its end, and for the time to search it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fuseoverlay.errors import ImageError
from fuseoverlay.oci.entries import Path

#: Bytes. A layer with half a million directories stays below.
_ROOM: Final = 512 << 20
#: Bytes for the different attributes of directories. Real ones have labels and capabilities.
_ROOM_FOR_ATTRIBUTES: Final = 64 << 20
#: Names passed when following paths, some 20 ns each. A million files, each ten directories deep
#: below a link, use a tenth.
_STEPS: Final = 1 << 29
#: Approximate bytes in tables: for a path, for each of its names, for a pointer, for an attribute.
_PATH: Final = 200
_NAME: Final = 48
_POINTER: Final = 8
_ATTRIBUTE: Final = 200


class Remembered:
    """Counts what is kept. The counts never fall: what is removed again was there once.

    ImageError, with `where`, if it is too much.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._left = _ROOM
        self._left_for_attributes = _ROOM_FOR_ATTRIBUTES
        self._steps_left = _STEPS
        self._attributes: dict[frozenset[tuple[bytes, bytes]], Mapping[bytes, bytes]] = {}

    def path(self, path: Path, parents: int = 0) -> None:
        """Count `path`, and `parents` of the paths that lead to it."""
        names = sum(map(len, path)) + _NAME * len(path)
        self._left -= names + (1 + parents) * (_PATH + _POINTER * len(path))
        if self._left < 0:
            raise ImageError(
                "too many directories, hard links or deletions in one layer", where=self._where
            )

    def steps(self, count: int) -> None:
        """Count names that were passed. A path is followed again for each member below a link or of
        a missing directory, so without a bound a small archive could keep us busy for hours."""
        self._steps_left -= count
        if self._steps_left < 0:
            raise ImageError(
                "too many paths of one layer lead through its links, are deleted in directories "
                "that it has not, or are replaced",
                where=self._where,
            )

    def attributes(self, attributes: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
        """`attributes`, as an object that all directories with the same ones share."""
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
