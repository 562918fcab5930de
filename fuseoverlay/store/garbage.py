"""Removing images, and what nothing names any more.

First names go, durably; then what only they needed is moved away; last of all it is deleted. Names
and leases cannot change in between. What is in use stays, and is reported: unpacked layers of a
mount, blobs that another process is about to name (`content.Lease`), downloads that go on.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from fuseoverlay.errors import StoreError, UsageError
from fuseoverlay.oci.job import store_error
from fuseoverlay.oci.model import Digest
from fuseoverlay.store import indexes, places, sizes
from fuseoverlay.store.content import Content, is_at
from fuseoverlay.store.images import Image, Images
from fuseoverlay.store.names import Editing, repository_of
from fuseoverlay.store.reach import Reach, reach
from fuseoverlay.store.root import Store, empty, open_regular
from fuseoverlay.store.usage import disk_usage

#: Seconds for which a blob that nothing names is left for its writer to name it.
_NEW: Final = 3600


@dataclass(slots=True)
class Removed:
    """What was removed, or would be.

    `untagged`: full names. `images`: ids. `blobs`, `partial`: their sizes in bytes. `layers`:
    directories, relative to the store, and their sizes on disk. `indexes`: files about layers, and
    their sizes. `in_use`: what was left because
    somebody uses it, relative to the store, `new` because another program may be about to name it.
    `problems`: why nothing but names was removed.
    """

    untagged: list[str] = field(default_factory=list)
    images: list[Digest] = field(default_factory=list)
    blobs: dict[Digest, int] = field(default_factory=dict)
    partial: dict[Digest, int] = field(default_factory=dict)
    layers: dict[str, int] = field(default_factory=dict)
    indexes: dict[str, int] = field(default_factory=dict)
    in_use: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def freed(self) -> int:
        """How many bytes that freed."""
        sizes = (self.blobs, self.partial, self.layers, self.indexes)
        return sum(sum(found.values()) for found in sizes)


def remove(images: Images, text: str, *, force: bool = False, dry_run: bool = False) -> Removed:
    """Remove the image that `text` names, or only that name if it has others.

    By id or digest all its names go; `force` is needed if they are of several repositories.
    ImageError if there is no such image, StoreError.
    """
    with _editing(images, dry_run) as (index, removal):
        image, entry = images.find(text)
        others = [name for name in image.names if entry is None or name != entry.name]
        if entry is not None and entry.name is not None and others:
            removal.untag(index, [entry.name])
        else:
            if entry is None and not force:
                _check_repositories(image, text)
            removal.forget(index, image)
        removal.collect(index, everything=False)
    return removal.removed


def prune(
    images: Images,
    *,
    unused: bool = False,
    wanted: Callable[[Image], bool] = lambda image: True,
    dry_run: bool = False,
) -> Removed:
    """Remove dangling images, or with `unused` all that no mount uses, of those that are `wanted`;
    and all that no image needs: blobs, unpacked layers, what broken downloads left. ImageError,
    StoreError."""
    with _editing(images, dry_run) as (index, removal):
        for image in images.of(index.entries()):
            unneeded = image.dangling or (unused and not _is_mounted(images, image))
            if unneeded and wanted(image):
                removal.forget(index, image)
            elif wanted(image):
                removal.forget_replaced(index, image)
        removal.collect(index, everything=True)
    return removal.removed


def _is_mounted(images: Images, image: Image) -> bool:
    """Whether it is used, for any of its platforms."""
    return any(is_used(images.store, one) for one in images.platforms(image))


def _is_new(path: pathlib.Path) -> bool:
    """Whether a blob is so new that another program may be about to name it: it knows nothing of
    our leases."""
    return time.time() - os.stat(path).st_mtime < _NEW


def is_used(store: Store, image: Image) -> bool:
    """Whether all unpacked layers of the image are in use, as those of a mount are. Inside
    `Store.locked`."""
    if image.problem is not None:
        return False
    return any(
        all(
            any(places.is_used(store.root / base / place) for place in pair)
            for pair in places.places(image.diff_ids)
        )
        for base in (places.REAL, places.OVERRIDE)
    )


@contextlib.contextmanager
def _editing(images: Images, dry_run: bool) -> Iterator[tuple[Editing, _Removal]]:
    """The index, and a removal that is done or only planned. What it moved away is deleted after
    the lock is given back."""
    store = images.store
    try:
        with contextlib.ExitStack() as after:
            moved = None if dry_run else after.enter_context(store.trash())
            with images.names.editing() as index:
                yield index, _Removal(images.content, index, moved)
                if dry_run:
                    index.cancel()
    except OSError as exc:
        raise store_error(exc, "cannot remove images", store.root) from exc


class _Removal:
    """One removal. What goes is moved to the directory `moved`; if that is None, nothing goes."""

    def __init__(self, content: Content, index: Editing, moved: pathlib.Path | None) -> None:
        self._content = content
        self._root = content.store.root
        self._moved = moved
        self._before = [entry.descriptor for entry in index.entries()]
        self._count = 0
        self.removed = Removed()

    def untag(self, index: Editing, names: list[str]) -> None:
        """Names go, no image."""
        index.untag(names)
        self.removed.untagged += names

    def forget(self, index: Editing, image: Image) -> None:
        """An image goes, with all its names."""
        index.forget(image.digests)
        self.removed.untagged += image.names
        self.removed.images.append(image.id)

    def forget_replaced(self, index: Editing, image: Image) -> None:
        """What once had a name of the image goes: it has the same config, and other layers."""
        named = {entry.descriptor.digest for entry in image.entries if entry.name}
        index.forget({entry.descriptor.digest for entry in image.entries} - named)

    def collect(self, index: Editing, *, everything: bool) -> None:
        """Remove what nothing needs any more: of all there is, or of what was needed before."""
        after = reach(self._content, [entry.descriptor for entry in index.entries()])
        known = reach(self._content, self._before)
        before = None if everything else known
        if self._moved is not None:
            self._save(index, before, after)
        if after.unreadable:
            self.removed.problems += self._unreadable(index)
        if index.unknown:
            self.removed.problems.append(f"index.json has {index.unknown} entries of another kind")
        if self.removed.problems:
            # What they need is not known, so nothing can be told to be needless.
            return
        self._collect_blobs(known, after, everything=everything)
        self._collect_layers(before, after)
        self._collect_indexes(before, after)
        if self._moved is not None:
            self._forget_sizes(after, everything=everything)
        if everything:
            self._collect_partial()

    def _save(self, index: Editing, before: Reach | None, after: Reach) -> None:
        """Save the index. A full disk must not keep anybody from freeing it: layers that can be
        unpacked again go first then."""
        try:
            index.save()
        except (OSError, StoreError):
            if self._moved is None or after.unreadable or not self._content.store.is_full():
                raise
            self._collect_layers(before, after)
            empty(self._moved)
            index.save()

    def _unreadable(self, index: Editing) -> list[str]:
        """What cannot be read, with the image that it is of."""
        return [
            f"{entry.name or entry.descriptor.digest}: {why}"
            for entry in index.entries()
            for why in reach(self._content, [entry.descriptor]).unreadable
        ]

    def _collect_blobs(self, before: Reach, after: Reach, *, everything: bool) -> None:
        leased = self._content.leased()
        for digest, size in list(self._content.blobs()):
            was_needed = digest in before.blobs
            if digest in after.blobs or not (everything or was_needed):
                continue
            path = self._content.path(digest)
            if digest in leased:
                self._leave(path)
                continue
            if not was_needed and _is_new(path):
                self.removed.new.append(str(path.relative_to(self._root)))
                continue
            self._move(path)
            self.removed.blobs[digest] = size

    def _collect_layers(self, before: Reach | None, after: Reach) -> None:
        for path in places.unpacked(self._content.store):
            place = f"{path.parent.name}/{path.name}"
            if place in after.layers or (before is not None and place not in before.layers):
                continue
            with places.taken(path) as free:
                if not free or str(path.relative_to(self._root)) in self._open_elsewhere:
                    self._leave(path)
                    continue
                self.removed.layers[str(path.relative_to(self._root))] = disk_usage(path)
                self._move(path)

    @functools.cached_property
    def _open_elsewhere(self) -> set[str]:
        """Looked for only once a layer is to go: it takes a look at every process."""
        return places.open_elsewhere(self._root)

    def _forget_sizes(self, after: Reach, *, everything: bool) -> None:
        """Forget the sizes of layers that are gone. One that is unpacked is not measured again."""
        store = self._content.store
        there = {f"{path.parent.name}/{path.name}" for path in places.unpacked(store)}
        gone = {place.partition("/")[2] for place in self.removed.layers}
        for place in sizes.noted(store):
            if place not in after.layers | there and (everything or place in gone):
                sizes.forget(store, place)

    def _collect_indexes(self, before: Reach | None, after: Reach) -> None:
        """Remove what is known of layers that no image has. Nobody depends on it: whoever has it
        open keeps it."""
        for path in indexes.all_of(self._content.store):
            place = indexes.layer_of(path)
            if place not in after.layers and (before is None or place in before.layers):
                self.removed.indexes[str(path.relative_to(self._root))] = indexes.size(path)
                if self._moved is not None:
                    indexes.forget(path)

    def _collect_partial(self) -> None:
        for digest, size in list(self._content.partials()):
            path = self._content.partial_path(digest)
            # Whoever completes it may be faster.
            with contextlib.suppress(FileNotFoundError, StoreError), open_regular(path) as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    self._leave(path)
                    continue
                if is_at(file.fileno(), path):
                    self._move(path)
                    self.removed.partial[digest] = size

    def _move(self, path: pathlib.Path) -> None:
        if self._moved is not None:
            self._count += 1
            os.rename(path, self._moved / str(self._count))

    def _leave(self, path: pathlib.Path) -> None:
        self.removed.in_use.append(str(path.relative_to(self._root)))


def _check_repositories(image: Image, text: str) -> None:
    repositories = {repository_of(name) for name in image.names}
    if len(repositories) > 1:
        what = f"the image has names in several repositories: {', '.join(image.names)}"
        raise UsageError(what, where=text, hint="remove them one by one, or use -f for all")
