"""Names: create, mkdir, mknod, symlink, link, unlink, rmdir.

Each operation first prepares, which may suspend (indexes, copy-up), and then commits in
plain functions that do not. The commit looks everything up again. Sources: kernel
Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories"; the manual
page of each call.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from typing import Final, NamedTuple

from fuseoverlay.layers import whiteout, xattrs
from fuseoverlay.layers.layer import Place, RealDir
from fuseoverlay.layers.merge import Index
from fuseoverlay.layers.objects import stat_key
from fuseoverlay.layers.whiteout import Dialect
from fuseoverlay.overlay import hardlinks, linkindex, protection, staging
from fuseoverlay.overlay.copyup import (
    copy_up,
    copy_up_directory,
    give_name,
    has_origin,
    mark_impure,
)
from fuseoverlay.overlay.identity import Status
from fuseoverlay.overlay.inodes import Directory, File, Held, Inode, release
from fuseoverlay.overlay.lookup import (
    Real,
    check_name,
    child_nowait,
    index_of,
    made,
    no_entry,
    real_of,
    stored_of,
    upper_of,
)
from fuseoverlay.overlay.owners import Overlay
from fuseoverlay.system import acl, syscalls
from fuseoverlay.system.descriptors import open_file
from fuseoverlay.system.removal import empty_tree, remove_tree
from fuseoverlay.system.syscalls import at
from fuseoverlay.system.transaction import Transaction, tidy

log = logging.getLogger("fuseoverlay")

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
    # A default ACL of the real directory would have a say, which the mount does not let it have.
    if not acls and not ov.writable().upper.hides_acls and _is_free(index, name):
        place = upper_place(parent, name)
        fd = staging.make_in_place(ov, place, status)
        if fd is not None:
            return _opened(ov, parent, index, place, fd, status)
    work, is_dir = ov.writable().fd, stat.S_ISDIR(mode)
    place = upper_place(parent, name)
    fd = ov.stack.fd(place.real)
    with Transaction() as change:
        staged = staging.stage(ov, change)
        staging.make(ov, staged, status, target)
        for attribute, value in acls:
            os.setxattr(at(work, staged), attribute, value, follow_symlinks=False)
        st = os.stat(staged, dir_fd=work, follow_symlinks=False)
        publish(ov, change, parent, index, name, staged, is_dir=is_dir)
    return made(ov, parent, place, fd, status_after(fd, name, st), status)


def status_after(dir_fd: int, name: bytes, before: os.stat_result) -> os.stat_result:
    """Status of what has just been published; the one from before that if it cannot be had:
    only the change time differs, and nobody may be told that nothing happened."""
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return before


def _is_free(index: Index, name: bytes) -> bool:
    """Whether the upper has nothing at the name that is not visible, no whiteout either."""
    return name not in index.masks and name not in index.wh


def _opened(
    ov: Overlay, parent: Directory, index: Index, place: Place, fd: int, status: Status
) -> tuple[Inode, Real]:
    """A file that was made in place; takes over its descriptor."""
    dir_fd = ov.stack.fd(place.real)
    with Transaction() as change:
        change.on_error(os.unlink, place.name, dir_fd=dir_fd)
        change.on_error(os.close, fd)
        st = os.fstat(fd)
    index.put(place.name, False)
    inode, real = made(ov, parent, place, dir_fd, st, status)
    ov.data.adopt(ov.inodes.file(inode.ino), fd)
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
    held = Held(fd)
    with Transaction() as change:
        change.on_error(os.close, fd)
        for attribute, value in acls:
            os.setxattr(syscalls.fd_path(fd), attribute, value)
        key = stat_key(os.stat(fd))
        if not ov.inodes.may_hold:
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
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)


def _inherit(
    ov: Overlay, parent: Directory, caller: Caller, mode: int, rdev: int = 0
) -> tuple[Status, list[tuple[bytes, bytes]]]:
    """Apply what the parent hands down: group, setgid, default ACL; without that, or in a mount
    without ACLs, the umask counts, which the kernel may have applied already. In such a mount
    nobody gets more than by the default ACL, which goes on to directories all the same.

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
    default, in_effect = None, ov.identity.acls
    if not stat.S_ISLNK(mode) and (in_effect or real.layer.hides_acls):
        default = xattrs.get(real.path, acl.DEFAULT, follow=real.follow)
    if default is None or not in_effect:
        mode &= ~caller.umask
    if default is not None:
        default = ov.identity.copied_attribute(acl.DEFAULT, default, real.st)
        mode, access = acl.inherit(default, mode)
        if access is not None and in_effect:
            acls.append((acl.ACCESS, access))
        elif access is not None:
            mode = acl.limited(mode, access)
        if is_dir:
            acls.append((acl.DEFAULT, default))
    return Status(uid, gid, mode, rdev), acls


