"""Names: create, mkdir, mknod, symlink, link, unlink, rmdir.

Each operation first prepares, which may suspend (indexes, copy-up), and then commits in
plain functions that do not. The commit looks everything up again. Sources: kernel
Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories"; the manual
page of each call.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Final, NamedTuple

from fuseoverlay import acl, hardlinks, protection, staging, syscalls, whiteout, xattrs
from fuseoverlay.copyup import copy_up, copy_up_directory, give_name, has_origin, mark_impure
from fuseoverlay.identity import Status
from fuseoverlay.inodes import Directory, File, Inode, Place
from fuseoverlay.layers import RealDir, stat_key
from fuseoverlay.lookup import (
    Real,
    check_name,
    child_nowait,
    index_of,
    made,
    no_entry,
    real_of,
    stored_of,
)
from fuseoverlay.merge import Index
from fuseoverlay.overlay import Overlay
from fuseoverlay.removal import remove_tree
from fuseoverlay.syscalls import at
from fuseoverlay.whiteout import Dialect

# So many whiteouts are a thread's work: fewer are gone before it is awake.
_MANY: Final = 32


class Caller(NamedTuple):
    """Who asks: the filesystem ids of the calling process, and its umask."""

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
    """Make a new object of the type in `mode`; `target` is a symlink's. Returns it as
    `lookup.entry` does. Errors of `make_now`."""
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
    """The same with the parent's index at hand: does not suspend.

    EEXIST; EINVAL for `.wh.` names, which are whiteouts in an image; EPERM for devices
    that we may not make; ENOSPC and the like of the upper.
    """
    check_new_name(name)
    if name in index:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
    protection.check_creation(ov, parent)
    copy_up_directory(ov, parent)
    status, acls = _inherit(ov, parent, caller, mode, rdev)
    # With noacl a default ACL of the real directory would have a say.
    if not acls and not ov.config.noacl and _is_free(index, name):
        fd = staging.make_in_place(ov, upper_place(parent, name), status)
        if fd is not None:
            return _opened(ov, parent, index, name, fd)
    with staging.discarded_on_error(ov) as staged:
        staging.make(ov, staged, status, target)
        for attribute, value in acls:
            path = at(ov.writable().fd, staged)
            os.setxattr(path, attribute, value, follow_symlinks=False)
        publish(ov, parent, index, name, staged, is_dir=stat.S_ISDIR(mode))
    return made(ov, parent, index, name)


def _is_free(index: Index, name: bytes) -> bool:
    """Whether the upper has nothing at the name that is not visible, no whiteout either."""
    return name not in index.masks and name not in index.wh


def _opened(
    ov: Overlay, parent: Directory, index: Index, name: bytes, fd: int
) -> tuple[Inode, Real]:
    """A file that was made in place; takes over its descriptor."""
    try:
        index.put(name, False)
        inode, real = made(ov, parent, index, name)
        ov.data.adopt(ov.inodes.file(inode.ino), fd)
    except BaseException:
        os.close(fd)
        raise
    return inode, real


async def make_nameless(ov: Overlay, parent: Directory, mode: int, caller: Caller) -> File:
    """Make a regular file as `make` would in the directory, but without a name: `link` gives
    it one, or it goes with its inode. EOPNOTSUPP where the upper has no O_TMPFILE; EPERM in a
    removed directory, as in most filesystems."""
    ov.writable()
    if parent.removed:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    protection.check_creation(ov, parent)
    copy_up_directory(ov, parent)
    status, acls = _inherit(ov, parent, caller, mode)
    fd = staging.make_nameless(ov, status)
    try:
        for attribute, value in acls:
            os.setxattr(syscalls.fd_path(fd), attribute, value)
        key = stat_key(os.stat(fd))
    except BaseException:
        os.close(fd)
        raise
    file = File(ov.inodes.number(key), stat.S_IFREG)
    ov.inodes.pin(file, fd)
    ov.inodes.add(file)
    ov.inodes.bind(file, key)
    return file


def check_new_name(name: bytes) -> None:
    """ENAMETOOLONG; EINVAL for a name that would be a whiteout in the next mount."""
    check_name(name)
    if name.startswith(whiteout.WH_PREFIX):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)


def _inherit(
    ov: Overlay, parent: Directory, caller: Caller, mode: int, rdev: int = 0
) -> tuple[Status, list[tuple[bytes, bytes]]]:
    """Apply what the parent hands down: group, setgid, default ACL; without that the umask
    counts, which the kernel may have applied already.

    Returns what to store: the attributes and the ACLs of the new object. EOVERFLOW: nothing is
    shown as belonging to the caller.
    """
    real = real_of(ov, parent)
    above = stored_of(ov, real)
    uid, gid = ov.identity.uids.maker(caller.uid), ov.identity.gids.maker(caller.gid)
    is_dir = stat.S_ISDIR(mode)
    if above.mode & stat.S_ISGID:
        gid = above.gid
        mode = mode | stat.S_ISGID if is_dir else mode
    acls: list[tuple[bytes, bytes]] = []
    default = None
    if not stat.S_ISLNK(mode) and not ov.config.noacl:
        default = xattrs.get(real.path, acl.DEFAULT, follow=real.follow)
    if default is None:
        mode &= ~caller.umask
    else:
        mode, access = acl.inherit(default, mode)
        if access is not None:
            acls.append((acl.ACCESS, access))
        if is_dir:
            acls.append((acl.DEFAULT, default))
    return Status(uid, gid, mode, rdev), acls


def publish(
    ov: Overlay, parent: Directory, index: Index, name: bytes, staged: bytes, *, is_dir: bool
) -> None:
    """Move a staged object to a name that is not visible, in place of its whiteout if there
    is one. `parent` is in the upper. EEXIST: somebody else wrote to the upper."""
    workdir = ov.writable()
    place = upper_place(parent, name)
    target = ov.stack.fd(place.real)
    if is_dir and index.covers(name):
        whiteout.set_opaque(workdir.fd, staged, workdir.namespace)
    if name not in index.masks:
        staging.move_to_free(workdir.fd, staged, target, name)
    elif not is_dir:
        os.rename(staged, name, src_dir_fd=workdir.fd, dst_dir_fd=target)
    elif workdir.can_exchange:
        staging.move(workdir.fd, staged, target, name, syscalls.RENAME_EXCHANGE)
        workdir.discard(staged)
    else:
        os.unlink(name, dir_fd=target)
        staging.move(workdir.fd, staged, target, name)
    remove_oci_whiteout(ov, parent, index, name)
    index.put(name, is_dir)


def upper_place(parent: Directory, name: bytes) -> Place:
    """Where `name` is in the upper, once the parent was copied up."""
    if parent.upper is None:
        raise no_entry(name)
    return Place(parent.upper, name)


def remove_oci_whiteout(ov: Overlay, parent: Directory, index: Index, name: bytes) -> None:
    """Remove a `.wh.NAME` that the object now at NAME makes needless."""
    if name in index.wh and parent.upper is not None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(whiteout.WH_PREFIX + name, dir_fd=ov.stack.fd(parent.upper))


async def link(ov: Overlay, file: File, parent: Directory, name: bytes) -> tuple[File, Real]:
    """Give a file another name. Returns it as `lookup.entry` does. EEXIST, EMLINK; EPERM where
    the upper's links are limited."""
    check_new_name(name)
    ov.writable()
    protection.check_creation(ov, parent)
    protection.check_change(ov, file)
    index = await index_of(ov, parent)
    await copy_up(ov, file, data=False)
    if name in index:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
    copy_up_directory(ov, parent)
    real = real_of(ov, file)
    if has_origin(file, real):
        mark_impure(ov, parent)
    with staging.discarded_on_error(ov) as staged:
        os.link(real.path, staged, dst_dir_fd=ov.writable().fd, follow_symlinks=real.follow)
        publish(ov, parent, index, name, staged, is_dir=False)
    file.names[parent, name] = None
    if file.upper is None:
        file.upper = upper_place(parent, name)
        ov.inodes.unpin(file)
    real = real_of(ov, file)
    hardlinks.changed(ov, file, real.path, follow=real.follow, by=1)
    return file, real_of(ov, file)


