"""Open the roots of layers, and tell the user what is wrong with them."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Mapping, Sequence

from fuseoverlay.errors import LayerError, UpperError, describe, printable
from fuseoverlay.layers import xattrs
from fuseoverlay.layers.layer import Layer
from fuseoverlay.layers.objects import stat_key
from fuseoverlay.system import syscalls
from fuseoverlay.system.syscalls import DIR_FLAGS

log = logging.getLogger("fuseoverlay")


def open_root(path: bytes, error: type[LayerError | UpperError], option: str) -> int:
    """A descriptor of a layer's root. Raises `error`, with what to do about it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.stat(b".", dir_fd=fd)
        except OSError:
            os.close(fd)
            raise
    except FileNotFoundError:
        raise error(
            f"{option} {absence(path)}", where=path, hint="create it or correct the path"
        ) from None
    except NotADirectoryError:
        raise error(f"{option} is not a directory", where=path, hint="name a directory") from None
    except PermissionError:
        raise error(
            f"{option} cannot be read", where=path, hint="it needs read and search permission"
        ) from None
    except OSError as exc:
        raise error(f"{option} cannot be opened: {describe(exc)}", where=path) from None
    return fd


def absence(path: bytes) -> str:
    """Describes a path that leads nowhere."""
    try:
        target = os.readlink(path)
    except OSError:
        return "does not exist"
    return f"is a link to {printable(target)}, which does not exist"


def refuse_twice(layer: Layer, seen: dict[tuple[int, int], Layer]) -> None:
    """Refuse a root that is among those `seen` (by `stat_key`); add a new one. `LayerError`;
    `UpperError` if the other is the upper's."""
    st = os.fstat(layer.root_fd)
    other = seen.setdefault((st.st_dev, st.st_ino), layer)
    if other is layer:
        return
    if not other.number:
        raise UpperError(
            "upperdir is a lowerdir, too",
            where=other.path,
            hint="an upper takes changes, a lower none: use two directories",
        )
    again = "again" if other.path == layer.path else f"also as {printable(other.path)}"
    raise LayerError(
        f"lowerdir names this directory {again}", where=layer.path, hint="name each layer once"
    )


def distrust_copies(lowers: Sequence[Layer]) -> None:
    """Forget UUIDs that several filesystems share, such as a disk and its snapshot: file handles
    would lead to the wrong one. The kernel does so too, ovl_lower_uuid_ok()."""
    devices: dict[bytes | None, set[int]] = {}
    for layer in lowers:
        devices.setdefault(layer.uuid, set()).add(layer.device)
    for layer in lowers:
        if len(devices[layer.uuid]) > 1:
            layer.uuid = None


def ask_for_attributes(layer: Layer) -> None:
    """Warn if a lower's filesystem seems to have attributes but does not list them: whether an
    overlay has marked anything is then unknown."""
    try:
        os.listxattr(layer.root_fd)
    except OSError as exc:
        if exc.errno != errno.EOPNOTSUPP and exc.errno in xattrs.NONE:
            layer.lists_attributes = False
            log.warning(
                "%s: extended attributes cannot be listed (%s): none of this layer count",
                printable(layer.path),
                describe(exc),
            )


def settle(layer: Layer, *, user_attributes: bool) -> None:
    """Call `Layer.settle`. `LayerError` or `UpperError` if there seem to be attributes that cannot
    be read: what they hide or forbid would be open to all."""
    try:
        layer.settle(user_attributes=user_attributes)
    except OSError as exc:
        error = LayerError if layer.number else UpperError
        raise error(
            f"extended attributes cannot be read: {describe(exc)}",
            where=layer.path,
            hint="deletions, owners and permissions may be in them; use a copy of the directory "
            "on another filesystem, or have its server say that there are none (EOPNOTSUPP)",
        ) from None


def see_stored_ids(layer: Layer, upper: Layer | None) -> None:
    """Reopen a lower that was named through an idmapped mount, by way of the mount of the upper or
    of the current directory. podman maps the lowers so and asks us to map them as well, but means
    one mapping. `LayerError` if there is no other way to the lower."""
    if not syscalls.is_idmapped(layer.root_fd):
        return
    with contextlib.ExitStack() as undo:
        here = os.open(b".", DIR_FLAGS)
        undo.callback(os.close, here)
        for fd in (upper.root_fd, here) if upper else (here,):
            if os.fstat(fd).st_dev != layer.device or syscalls.is_idmapped(fd):
                continue
            with contextlib.suppress(OSError):
                found = syscalls.open_by_handle(fd, *syscalls.file_handle(layer.root_fd, b""))
                undo.callback(os.close, found)
                root_fd = os.open(b".", DIR_FLAGS, dir_fd=found)
                os.close(layer.root_fd)
                layer.root_fd = root_fd
                return
    raise LayerError(
        "is on a mount that maps ids already",
        where=layer.path,
        hint="name it by a path that does not, or leave uidmapping= and gidmapping= out",
    )


def enclosing(
    path: bytes, roots: Mapping[tuple[int, int], bytes], *, crossing: bool = True
) -> bytes | None:
    """The directory among `roots` (by `stat_key`) that contains `path`; None if there is none.
    `path` itself does not count. Compares real directories, so bind mounts hide nothing. Without
    `crossing` only directories on the filesystem of `path` count."""
    path = os.path.realpath(path)
    device = os.stat(path).st_dev
    while path != b"/":
        path = os.path.dirname(path)
        key = stat_key(os.stat(path))
        if key[0] != device and not crossing:
            return None
        found = roots.get(key)
        if found is not None:
            return found
    return None