def publish(
    ov: Overlay,
    change: Transaction,
    parent: Directory,
    index: Index,
    name: bytes,
    staged: bytes,
    *,
    is_dir: bool,
) -> None:
    """Move a staged object to a name that is not visible, in place of its whiteout if there
    is one: the last step of a change. `parent` is in the upper. EEXIST: somebody else wrote to
    the upper."""
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
        tidy(workdir.discard, staged)
    else:
        whiteout_away(ov, change, place)
        staging.move(workdir.fd, staged, target, name)
    remove_oci_whiteout(ov, parent, index, name)
    index.put(name, is_dir)


def whiteout_away(ov: Overlay, change: Transaction, place: Place) -> None:
    """Where nothing can be exchanged: move a whiteout out of the way of a directory."""
    workdir, fd = ov.writable(), ov.stack.fd(place.real)
    staged = workdir.new_name()
    os.rename(place.name, staged, src_dir_fd=fd, dst_dir_fd=workdir.fd)
    change.on_error(os.rename, staged, place.name, src_dir_fd=workdir.fd, dst_dir_fd=fd)


def upper_place(parent: Directory, name: bytes) -> Place:
    """Where `name` is in the upper, once the parent was copied up."""
    if parent.upper is None:
        raise no_entry(name)
    return Place(parent.upper, name)


def remove_oci_whiteout(ov: Overlay, parent: Directory, index: Index, name: bytes) -> None:
    """Remove a `.wh.NAME` that the object now at NAME makes needless."""
    if name in index.wh and parent.upper is not None:
        tidy(os.unlink, whiteout.WH_PREFIX + name, dir_fd=ov.stack.fd(parent.upper))


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
    place = upper_place(parent, name)
    fd = ov.stack.fd(place.real)
    real = upper_of(ov, file)
    if has_origin(file, real):
        mark_impure(ov, parent)
    work = ov.writable().fd
    linkindex.prepare_count(ov, file)
    with Transaction() as change:
        staged = staging.stage(ov, change)
        os.link(real.path, staged, dst_dir_fd=work, follow_symlinks=real.follow)
        st = os.stat(staged, dir_fd=work, follow_symlinks=False)
        publish(ov, change, parent, index, name, staged, is_dir=False)
    file.names[parent, name] = None
    if file.upper is None:
        file.upper = place
        ov.inodes.let_go(file)
    if file.links:
        linkindex.set_links(ov, file, file.links + 1)
    return file, Real(place.real.layer, at(fd, name), False, status_after(fd, name, st))


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
    with Transaction() as change:
        goes = hold(ov, change, file, parent, name)
        if index.covers(name):
            whiteout_over(ov, change, parent, index, name)
        else:
            os.unlink(name, dir_fd=ov.stack.fd(upper_place(parent, name).real))
            index.remove(name)
    lose_name(ov, file, parent, name, goes)


class Goes(NamedTuple):
    """What has to be known of a file before one of its names goes."""

    #: How it is reached afterwards; None: as before.
    held: Held | None
    #: Of a lower file with several names: the origin to note that one is hidden.
    origin: bytes | None
    #: Whether nothing is left on disk but what is held.
    was_last: bool