async def unlink(ov: Overlay, parent: Directory, name: bytes) -> None:
    """Remove a name of a file, leaving a whiteout where a lower would show. ENOENT, EISDIR."""
    ov.writable()
    index = await index_of(ov, parent)
    file = child_nowait(ov, parent, index, name)
    if not isinstance(file, File):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    protection.check_removal(ov, parent, file)
    if index.covers(name):
        copy_up_directory(ov, parent)
    if file.links:
        # Real and shown count then go down by the same call.
        give_name(ov, file, parent, name)
    held = hold(ov, file, parent, name)
    try:
        if index.covers(name):
            whiteout_over(ov, parent, index, name)
        else:
            os.unlink(name, dir_fd=ov.stack.fd(upper_place(parent, name).real))
            index.remove(name)
    except BaseException:
        let_go(held)
        raise
    lose_name(ov, file, parent, name, held)


def hold(ov: Overlay, file: File, parent: Directory, name: bytes) -> int:
    """Before a name of an upper file goes: a descriptor that keeps the file within reach.

    -1: the file is reached in another way.
    """
    if file.upper is None or (file.upper.real, file.upper.name) != (parent.upper, name):
        return -1
    return _open_held(ov, file.upper.real, name)


def _open_held(ov: Overlay, real: RealDir, name: bytes) -> int:
    """An O_PATH descriptor; makes room where the limit of open files is reached."""
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=ov.stack.fd(real))
    except OSError as exc:
        if exc.errno != errno.EMFILE:
            raise
        ov.data.shrink()
        ov.stack.shrink()
        return os.open(name, flags, dir_fd=ov.stack.fd(real))


