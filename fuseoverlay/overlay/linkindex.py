"""Keeps the index of hard links true while names come and go; `hardlinks` reads it."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Final

from fuseoverlay.layers import xattrs
from fuseoverlay.overlay import hardlinks, staging
from fuseoverlay.overlay.inodes import File, Held
from fuseoverlay.overlay.owners import Overlay
from fuseoverlay.overlay.realobject import Real, lower_of, real_of, upper_of
from fuseoverlay.system.removal import remove_tree
from fuseoverlay.system.syscalls import at
from fuseoverlay.system.transaction import Transaction, tidy

_MOST_HIDDEN: Final = 4000


def note_origin(ov: Overlay, file: File) -> bytes | None:
    """Before a whiteout hides a name of a lower file: the origin to pass to `note_hidden`; None:
    nothing is to be noted, since there is no other name, no index or no handle."""
    if file.in_upper or file.lower is None or not ov.config.index:
        return None
    if not hardlinks.may_be_indexed(real_of(ov, file).st):
        return None
    with lower_of(ov, file) as lower:
        return hardlinks.origin_of(lower)


def note_hidden(ov: Overlay, origin: bytes, hidden: int) -> None:
    """Note on disk how many names of a lower file whiteouts have hidden.

    The note is a symbolic link whose target has as many letters: one rename replaces it, and it
    needs no extended attributes. The kernel copies the file up instead.
    """
    workdir = ov.writable()
    links_fd = workdir.links_fd(create=True)
    with Transaction() as change:
        staged = staging.stage(ov, change)
        os.symlink(b"x" * min(hidden, _MOST_HIDDEN), staged, dir_fd=workdir.fd)
        os.rename(staged, hardlinks.index_name(origin), src_dir_fd=workdir.fd, dst_dir_fd=links_fd)


def enter(
    ov: Overlay, change: Transaction, staged: bytes, origin: bytes, links: int, lower_links: int
) -> bool:
    """Enter a staged copy of a lower file into the index. `links` of the file's `lower_links` names
    are still visible.

    False: the filesystem does not support the attributes or the link, so the names will be separate
    files. The caller stores the count with `set_links` once the copy is published.
    """
    workdir = ov.writable()
    index_fd = workdir.index_fd(create=True)
    name = hardlinks.index_name(origin)
    try:
        _count_from_lower(ov, lower_links, at(workdir.fd, staged), links, follow=False)
        with contextlib.suppress(FileNotFoundError):
            # Left by a copy-up that a crash interrupted before publishing, or not ours.
            if index_fd is not None:
                remove_tree(index_fd, name)
        os.link(staged, name, src_dir_fd=workdir.fd, dst_dir_fd=index_fd, follow_symlinks=False)
    except OSError as exc:
        if exc.errno in (errno.EOPNOTSUPP, errno.EPERM, errno.EMLINK, errno.ENAMETOOLONG):
            return False
        raise
    change.on_error(os.unlink, name, dir_fd=index_fd)
    return True


def hold_count(ov: Overlay, change: Transaction, file: File, real: Real) -> None:
    """Before an indexed file gets a real name in place of one that only the index represents: store
    the count relative to the lower file, which is right before and after that step. Call
    `set_links` afterwards."""
    if file.links and file.lower is not None:
        with lower_of(ov, file) as lower:
            lower_links = lower.st.st_nlink
        change.on_error(_count_from_upper, ov, file)
        _count_from_lower(ov, lower_links, real.path, file.links, follow=real.follow)


def prepare_count(ov: Overlay, file: File) -> None:
    """Before an indexed file gets or loses a real name: store the count relative to the upper file,
    which remains right afterwards."""
    if file.links:
        _count_from_upper(ov, file)


def _count_from_lower(
    ov: Overlay, lower_links: int, path: bytes, links: int, *, follow: bool
) -> None:
    value = b"L%+d" % (links - lower_links)
    xattrs.put(path, ov.writable().namespace + xattrs.NLINK, value, follow=follow)


def set_links(ov: Overlay, file: File, links: int) -> None:
    """After an indexed file got or lost a name, visible or real: `links` names lead to it now.

    The count on disk is right already if the real count changed by as much as this one, or if it
    was stored relative to the lower file; so a failure to store it anew is only logged.
    """
    file.links = links
    if links:
        tidy(_count_from_upper, ov, file)


def _count_from_upper(ov: Overlay, file: File) -> None:
    real = upper_of(ov, file)
    value = b"U%+d" % (file.links - file.links_of(real.st))
    name = ov.writable().namespace + xattrs.NLINK
    if xattrs.get(real.path, name, follow=real.follow) != value:
        xattrs.put(real.path, name, value, follow=real.follow)


def copy_in_index(ov: Overlay, origin: bytes) -> Held:
    """The index entry that has just been made for this origin."""
    index_fd = ov.writable().index_fd()
    if index_fd is None:
        raise AssertionError("nothing was entered")
    return Held(index_fd, hardlinks.index_name(origin))


def leave(ov: Overlay, change: Transaction, real: Real) -> None:
    """Before the last name of an indexed file is removed: remove its index entry."""
    found = hardlinks.entry_of(ov, real.path, real.st, follow=real.follow)
    if found is not None:
        os.unlink(found.name, dir_fd=found.fd)
        change.on_error(_enter_again, real, found)


def _enter_again(real: Real, left: Held) -> None:
    os.link(real.path, left.name, dst_dir_fd=left.fd, follow_symlinks=real.follow)
