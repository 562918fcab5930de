"""Listing a merged directory.

A position in a listing is the cookie of the entry before it, see `layers.index.Index`: a listing
continues correctly after entries were added or removed, always ends, and needs no handle.
"""

from __future__ import annotations

import stat
from collections.abc import Callable

from fuseoverlay.layers.index import Index, dots_seen
from fuseoverlay.overlay import attributes
from fuseoverlay.overlay.attributes import Attr
from fuseoverlay.overlay.inodes import Directory
from fuseoverlay.overlay.lookup import NotMerged, object_at
from fuseoverlay.overlay.owners import Overlay

#: Takes (name, attributes, cookie); False: the reply is full.
Emit = Callable[[bytes, Attr, int], bool]
#: Emits an entry without a look-up here, given (name, cookie); None: it cannot.
EmitPlain = Callable[[bytes, int], bool | None]


def _no_plain(name: bytes, cookie: int) -> None:
    """The default `EmitPlain`: every entry has to be looked up."""


def read(
    ov: Overlay,
    directory: Directory,
    index: Index,
    cookie: int,
    emit: Emit,
    emit_plain: EmitPlain = _no_plain,
) -> None:
    """List entries after `cookie` (0: from the start) until `emit` refuses one, or until an entry
    is a directory that has to be merged first, which takes long. In that case NotMerged is raised
    if nothing was emitted yet.

    Every accepted entry but "." and ".." adds 1 to the look-up count of its inode.
    """
    if not cookie:
        note_access(ov, directory)
    cookie = index.begun(cookie)
    emitted = False
    for name, dot, its_own in dots(directory, cookie):
        if not emit(name, _dot(dot), its_own):
            return
        emitted = True
    for name, its_own in index.following(cookie):
        accepted = emit_plain(name, its_own)
        if accepted is None:
            try:
                accepted = _emit(ov, directory, index, name, its_own, emit)
            except NotMerged:
                if emitted:
                    return
                raise
            if accepted is None:
                continue
        if not accepted:
            return
        emitted = True


def note_access(ov: Overlay, directory: Directory) -> None:
    """Note for access times that a listing of the directory begins."""
    if directory.upper is not None and not directory.removed:
        ov.stack.note_listing(directory.upper)


def dots(directory: Directory, cookie: int) -> list[tuple[bytes, Directory, int]]:
    """Those of "." and ".." that come after `cookie`, each with its own cookie; `cookie` is not 0,
    see `Index.begun`."""
    both = ((b".", directory), (b"..", directory.parent or directory))
    seen = dots_seen(cookie)
    return [(*both[n], cookie - seen + n + 1) for n in range(seen, len(both))]


def _dot(directory: Directory) -> Attr:
    """Attributes of "." or "..": the kernel uses only the type and the inode number."""
    return Attr(directory.ino, stat.S_IFDIR, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def _emit(
    ov: Overlay, directory: Directory, index: Index, name: bytes, cookie: int, emit: Emit
) -> bool | None:
    """Look an entry up and emit it; None: it has just been removed."""
    try:
        inode, real = object_at(ov, directory, index, name)
    except FileNotFoundError:
        return None
    except OSError:
        return emit(name, _unknown(ov, index, name), cookie)
    accepted = False
    try:
        accepted = emit(name, attributes.attr_of(ov, inode, real), cookie)
    except FileNotFoundError:
        return None
    finally:
        if accepted:
            inode.nlookup += 1
        else:
            ov.inodes.drop_unused(inode)
    return accepted


def _unknown(ov: Overlay, index: Index, name: bytes) -> Attr:
    """Attributes to list for a name that cannot be looked up: in a directory that we, as a plain
    user, may read but not search, or of an object that is malformed in its layer. A look-up of the
    name returns the error."""
    found = index.find(name)
    return attributes.unknown(ov, is_dir=found is not None and found.is_dir)
