"""Layers that are directories here: those of `-o lowerdir=`, of a mount, of podman's store.

They are read as a mount reads them: owners that only an attribute keeps, whiteouts in all dialects,
redirects, files whose data is in another layer. What cannot be read is left out, with a warning.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Final, cast

from fuseoverlay.errors import ImageError, describe, printable
from fuseoverlay.layers import merge, onename, redirect, xattrs
from fuseoverlay.layers.idmap import IdMap
from fuseoverlay.layers.layer import Layer, Place, RealDir
from fuseoverlay.layers.stack import LayerStack
from fuseoverlay.overlay.identity import Identity
from fuseoverlay.store import indexes
from fuseoverlay.store.indexes import BadIndexError
from fuseoverlay.system import syscalls
from fuseoverlay.view.building import Listed, built
from fuseoverlay.view.layerindex import (
    HIDES,
    IMPLIED,
    METACOPY,
    OPAQUE,
    REDIRECT,
    LayerIndex,
)
from fuseoverlay.view.stack import Dir, Node, Path, Stack

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LINK_MAX: Final = 4096


class Directories:
    """The layers of an open `LayerStack`, indexed; the stack must stay open."""

    def __init__(self, stack: LayerStack, warn: Callable[[str], None]) -> None:
        self._open = stack
        # The stack closes descriptors that were not used for long: one thread at a time.
        self._lock: Final = threading.RLock()
        #: Bottom first; data-only layers show nothing.
        self.layers: Sequence[Layer] = [
            *reversed(stack.lowers),
            *([stack.upper] if stack.upper else []),
        ]
        identity = Identity(None, IdMap(), IdMap(), acls=True)
        self.indexes: Sequence[LayerIndex] = [
            _kept(layer)
            or LayerIndex(
                built(_Source(stack, layer, identity, warn)), os.path.realpath(layer.path)
            )
            for layer in self.layers
        ]
        self.stack = Stack(self.indexes, self._follow, self._data)

    def _follow(self, parent: tuple[Dir, ...], dirs: tuple[Dir, ...]) -> tuple[Dir, ...]:
        reals = tuple(map(self._real, dirs))
        above = [self._real(one) for one in parent]
        with self._lock:
            _, found = redirect.merged(self._open, above, None, reals)
        return tuple(filter(None, map(self._known, found)))

    def _real(self, one: Dir) -> RealDir:
        real = self.layers[one.layer].root
        for name in self.indexes[one.layer].path(one.row):
            real = RealDir(real.layer, real, name)
        return real

    def _known(self, real: RealDir) -> Dir | None:
        if real.layer not in self.layers:
            # A data-only layer.
            return None
        number = self.layers.index(real.layer)
        path = tuple(real.path().split(b"/")) if real.parent is not None else ()
        row = self.indexes[number].find(path)
        return None if row is None else Dir(number, row)

    def contents(self, number: int, rows: Sequence[int]) -> Iterator[tuple[int, IO[bytes]]]:
        """The contents of regular files of a layer; each is good until the next one. OSError,
        ImageError."""
        for row in rows:
            with self._lock:
                fd = self._opened(number, row)
            with open(fd, "rb") as file:
                yield row, cast("IO[bytes]", file)

    def _opened(self, number: int, row: int) -> int:
        path = self.indexes[number].path(row)
        place = self._place(number, row)
        fd = os.open(place.name, _READ, dir_fd=self._open.fd(place.real))
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ImageError("no regular file any more", where=printable(b"/".join(path)))
        return fd

    def _place(self, number: int, row: int) -> Place:
        """Where the data of a file is. OSError."""
        index, path = self.indexes[number], self.indexes[number].path(row)
        place = Place(self._real(Dir(number, index.parent[row])), path[-1])
        if not index.flags[row] & METACOPY:
            return place
        at = syscalls.at(self._open.fd(place.real), place.name)
        node = self.stack.node(path[:-1])
        above = [self._real(one) for one in node.dirs] if node else [place.real]
        return redirect.data_of(self._open, above, place, at)[0]

    def _data(self, node: Node) -> tuple[int, int] | None:
        with contextlib.suppress(OSError):
            place = self._place(node.layer, node.row)
            known = self._known(place.real)
            if known is not None:
                row = self.indexes[known.layer].child(known.row, place.name)
                return None if row is None else (known.layer, row)
        return None


def _kept(layer: Layer) -> LayerIndex | None:
    """The index that a store has of an unpacked layer of an image."""
    path = indexes.beside(pathlib.Path(os.path.realpath(os.fsdecode(layer.path))))
    with contextlib.suppress(OSError, BadIndexError):
        if path is not None:
            return LayerIndex.load(path)
    return None


class _Source:
    """Lists one layer, for `building`."""

    def __init__(
        self, stack: LayerStack, layer: Layer, identity: Identity, warn: Callable[[str], None]
    ) -> None:
        self._stack, self._layer, self._identity, self._warn = stack, layer, identity, warn
        #: The directories that `children` will be asked for, by path.
        self._dirs: dict[Path, RealDir] = {(): layer.root}

    def root(self) -> Listed:
        """The root of the layer."""
        return self._listed(self._layer.root, b".", self._layer.root)._replace(name=b"")

    def children(self, path: Path) -> Iterable[Listed]:
        """What the directory holds."""
        real = self._dirs.pop(path)
        try:
            listing = merge.listing_of(self._stack, real)
        except OSError as exc:
            self._warn(f"{self._shown(real, b'')}: cannot be read: {describe(exc)}")
            return
        for name, is_dir in listing.entries.items():
            inside = RealDir(real.layer, real, name) if is_dir else None
            try:
                listed = self._listed(real, name, inside)
            except OSError as exc:
                self._warn(f"{self._shown(real, name)}: cannot be read: {describe(exc)}")
                continue
            if inside is not None:
                self._dirs[(*path, name)] = inside
            yield listed._replace(flags=listed.flags | (HIDES if name in listing.wh else 0))
        for name in (listing.masks | listing.wh) - listing.entries.keys():
            yield Listed(name, 0, HIDES)

    def _shown(self, real: RealDir, name: bytes) -> str:
        return printable(os.path.join(self._layer.path, real.path(), name).rstrip(b"/"))

    def _listed(self, parent: RealDir, name: bytes, itself: RealDir | None) -> Listed:
        """What `name` in a directory is; `itself`, if it is a directory."""
        fd = self._stack.fd(parent)
        path = syscalls.at(fd, name)
        st = os.stat(name, dir_fd=fd, follow_symlinks=False)
        status = self._identity.stored(self._layer, path, st)
        names = xattrs.names(path)
        target = self._target(fd, name, st) if stat.S_ISLNK(status.mode) else b""
        shown = self._xattrs(path, names)
        counted = self._layer.namespaces
        marks = {one[len(space) :] for one in names for space in counted if one.startswith(space)}
        if itself is None:
            flags = METACOPY if xattrs.METACOPY in marks else 0
        else:
            flags = self._flags(itself, names) | (REDIRECT if xattrs.REDIRECT in marks else 0)
        several = itself is None and st.st_nlink > 1
        return Listed(
            name, status.mode, flags, status.uid, status.gid, _size(status.mode, st, target),
            st.st_mtime_ns, status.rdev, target, xattrs=shown,
            file=(st.st_dev, st.st_ino) if several else None,
        )  # fmt: skip

    def _flags(self, real: RealDir, names: Sequence[bytes]) -> int:
        """The marks of a directory; none where it cannot be searched, of which `children` warns."""
        with contextlib.suppress(PermissionError):
            fd = self._stack.fd(real)
            flags = OPAQUE if onename.is_opaque(fd, self._layer.namespaces) else 0
            if self._layer.implied and xattrs.IMPLIED in names:
                mark = xattrs.get(fd, xattrs.IMPLIED)
                flags |= IMPLIED if mark == xattrs.IMPLIED_SELF else 0
            return flags
        return 0

    def _target(self, fd: int, name: bytes, st: os.stat_result) -> bytes:
        if stat.S_ISLNK(st.st_mode):
            return os.readlink(name, dir_fd=fd)
        held = os.open(name, _READ, dir_fd=fd)
        try:
            return os.read(held, _LINK_MAX)
        finally:
            os.close(held)

    def _xattrs(self, path: bytes, names: Sequence[bytes]) -> dict[bytes, bytes]:
        found = {}
        for name in names:
            shown = self._layer.shown_name(name)
            value = xattrs.get(path, name) if shown is not None else None
            if shown is not None and value is not None:
                found[shown] = value
        return found


def _size(mode: int, st: os.stat_result, target: bytes) -> int:
    if stat.S_ISLNK(mode):
        return len(target)
    return st.st_size if stat.S_ISREG(mode) else 0
