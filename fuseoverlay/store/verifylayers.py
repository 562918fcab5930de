"""Whether unpacked layers are still what their blobs unpack to.

A layer was verified when it was unpacked; whoever writes into it afterwards changes what all mounts
show. So it is unpacked once more, and compared. Times are not: some come from the unpacking.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fuseoverlay.errors import ImageError
from fuseoverlay.oci.blobs import open_image
from fuseoverlay.oci.job import Job, store_error
from fuseoverlay.oci.unpack import unpack_blob
from fuseoverlay.store import places, sizes
from fuseoverlay.store.images import Image, Images
from fuseoverlay.store.layers import override

_CHUNK: Final = 256 << 10


@dataclass(frozen=True, slots=True)
class Changed:
    """An unpacked layer at `path`, of `image` among others, in which `name` is not as it was."""

    path: pathlib.Path
    name: str
    image: Image


def changed(images: Images, wanted: list[Image]) -> list[Changed]:
    """The layers of these images that are unpacked and not as they should be. The blobs have to be
    right: layers of which they are not are left out. StoreError."""
    found: list[Changed] = []
    seen: set[pathlib.Path] = set()
    try:
        for image in wanted:
            if image.problem is None:
                found += _of_image(images, image, seen)
    except OSError as exc:
        raise store_error(exc, "cannot compare layers", images.store.root) from exc
    return found


def remove(images: Images, layer: Changed) -> bool:
    """Remove a layer, so that it is unpacked again; False if somebody uses it. StoreError."""
    store = images.store
    try:
        with (
            store.workspace() as work,
            store.locked(),
            places.taken(layer.path) as free,
        ):
            if free and layer.path.exists():
                os.rename(layer.path, work / "layer")
                sizes.forget(store, f"{layer.path.parent.name}/{layer.path.name}")
            return free
    except OSError as exc:
        raise store_error(exc, "cannot remove a layer", store.root) from exc


def _of_image(images: Images, image: Image, seen: set[pathlib.Path]) -> Iterator[Changed]:
    recorded = override(images.store)
    base = images.store.root / (places.OVERRIDE if recorded else places.REAL)
    with open_image(str(images.store.root)) as source, contextlib.ExitStack() as held:
        below: list[pathlib.Path] = []
        pairs = places.places(image.diff_ids)
        layers = source.image(image.manifest).layers
        for layer, pair in zip(layers, pairs, strict=bool(layers)):
            path = next((base / place for place in pair if (base / place).is_dir()), None)
            fd = None if path is None else places.hold(path)
            if path is None or fd is None:
                # What is above may have been made with it.
                return
            held.callback(os.close, fd)
            if path not in seen:
                seen.add(path)
                job = Job(recorded, [*reversed(below)], where=str(layer.diff_id),
                          place=str(images.store.root))  # fmt: skip
                with images.store.workspace() as work, contextlib.suppress(ImageError):
                    target = work / "layer"
                    target.mkdir(mode=0o700)
                    with source.open_layer(layer) as blob:
                        unpack_blob(blob, layer.diff_id, str(target), job)
                    name = difference(path, target)
                    if name is not None:
                        yield Changed(path, name, image)
            below.append(path)


def difference(one: pathlib.Path, other: pathlib.Path) -> str | None:
    """The first name at which two trees differ, `.` for their roots; None if they are equal."""
    return next(_differences(one, other), None)


def _differences(one: pathlib.Path, other: pathlib.Path) -> Iterator[str]:
    todo = ["."]
    while todo:
        name = todo.pop()
        a, b = one / name, other / name
        try:
            if _described(a) != _described(b) or not _same_content(a, b):
                yield name
            elif a.is_dir() and not a.is_symlink():
                inside, expected = set(os.listdir(a)), set(os.listdir(b))
                yield from (f"{name}/{child}" for child in sorted(inside ^ expected))
                todo += sorted((f"{name}/{child}" for child in inside & expected), reverse=True)
        except OSError as exc:
            # Deeper than a path can say; nobody writes there by accident.
            if exc.errno != errno.ENAMETOOLONG:
                raise


def _described(path: pathlib.Path) -> tuple[object, ...]:
    st = os.lstat(path)
    names = os.listxattr(path, follow_symlinks=False)
    attributes = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
    size = 0 if stat.S_ISDIR(st.st_mode) else st.st_size
    return st.st_mode, st.st_uid, st.st_gid, st.st_rdev, size, attributes


def _same_content(one: pathlib.Path, other: pathlib.Path) -> bool:
    mode = os.lstat(one).st_mode
    if stat.S_ISLNK(mode):
        return os.readlink(one) == os.readlink(other)
    if not stat.S_ISREG(mode):
        return True
    with open(one, "rb") as a, open(other, "rb") as b:
        while data := a.read(_CHUNK):
            if data != b.read(_CHUNK):
                return False
    return True
