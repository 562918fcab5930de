"""What the store takes up on disk, by kind and by image."""

from __future__ import annotations

import contextlib
import os
import stat
from collections import Counter
from dataclasses import dataclass
from typing import Final

from fuseoverlay.oci.model import Digest
from fuseoverlay.store import indexes, places
from fuseoverlay.store.images import Image, Images
from fuseoverlay.store.reach import reach
from fuseoverlay.system import syscalls
from fuseoverlay.system.syscalls import DIR_FLAGS

#: What st_blocks counts in; stat(2).
_BLOCK: Final = 512


@dataclass(frozen=True, slots=True)
class ImageUsage:
    """The blobs of an image, in bytes: those that other images need, too, and the others."""

    image: Image
    shared: int
    unique: int


@dataclass(frozen=True, slots=True)
class LayerUsage:
    """An unpacked layer: its directory relative to the store, its size on disk in bytes, whether
    somebody uses it, and whether an image of the store has it."""

    place: str
    size: int
    in_use: bool
    needed: bool


@dataclass(frozen=True, slots=True)
class Usage:
    """What the store takes up, in bytes. `needless`: of the blobs, those that no image needs;
    `partials`: how many downloads are not complete. `indexes`: the size of each file about layers
    that `layers`, `which` and others have kept."""

    images: tuple[ImageUsage, ...]
    blobs: int
    needless: int
    layers: tuple[LayerUsage, ...]
    partial: int
    partials: int
    indexes: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        """All of it together."""
        layers = sum(layer.size for layer in self.layers)
        return self.blobs + self.partial + layers + sum(self.indexes)


def usage(images: Images) -> Usage:
    """What the store takes up now. Reads the status of every unpacked file. ImageError, OSError."""
    content = images.content
    listed = images.all()
    needed = reach(content, [entry.descriptor for entry in images.names.entries()])
    sizes = dict(content.blobs())
    sizes_of_partials = [size for _, size in content.partials()]
    return Usage(
        images=_of_images(images, listed, sizes),
        blobs=sum(sizes.values()),
        needless=sum(size for digest, size in sizes.items() if digest not in needed.blobs),
        layers=tuple(_of_layers(images, needed.layers)),
        partial=sum(sizes_of_partials),
        partials=len(sizes_of_partials),
        indexes=tuple(map(indexes.size, indexes.all_of(images.store))),
    )


def _of_images(
    images: Images, listed: list[Image], sizes: dict[Digest, int]
) -> tuple[ImageUsage, ...]:
    needs = [
        reach(images.content, [entry.descriptor for entry in image.entries]).blobs
        for image in listed
    ]
    users = Counter(digest for blobs in needs for digest in blobs)
    found = []
    for image, blobs in zip(listed, needs, strict=True):
        shared = sum(sizes.get(digest, 0) for digest in blobs if users[digest] > 1)
        unique = sum(sizes.get(digest, 0) for digest in blobs if users[digest] == 1)
        found.append(ImageUsage(image, shared, unique))
    return tuple(found)


def _of_layers(images: Images, needed: set[str]) -> list[LayerUsage]:
    store = images.store
    paths = places.unpacked(store)
    with store.locked() if store.is_writable() else contextlib.nullcontext():
        used = [places.is_used(path) for path in paths]
    found = []
    for path, in_use in zip(paths, used, strict=True):
        with contextlib.suppress(FileNotFoundError):
            place = str(path.relative_to(store.root))
            is_needed = f"{path.parent.name}/{path.name}" in needed
            found.append(LayerUsage(place, disk_usage(path), in_use, is_needed))
    return found


def disk_usage(path: str | os.PathLike[str]) -> int:
    """The bytes on disk of a directory and everything below, of a file with several names once.
    Directories that may not be read count for themselves. OSError."""
    root = os.open(path, DIR_FLAGS)
    try:
        total = os.fstat(root).st_blocks * _BLOCK
        seen: set[int] = set()
        todo = [b"."]
        while todo:
            for name, st in _children(root, todo.pop()):
                if stat.S_ISDIR(st.st_mode):
                    todo.append(name)
                elif st.st_nlink > 1 and st.st_ino in seen:
                    continue
                seen.add(st.st_ino)
                total += st.st_blocks * _BLOCK
        return total
    finally:
        os.close(root)


def _children(root: int, path: bytes) -> list[tuple[bytes, os.stat_result]]:
    """What the directory `path` below `root` holds, as paths below it, too."""
    try:
        fd = syscalls.open_beneath(root, path, DIR_FLAGS)
    except PermissionError:
        return []
    try:
        with os.scandir(fd) as entries:
            return [
                (path + b"/" + os.fsencode(entry.name), entry.stat(follow_symlinks=False))
                for entry in entries
            ]
    finally:
        os.close(fd)
