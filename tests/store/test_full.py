"""A store on a full disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuseoverlay.store.garbage import prune, remove
from fuseoverlay.store.images import Images
from fuseoverlay.store.layers import stored
from fuseoverlay.store.root import Store
from tests.store.pictures import painter
from tests.store.test_garbage import DEBIAN, OTHERS, files, unpack


@pytest.mark.parametrize("how", ["remove", "prune"])
def test_a_full_disk_is_freed(small: Path, how: str) -> None:
    """Not even the index can be written: what can be unpacked again goes before it."""
    store = Store(small / "store")
    paint, images = painter(store), Images(store)
    kept = paint.layer("kept")
    paint.name(paint.manifest(layers=[kept]), OTHERS)
    for name in (DEBIAN, None):
        gone = paint.manifest(layers=[kept, paint.layer("gone")])
        if name if how == "remove" else not name:
            paint.name(gone, name)
    for image in images.all():
        with stored(store, image.manifest, "x") as found:
            found.layers()
    before = files(store)
    with open(small / "fill", "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    assert store.is_full()
    removed = remove(images, DEBIAN) if how == "remove" else prune(images)
    assert len(removed.images) == len(removed.layers) == 1
    assert [image.names for image in images.all()] == [(OTHERS,)]
    left = files(store)
    assert left < before and unpack(images, OTHERS)
    assert files(store) == left
