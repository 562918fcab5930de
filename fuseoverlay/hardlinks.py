"""One file with several names, across copy-up and across mounts.

A lower file with several names is copied up once. A link to the copy stays in the
`index` directory of the work directory, called after the lower file's handle, so that
the other names lead to it, in this mount and in the next. Forms of that name, of
`overlay.origin` and of `overlay.nlink` are the kernel's (Documentation/filesystems/
overlayfs.rst, "Inode properties" and "index"; fs/overlayfs).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import re
import stat
from collections.abc import Sequence
from typing import Final

from fuseoverlay import handles, xattrs
from fuseoverlay.inodes import File, Place
from fuseoverlay.layers import stat_key
from fuseoverlay.overlay import Overlay
from fuseoverlay.removal import remove_tree
from fuseoverlay.syscalls import at

log = logging.getLogger("fuseoverlay")

_MOST_HIDDEN: Final = 4000
_NLINK: Final = re.compile(rb"([UL])([+-]\d{1,10})\Z")
_MOST_LINKS: Final = 2**31


def origin_of(ov: Overlay, place: Place) -> bytes | None:
    """`overlay.origin` for a copy of the file; None: its filesystem has no handles."""
    real = place.real
    return handles.encode(ov.stack.fd(real), place.name, real.layer.uuid)


def find_origin(ov: Overlay, origin: bytes) -> os.stat_result | None:
    """Status of the lower file that `overlay.origin` names, wherever it is; None: it is gone,
    the attribute is malformed, or we are not the superuser of the machine."""
    handle = handles.decode(origin)
    for layer in ov.stack.lowers:
        if handle is not None and layer.uuid == handle.uuid:
            with contextlib.suppress(OSError):
                return handles.status(layer.root_fd, handle)
    return None


def may_be_indexed(st: os.stat_result) -> bool:
    """Whether a lower file with this status has other names to keep together."""
    return st.st_nlink > 1 and not stat.S_ISDIR(st.st_mode)


def open_copy(ov: Overlay, place: Place, st: os.stat_result) -> int | None:
    """An O_PATH descriptor, the caller's own, of the copy that another name of the lower
    file at `place` caused; None: it was not copied up. `st` is the lower file's status.

    An entry of the index that is no copy of this file is ignored with a warning.
    """
    workdir = ov.workdir
    index_fd = workdir.index_fd() if workdir is not None else None
    if workdir is None or index_fd is None:
        return None
    origin = origin_of(ov, place)
    if origin is None:
        return None
    name = index_name(origin)
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=index_fd)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENAMETOOLONG):
            return None
        raise
    same_type = stat.S_IFMT(os.stat(fd).st_mode) == stat.S_IFMT(st.st_mode)
    path, counted = at(index_fd, name), workdir.upper.namespaces
    if same_type and xattrs.get_overlay(path, xattrs.ORIGIN, counted, upper=True) == origin:
        return fd
    os.close(fd)
    _warn_foreign(workdir.path, name)
    return None


@functools.lru_cache(1024)
def _warn_foreign(workdir: bytes, name: bytes) -> None:
    """Say it once, not at every look-up."""
    path = os.fsdecode(os.path.join(workdir, b"index", name))
    log.warning("%s: ignored, it is no copy of the file that it is called after", path)


def hidden_names(ov: Overlay, place: Place, st: os.stat_result) -> int:
    """How many names of the lower file at `place`, with the status `st`, whiteouts have hidden,
    in any mount. A note that says all of them is wrong: somebody asks for one."""
    if not may_be_indexed(st):
        return 0
    links_fd = ov.workdir.links_fd() if ov.workdir is not None else None
    origin = origin_of(ov, place) if links_fd is not None else None
    if origin is None:
        return 0
    try:
        hidden = len(os.readlink(index_name(origin), dir_fd=links_fd))
    except OSError:
        return 0
    return hidden if hidden < st.st_nlink else 0


def hide_name(ov: Overlay, file: File) -> None:
    """A whiteout has hidden one of several names of a lower file: note it on disk.

    The note is a symbolic link with a target of as many letters, because it can be
    replaced by one rename and needs no attributes. The kernel copies the file up instead.
    """
    file.hidden += 1
    if file.lower is None:
        return
    fd = ov.stack.fd(file.lower.real)
    st = os.stat(file.lower.name, dir_fd=fd, follow_symlinks=False)
    origin = origin_of(ov, file.lower) if may_be_indexed(st) else None
    if origin is None:
        return
    workdir = ov.writable()
    staged = workdir.new_name()
    with contextlib.suppress(OSError):
        os.symlink(b"x" * min(file.hidden, _MOST_HIDDEN), staged, dir_fd=workdir.fd)
        os.rename(
            staged,
            index_name(origin),
            src_dir_fd=workdir.fd,
            dst_dir_fd=workdir.links_fd(create=True),
        )


def enter(ov: Overlay, file: File, staged: bytes, origin: bytes) -> bool:
    """Put a staged copy of a lower file, which `file.links` names lead to, into the index.

    False: the filesystem keeps no attributes or links, so the names will part. `changed`
    must be called once it is published.
    """
    workdir = ov.writable()
    index_fd = workdir.index_fd(create=True)
    name = index_name(origin)
    try:
        _count_from_lower(ov, file, at(workdir.fd, staged), follow=False)
        with contextlib.suppress(FileNotFoundError):
            # Left by a copy that a crash kept from being published, or not ours.
            if index_fd is not None:
                remove_tree(index_fd, name)
        os.link(staged, name, src_dir_fd=workdir.fd, dst_dir_fd=index_fd, follow_symlinks=False)
    except OSError as exc:
        if exc.errno in (errno.EOPNOTSUPP, errno.EPERM, errno.EMLINK, errno.ENAMETOOLONG):
            return False
        raise
    return True


def indexed_links(ov: Overlay, path: bytes, st: os.stat_result, lower_links: int) -> int:
    """`stored_links` of the upper file at `path` if the index has it too; else 0, for then its
    attributes say nothing about other names."""
    index_fd = ov.workdir.index_fd() if ov.workdir is not None else None
    linked = st.st_nlink > 1
    if ov.workdir is None or index_fd is None or not linked:
        return 0
    counted = ov.workdir.upper.namespaces
    origin = xattrs.get_overlay(path, xattrs.ORIGIN, counted, upper=True)
    if origin is None:
        return 0
    try:
        entry = os.stat(index_name(origin), dir_fd=index_fd, follow_symlinks=False)
    except OSError:
        return 0
    same = stat_key(entry) == stat_key(st)
    return stored_links(path, st, lower_links, counted, follow=False) if same else 0


def hold_count(ov: Overlay, file: File, path: bytes, *, follow: bool) -> None:
    """Before an indexed file gets a real name for one that the index stands for: the count
    must be right before and after that. `changed` must be called then.

    `path` leads to the copy.
    """
    if file.links:
        with contextlib.suppress(OSError):
            _count_from_lower(ov, file, path, follow=follow)


def _count_from_lower(ov: Overlay, file: File, path: bytes, *, follow: bool) -> None:
    if file.lower is None:
        return
    fd = ov.stack.fd(file.lower.real)
    lower = os.stat(file.lower.name, dir_fd=fd, follow_symlinks=False)
    value = b"L%+d" % (file.links - lower.st_nlink)
    xattrs.put(path, ov.writable().namespace + xattrs.NLINK, value, follow=follow)


def stored_links(
    path: bytes, st: os.stat_result, lower_links: int, counted: Sequence[bytes], *, follow: bool
) -> int:
    """Link count that `overlay.nlink` of an upper file tells; 0: the real count is right.

    The attribute holds the difference to the count of the upper (`U`) or the lower (`L`).
    One that leads to an impossible count is ignored. `counted`: the upper's namespaces.
    """
    for namespace in counted:
        try:
            value = os.getxattr(path, namespace + xattrs.NLINK, follow_symlinks=follow)
        except OSError:
            continue
        difference = parse_nlink(value)
        if difference is not None:
            count = difference[1] + (st.st_nlink if difference[0] == b"U" else lower_links)
            return count if 0 < count < _MOST_LINKS else 0
    return 0


def parse_nlink(value: bytes) -> tuple[bytes, int] | None:
    """The count that `overlay.nlink` starts from, `U` or `L`, and the difference to it."""
    match = _NLINK.match(value)
    return (match[1], int(match[2])) if match is not None else None


def changed(ov: Overlay, file: File, path: bytes, *, follow: bool, by: int) -> None:
    """An indexed file has got or lost a name, or only a real one (`by` 0): keep the count.

    `path` leads to the copy. Without any name left, the index lets go of it.
    """
    if not file.links:
        return
    file.links += by
    if file.links <= 0:
        _leave(ov, path, follow=follow)
        return
    real = os.stat(path, follow_symlinks=follow).st_nlink
    value = b"U%+d" % (file.links - real)
    with contextlib.suppress(OSError):
        xattrs.put(path, ov.writable().namespace + xattrs.NLINK, value, follow=follow)


def _leave(ov: Overlay, path: bytes, *, follow: bool) -> None:
    workdir = ov.writable()
    index_fd = workdir.index_fd()
    if index_fd is None:
        return
    for namespace in workdir.upper.namespaces:
        with contextlib.suppress(OSError):
            origin = os.getxattr(path, namespace + xattrs.ORIGIN, follow_symlinks=follow)
            os.unlink(index_name(origin), dir_fd=index_fd)


def index_name(origin: bytes) -> bytes:
    """Name in the index of the lower file with this `overlay.origin`."""
    return origin.hex().encode()


def origin_named(name: bytes) -> bytes | None:
    """The `overlay.origin` that a name in the index tells; None: it is no such name."""
    try:
        origin = bytes.fromhex(name.decode("ascii"))
    except ValueError:
        return None
    return origin if index_name(origin) == name and handles.decode(origin) is not None else None
