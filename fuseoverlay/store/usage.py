"""What the store takes up on disk, by kind and by image."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass

from fuseoverlay.oci.model import Digest
from fuseoverlay.store import places
from fuseoverlay.store.images import Image, Images
from fuseoverlay.store.reach import reach
from fuseoverlay.store.sizes import disk_usage


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
    """What the store takes up, in bytes. `needless`: of the blobs, those that no image needs."""

    images: tuple[ImageUsage, ...]
    blobs: int
    needless: int
    layers: tuple[LayerUsage, ...]
    partial: int

    @property
    def total(self) -> int:
        """All of it together."""
        return self.blobs + self.partial + sum(layer.size for layer in self.layers)


def usage(images: Images) -> Usage:
    """What the store takes up now. Reads the status of every unpacked file. ImageError, OSError."""
    content = images.content
    listed = images.all()
    needed = reach(content, [entry.descriptor for entry in images.names.entries()])
    sizes = dict(content.blobs())
    return Usage(
        images=_of_images(images, listed, sizes),
        blobs=sum(sizes.values()),
        needless=sum(size for digest, size in sizes.items() if digest not in needed.blobs),
        layers=tuple(_of_layers(images, needed.layers)),
        partial=sum(size for _, size in content.partials()),
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
