"""Listing a merged directory.

A position in the listing is the cookie of the entry before it, see `merge.Index`:
a listing goes on correctly after entries came and went, and needs no handle.
"""

from __future__ import annotations

from collections.abc import Callable

from fuseoverlay import attributes, merge
from fuseoverlay.attributes import Attr
from fuseoverlay.inodes import Directory
from fuseoverlay.lookup import child_nowait, index_of
from fuseoverlay.overlay import Overlay

#: Takes (name, attributes, cookie); False: the reply is full.
Emit = Callable[[bytes, Attr, int], bool]


async def read(ov: Overlay, directory: Directory, cookie: int, emit: Emit) -> None:
    """List entries after `cookie` (0: from the start) until `emit` refuses one.

    Every accepted entry but "." and ".." adds to the look-up count of its inode.
    """
    index = await index_of(ov, directory)
    if cookie < merge.FIRST_COOKIE - 1 and not await _emit_dots(ov, directory, cookie, emit):
        return
    following = index.after(cookie)
    while following is not None:
        name, cookie = following
        if not await _emit_child(ov, directory, index, name, cookie, emit):
            return
        following = index.after(cookie)


async def _emit_dots(ov: Overlay, directory: Directory, cookie: int, emit: Emit) -> bool:
    if cookie < 1 and not emit(b".", await attributes.getattr(ov, directory), 1):
        return False
    parent = directory.parent or directory
    return emit(b"..", await attributes.getattr(ov, parent), 2)


async def _emit_child(
    ov: Overlay, directory: Directory, index: merge.Index, name: bytes, cookie: int, emit: Emit
) -> bool:
    try:
        inode = child_nowait(ov, directory, index, name)
    except FileNotFoundError:
        return True
    except OSError:
        # A directory of a plain user that has r but not x, or an object that is malformed in
        # its layer: the name is all there is, and who looks it up is told why.
        found = index.find(name)
        is_dir = found is not None and found.is_dir
        return emit(name, attributes.unknown(ov, is_dir=is_dir), cookie)
    # Counted before anything suspends, so that nobody drops it meanwhile.
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
