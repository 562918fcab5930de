"""getattr, setattr, extended attributes, statfs.

Sources: stat(2), chown(2), utimensat(2), xattr(7), statvfs(3); for merged directories the kernel's
Documentation/filesystems/overlayfs.rst, "Inode properties".
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Container
from dataclasses import dataclass
from typing import NamedTuple

from fuseoverlay.errors import os_error
from fuseoverlay.layers import xattrs
from fuseoverlay.layers.idmap import IdMap
from fuseoverlay.layers.objects import check_sighting
from fuseoverlay.overlay import files, ownership, protection
from fuseoverlay.overlay.copyup import copy_up
from fuseoverlay.overlay.identity import Status
from fuseoverlay.overlay.inodes import Directory, File, Inode
from fuseoverlay.overlay.lookup import index_now
from fuseoverlay.overlay.owners import Overlay
from fuseoverlay.overlay.realobject import (
    Real,
    changing,
    pinned_of,
    real_of,
    shown_of,
    stored_of,
)
from fuseoverlay.system import acl, syscalls
from fuseoverlay.system.transaction import tidy


class Attr(NamedTuple):
    """What stat(2) shows. Sizes in bytes, `blocks` of 512 bytes, times in ns."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    blksize: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


@dataclass(slots=True)
class Changes:
    """What setattr changes; None: unchanged. Times in ns; `mode` holds permission bits only."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    #: Set both times to now, for which write permission is enough: utimensat(2).
    touch: bool = False


def getattr(ov: Overlay, inode: Inode) -> Attr:
    """The attributes of the inode, see `attr_of`."""
    return attr_of(ov, inode, real_of(ov, inode))


def attr_of(ov: Overlay, inode: Inode, real: Real) -> Attr:
    """The attributes of the inode with this real object. NotMerged if the subdirectories of a
    merged directory have not been counted yet."""
    if isinstance(inode, File):
        links = _file_links(inode, real)
    elif isinstance(inode, Directory):
        if _is_uncounted(ov, inode, real):
            # A directory that cannot be read must not make the listing of its parent fail.
            with contextlib.suppress(OSError):
                index_now(ov, inode)
            real = real_of(ov, inode)
        links = _directory_links(ov, inode, real)
    shown = shown_of(ov, real)
    st = real.st
    return Attr(
        inode.ino,
        shown.mode,
        links,
        shown.uid,
        shown.gid,
        shown.rdev,
        st.st_size,
        _blocks(ov, inode, st),
        st.st_blksize,
        st.st_atime_ns,
        st.st_mtime_ns,
        st.st_ctime_ns,
    )


def _is_uncounted(ov: Overlay, directory: Directory, real: Real) -> bool:
    """Whether counting the subdirectories needs the index, which has not been built yet."""
    return (
        directory.index is None
        and directory.countable
        and not directory.removed
        and len(directory.lowers) + directory.in_upper > 1
        and real.st.st_nlink != 1
        and not ov.config.static_nlink
    )


def birth_time(ov: Overlay, inode: Inode) -> int | None:
    """When the real object was created, in ns; None if its filesystem does not tell."""
    with pinned_of(ov, inode) as real:
        return syscalls.birth_time(real.path, follow=real.follow)


def unknown(ov: Overlay, *, is_dir: bool) -> Attr:
    """For a listing: attributes of an object that we may not examine. The link count of 0 tells
    the kernel to cache nothing about it."""
    mode = stat.S_IFDIR if is_dir else stat.S_IFREG
    return Attr(ov.inodes.own_number(), mode, 0, 0, 0, 0, 0, 0, 4096, 0, 0, 0)


def _blocks(ov: Overlay, inode: Inode, st: os.stat_result) -> int:
    """Blocks of 512 bytes that the data takes; a metacopy file has it in another real file."""
    place = inode.data if isinstance(inode, File) else None
    if not isinstance(inode, File) or place is None:
        return st.st_blocks
    fd = ov.stack.fd(place.real)
    data = os.stat(place.name, dir_fd=fd, follow_symlinks=False)
    check_sighting(data, inode.data_seen, lasting=ov.config.private)
    return data.st_blocks


def _file_links(file: File, real: Real) -> int:
    if file.links:
        return file.links
    if file.in_upper:
        return file.links_of(real.st)
    return max(0, real.st.st_nlink - file.hidden)


def _directory_links(ov: Overlay, directory: Directory, real: Real) -> int:
    """The true count, for merged directories too, so that copy-up does not change it. 1, "unknown",
    with `static_nlink`, if the filesystem does not count, or if we may not read the directory."""
    if directory.removed:
        return 0
    if real.st.st_nlink == 1 or ov.config.static_nlink:
        return 1
    if len(directory.lowers) + directory.in_upper == 1:
        return real.st.st_nlink
    return 2 + directory.index.subdirectories() if directory.index is not None else 1


def _given(ids: IdMap, shown: int | None, top: bool) -> int | None:
    """The id to store for a new owner; EOVERFLOW if there is none. For the top directory root is
    always possible, even unmapped: podman gives every mount it finds to root."""
    if shown is None:
        return None
    return ids.maker(shown) if top else ids.stored(shown)


async def setattr(ov: Overlay, inode: Inode, changes: Changes, who: ownership.Changer) -> None:
    """Change attributes, after copy-up. Empty `changes` are a chown(2) that changes neither owner
    nor group; done by the owner, it clears setuid all the same. Errors of chmod(2), chown(2),
    truncate(2), utimensat(2); EOVERFLOW if no stored id is shown as the new owner."""
    if changes == Changes() and not _is_owner(ov, inode, who):
        # The kernel also sends this before a write or fallocate(2), which it then carries out.
        return
    protection.check_change(ov, inode, touch=changes.touch)
    uid = _given(ov.identity.uids, changes.uid, inode is ov.inodes.root)
    gid = _given(ov.identity.gids, changes.gid, inode is ov.inodes.root)
    # Compute the mode before anything clears setgid: the mode that the kernel sends still has it.
    mode = _mode_after(ov, inode, changes, who)
    if mode is not None and who.uid != 0:
        mode = _mode_he_may_give(ov, inode, mode, gid)
    if changes.size is not None and isinstance(inode, File):
        await _truncate(ov, inode, changes.size, who)
    else:
        await copy_up(ov, inode, data=False)
    if uid is not None or gid is not None or mode is not None:
        ownership.change(ov, inode, uid=uid, gid=gid, mode=mode)
    if changes.size is not None:
        # The truncation has happened and has set the times, to these or nearly these values.
        tidy(_set_times, ov, inode, changes)
    else:
        _set_times(ov, inode, changes)
    if changes == Changes():
        ownership.drop_privileges(ov, inode, who)


def _mode_after(ov: Overlay, inode: Inode, changes: Changes, who: ownership.Changer) -> int | None:
    """The mode to set: without setuid and setgid if the other changes clear setgid. In that case
    the kernel sends no mode, or one without only those bits that it clears for every caller."""
    given = changes.uid is not None or changes.gid is not None
    ending = given or (changes.size is not None and not who.privileged)
    if not ending or not ownership.is_stranger(ov, inode, who):
        return changes.mode
    mode = shown_of(ov, real_of(ov, inode)).mode if changes.mode is None else changes.mode
    return stat.S_IMODE(mode) & ~(stat.S_ISUID | stat.S_ISGID)


def _mode_he_may_give(ov: Overlay, inode: Inode, mode: int, gid: int | None) -> int:
    """The mode without setuid and setgid if the owner shown is not the owner stored. Otherwise the
    user shown could make a program that runs as the stored owner, by the upper's own path or in a
    mount that shows the stored owner. `gid`: the new group, as stored."""
    stored = stored_of(ov, real_of(ov, inode))
    given = stat.S_IFMT(stored.mode) | stat.S_IMODE(mode)
    group = stored.gid if gid is None else gid
    return stat.S_IMODE(ov.identity.mode_of_its_owner(Status(stored.uid, group, given, 0)))


def _is_owner(ov: Overlay, inode: Inode, who: ownership.Changer) -> bool:
    return who.uid == 0 or who.uid == shown_of(ov, real_of(ov, inode)).uid


async def _truncate(ov: Overlay, file: File, size: int, who: ownership.Changer) -> None:
    """Truncate after copy-up. A copy-up to the new size is the truncation already, unless it also
    has to clear setuid or setgid."""
    if who.privileged or not ownership.loses_privileges(ov, file, who):
        if not await copy_up(ov, file, size=size):
            files.truncate(ov, file, size)
        return
    await copy_up(ov, file)
    ownership.drop_privileges(ov, file, who)
    files.truncate(ov, file, size)


def _set_times(ov: Overlay, inode: Inode, changes: Changes) -> None:
    if changes.atime_ns is None and changes.mtime_ns is None:
        return
    with changing(ov, inode) as real:
        atime = real.st.st_atime_ns if changes.atime_ns is None else changes.atime_ns
        mtime = real.st.st_mtime_ns if changes.mtime_ns is None else changes.mtime_ns
        os.utime(real.path, ns=(atime, mtime), follow_symlinks=real.follow)


def check_xattrs(ov: Overlay) -> None:
    """ENOSYS if the mount has no extended attributes: the kernel returns EOPNOTSUPP to programs and
    does not ask again."""
    if ov.config.noxattrs:
        raise os_error(errno.ENOSYS)


def check_acl(name: bytes, *, acls: bool) -> None:
    """EOPNOTSUPP for an ACL if the mount has none (see `fuse.fuseoptions`)."""
    if not acls and name.startswith(acl.PREFIX):
        raise os_error(errno.EOPNOTSUPP)


def getxattr(ov: Overlay, inode: Inode, name: bytes, *, acls: bool = True) -> bytes:
    """The value of an extended attribute. ENODATA if it is missing or reserved for the overlay;
    errors of `check_acl`. `xattrs.DAEMON` of the top directory names the process that serves it."""
    if name == xattrs.DAEMON and inode is ov.inodes.root:
        return syscalls.process_name()
    check_xattrs(ov)
    check_acl(name, acls=acls)
    with pinned_of(ov, inode) as real:
        return ov.identity.shown_attribute(name, _stored_xattr(real, name), real.st)


def _stored_xattr(real: Real, name: bytes) -> bytes:
    try:
        real_name = real.layer.stored_name(name)
    except PermissionError:
        raise os_error(errno.ENODATA) from None
    try:
        return os.getxattr(real.path, real_name, follow_symlinks=real.follow)
    except OSError as exc:
        # The kernel itself asks before it writes to, executes or gives access to a file; any other
        # error would make that fail.
        none = name.startswith(acl.PREFIX) and exc.errno == errno.EOPNOTSUPP
        if none or (exc.errno in xattrs.NONE and not real.layer.lists_attributes):
            raise os_error(errno.ENODATA) from None
        raise


def listxattr(ov: Overlay, inode: Inode, *, uid: int, acls: bool) -> list[bytes]:
    """The names of all extended attributes but the overlay's own. Only root sees `trusted.` names,
    as on any filesystem; nobody sees ACLs if the mount has none."""
    check_xattrs(ov)
    hidden: tuple[bytes, ...] = () if uid == 0 else (b"trusted.",)
    if not acls:
        hidden += (acl.PREFIX,)
    with pinned_of(ov, inode) as real:
        names = xattrs.names(real.path, follow=real.follow)
        shown = map(real.layer.shown_name, names)
    return [name for name in shown if name is not None and not name.startswith(hidden)]


async def setxattr(ov: Overlay, inode: Inode, name: bytes, value: bytes) -> None:
    """Set an extended attribute, after copy-up. EPERM for names reserved for the overlay;
    EOVERFLOW if no stored id is shown as an id in the value."""
    check_xattrs(ov)
    xattrs.to_real(name)
    protection.check_change(ov, inode)
    value = ov.identity.stored_attribute(name, value)
    await copy_up(ov, inode, data=False)
    # The descriptor may be bound with the answer that the file has no attributes.
    ov.data.drop(inode.ino)
    with changing(ov, inode) as real:
        os.setxattr(real.path, real.layer.stored_name(name), value, follow_symlinks=real.follow)


def leave_group(ov: Overlay, inode: Inode, groups: Container[int]) -> None:
    """After a member of these groups has set an ACL: clear setgid if the object's group is not
    among them, as chmod(2) does."""
    shown = shown_of(ov, real_of(ov, inode))
    if shown.mode & stat.S_ISGID and shown.gid not in groups:
        ownership.change(ov, inode, mode=stat.S_IMODE(shown.mode) & ~stat.S_ISGID)


async def removexattr(ov: Overlay, inode: Inode, name: bytes) -> None:
    """Remove an extended attribute, after copy-up. ENODATA if it is missing; then nothing is copied
    up. A missing ACL of an upper object is no error, as on most filesystems."""
    check_xattrs(ov)
    protection.check_change(ov, inode)
    try:
        with pinned_of(ov, inode) as real:
            _stored_xattr(real, name)
    except OSError as exc:
        missing = exc.errno == errno.ENODATA and name.startswith(acl.PREFIX)
        if missing and inode.in_upper:
            return
        raise
    await copy_up(ov, inode, data=False)
    with changing(ov, inode) as real:
        os.removexattr(real.path, real.layer.stored_name(name), follow_symlinks=real.follow)


def statfs(ov: Overlay) -> os.statvfs_result:
    """The status of the filesystem of the upper, or of the topmost lower that returns one."""
    *others, last = ov.stack.all()
    for layer in others:
        with contextlib.suppress(OSError):
            return os.fstatvfs(layer.root_fd)
    return os.fstatvfs(last.root_fd)
