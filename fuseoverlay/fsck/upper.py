"""The check of the upper directory: a walk over the upper, merged with the lowers.

`hiding`, `directories` and `files` check what the walk meets.

Sources: kernel Documentation/filesystems/overlayfs.rst and, for what is worth checking,
fsck.overlay of overlayfs-progs.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from typing import NamedTuple

from fuseoverlay.fsck import empty
from fuseoverlay.fsck.directories import Directories
from fuseoverlay.fsck.files import Files
from fuseoverlay.fsck.hiding import Hiding
from fuseoverlay.fsck.objects import Objects
from fuseoverlay.fsck.origins import Origins
from fuseoverlay.fsck.problems import Problem
from fuseoverlay.layers import merge, redirect, whiteout
from fuseoverlay.layers.index import Found, Index
from fuseoverlay.layers.layer import Place, RealDir
from fuseoverlay.layers.stack import LayerStack
from fuseoverlay.overlay import hardlinks
from fuseoverlay.system import handles


class _Node(NamedTuple):
    """A merged directory; `lowers` as in `inodes.Directory`."""

    upper: RealDir | None
    lowers: tuple[RealDir, ...]
    parent: _Node | None = None


class UpperCheck:
    """Walks the merged tree wherever the upper is part of it, and remembers what the checks of the
    work directory and of mixed dialects ask for."""

    def __init__(
        self, stack: LayerStack, origins: Origins, *, indexed: Set[tuple[int, int]] | None
    ) -> None:
        """`indexed`: the files of the index, which is checked later; None: the index is not known.
        If there are any, the walk also goes through directories that only lowers have, to fill
        `lower_names`."""
        self.stack = stack
        self.objects = Objects(stack, origins)
        self.root = self.objects.root
        self.hiding = Hiding(self.objects)
        self.files = Files(self.objects, indexed)
        self._directories = Directories(self.objects)
        self._everywhere = bool(indexed)
        #: For each name in the index: how many visible names in the lowers would lead to it.
        self.lower_names: Counter[bytes] = Counter()
        #: How many directories have a redirect that leads to a lower directory.
        self.redirected = 0
        #: An empty lower directory where the lowers lack something: see the module `empty`.
        self.empty: RealDir | None = None

    def problems(self) -> Iterator[Problem]:
        """Everything that is wrong, directory by directory."""
        yield from self._attributes_of_root()
        pending = [_Node(self.root, tuple(layer.root for layer in self.stack.lowers))]
        while pending:
            node = pending.pop()
            inside: list[_Node] = []
            try:
                for problem in self._directory(node, inside):
                    if problem.by_lowers and self.empty is None:
                        self.empty = self._empty_above(node)
                    yield problem
            except OSError as exc:
                yield self.objects.unreadable(node.upper or node.lowers[0], b"", exc)
            pending += reversed(inside)

    def _empty_above(self, node: _Node | None) -> RealDir | None:
        """An empty lower directory that the node, or a directory above it, merges with."""
        while node is not None:
            if node.upper is not None and self.objects.is_opaque(node.upper):
                return None
            found = empty.first(self.stack, node.lowers)
            if found is not None:
                return found
            node = node.parent
        return None

    def _attributes_of_root(self) -> Iterator[Problem]:
        try:
            own = self.objects.own(self.root, b"")
            yield from self.objects.origin(self.root, b"", own)
        except OSError as exc:
            yield self.objects.unreadable(self.root, b"", exc)

    def _directory(self, node: _Node, inside: list[_Node]) -> Iterator[Problem]:
        """Check the entries of one directory; its subdirectories to be walked are added to
        `inside`."""
        index, used = merge.scan_nowait(self.stack, node.upper, node.lowers)
        if self._everywhere:
            self._count_lower_names(index)
        if node.upper is not None:
            yield from self._entries(node, node.upper, index, is_opaque=not used)
        for name in sorted(index.upper.keys() | index.lower if self._everywhere else index.upper):
            found = index.find(name)
            if found is None or not found.is_dir:
                continue
            try:
                yield from self._subdirectory(node, node.lowers[:used], name, found, inside)
            except OSError as exc:
                yield self.objects.unreadable(node.upper or node.lowers[0], name, exc)

    def _count_lower_names(self, index: Index) -> None:
        for name in index.lower:
            found = index.find(name)
            if found is None or found.in_upper or found.lower_file is None:
                continue
            fd = self.stack.fd(found.lower_file)
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if hardlinks.may_be_indexed(st):
                origin = handles.encode(fd, name, found.lower_file.layer.uuid_of(st))
                if origin is not None:
                    self.lower_names[hardlinks.index_name(origin)] += 1

    def _entries(
        self, node: _Node, upper: RealDir, index: Index, *, is_opaque: bool
    ) -> Iterator[Problem]:
        """Check everything in a directory of the upper except its subdirectories."""
        with self.stack.listing_fd(upper) as fd:
            names = sorted(map(os.fsencode, os.listdir(fd)))
        # The kernel ignores an opaque mark of the root.
        root_marked = upper is self.root and is_opaque
        for name in names:
            place = Place(upper, name)
            try:
                if name == whiteout.WH_OPAQUE:
                    yield from self.hiding.opaque_file(place, hides=bool(node.lowers))
                elif name.startswith(whiteout.WH_PREFIX):
                    yield from self.hiding.wh_name(place, index, assume_hiding=root_marked)
                elif name in index.masks:
                    yield from self.hiding.mask(place, hides=root_marked or index.covers(name))
                if index.upper.get(name) is False:
                    yield from self.files.problems(place, node.lowers)
            except OSError as exc:
                yield self.objects.unreadable(upper, name, exc)

    def _subdirectory(
        self, parent: _Node, lowers: Sequence[RealDir], name: bytes, found: Found,
        inside: list[_Node],
    ) -> Iterator[Problem]:  # fmt: skip
        upper = None
        if found.in_upper and parent.upper is not None:
            upper = self.stack.upper_dir(parent.upper, name)
        elif not self._everywhere:
            return
        own = self.objects.own(upper, b"") if upper is not None else []
        if upper is not None and own:
            yield from self.objects.origin(upper, b"", own)
            yield from self._directories.opaque_value(upper, own)
            refused = self._directories.refused_redirect(upper)
            if refused is not None:
                yield refused
                return
        same_name = [RealDir(real.layer, real, name) for real in found.lower_dirs]
        marks, below = redirect.merged(self.stack, lowers, upper, same_name)
        inside.append(_Node(upper, below, parent))
        if upper is None:
            return
        if below:
            self.redirected += marks.redirect is not None
            yield from self._directories.claim(upper, below[0])
        elif marks.redirect is not None:
            self.empty = self.empty or empty.on_the_way(self.stack, marks.redirect)
            yield self._directories.dead_redirect(upper, marks.redirect, own)
