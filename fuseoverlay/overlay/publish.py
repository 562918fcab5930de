"""Names in the upper: publishing what was staged, and whiteouts over what is below."""

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
    """Status of what has just been published; the one from before that if it cannot be had:
    only the change time differs, and nobody may be told that nothing happened."""
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
