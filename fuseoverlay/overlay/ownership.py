"""Change owner and mode of an object in the upper, by the rules of chown(2) and chmod(2)."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection
from typing import NamedTuple

from fuseoverlay.layers.overridestat import accessible
from fuseoverlay.overlay.identity import Status, write_override
from fuseoverlay.overlay.inodes import Inode
from fuseoverlay.overlay.owners import Overlay
from fuseoverlay.overlay.realobject import Real, changing, real_of, shown_of, stored_of
from fuseoverlay.system.transaction import Transaction


class Changer(NamedTuple):
    """The caller that changes a file, as far as setuid and setgid are concerned."""

    uid: int
    #: Returns the caller's groups; called only if they matter.
    groups: Callable[[], Collection[int]]
    #: Whether writing and truncating clear neither bit.
    privileged: bool
    #: Called after bits were cleared without a request of the kernel to do so.
    ended: Callable[[], None]


def change(
    ov: Overlay,
    inode: Inode,
    *,
    uid: int | None = None,
    gid: int | None = None,
    mode: int | None = None,
) -> None:
    """Set what is not None; ids are as stored, `mode` holds permission bits only. A change of owner
    clears setuid."""
    with changing(ov, inode) as real:
        if ov.identity.override is not None:
            _change_override(ov, real, ov.identity.override, uid, gid, mode)
        else:
            _change_real(ov, real, uid, gid, None if inode.kind == stat.S_IFLNK else mode)


def _change_real(
    ov: Overlay, real: Real, uid: int | None, gid: int | None, mode: int | None
) -> None:
    with Transaction() as change:
        if uid is not None or gid is not None:
            ov.identity.give(
                real.path,
                -1 if uid is None else uid,
                -1 if gid is None else gid,
                follow=real.follow,
            )
            change.on_error(_restore, real)
        if mode is not None:
            os.chmod(real.path, stat.S_IMODE(mode))


def _restore(real: Real) -> None:
    """Restore owner and mode of an upper object."""
    os.chown(real.path, real.st.st_uid, real.st.st_gid, follow_symlinks=real.follow)
    if not stat.S_ISLNK(real.st.st_mode):
        os.chmod(real.path, stat.S_IMODE(real.st.st_mode))


def _change_override(
    ov: Overlay, real: Real, attribute: bytes, uid: int | None, gid: int | None, mode: int | None
) -> None:
    old = stored_of(ov, real)
    if mode is not None:
        new_mode = stat.S_IFMT(old.mode) | stat.S_IMODE(mode)
    else:
        new_mode = without_privileges(old.mode)
    new = Status(
        old.uid if uid is None else uid,
        old.gid if gid is None else gid,
        new_mode,
        old.rdev,
    )
    with Transaction() as change:
        # The attribute is what is shown, so it is changed last.
        os.chmod(real.path, accessible(new_mode))
        change.on_error(os.chmod, real.path, stat.S_IMODE(real.st.st_mode))
        write_override(real.path, attribute, new, follow=real.follow)


def drop_privileges(ov: Overlay, inode: Inode, who: Changer) -> None:
    """Clear setuid and setgid as an unprivileged write does."""
    mode = stored_of(ov, real_of(ov, inode)).mode
    kept = _kept(ov, inode, mode, who)
    if kept != mode:
        change(ov, inode, mode=kept)
        who.ended()


def loses_privileges(ov: Overlay, inode: Inode, who: Changer) -> bool:
    """Whether `drop_privileges` would clear anything."""
    mode = stored_of(ov, real_of(ov, inode)).mode
    return _kept(ov, inode, mode, who) != mode


def _kept(ov: Overlay, inode: Inode, mode: int, who: Changer) -> int:
    kept = without_privileges(mode)
    return kept & ~stat.S_ISGID if is_stranger(ov, inode, who) else kept


def is_stranger(ov: Overlay, inode: Inode, who: Changer) -> bool:
    """Whether a change by this caller clears setgid on a file without group-execute: it does unless
    the caller is in the file's group. Source: fs/attr.c, setattr_should_drop_sgid()."""
    if who.uid == 0 and who.privileged:
        return False
    shown = shown_of(ov, real_of(ov, inode))
    if stat.S_ISDIR(shown.mode) or shown.mode & (stat.S_ISGID | stat.S_IXGRP) != stat.S_ISGID:
        return False
    return shown.gid not in who.groups()


def without_privileges(mode: int) -> int:
    """The mode without setuid, and without setgid if group-execute is set: without that, setgid
    means mandatory locking. Directories keep both."""
    if stat.S_ISDIR(mode):
        return mode
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode
