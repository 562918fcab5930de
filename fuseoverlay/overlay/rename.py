"""rename: plain, RENAME_NOREPLACE and RENAME_EXCHANGE, over whatever is there.

A directory with a lower part cannot be renamed (EXDEV) unless `redirect_dir=on`; mv(1) copies it
instead. Sources: kernel Documentation/filesystems/overlayfs.rst, "Renaming directories"; rename(2).
"""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import dataclass

from fuseoverlay.errors import os_error
from fuseoverlay.layers import whiteout
from fuseoverlay.layers.index import Index
from fuseoverlay.layers.layer import Place
from fuseoverlay.layers.whiteout import Dialect
from fuseoverlay.overlay import protection, staging
from fuseoverlay.overlay.copymetadata import has_origin, keep_data, mark_impure, put_redirect
from fuseoverlay.overlay.copyup import copy_up, copy_up_directory, give_name, stage_directory
from fuseoverlay.overlay.inodes import Directory, File, Inode
from fuseoverlay.overlay.lookup import child_nowait, index_of
from fuseoverlay.overlay.make import check_new_name
from fuseoverlay.overlay.owners import Overlay
from fuseoverlay.overlay.publish import (
    make_oci_whiteout,
    put_whiteout,
    remove_oci_whiteout,
    stage_whiteout,
    upper_place,
    whiteout_away,
)
from fuseoverlay.overlay.realobject import path_below, real_of, upper_of
from fuseoverlay.overlay.remove import (
    check_empty,
    clear_away,
    hold,
    hold_directory,
    lose_directory,
    lose_name,
)
from fuseoverlay.system import syscalls
from fuseoverlay.system.syscalls import at
from fuseoverlay.system.transaction import Transaction, tidy

log = logging.getLogger("fuseoverlay")

_KNOWN = syscalls.RENAME_NOREPLACE | syscalls.RENAME_EXCHANGE


@dataclass(slots=True)
class Side:
    """One end of a rename: a name in a directory, and what is visible there."""

    parent: Directory
    index: Index
    name: bytes
    inode: Inode | None

    @property
    def covered(self) -> bool:
        """Whether a lower would show through if the upper had nothing at this name."""
        return self.index.covers(self.name)

    @property
    def place(self) -> Place:
        """The place in the upper; the parent must have been copied up."""
        return upper_place(self.parent, self.name)


async def rename(
    ov: Overlay,
    parent: Directory,
    name: bytes,
    new_parent: Directory,
    new_name: bytes,
    flags: int = 0,
) -> None:
    """Rename. Errors of rename(2); EXDEV for directories with a lower part unless
    `redirect_dir=on`; EINVAL for RENAME_WHITEOUT, which only we ourselves use."""
    if flags & ~_KNOWN or flags == _KNOWN:
        raise os_error(errno.EINVAL)
    check_new_name(new_name)
    ov.writable()
    await _prepare(ov, parent, name, new_parent, new_name, flags)
    # From here on nothing suspends.
    src = _side(ov, parent, name)
    dst = _side(ov, new_parent, new_name)
    if src.inode is None:
        raise os_error(errno.ENOENT)
    if dst.inode is src.inode:
        return
    for side in (src, dst):
        file = side.inode
        if isinstance(file, File) and (
            side is src or flags & syscalls.RENAME_EXCHANGE or file.links
        ):
            give_name(ov, file, side.parent, side.name)
    if flags & syscalls.RENAME_EXCHANGE:
        _exchange(ov, src, dst)
        return
    emptied = _replace(ov, src, dst)
    if emptied is not None and isinstance(dst.inode, Directory):
        await clear_away(ov, dst.inode, emptied)


