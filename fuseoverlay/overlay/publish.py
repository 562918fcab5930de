"""Names in the upper: publishes staged objects, and puts whiteouts over what lowers have."""

from __future__ import annotations

import contextlib
import os

from fuseoverlay.errors import no_entry
from fuseoverlay.layers import whiteout
from fuseoverlay.layers.index import Index
from fuseoverlay.layers.layer import Place
from fuseoverlay.layers.whiteout import Dialect
from fuseoverlay.overlay import staging
from fuseoverlay.overlay.inodes import Directory
from fuseoverlay.overlay.owners import Overlay
from fuseoverlay.system import syscalls
from fuseoverlay.system.transaction import Transaction, tidy


def status_after(dir_fd: int, name: bytes, before: os.stat_result) -> os.stat_result:
    """The status of an object that has just been published; `before` if stat(2) fails. That differs
    only in the change time, and an error would say that nothing was changed."""
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return before


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
    """The last step of a change: move a staged object to a name that is not visible, in place of a
    whiteout if there is one. `parent` is in the upper. EEXIST if somebody else wrote to the upper.
    """
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
    """Move a whiteout out of the way of a directory, if the filesystem lacks RENAME_EXCHANGE."""
    workdir, fd = ov.writable(), ov.stack.fd(place.real)
    staged = workdir.new_name()
    os.rename(place.name, staged, src_dir_fd=fd, dst_dir_fd=workdir.fd)
    change.on_error(os.rename, staged, place.name, src_dir_fd=workdir.fd, dst_dir_fd=fd)


def upper_place(parent: Directory, name: bytes) -> Place:
    """The place of `name` in the upper. ENOENT if the parent has not been copied up."""
    if parent.upper is None:
        raise no_entry(name)
    return Place(parent.upper, name)


def remove_oci_whiteout(ov: Overlay, parent: Directory, index: Index, name: bytes) -> None:
    """Remove a `.wh.NAME` that is needless because there is now an object at NAME."""
    if name in index.wh and parent.upper is not None:
        tidy(os.unlink, whiteout.WH_PREFIX + name, dir_fd=ov.stack.fd(parent.upper))


def whiteout_over(
    ov: Overlay, change: Transaction, parent: Directory, index: Index, name: bytes
) -> None:
    """Put a whiteout in the place of a visible file, or at a name that only lowers have.

    A crash leaves the old state or the new one: this is one rename; a `.wh.NAME` is created before
    NAME is removed.
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
    """Rename a whiteout to the place, over a file if there is one, or with `over_whiteout` over
    another whiteout. Not for `Dialect.OCI`."""
    workdir = ov.writable()
    with Transaction() as change:
        staged = stage_whiteout(ov, change, place, dialect, shared=not over_whiteout)
        fd = ov.stack.fd(place.real)
        os.rename(staged, place.name, src_dir_fd=workdir.fd, dst_dir_fd=fd)


def stage_whiteout(
    ov: Overlay, change: Transaction, place: Place, dialect: Dialect, *, shared: bool = True
) -> bytes:
    """Stage a whiteout that is to be renamed to the place; see `WorkDir.make_whiteout`."""
    workdir = ov.writable()
    if dialect is Dialect.XATTR:
        fd = ov.stack.fd(place.real)
        whiteout.mark_xattr_whiteouts(fd, workdir.namespace, workdir.upper.namespaces)
    staged = staging.stage(ov, change)
    workdir.make_whiteout(staged, dialect, shared=shared)
    return staged


def make_oci_whiteout(ov: Overlay, change: Transaction, place: Place) -> None:
    """Create `.wh.NAME` beside the place."""
    fd, name = ov.stack.fd(place.real), whiteout.WH_PREFIX + place.name
    with contextlib.suppress(FileExistsError):
        whiteout.make(Dialect.OCI, fd, name, ov.writable().namespace)
        change.on_error(os.unlink, name, dir_fd=fd)
