"""Unlink and rmdir, and how objects are kept that have lost their names.

As everywhere, what may suspend comes first; code that does not suspend then makes the change.
Sources: kernel Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories";
unlink(2), rmdir(2).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from typing import Final, NamedTuple

from fuseoverlay.errors import os_error
from fuseoverlay.layers import whiteout
from fuseoverlay.layers.index import Index
from fuseoverlay.layers.layer import Place, RealDir
from fuseoverlay.layers.whiteout import Dialect
from fuseoverlay.overlay import hardlinks, linkindex, protection, staging
from fuseoverlay.overlay.copyup import copy_up_directory, give_name
from fuseoverlay.overlay.inodes import Directory, File, Held, release
from fuseoverlay.overlay.lookup import child_nowait, index_of
from fuseoverlay.overlay.owners import Overlay
from fuseoverlay.overlay.publish import (
    make_oci_whiteout,
    stage_whiteout,
    upper_place,
    whiteout_over,
)
from fuseoverlay.overlay.realobject import upper_of
from fuseoverlay.system import syscalls
from fuseoverlay.system.descriptors import open_file
from fuseoverlay.system.removal import empty_tree, remove_tree
from fuseoverlay.system.transaction import Transaction, tidy

log = logging.getLogger("fuseoverlay")

# From this many whiteouts on a thread removes them; fewer are removed faster than it would wake.
_MANY: Final = 32
# Errors of rmdir(2) after which a move may work: the directory is not empty, or we may not write
# to its parent, which `staging.move` overcomes.
_TAKES_MOVING: Final = (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES, errno.EPERM)


async def unlink(ov: Overlay, parent: Directory, name: bytes) -> None:
    """Remove a name of a file; leave a whiteout if a lower would show through. ENOENT, EISDIR."""
    ov.writable()
    index = await index_of(ov, parent)
    file = child_nowait(ov, parent, index, name)
    if not isinstance(file, File):
        raise os_error(errno.EISDIR, name)
    protection.check_removal(ov, parent, file)
    if index.covers(name):
        copy_up_directory(ov, parent)
    if file.links:
        # With a real name, one call lowers both the real and the shown link count.
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
    """What has to be known about a file before one of its names is removed."""

    #: How to reach it afterwards; None: as before.
    held: Held | None
    #: For a lower file with several names: the origin under which to note that one is hidden.
    origin: bytes | None
    #: Whether the file has no other name on disk, except one that only holds it.
    was_last: bool


def hold(ov: Overlay, change: Transaction, file: File, parent: Directory, name: bytes) -> Goes:
    """Before a name of a file is removed: keep the file reachable, and collect what `lose_name`
    needs."""
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
        # There may be no room for a name, or links may be refused: removing must work all the same.
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
    """Hold a file by a name in the work directory: too many descriptors are held already."""
    work = ov.writable().fd
    staged = staging.stage(ov, change)
    os.link(path, staged, dst_dir_fd=work, follow_symlinks=follow)
    return Held(work, staged, parked=True)


def lose_name(ov: Overlay, file: File, parent: Directory, name: bytes, goes: Goes) -> None:
    """After a name was removed: record it. `goes` is what `hold` returned.

    The keys of a file without any name are dropped, since its real inode number may be reused.
    """
    file.names.pop((parent, name), None)
    if goes.held is not None:
        ov.inodes.hold(file, goes.held)
        file.upper = None
        if goes.held.name:
            # The extension would count the link that only holds it.
            ov.data.drop(file.ino)
    if not file.in_upper:
        file.hidden += 1
        if goes.origin is not None:
            tidy(linkindex.note_hidden, ov, goes.origin, file.hidden)
    elif file.links:
        linkindex.set_links(ov, file, file.links - 1)
    if goes.was_last:
        ov.inodes.end(file)
        for key in list(file.keys):
            ov.inodes.unbind(key)


async def rmdir(ov: Overlay, parent: Directory, name: bytes) -> None:
    """Remove an empty merged directory. ENOENT, ENOTDIR, ENOTEMPTY."""
    ov.writable()
    index = await index_of(ov, parent)
    directory = child_nowait(ov, parent, index, name)
    if not isinstance(directory, Directory):
        raise os_error(errno.ENOTDIR, name)
    protection.check_removal(ov, parent, directory)
    inside = await index_of(ov, directory)
    check_empty(inside)
    if index.covers(name):
        copy_up_directory(ov, parent)
    old = _remove_directory(ov, parent, index, directory)
    if old is not None:
        await clear_away(ov, directory, old, len(inside.masks) + len(inside.wh))


def check_empty(index: Index) -> None:
    """ENOTEMPTY if anything is visible."""
    if len(index):
        raise os_error(errno.ENOTEMPTY)


async def clear_away(
    ov: Overlay, directory: Directory, staged: bytes, whiteouts: int = _MANY
) -> None:
    """Remove a directory that was moved to the work directory, with this many whiteouts in it; use
    a thread if that may take long. A directory that is held by its name there is only emptied.
    Errors are only logged: for the caller the directory is gone already."""
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
    """Commit rmdir. Returns the staging name of the old upper directory if there is one still to be
    cleared away: it may hold whiteouts."""
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
            held, old = _remove_upper(ov, change, place, held)
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
    """Before an upper directory is removed: a descriptor by which processes in it still reach it.
    None: it is not in the upper, or its name in the work directory is to hold it."""
    upper = directory.upper
    if upper is None or upper.parent is None or not ov.inodes.may_hold:
        return None
    held = _open_held(ov, upper.parent, upper.name)
    change.on_error(release, held)
    return held


def lose_directory(ov: Overlay, directory: Directory, held: Held | None, old: bytes | None) -> None:
    """After a directory was removed or replaced; `old`: its name in the work directory, if any."""
    if held is not None:
        ov.inodes.hold(directory, held)
    elif old is not None:
        ov.inodes.hold(directory, Held(ov.writable().fd, old, parked=True))
    if directory.upper is not None:
        ov.stack.forget(directory.upper)
    directory.removed = True
    ov.inodes.end(directory)
    ov.inodes.unname(directory)


def _remove_upper(
    ov: Overlay, change: Transaction, place: Place, held: Held | None
) -> tuple[Held | None, bytes | None]:
    """Remove an upper directory that covers no lower: by rmdir(2) or, if it holds whiteouts or is
    to be held by a name, by moving it to the work directory. If the filesystem moves nothing there
    (EXDEV), a descriptor holds it all the same. Returns what holds it, and its name in the work
    directory, if it has one."""
    if held is None:
        try:
            return None, _move_away(ov, place)
        except OSError as exc:
            if exc.errno != errno.EXDEV:
                raise
        held = _open_held(ov, place.real, place.name)
        change.on_error(release, held)
    try:
        os.rmdir(place.name, dir_fd=ov.stack.fd(place.real))
    except OSError as exc:
        if exc.errno not in _TAKES_MOVING:
            raise
        return held, _move_away(ov, place)
    return held, None


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
