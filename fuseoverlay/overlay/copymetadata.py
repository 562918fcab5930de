"""Copy metadata: owner, mode, extended attributes and times, and the marks of a copy's origin."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from fuseoverlay.errors import os_error
from fuseoverlay.layers import redirect, xattrs
from fuseoverlay.overlay import protection
from fuseoverlay.overlay.inodes import Directory, File, Inode
from fuseoverlay.overlay.owners import Overlay
from fuseoverlay.overlay.realobject import Real, path_below, stored_of
from fuseoverlay.system import acl, syscalls
from fuseoverlay.system.syscalls import at
from fuseoverlay.system.transaction import Transaction, tidy


def copy_metadata(
    ov: Overlay,
    file: File,
    real: Real,
    staged: bytes,
    origin: bytes | None,
    source: int | None = None,
) -> None:
    """Give the staged copy the owner, mode, extended attributes and times of `real`, the lower
    object; `source`: a descriptor of it, open for reading."""
    workdir = ov.writable()
    target = at(workdir.fd, staged)
    ov.identity.dress(workdir.fd, staged, stored_of(ov, real))
    copy_xattrs(ov, real, target)
    protection.keep(ov, file, real, target, source)
    if origin is not None:
        try:
            xattrs.put(target, workdir.namespace + xattrs.ORIGIN, origin)
        except OSError as exc:
            # Symbolic links cannot have `user.` attributes; some filesystems have none at all.
            if exc.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                raise
    copy_times(real.st, workdir.fd, staged)


def mark_impure(ov: Overlay, directory: Directory) -> None:
    """Mark the upper directory as holding an object that shows the inode number of a lower one. In
    directories without the mark the kernel's overlay lists the upper's own numbers."""
    if directory.upper is None or directory.impure:
        return
    fd = ov.stack.fd(directory.upper)
    try:
        xattrs.put(fd, ov.writable().namespace + xattrs.IMPURE, b"y")
    except OSError as exc:
        if exc.errno not in xattrs.NONE:
            return
    directory.impure = True


def has_origin(inode: Inode, real: Real) -> bool:
    """Whether the upper object `real` of the inode shows the inode number of a lower object."""
    if isinstance(inode, Directory):
        return bool(inode.lowers)
    origin = xattrs.get_overlay(
        real.path, xattrs.ORIGIN, real.layer.namespaces, follow=real.follow, upper=True
    )
    return origin is not None


def keep_data(
    ov: Overlay, change: Transaction, file: File, real: Real, parent: Directory, name: bytes
) -> None:
    """Before a metacopy file, `real` in the upper, gets another name or place: give it an absolute
    redirect to its data. As long as it has the place of its original, one made by the kernel needs
    none. EXDEV if the path is too long.

    Source: fs/overlayfs/dir.c, ovl_set_redirect(), ovl_set_link_redirect().
    """
    if file.data is None:
        return
    old = xattrs.get_overlay(
        real.path, xattrs.REDIRECT, real.layer.namespaces, follow=real.follow, upper=True
    )
    if old is not None and old.startswith(b"/"):
        return
    value = path_below(parent) + b"/" + (old or name)
    put_redirect(ov, change, real.path, value, old, follow=real.follow)


def put_redirect(
    ov: Overlay,
    change: Transaction,
    path: bytes,
    value: bytes,
    old: bytes | None,
    *,
    follow: bool = False,
) -> None:
    """Set the redirect of an upper object to `value`; `old`: the present one, None: it has none.
    EXDEV if the path is too long."""
    if len(value) > redirect.MAX_LENGTH:
        raise os_error(errno.EXDEV)
    name = ov.writable().namespace + xattrs.REDIRECT
    xattrs.put(path, name, value, follow=follow)
    if old is None:
        change.on_error(xattrs.drop, path, name, follow=follow)
    else:
        change.on_error(xattrs.put, path, name, old, follow=follow)


@contextlib.contextmanager
def times_kept(dir_fd: int) -> Iterator[None]:
    """Restore the directory's access and modification time after the block."""
    before = os.stat(dir_fd)
    yield
    # An attempt only, as in the kernel: the copy has been published.
    tidy(os.utime, syscalls.fd_path(dir_fd), ns=(before.st_atime_ns, before.st_mtime_ns))


def copy_times(st: os.stat_result, dir_fd: int, name: bytes) -> None:
    os.utime(name, ns=(st.st_atime_ns, st.st_mtime_ns), dir_fd=dir_fd, follow_symlinks=False)


def copy_xattrs(ov: Overlay, source: Real, target: bytes) -> None:
    """Copy all extended attributes but the overlay's own to `target`, which is not followed.

    As in the kernel, an ACL or security attribute that cannot be set is an error; other attributes
    are left out if the upper filesystem refuses them, and all are if it has none. If an access ACL
    is left out, the mode is reduced so that it grants nobody more than the ACL.
    """
    # With an override attribute on either side no access ACL is copied: it would change the real
    # mode, or refers to a real mode that is not shown.
    placeholders = source.layer.override is not None or ov.identity.override is not None
    for name in xattrs.names(source.path, follow=source.follow):
        shown = source.layer.shown_name(name)
        if shown is None or (placeholders and name == acl.ACCESS):
            continue
        value = xattrs.get(source.path, name, follow=source.follow)
        if value is None:
            continue
        value = ov.identity.copied_attribute(name, value, source.st)
        try:
            xattrs.put(target, ov.writable().upper.stored_name(shown), value)
        except OSError as exc:
            privileged = name.startswith((b"system.posix_acl_", b"security."))
            if exc.errno == errno.EPERM and name == xattrs.CAPABILITY:
                # We may not set capabilities: the copy then has fewer privileges, never more.
                continue
            left_out = not ov.writable().has_attributes or (
                name.startswith(acl.PREFIX) and not ov.identity.acls
            )
            if exc.errno == errno.EOPNOTSUPP and left_out:
                # If the mount has no ACLs, the mode has been reduced already.
                if name == acl.ACCESS and ov.identity.acls:
                    os.chmod(target, acl.limited(stat.S_IMODE(os.lstat(target).st_mode), value))
                continue
            if privileged or exc.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                raise
