"""Make objects: create, mkdir, mknod, symlink, link.

Each operation first prepares, which may suspend (indexes, copy-up), then commits in code that does
not suspend and looks everything up again. Sources: kernel Documentation/filesystems/overlayfs.rst,
"whiteouts and opaque directories"; the manual page of each call.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from typing import Final, NamedTuple

from fuseoverlay.errors import os_error
from fuseoverlay.layers import whiteout, xattrs
from fuseoverlay.layers.index import Index
from fuseoverlay.layers.layer import Place
from fuseoverlay.layers.objects import stat_key
from fuseoverlay.overlay import linkindex, protection, staging
from fuseoverlay.overlay.copymetadata import has_origin, keep_data, mark_impure
from fuseoverlay.overlay.copyup import copy_up, copy_up_directory
from fuseoverlay.overlay.identity import Status
from fuseoverlay.overlay.inodes import Directory, File, Held, Inode
from fuseoverlay.overlay.lookup import check_name, index_of, made
from fuseoverlay.overlay.owners import Overlay
from fuseoverlay.overlay.publish import publish, status_after, upper_place
from fuseoverlay.overlay.realobject import Real, real_of, stored_of, upper_of
from fuseoverlay.overlay.remove import park
from fuseoverlay.overlay.staging import New
from fuseoverlay.system import acl, syscalls
from fuseoverlay.system.syscalls import at
from fuseoverlay.system.transaction import Transaction

log = logging.getLogger("fuseoverlay")

#: Errors of making an object in its place after which making it in the work directory may work.
_TAKES_STAGING: Final = (errno.EACCES, errno.EPERM, errno.EOPNOTSUPP)


class Caller(NamedTuple):
    """The calling process: its filesystem ids and its umask."""

    uid: int
    gid: int
    umask: int


async def make(
    ov: Overlay,
    parent: Directory,
    name: bytes,
    mode: int,
    caller: Caller,
    *,
    rdev: int = 0,
    target: bytes = b"",
) -> tuple[Inode, Real]:
    """Make a new object of the type in `mode`; `target`: that of a symbolic link. Returns it as
    `lookup.object_at` does. Errors of `make_now`."""
    ov.writable()
    index = await index_of(ov, parent)
    return make_now(ov, parent, index, name, mode, caller, rdev=rdev, target=target)


def make_now(
    ov: Overlay,
    parent: Directory,
    index: Index,
    name: bytes,
    mode: int,
    caller: Caller,
    *,
    rdev: int = 0,
    target: bytes = b"",
) -> tuple[Inode, Real]:
    """The same with the parent's index given. Does not suspend.

    EEXIST; EINVAL for `.wh.` names, which are whiteouts in an image; EPERM for devices that we may
    not make; ENOSPC and the like of the upper.
    """
    check_new_name(name)
    if name in index:
        raise os_error(errno.EEXIST, name)
    protection.check_creation(ov, parent)
    copy_up_directory(ov, parent)
    new = _inherit(ov, parent, caller, mode, rdev=rdev, target=target)
    place = upper_place(parent, name)
    overridden, is_free = ov.identity.override is not None, _is_free(index, name)
    if is_free and (new.born or (overridden and protection.hands_down(ov, parent))):
        try:
            return _make_in_place(ov, parent, index, place, new)
        except OSError as exc:
            if exc.errno not in _TAKES_STAGING:
                raise
    try:
        return _make_staged(ov, parent, index, place, new)
    except OSError as exc:
        if exc.errno != errno.EXDEV or not (is_free and overridden):
            raise
    return _make_in_place(ov, parent, index, place, new)


def _is_free(index: Index, name: bytes) -> bool:
    """Whether a name that is not visible is unused: it has no whiteout, and no lower has it."""
    return not (name in index.masks or name in index.wh or index.covers(name))


def _make_in_place(
    ov: Overlay, parent: Directory, index: Index, place: Place, new: New
) -> tuple[Inode, Real]:
    """Make the object at its final place. Errors in `_TAKES_STAGING`: it has to be staged."""
    dir_fd, fd = ov.stack.fd(place.real), None
    with Transaction() as change:
        if new.born:
            fd = staging.make_born(ov, change, place, new)
        else:
            staging.make_overridden(ov, change, place, new)
        if fd is not None:
            st = os.fstat(fd)
        else:
            st = os.stat(place.name, dir_fd=dir_fd, follow_symlinks=False)
    index.put(place.name, new.is_dir)
    inode, real = made(ov, parent, place, dir_fd, st, new.status)
    if fd is not None:
        ov.data.adopt(ov.inodes.file(inode.ino), fd)
    return inode, real


def _make_staged(
    ov: Overlay, parent: Directory, index: Index, place: Place, new: New
) -> tuple[Inode, Real]:
    """Make the object in the work directory and move it to its place. EXDEV if nothing can be moved
    there."""
    work, dir_fd, name = ov.writable().fd, ov.stack.fd(place.real), place.name
    with Transaction() as change:
        staged = staging.stage(ov, change)
        staging.make(ov, staged, new.status, new.target)
        for attribute, value in new.acls:
            os.setxattr(at(work, staged), attribute, value, follow_symlinks=False)
        st = os.stat(staged, dir_fd=work, follow_symlinks=False)
        publish(ov, change, parent, index, name, staged, is_dir=new.is_dir)
    return made(ov, parent, place, dir_fd, status_after(dir_fd, name, st), new.status)


async def make_nameless(ov: Overlay, parent: Directory, mode: int, caller: Caller) -> File:
    """Make a regular file as `make` would in the directory, but without a name: `link` may give it
    one, otherwise it is gone with its inode. EOPNOTSUPP if the upper does not support O_TMPFILE;
    EPERM in a removed directory, as on most filesystems."""
    ov.writable()
    if parent.removed:
        raise os_error(errno.EPERM)
    protection.check_creation(ov, parent)
    copy_up_directory(ov, parent)
    new = _inherit(ov, parent, caller, mode)
    fd = staging.make_nameless(ov, ov.stack.fd(upper_place(parent, b"").real), new.status)
    held = Held(fd)
    with Transaction() as change:
        change.on_error(os.close, fd)
        for attribute, value in new.acls:
            os.setxattr(syscalls.fd_path(fd), attribute, value)
        key = stat_key(os.stat(fd))
        if not ov.inodes.may_hold:
            with contextlib.suppress(OSError):
                held = park(ov, change, syscalls.fd_path(fd), follow=True)
    if held.parked:
        os.close(fd)
    file = File(ov.inodes.number(key), stat.S_IFREG)
    ov.inodes.hold(file, held)
    ov.inodes.add(file)
    ov.inodes.bind(file, key)
    return file


def check_new_name(name: bytes) -> None:
    """ENAMETOOLONG; EINVAL for a name that would be a whiteout in the next mount."""
    check_name(name)
    if name.startswith(whiteout.WH_PREFIX):
        raise os_error(errno.EINVAL, name)


def _inherit(
    ov: Overlay,
    parent: Directory,
    caller: Caller,
    mode: int,
    *,
    rdev: int = 0,
    target: bytes = b"",
) -> New:
    """The new object with what it inherits from the parent: group, setgid, default ACL. Without a
    default ACL, or in a mount without ACLs, the umask is applied; the kernel may have done so
    already. In a mount without ACLs the mode grants no more than the default ACL, which new
    directories inherit all the same.

    EOVERFLOW if no stored id is shown as the caller's.
    """
    real = real_of(ov, parent)
    above = stored_of(ov, real)
    uid, gid = ov.identity.uids.maker(caller.uid), ov.identity.gids.maker(caller.gid)
    born: tuple[int, int] | None = uid, gid
    if above.mode & stat.S_ISGID:
        gid = above.gid
        # The filesystem itself gives it the directory's group, which may be a stranger's: then what
        # is shown as its group has to be set.
        born = (uid, ov.identity.groups.own) if real.st.st_gid == gid else None
        mode = mode | stat.S_ISGID if stat.S_ISDIR(mode) else mode
    acls: list[tuple[bytes, bytes]] = []
    default, in_effect = None, ov.identity.acls
    if not stat.S_ISLNK(mode) and (in_effect or real.layer.hides_acls):
        default = xattrs.get(real.path, acl.DEFAULT, follow=real.follow)
    if default is None or not in_effect:
        mode &= ~caller.umask
    by_itself = ov.identity.override is None
    if default is not None:
        # The filesystem applies the default ACL to whatever is made in the directory.
        whole, default = default, ov.identity.copied_attribute(acl.DEFAULT, default, real.st)
        by_itself = by_itself and in_effect and whole == default
        mode, acls = _below_default(default, mode, in_effect=in_effect)
    return New(Status(uid, gid, mode, rdev), target, acls, born if by_itself else None)


def _below_default(
    default: bytes, mode: int, *, in_effect: bool
) -> tuple[int, list[tuple[bytes, bytes]]]:
    """Mode and ACLs of a new object in a directory with this default ACL. `in_effect`: whether the
    mount has ACLs."""
    acls = []
    mode, access = acl.inherit(default, mode)
    if access is not None and in_effect:
        acls.append((acl.ACCESS, access))
    elif access is not None:
        mode = acl.limited(mode, access)
    if stat.S_ISDIR(mode):
        acls.append((acl.DEFAULT, default))
    return mode, acls


def _name_of_copy(file: File) -> tuple[Directory, bytes]:
    """A name that leads to the file's place in the upper, if it has one there, otherwise any other
    name that is known."""
    for parent, name in file.names:
        if file.upper is not None and file.upper == (parent.upper, name):
            return parent, name
    return next(iter(file.names))


async def link(ov: Overlay, file: File, parent: Directory, name: bytes) -> tuple[File, Real]:
    """Give a file another name. Returns it as `lookup.object_at` does. EEXIST; EMLINK; EPERM if the
    upper restricts links."""
    check_new_name(name)
    ov.writable()
    protection.check_creation(ov, parent)
    protection.check_change(ov, file)
    index = await index_of(ov, parent)
    await copy_up(ov, file, data=False)
    if name in index:
        raise os_error(errno.EEXIST, name)
    copy_up_directory(ov, parent)
    place = upper_place(parent, name)
    fd = ov.stack.fd(place.real)
    real = upper_of(ov, file)
    if has_origin(file, real):
        mark_impure(ov, parent)
    linkindex.prepare_count(ov, file)
    with Transaction() as change:
        if file.data is not None and file.names:
            keep_data(ov, change, file, real, *_name_of_copy(file))
        st = _link_in_place(change, real, fd, name) if _is_free(index, name) else None
        if st is None:
            staged = staging.stage(ov, change)
            _link(real, ov.writable().fd, staged)
            st = os.stat(staged, dir_fd=ov.writable().fd, follow_symlinks=False)
            publish(ov, change, parent, index, name, staged, is_dir=False)
            st = status_after(fd, name, st)
    index.put(name, False)
    file.names[parent, name] = None
    if file.upper is None:
        file.upper = place
        ov.inodes.let_go(file)
        # The status counted a name that only held the file and is gone now.
        st = status_after(fd, name, st)
    if file.links:
        linkindex.set_links(ov, file, file.links + 1)
    return file, Real(place.real.layer, at(fd, name), False, st)


def _link_in_place(
    change: Transaction, real: Real, dir_fd: int, name: bytes
) -> os.stat_result | None:
    """Link a file to a free name in the upper. None: we lack permission, so it has to be staged."""
    try:
        _link(real, dir_fd, name)
    except PermissionError:
        return None
    change.on_error(os.unlink, name, dir_fd=dir_fd)
    return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)


def _link(real: Real, dir_fd: int, name: bytes) -> None:
    os.link(real.path, name, dst_dir_fd=dir_fd, follow_symlinks=real.follow)