def hold(ov: Overlay, change: Transaction, file: File, parent: Directory, name: bytes) -> Goes:
    """Before a name of a file goes: keep the file within reach, and ask what `lose_name` will
    need."""
    if file.upper is None or (file.upper.real, file.upper.name) != (parent.upper, name):
        return Goes(None, linkindex.note_origin(ov, file), False)
    real = upper_of(ov, file)
    if file.links > 1:
        linkindex.prepare_count(ov, file)
        held = hardlinks.entry_of(ov, real.path, real.st, follow=real.follow)
        if held is not None:
            return Goes(held, None, False)
    elif file.links:
        linkindex.leave(ov, change, real)
        real = upper_of(ov, file)
    held = None
    if not ov.inodes.may_hold:
        # There may be no room for a name, or a link not allowed: removing must work all the same.
        with contextlib.suppress(OSError):
            held = park(ov, change, real.path, follow=real.follow)
    if held is None:
        held = _open_held(ov, file.upper.real, name)
        change.on_error(release, held)
    return Goes(held, None, real.st.st_nlink == 1)


def _open_held(ov: Overlay, real: RealDir, name: bytes) -> Held:
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    return Held(open_file(name, flags, dir_fd=ov.stack.fd(real)))


def park(ov: Overlay, change: Transaction, path: bytes, *, follow: bool) -> Held:
    """Hold a file by another name, in the work directory: so many are held without a name that
    there is no descriptor for it."""
    work = ov.writable().fd
    staged = staging.stage(ov, change)
    os.link(path, staged, dst_dir_fd=work, follow_symlinks=follow)
    return Held(work, staged, parked=True)


def lose_name(ov: Overlay, file: File, parent: Directory, name: bytes, goes: Goes) -> None:
    """After a name went: account for it. `goes` is what `hold` returned.

    The keys of a file without any link are dropped: its real number may come back.
    """
    file.names.pop((parent, name), None)
    if goes.held is not None:
        ov.inodes.hold(file, goes.held)
        file.upper = None
        if goes.held.name:
            # The extension would tell of links that only hold it.
            ov.data.drop(file.ino)
    if not file.in_upper:
        file.hidden += 1
        if goes.origin is not None:
            tidy(linkindex.note_hidden, ov, goes.origin, file.hidden)
    elif file.links:
        linkindex.set_links(ov, file, file.links - 1)
    if goes.was_last:
        for key in list(file.keys):
            ov.inodes.unbind(key)


def whiteout_over(
    ov: Overlay, change: Transaction, parent: Directory, index: Index, name: bytes
) -> None:
    """Put a whiteout in the place of a visible file, or of a name that only lowers have.

    One rename, or for `.wh.NAME` its creation before the removal: a crash leaves the old
    state or the new one.
    """
    place = upper_place(parent, name)
    dialect = whiteout.dialect_for(name, ov.writable().dialect)
    if dialect is Dialect.OCI:
        make_oci_whiteout(ov, change, place)
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
    workdir = ov.writable()
    with Transaction() as change:
        staged = stage_whiteout(ov, change, place, dialect, shared=not over_whiteout)
        fd = ov.stack.fd(place.real)
        os.rename(staged, place.name, src_dir_fd=workdir.fd, dst_dir_fd=fd)


def stage_whiteout(
    ov: Overlay, change: Transaction, place: Place, dialect: Dialect, *, shared: bool = True
) -> bytes:
    """A whiteout ready to be renamed to the place, see `WorkDir.make_whiteout`."""
    workdir = ov.writable()
    if dialect is Dialect.XATTR:
        fd = ov.stack.fd(place.real)
        whiteout.mark_xattr_whiteouts(fd, workdir.namespace, workdir.upper.namespaces)
    staged = staging.stage(ov, change)
    workdir.make_whiteout(staged, dialect, shared=shared)
    return staged