async def _prepare(
    ov: Overlay, parent: Directory, name: bytes, new_parent: Directory, new_name: bytes, flags: int
) -> None:
    """Make the checks, and copy up what the commit needs in the upper.

    The kernel holds the locks of both directories during a rename, so no other request can move
    these names meanwhile.
    """
    await index_of(ov, parent)
    await index_of(ov, new_parent)
    src = _side(ov, parent, name)
    dst = _side(ov, new_parent, new_name)
    if src.inode is None:
        raise os_error(errno.ENOENT)
    if dst.inode is not None and flags & syscalls.RENAME_NOREPLACE:
        raise os_error(errno.EEXIST)
    exchange = bool(flags & syscalls.RENAME_EXCHANGE)
    if exchange and dst.inode is None:
        raise os_error(errno.ENOENT)
    protection.check_removal(ov, parent, src.inode)
    if dst.inode is None:
        protection.check_creation(ov, new_parent)
    else:
        protection.check_removal(ov, new_parent, dst.inode)
    _check_movable(ov, src.inode)
    if exchange and dst.inode is not None:
        _check_movable(ov, dst.inode)
    elif dst.inode is not None:
        await _check_replaceable(ov, src.inode, dst.inode)
    await copy_up(ov, src.inode, data=False)
    if exchange and dst.inode is not None:
        await copy_up(ov, dst.inode, data=False)
    copy_up_directory(ov, parent)
    copy_up_directory(ov, new_parent)


def _side(ov: Overlay, parent: Directory, name: bytes) -> Side:
    index = parent.index
    if index is None:
        raise os_error(errno.ENOENT)
    inode = child_nowait(ov, parent, index, name) if name in index else None
    return Side(parent, index, name, inode)


def _check_movable(ov: Overlay, inode: Inode) -> None:
    if isinstance(inode, Directory) and inode.lowers and ov.config.redirect_dir != "on":
        raise os_error(errno.EXDEV)


async def _check_replaceable(ov: Overlay, src: Inode, dst: Inode) -> None:
    if isinstance(dst, Directory):
        if not isinstance(src, Directory):
            raise os_error(errno.EISDIR)
        check_empty(await index_of(ov, dst))
    elif isinstance(src, Directory):
        raise os_error(errno.ENOTDIR)


def _exchange(ov: Overlay, src: Side, dst: Side) -> None:
    """Commit RENAME_EXCHANGE; both objects are in the upper."""
    src_fd, dst_fd = ov.stack.fd(src.place.real), ov.stack.fd(dst.place.real)
    with Transaction() as change:
        redirects = [_mark(ov, change, src, dst), _mark(ov, change, dst, src)]
        syscalls.renameat2(src_fd, src.name, dst_fd, dst.name, syscalls.RENAME_EXCHANGE)
    first, second = src.inode, dst.inode
    _arrived(ov, src, dst, first, redirects[0])
    _arrived(ov, dst, src, second, redirects[1])
    for side, inode in ((src, second), (dst, first)):
        side.index.put(side.name, isinstance(inode, Directory))


def _mark(ov: Overlay, change: Transaction, src: Side, dst: Side) -> bytes | None:
    """Set the marks that the inode at `src` needs at `dst`: a directory must continue in the same
    lower directories as before and merge with nothing at its new place; a metacopy file must find
    its data. Returns the redirect that a directory has afterwards."""
    if src.inode is not None and has_origin(src.inode, real_of(ov, src.inode)):
        mark_impure(ov, dst.parent)
    if isinstance(src.inode, File):
        keep_data(ov, change, src.inode, upper_of(ov, src.inode), src.parent, src.name)
    if not isinstance(src.inode, Directory):
        return None
    if src.inode.lowers:
        return _set_redirect(ov, change, src, dst, src.inode)
    if dst.covered or dst.name in dst.index.masks:
        # No undo: it has no lower part at its present place either, where the mark changes nothing.
        whiteout.set_opaque(ov.stack.fd(src.place.real), src.name, ov.writable().namespace)
    return src.inode.redirect


def _set_redirect(
    ov: Overlay, change: Transaction, src: Side, dst: Side, directory: Directory
) -> bytes:
    """Set and return the redirect to a directory's lower part. EXDEV if it is too long."""
    old = directory.redirect
    value = old
    if src.parent is not dst.parent and not (value or b"").startswith(b"/"):
        value = path_below(directory)
    elif value is None:
        value = directory.name
    put_redirect(ov, change, at(ov.stack.fd(src.place.real), src.name), value, old)
    return value