def let_go(held: int) -> None:
    """The name did not go after all."""
    if held >= 0:
        os.close(held)


def lose_name(ov: Overlay, file: File, parent: Directory, name: bytes, held: int) -> None:
    """After a name went: account for it. `held` is what `hold` returned.

    The keys of a file without any link are dropped: its real number may come back.
    """
    file.names.pop((parent, name), None)
    if held >= 0:
        ov.inodes.pin(file, held)
        file.upper = None
    if not file.in_upper:
        hardlinks.hide_name(ov, file)
        return
    real = real_of(ov, file)
    hardlinks.changed(ov, file, real.path, follow=real.follow, by=-1)
    if not os.stat(real.path, follow_symlinks=real.follow).st_nlink:
        for key in list(file.keys):
            ov.inodes.unbind(key)


def whiteout_over(ov: Overlay, parent: Directory, index: Index, name: bytes) -> None:
    """Put a whiteout in the place of a visible file, or of a name that only lowers have.

    One rename, or for `.wh.NAME` its creation before the removal: a crash leaves the old
    state or the new one.
    """
    place = upper_place(parent, name)
    dialect = whiteout.dialect_for(name, ov.writable().dialect)
    if dialect is Dialect.OCI:
        make_oci_whiteout(ov, place)
        if name in index.upper:
            os.unlink(name, dir_fd=ov.stack.fd(place.real))
    else:
        put_whiteout(ov, place, dialect)
    index.hide(name, oci=dialect is Dialect.OCI)


def put_whiteout(
    ov: Overlay, place: Place, dialect: Dialect, *, over_whiteout: bool = False
) -> None:
    """Rename a whiteout to the place, over a file if one is there, or with `over_whiteout` over
    another whiteout. Not for `Dialect.OCI`."""
    workdir, fd = ov.writable(), ov.stack.fd(place.real)
    if dialect is Dialect.XATTR:
        whiteout.mark_xattr_whiteouts(fd, workdir.namespace, workdir.upper.namespaces)
    with staging.discarded_on_error(ov) as staged:
        workdir.make_whiteout(staged, dialect, shared=not over_whiteout)
        os.rename(staged, place.name, src_dir_fd=workdir.fd, dst_dir_fd=fd)