def make_oci_whiteout(ov: Overlay, change: Transaction, place: Place) -> None:
    """Make `.wh.NAME` beside the place."""
    fd, name = ov.stack.fd(place.real), whiteout.WH_PREFIX + place.name
    with contextlib.suppress(FileExistsError):
        whiteout.make(Dialect.OCI, fd, name, ov.writable().namespace)
        change.on_error(os.unlink, name, dir_fd=fd)


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
        await clear_away(ov, directory, old, len(inside.masks) + len(inside.wh))


def check_empty(index: Index) -> None:
    """ENOTEMPTY where something is visible."""
    if len(index):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))


async def clear_away(
    ov: Overlay, directory: Directory, staged: bytes, whiteouts: int = _MANY
) -> None:
    """Remove a directory that was moved to the work directory, with so many whiteouts in it; in
    a thread where that may take long. What is held by its name there is emptied. Nobody is told
    of errors: the directory is gone already."""
    work = ov.writable().fd
    parked = directory.held is not None and directory.held.name == staged
    if not parked:
        with contextlib.suppress(OSError):
            if ov.writable().discard(staged):
                return
    call = empty_tree if parked else remove_tree
    if whiteouts < _MANY:
        tidy(call, work, staged)
        return
    try:
        await ov.threads.run(call, work, staged)
    except OSError as exc:
        log.warning("a removed directory stays in the work directory until the next mount: %s", exc)


def _remove_directory(
    ov: Overlay, parent: Directory, index: Index, directory: Directory
) -> bytes | None:
    """Commit of rmdir. Returns the staging name of the old upper directory, if it had one
    that is not gone yet: it may hold whiteouts."""
    workdir = ov.writable()
    name = directory.name
    dialect = whiteout.dialect_for(name, workdir.dialect)
    old: bytes | None = None
    with Transaction() as change:
        held = hold_directory(ov, change, directory)
        place = upper_place(parent, name) if directory.upper is not None else None
        if place is None:
            whiteout_over(ov, change, parent, index, name)
        elif not index.covers(name):
            old = _move_away(ov, place)
            index.remove(name)
        elif dialect is Dialect.OCI or not workdir.can_exchange:
            make_oci_whiteout(ov, change, place)
            old = _move_away(ov, place)
            index.hide(name, oci=True)
        else:
            old = _exchange_for_whiteout(ov, place, dialect)
            index.hide(name, oci=False)
    lose_directory(ov, directory, held, old)
    return old


def hold_directory(ov: Overlay, change: Transaction, directory: Directory) -> Held | None:
    """Before an upper directory goes: what keeps it within reach of whoever stands in it. None:
    it is no upper directory, or is to be held by its name in the work directory."""
    upper = directory.upper
    if upper is None or upper.parent is None or not ov.inodes.may_hold:
        return None
    held = _open_held(ov, upper.parent, upper.name)
    change.on_error(release, held)
    return held


def lose_directory(ov: Overlay, directory: Directory, held: Held | None, old: bytes | None) -> None:
    """After a directory went; `old`: where to in the work directory."""
    if held is not None:
        ov.inodes.hold(directory, held)
    elif old is not None:
        ov.inodes.hold(directory, Held(ov.writable().fd, old, parked=True))
    if directory.upper is not None:
        ov.stack.forget(directory.upper)
    directory.removed = True
    ov.inodes.unname(directory)


def _move_away(ov: Overlay, place: Place) -> bytes:
    workdir = ov.writable()
    staged = workdir.new_name()
    staging.move(ov.stack.fd(place.real), place.name, workdir.fd, staged)
    return staged


def _exchange_for_whiteout(ov: Overlay, place: Place, dialect: Dialect) -> bytes:
    workdir = ov.writable()
    with Transaction() as change:
        staged = stage_whiteout(ov, change, place, dialect)
        fd = ov.stack.fd(place.real)
        staging.move(workdir.fd, staged, fd, place.name, syscalls.RENAME_EXCHANGE)
    return staged
