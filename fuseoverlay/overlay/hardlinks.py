"""One file with several names, across copy-up and across mounts.

A lower file with several names is copied up once. A link to the copy stays in the `index` directory
of the work directory, named after the lower file's handle, so that the other names lead to it in
this mount and the next. The formats of that name, of `overlay.origin` and of `overlay.nlink` are
the kernel's (Documentation/filesystems/overlayfs.rst, "Inode properties" and "index";
fs/overlayfs).
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import re
import stat
from collections.abc import Sequence
from typing import Final

from fuseoverlay.layers import xattrs
from fuseoverlay.layers.layer import Lower
from fuseoverlay.layers.objects import stat_key
from fuseoverlay.overlay.inodes import Held
from fuseoverlay.overlay.owners import Overlay
from fuseoverlay.system import handles
from fuseoverlay.system.syscalls import at

log = logging.getLogger("fuseoverlay")

_NLINK: Final = re.compile(rb"([UL])([+-]\d{1,10})\Z")
_MOST_LINKS: Final = 2**31
# Errors of open_by_handle_at(2) for a deleted file, a caller without permission, a bad handle.
_NOT_FOUND: Final = (errno.ESTALE, errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT)


def origin_of(lower: Lower) -> bytes | None:
    """The `overlay.origin` that names the file; None: its filesystem has no handles, or they cannot
    be told from those of another filesystem."""
    return handles.encode(lower.fd, b"", lower.layer.uuid_of(lower.st))


def origin_to_store(ov: Overlay, lower: Lower) -> bytes | None:
    """The same for a copy that is about to be made. None also if the names of the file are kept
    apart: the copy then is another file than the one the other names show. As in the kernel's
    ovl_do_copy_up()."""
    apart = may_be_indexed(lower.st) and not ov.config.index
    return None if apart else origin_of(lower)


def may_be_origin(lower: Lower, origin: bytes) -> bool:
    """Whether this `overlay.origin` may name the file: false if it names another one on the same
    filesystem."""
    handle = handles.decode(origin)
    if handle is None or handle.uuid != lower.layer.uuid_of(lower.st):
        return True
    return origin_of(lower) in (None, origin)


def find_origin(ov: Overlay, origin: bytes) -> os.stat_result | None:
    """The status of the lower file that `overlay.origin` names, wherever it is; None: it has been
    deleted, the attribute is malformed, or we may not open handles (CAP_DAC_READ_SEARCH)."""
    handle = handles.decode(origin)
    for layer in ov.stack.lowers:
        if handle is not None and layer.uuid == handle.uuid:
            try:
                return handles.status(layer.root_fd, handle)
            except OSError as exc:
                if exc.errno not in _NOT_FOUND:
                    raise
    return None


def may_be_indexed(st: os.stat_result) -> bool:
    """Whether a lower file with this status has other names to keep together."""
    return st.st_nlink > 1 and not stat.S_ISDIR(st.st_mode)


def stay_together(ov: Overlay, lower: Lower) -> bool:
    """Whether all names of the lower file still lead to one file after copy-up. That takes the
    index, and so a file handle. Otherwise each name is a file of its own from the start, as with
    `index=off`: if not, data written by one name could be at another one in the next mount."""
    if not may_be_indexed(lower.st) or ov.workdir is None:
        return True
    return ov.config.index and origin_of(lower) is not None


def find_copy(ov: Overlay, lower: Lower) -> Held | None:
    """The index entry of the copy that was made by another name of the lower file; None: the file
    was not copied up.

    An entry that is not a copy of this file is ignored with a warning.
    """
    workdir = ov.workdir
    index_fd = workdir.index_fd() if workdir is not None else None
    if workdir is None or index_fd is None:
        return None
    origin = origin_of(lower)
    if origin is None:
        return None
    name = index_name(origin)
    try:
        found = os.stat(name, dir_fd=index_fd, follow_symlinks=False)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENAMETOOLONG):
            return None
        raise
    same_type = stat.S_IFMT(found.st_mode) == stat.S_IFMT(lower.st.st_mode)
    path, counted = at(index_fd, name), workdir.upper.namespaces
    if same_type and xattrs.get_overlay(path, xattrs.ORIGIN, counted, upper=True) == origin:
        return Held(index_fd, name)
    _warn_foreign(workdir.path, name)
    return None


@functools.lru_cache(1024)
def _warn_foreign(workdir: bytes, name: bytes) -> None:
    """Warn once per entry, not at every look-up."""
    path = os.fsdecode(os.path.join(workdir, b"index", name))
    log.warning("%s: ignored, it is no copy of the file that it is called after", path)


def hidden_names(ov: Overlay, lower: Lower) -> int:
    """How many names of the lower file whiteouts have hidden, in this mount or earlier ones. A note
    that says all of them is wrong, since one is being looked up, and counts as 0."""
    if not may_be_indexed(lower.st):
        return 0
    links_fd = ov.workdir.links_fd() if ov.workdir is not None else None
    origin = origin_of(lower) if links_fd is not None else None
    if origin is None:
        return 0
    try:
        hidden = len(os.readlink(index_name(origin), dir_fd=links_fd))
    except OSError as exc:
        if exc.errno not in (errno.ENOENT, errno.ENAMETOOLONG, errno.EINVAL):
            raise
        return 0
    return hidden if hidden < lower.st.st_nlink else 0


def entry_of(ov: Overlay, path: bytes, st: os.stat_result, *, follow: bool) -> Held | None:
    """The index entry of the upper file at `path`; None: there is none."""
    index_fd = ov.workdir.index_fd() if ov.workdir is not None else None
    if ov.workdir is None or index_fd is None or st.st_nlink < 2:
        return None
    counted = ov.workdir.upper.namespaces
    origin = xattrs.get_overlay(path, xattrs.ORIGIN, counted, follow=follow, upper=True)
    if origin is None:
        return None
    try:
        found = os.stat(index_name(origin), dir_fd=index_fd, follow_symlinks=False)
    except OSError as exc:
        if exc.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
            raise
        return None
    return Held(index_fd, index_name(origin)) if stat_key(found) == stat_key(st) else None


def indexed_links(ov: Overlay, path: bytes, st: os.stat_result, lower_links: int) -> int:
    """`stored_links` of an upper file that is in the index; of others 0, because their attributes
    say nothing about other names."""
    if ov.workdir is None or entry_of(ov, path, st, follow=False) is None:
        return 0
    return stored_links(path, st, lower_links, ov.workdir.upper.namespaces, follow=False)


def stored_links(
    path: bytes, st: os.stat_result, lower_links: int, counted: Sequence[bytes], *, follow: bool
) -> int:
    """The link count by `overlay.nlink` of an upper file; 0: the real count is right.

    The attribute holds the difference from the link count of the upper (`U`) or the lower (`L`)
    file. One that results in an impossible count is ignored. `counted`: the namespaces of overlay
    attributes that count in the upper.
    """
    value = xattrs.get_overlay(path, xattrs.NLINK, counted, follow=follow, upper=True)
    difference = parse_nlink(value) if value is not None else None
    if difference is None:
        return 0
    count = difference[1] + (st.st_nlink if difference[0] == b"U" else lower_links)
    return count if 0 < count < _MOST_LINKS else 0


def parse_nlink(value: bytes) -> tuple[bytes, int] | None:
    """The count that `overlay.nlink` refers to, `U` or `L`, and the difference from it; None: it is
    malformed."""
    match = _NLINK.match(value)
    return (match[1], int(match[2])) if match is not None else None


def index_name(origin: bytes) -> bytes:
    """The name in the index for the lower file with this `overlay.origin`."""
    return origin.hex().encode()


def origin_named(name: bytes) -> bytes | None:
    """The `overlay.origin` that a name in the index stands for; None: it is no such name."""
    try:
        origin = bytes.fromhex(name.decode("ascii"))
    except ValueError:
        return None
    return origin if index_name(origin) == name and handles.decode(origin) is not None else None