def make_oci_whiteout(ov: Overlay, place: Place) -> None:
    """Make `.wh.NAME` beside the place."""
    with contextlib.suppress(FileExistsError):
        whiteout.make(
            Dialect.OCI,
            ov.stack.fd(place.real),
            whiteout.WH_PREFIX + place.name,
            ov.writable().namespace,
        )


async def rmdir(ov: Overlay, parent: Directory, name: bytes) -> None:
    """Remove an empty merged directory. ENOENT, ENOTDIR, ENOTEMPTY."""
    ov.writable()
    index = await index_of(ov, parent)
    directory = child_nowait(ov, parent, index, name)
    if not isinstance(directory, Directory):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)
    protection.check_removal(ov, parent, directory)
    inside = await index_of(ov, directory)
    check_empty(inside)
    if index.covers(name):
        copy_up_directory(ov, parent)
    old = _remove_directory(ov, parent, index, directory)
    if old is not None:
        await remove_staged(ov, old, len(inside.masks) + len(inside.wh))


def check_empty(index: Index) -> None:
    """ENOTEMPTY where something is visible."""
    if len(index):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))


async def remove_staged(ov: Overlay, staged: bytes, whiteouts: int = _MANY) -> None:
    """Remove a directory that was moved to the work directory, with so many whiteouts in it; in
    a thread where that may take long."""
    if ov.writable().discard(staged):
        return
    if whiteouts < _MANY:
        remove_tree(ov.writable().fd, staged)
    else:
        await ov.threads.run(remove_tree, ov.writable().fd, staged)


def _remove_directory(
    ov: Overlay, parent: Directory, index: Index, directory: Directory
) -> bytes | None:
    """Commit of rmdir. Returns the staging name of the old upper directory, if it had one
    that is not gone yet: it may hold whiteouts."""
    workdir = ov.writable()
    name = directory.name
    hold_directory(ov, directory)
    dialect = whiteout.dialect_for(name, workdir.dialect)
    old: bytes | None = None
    if not index.covers(name):
        old = _move_away(ov, upper_place(parent, name))
        index.remove(name)
    elif name not in index.upper:
        whiteout_over(ov, parent, index, name)
    elif dialect is Dialect.OCI or not workdir.can_exchange:
        make_oci_whiteout(ov, upper_place(parent, name))
        old = _move_away(ov, upper_place(parent, name))
        index.hide(name, oci=True)
    else:
        old = _exchange_for_whiteout(ov, upper_place(parent, name), dialect)
        index.hide(name, oci=False)
    lose_directory(ov, parent, directory)
    return old


def hold_directory(ov: Overlay, directory: Directory) -> None:
    """Before an upper directory goes: keep it within reach of whoever stands in it."""
    upper = directory.upper
    if upper is not None and upper.parent is not None and directory.pinned < 0:
        ov.inodes.pin(directory, _open_held(ov, upper.parent, upper.name))


def lose_directory(ov: Overlay, parent: Directory, directory: Directory) -> None:
    """After a directory went."""
    if directory.upper is not None:
        ov.stack.forget(directory.upper)
    directory.removed = True
    parent.children.pop(directory.name, None)


def _move_away(ov: Overlay, place: Place) -> bytes:
    workdir = ov.writable()
    staged = workdir.new_name()
    staging.move(ov.stack.fd(place.real), place.name, workdir.fd, staged)
    return staged


def _exchange_for_whiteout(ov: Overlay, place: Place, dialect: Dialect) -> bytes:
    workdir = ov.writable()
    fd = ov.stack.fd(place.real)
    if dialect is Dialect.XATTR:
        whiteout.mark_xattr_whiteouts(fd, workdir.namespace, workdir.upper.namespaces)
    with staging.discarded_on_error(ov) as staged:
        workdir.make_whiteout(staged, dialect)
        staging.move(workdir.fd, staged, fd, place.name, syscalls.RENAME_EXCHANGE)
    return staged
