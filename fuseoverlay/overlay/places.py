"""Finds a lower file again that is no longer where it was looked up.

A user who owns a directory with one name of somebody else's file may remove that name, or put
something else there. The file's other names still lead to it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TypeVar

from fuseoverlay.errors import os_error
from fuseoverlay.layers.layer import Place
from fuseoverlay.layers.objects import Sighting, sighting
from fuseoverlay.layers.stack import LayerStack
from fuseoverlay.overlay.inodes import Directory, File
from fuseoverlay.overlay.inodetable import InodeTable

T = TypeVar("T")


def found(stack: LayerStack, file: File, get: Callable[[Place], T]) -> T:
    """The result of `get` for the place of a lower file. If that fails, the file is searched for by
    its other names; if it is found, that becomes its place. ESTALE if the file has no place; errors
    of `get`."""
    if file.lower is None:
        raise os_error(errno.ESTALE)
    try:
        return get(file.lower)
    except OSError:
        place = find_again(stack, file, file.lower_seen)
        if place is None:
            raise
        file.lower = place
        return get(place)


def name_of(stack: LayerStack, inodes: InodeTable, file: File) -> tuple[Directory, bytes] | None:
    """The first name that leads to a lower file; None: all were removed through the mount. Names
    that are gone in the lower are skipped. Errors of `InodeTable.names_of`."""
    names = inodes.names_of(file)
    if len(names) > 1:
        there = (name for name in names if _place(stack, name, file.lower_seen) is not None)
        return next(there, names[0])
    return names[0] if names else None


def find_again(stack: LayerStack, file: File, seen: Sighting | None) -> Place | None:
    """A place in a lower at which one of the names known to the kernel leads to the object seen
    before; None: there is none."""
    places = (_place(stack, name, seen) for name in file.names)
    return next((place for place in places if place is not None), None)


def _place(
    stack: LayerStack, known: tuple[Directory, bytes], seen: Sighting | None
) -> Place | None:
    """The place at which this name leads to the object seen before; None: there is none."""
    directory, name = known
    for real in directory.lowers:
        place = Place(real, name)
        try:
            if sighting(_status(stack, place)) == seen:
                return place
        except OSError:
            continue
    return None


def _status(stack: LayerStack, place: Place) -> os.stat_result:
    return os.stat(place.name, dir_fd=stack.fd(place.real), follow_symlinks=False)
