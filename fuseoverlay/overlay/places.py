"""Where the object behind a file of a lower is found, when it is not where it was looked up.

Somebody may own a directory with one name of another's file, and take that name away, or put
something else there. Every other name leads to the file as well.
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
    """What `get` gets at the place of a file of a lower, or, if that is an error, where it is
    found again, which then is its place. ESTALE where it has none; errors of `get`."""
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
    """The first name that leads to a file of a lower; None: all were removed through the mount.
    Others of its names may be gone in the lower. Errors of `InodeTable.names_of`."""
    names = inodes.names_of(file)
    if len(names) > 1:
        there = (name for name in names if _place(stack, name, file.lower_seen) is not None)
        return next(there, names[0])
    return names[0] if names else None


def find_again(stack: LayerStack, file: File, seen: Sighting | None) -> Place | None:
    """Where one of the names by which the kernel knows a file leads to what was seen of it in a
    lower; None: nowhere."""
    places = (_place(stack, name, seen) for name in file.names)
    return next((place for place in places if place is not None), None)


def _place(
    stack: LayerStack, known: tuple[Directory, bytes], seen: Sighting | None
) -> Place | None:
    """Where this name leads to what was seen."""
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
