"""Listing a merged directory.

A place in the listing is the cookie of the entry before it, see `merge.Index`: a listing
goes on correctly after entries came and went, ends, and needs no handle.
"""

from __future__ import annotations

from collections.abc import Callable

from fuseoverlay.layers.index import Index, dots_seen
from fuseoverlay.overlay import attributes
from fuseoverlay.overlay.attributes import Attr
from fuseoverlay.overlay.inodes import Directory, Inode
from fuseoverlay.overlay.lookup import entry, index_of
from fuseoverlay.overlay.owners import Overlay
from fuseoverlay.overlay.realobject import Real

#: Takes (name, attributes, cookie); False: the reply is full.
Emit = Callable[[bytes, Attr, int], bool]


async def read(ov: Overlay, directory: Directory, cookie: int, emit: Emit) -> None:
    """List entries after `cookie` (0: from the start) until `emit` refuses one.

    Every accepted entry but "." and ".." adds to the look-up count of its inode.
    """
    index = await index_of(ov, directory)
    if not cookie:
        note_access(ov, directory)
    cookie = index.begun(cookie)
    if not await _emit_dots(ov, directory, cookie, emit):
        return
    following = index.after(cookie)
    while following is not None:
        name, cookie = following
        try:
            inode, real = entry(ov, directory, index, name)
        except FileNotFoundError:
            accepted = True
        except OSError:
            accepted = emit(name, unknown(ov, index, name), cookie)
        else:
            if attributes.is_uncounted(ov, inode, real):
                accepted = await _emit_merged(ov, inode, name, cookie, emit)
            else:
                accepted = emit_entry(ov, inode, real, name, cookie, emit)
        if not accepted:
            return
        following = index.after(cookie)


def note_access(ov: Overlay, directory: Directory) -> None:
    """A listing begins."""
    if directory.upper is not None and not directory.removed:
        ov.stack.note_listing(directory.upper)


async def _emit_dots(ov: Overlay, directory: Directory, cookie: int, emit: Emit) -> bool:
    for name, inode, its_own in dots(directory, cookie):
        if not emit(name, await attributes.getattr(ov, inode), its_own):
            return False
    return True


def dots(directory: Directory, cookie: int) -> list[tuple[bytes, Directory, int]]:
    """Those of "." and ".." that come after `cookie`, with their own; see `merge.Index.begun`."""
    both = ((b".", directory), (b"..", directory.parent or directory))
    seen = dots_seen(cookie)
    return [(*both[n], cookie - seen + n + 1) for n in range(seen, len(both))]


def unknown(ov: Overlay, index: Index, name: bytes) -> Attr:
    """What to list of a name in a plain user's directory that has r but not x, or of an object
    that is malformed in its layer: the name is all there is, and who looks it up is told why."""
    found = index.find(name)
    return attributes.unknown(ov, is_dir=found is not None and found.is_dir)


def emit_entry(ov: Overlay, inode: Inode, real: Real, name: bytes, cookie: int, emit: Emit) -> bool:
    """Emit what `lookup.entry` has found, and count it if it was accepted; True too where it
    has just gone. Not for what is `attributes.is_uncounted`."""
    accepted = False
    try:
        accepted = emit(name, attributes.attr_of(ov, inode, real), cookie)
    except FileNotFoundError:
        return True
    finally:
        if accepted:
            inode.nlookup += 1
        else:
            ov.inodes.drop_unused(inode)
    return accepted


async def _emit_merged(ov: Overlay, inode: Inode, name: bytes, cookie: int, emit: Emit) -> bool:
    """The same for a directory that has to be merged first, which suspends: it is counted
    before, so that nobody drops it meanwhile."""
    inode.nlookup += 1
    accepted = False
    try:
        accepted = emit(name, await attributes.getattr(ov, inode), cookie)
    except FileNotFoundError:
        return True
    finally:
        if not accepted:
            inode.nlookup -= 1
            ov.inodes.drop_unused(inode)
    return accepted