def _replace(ov: Overlay, src: Side, dst: Side) -> bytes | None:
    """Commit a rename to a name that is free, hidden by a whiteout, or visible and replaced.

    Returns the staging name of a replaced directory that is still to be cleared away.
    """
    old = dst.inode
    held, goes, emptied = None, None, None
    with Transaction() as change:
        redirected = _mark(ov, change, src, dst)
        if isinstance(old, Directory):
            held = hold_directory(ov, change, old)
            keep = held is None or _takes_two_steps(ov, src)
            emptied = _empty_for_real(ov, change, dst, old, keep=keep)
        elif isinstance(old, File):
            goes = hold(ov, change, old, dst.parent, dst.name)
        left = _move(ov, change, src, dst)
    if isinstance(old, Directory):
        lose_directory(ov, old, held, emptied)
    elif isinstance(old, File) and goes is not None:
        lose_name(ov, old, dst.parent, dst.name, goes)
    _arrived(ov, src, dst, src.inode, redirected)
    remove_oci_whiteout(ov, dst.parent, dst.index, dst.name)
    dst.index.put(dst.name, isinstance(src.inode, Directory))
    if left is None:
        src.index.remove(src.name)
    else:
        src.index.hide(src.name, oci=left is Dialect.OCI)
    return emptied


def _empty_for_real(
    ov: Overlay, change: Transaction, dst: Side, directory: Directory, *, keep: bool
) -> bytes | None:
    """Exchange an upper directory that holds only whiteouts with an empty one, so that a rename can
    replace it; with `keep` also if it holds nothing. Returns the staging name of the old directory;
    None: no exchange was needed.

    The new one is opaque if a lower would show through: after a crash nothing that the whiteouts
    hide may reappear.
    """
    if dst.name not in dst.index.upper or directory.upper is None:
        return None
    with ov.stack.listing_fd(directory.upper) as inside:
        if not keep and not os.listdir(inside):
            return None
    workdir = ov.writable()
    with Transaction() as staging_it:
        staged = staging.stage(ov, staging_it)
        stage_directory(ov, directory, staged)
        if dst.covered:
            whiteout.set_opaque(workdir.fd, staged, workdir.namespace)
        _exchange_staged(ov, staged, dst)
    change.on_error(_put_back, ov, staged, dst)
    return staged


def _exchange_staged(ov: Overlay, staged: bytes, dst: Side) -> None:
    """Exchange a staged object with the one in the upper, if need be in three renames."""
    workdir, fd = ov.writable(), ov.stack.fd(dst.place.real)
    if workdir.can_exchange:
        staging.move(workdir.fd, staged, fd, dst.name, syscalls.RENAME_EXCHANGE)
        return
    spare = workdir.new_name()
    with Transaction() as change:
        staging.move(fd, dst.name, workdir.fd, spare)
        change.on_error(staging.move, workdir.fd, spare, fd, dst.name)
        staging.move(workdir.fd, staged, fd, dst.name)
    staging.move(workdir.fd, spare, workdir.fd, staged)


def _put_back(ov: Overlay, staged: bytes, dst: Side) -> None:
    """Undo `_empty_for_real`, whether or not there is an object at the name."""
    workdir, fd = ov.writable(), ov.stack.fd(dst.place.real)
    if os.path.lexists(at(fd, dst.name)):
        _exchange_staged(ov, staged, dst)
        workdir.discard(staged)
    else:
        staging.move(workdir.fd, staged, fd, dst.name)


