"""What a request does: plain functions that answer at once, whichever way the request came.

`direct` calls them for the extension, `operations` for pyfuse3. If a directory is yet to be merged,
which may take long, they raise NotMerged and have changed nothing. `direct` then leaves the request
to pyfuse3, whose handler awaits the merge and calls again.
"""

from __future__ import annotations

from fuseoverlay.layers.index import Index
from fuseoverlay.overlay import attributes, lookup
from fuseoverlay.overlay.attributes import Attr
from fuseoverlay.overlay.inodes import Directory, Inode
from fuseoverlay.overlay.owners import Overlay
from fuseoverlay.overlay.realobject import Real


def look_up(ov: Overlay, parent: Directory, index: Index, name: bytes) -> Attr | None:
    """The entry of a name in a directory with this index; None if there is no such name."""
    if name not in index:
        return None
    return tell(ov, *lookup.object_at(ov, parent, index, name))


def tell(ov: Overlay, inode: Inode, real: Real) -> Attr:
    """The attributes for a reply that tells the kernel of an inode; adds 1 to its look-up count."""
    try:
        attr = attributes.attr_of(ov, inode, real)
    except BaseException:
        ov.inodes.drop_unused(inode)
        raise
    inode.nlookup += 1
    return attr
