"""(parent, name) -> the inode: what is found, and in which layers.

Sources: kernel Documentation/filesystems/overlayfs.rst, "Upper and Lower", "Directories", "Inode
properties".
"""

from __future__ import annotations

import errno
import os
import stat

from fuseoverlay.errors import no_entry, os_error
from fuseoverlay.layers import redirect
from fuseoverlay.layers.index import Found, Index, Listing
from fuseoverlay.layers.layer import Place, RealDir
from fuseoverlay.layers.merge import at_once, scan, scan_soon
from fuseoverlay.layers.objects import stat_key
from fuseoverlay.overlay import renewal
from fuseoverlay.overlay.filelookup import file_of
from fuseoverlay.overlay.identity import Status
from fuseoverlay.overlay.inodes import Directory, File, Inode
from fuseoverlay.overlay.owners import Overlay
from fuseoverlay.overlay.realobject import Real, real_of
from fuseoverlay.system.syscalls import at

_NAME_MAX = 255


def check_name(name: bytes) -> None:
    """ENAMETOOLONG for a name of more than 255 bytes."""
    if len(name) > _NAME_MAX:
        raise os_error(errno.ENAMETOOLONG, name)


async def index_of(ov: Overlay, directory: Directory) -> Index:
    """The merged index of the directory. Building it on first use suspends, and so does renewing
    it.

    We change nothing in a directory before it has an index, so two concurrent builders find the
    same; the first one's index counts.
    """
    if directory.index is None:
        if directory.removed:
            directory.index = Index(Listing(), {})
            return directory.index
        index, used = await scan(ov.stack, directory.upper, directory.lowers)
        if directory.index is None:
            return _merged(ov, directory, index, used)
    elif renewal.is_due(directory.index):
        await renewal.renew(ov, directory, directory.index)
    return directory.index


class NotMerged(Exception):
    """The call needs the index of a directory that has not been merged yet, or has to be renewed,
    which would take long: await `index_of`, then repeat the call."""

    def __init__(self, directory: Directory) -> None:
        super().__init__(directory.name)
        self.directory = directory


def index_now(ov: Overlay, directory: Directory) -> Index:
    """`index_of` without suspending; NotMerged if it would have to."""
    if directory.index is None and not directory.removed:
        found = scan_soon(ov.stack, directory.upper, directory.lowers)
        if found is not None:
            return _merged(ov, directory, *found)
    elif directory.index is not None and (
        not renewal.is_due(directory.index) or renewal.renew_now(ov, directory, directory.index)
    ):
        return directory.index
    raise NotMerged(directory)


def _merged(ov: Overlay, directory: Directory, index: Index, used: int) -> Index:
    directory.index = index
    directory.lowers = directory.lowers[:used]
    if not renewal.watch(ov, index):
        ov.prepared.names[directory.ino] = index.visible
    return index


async def child(ov: Overlay, parent: Directory, name: bytes) -> Inode:
    """The inode of `name` in `parent`. ENOENT, ENAMETOOLONG, errors of the layers."""
    check_name(name)
    return child_nowait(ov, parent, await index_of(ov, parent), name)


def child_nowait(ov: Overlay, parent: Directory, index: Index, name: bytes) -> Inode:
    """The same with the parent's index given. Does not suspend."""
    found = index.find(name)
    if found is None:
        raise no_entry(name)
    if found.is_dir:
        return _directory(ov, parent, name, found)
    return file_of(ov, parent, index, name, found)[0]


def object_at(ov: Overlay, parent: Directory, index: Index, name: bytes) -> tuple[Inode, Real]:
    """The same, and the real object behind the inode: one stat(2) serves both."""
    found = index.find(name)
    if found is None:
        raise no_entry(name)
    if not found.is_dir:
        return file_of(ov, parent, index, name, found)
    directory = _directory(ov, parent, name, found)
    try:
        return directory, real_of(ov, directory)
    except OSError:
        ov.inodes.drop_unused(directory)
        raise


def made(
    ov: Overlay, parent: Directory, place: Place, fd: int, st: os.stat_result, stored: Status
) -> tuple[Inode, Real]:
    """The same for an object with this status that we have just created at the place, in the
    parent's upper directory `fd`. Cannot fail."""
    key, kind = stat_key(st), stat.S_IFMT(stored.mode)
    number = ov.inodes.number(key)
    inode: Inode
    if kind == stat.S_IFDIR:
        inode = directory = Directory(number, parent, place.name, ov.stack.upper_dir(*place), ())
        _merged(ov, directory, Index(Listing(), {}), 0)
    else:
        inode = file = File(number, kind)
        file.upper = place
        file.names[parent, place.name] = None
        ov.inodes.bind(file, key)
    inode.protection = b""
    ov.inodes.add(inode)
    layer = place.real.layer
    kept = stored if layer.override is not None else None
    return inode, Real(layer, at(fd, place.name), False, st, kept)


def _directory(ov: Overlay, parent: Directory, name: bytes, found: Found) -> Directory:
    known = ov.inodes.subdirectory(parent, name)
    if known is not None and renewal.is_replaced(ov, known, found):
        # Processes that use the old directory keep it; the name leads to the new one from now on.
        ov.inodes.unname(known)
        known = None
    if known is None:
        return _new_directory(ov, parent, name, found)
    ov.inodes.recall(known)
    return known


def _new_directory(ov: Overlay, parent: Directory, name: bytes, found: Found) -> Directory:
    upper = None
    reals = tuple(RealDir(real.layer, real, name) for real in found.lower_dirs)
    if found.in_upper and parent.upper is not None:
        upper = ov.stack.upper_dir(parent.upper, name)
    # Merge now: the link count of a directory with several parts needs the index anyway.
    several = len(reals) + (upper is not None) > 1
    index = at_once(ov.stack, upper, reals) if several else None
    marks, lowers = redirect.NONE, reals
    if index is None:
        marks, lowers = redirect.merged(ov.stack, parent.lowers, upper, reals)
    # A directory that is in the lowers keeps their inode number after copy-up.
    st = os.stat(ov.stack.fd(lowers[0] if lowers or upper is None else upper))
    directory = Directory(ov.inodes.number(stat_key(st)), parent, name, upper, lowers)
    directory.redirect = marks.redirect if upper is not None else None
    ov.inodes.add(directory)
    if index is not None:
        _merged(ov, directory, index, len(lowers))
    return directory