def _move(ov: Overlay, change: Transaction, src: Side, dst: Side) -> Dialect | None:
    """Do the rename. Returns the dialect of the whiteout left at the old name, if any."""
    workdir = ov.writable()
    dialect = whiteout.dialect_for(src.name, workdir.dialect) if src.covered else None
    takes_two_steps = _takes_two_steps(ov, src)
    masked = dst.name in dst.index.masks
    masked_directory = masked and isinstance(src.inode, Directory)
    if dialect is Dialect.OCI:
        make_oci_whiteout(ov, change, src.place)
    if dst.inode is None and workdir.can_exchange and (takes_two_steps or masked_directory):
        return _swap_with_whiteout(ov, change, src, dst, dialect)
    src_fd, dst_fd = ov.stack.fd(src.place.real), ov.stack.fd(dst.place.real)
    if masked_directory:
        whiteout_away(ov, change, dst.place)
    left, spare = None, None
    if takes_two_steps and dialect is not None:
        left = stage_whiteout(ov, change, src.place, dialect)
    if takes_two_steps and isinstance(dst.inode, File) and dst.name in dst.index.upper:
        spare = _keep_replaced(ov, change, dst)
    in_place = dialect is Dialect.CHAR and not takes_two_steps
    flags = syscalls.RENAME_WHITEOUT if in_place else 0
    if (masked and not masked_directory) or dst.name in dst.index.upper:
        syscalls.renameat2(src_fd, src.name, dst_fd, dst.name, flags)
    else:
        staging.move_to_free(src_fd, src.name, dst_fd, dst.name, flags)
    if left is not None:
        change.on_error(staging.move, dst_fd, dst.name, src_fd, src.name)
        os.rename(left, src.name, src_dir_fd=workdir.fd, dst_dir_fd=src_fd)
    if spare is not None:
        tidy(workdir.discard, spare)
    return dialect


def _takes_two_steps(ov: Overlay, src: Side) -> bool:
    """Whether a second rename has to put a whiteout at the old name, because the first cannot leave
    one there."""
    workdir = ov.writable()
    dialect = whiteout.dialect_for(src.name, workdir.dialect) if src.covered else None
    if dialect is Dialect.CHAR:
        return not workdir.can_whiteout
    return dialect is Dialect.XATTR


def _keep_replaced(ov: Overlay, change: Transaction, dst: Side) -> bytes:
    """If the rename is not the last step: stage a link to the file that it replaces, by which the
    file can be restored. Returns the link's staging name."""
    workdir, fd = ov.writable(), ov.stack.fd(dst.place.real)
    spare = staging.stage(ov, change)
    os.link(dst.name, spare, src_dir_fd=fd, dst_dir_fd=workdir.fd, follow_symlinks=False)
    # If the rename failed, both names are links to one file, and rename(2) does nothing.
    change.on_error(os.rename, spare, dst.name, src_dir_fd=workdir.fd, dst_dir_fd=fd)
    return spare


def _swap_with_whiteout(
    ov: Overlay, change: Transaction, src: Side, dst: Side, dialect: Dialect | None
) -> Dialect | None:
    """Exchange the object with a whiteout at the new name, where nothing is visible: to observers
    that is one step. Returns the dialect of the whiteout left at the old name."""
    masked = dst.name in dst.index.masks
    src_fd, dst_fd = ov.stack.fd(src.place.real), ov.stack.fd(dst.place.real)
    if dialect not in (None, Dialect.OCI):
        put_whiteout(ov, dst.place, dialect, over_whiteout=masked)
        if not masked:
            change.on_error(_unmask, dst, dst_fd)
    if dialect is Dialect.XATTR:
        workdir = ov.writable()
        whiteout.mark_xattr_whiteouts(src_fd, workdir.namespace, workdir.upper.namespaces)
    syscalls.renameat2(src_fd, src.name, dst_fd, dst.name, syscalls.RENAME_EXCHANGE)
    if dialect not in (None, Dialect.OCI):
        return dialect
    try:
        os.unlink(src.name, dir_fd=src_fd)
    except OSError as exc:
        # It hides nothing, but the index has to know of it.
        log.warning("a needless whiteout stays: %s", exc)
        return Dialect.CHAR
    return dialect


def _unmask(side: Side, fd: int) -> None:
    """Remove a whiteout that was put at a free name. If that fails, the index records it."""
    try:
        os.unlink(side.name, dir_fd=fd)
    except OSError:
        side.index.masks.add(side.name)
        raise


def _arrived(
    ov: Overlay, src: Side, dst: Side, inode: Inode | None, redirected: bytes | None
) -> None:
    """Record the inode's new name; `redirected`: the redirect that a directory now has."""
    if isinstance(inode, Directory):
        ov.inodes.move(inode, dst.parent, dst.name)
        inode.redirect = redirected
        if inode.upper is not None:
            ov.stack.moved(inode.upper, dst.place.real, dst.name)
    elif isinstance(inode, File):
        inode.names.pop((src.parent, src.name), None)
        inode.names[dst.parent, dst.name] = None
        if inode.upper == src.place:
            inode.upper = dst.place
