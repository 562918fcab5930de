"""Every blob is read anew; what is wrong is found, with the images that need it."""

from __future__ import annotations

import pytest

from fuseoverlay.oci.model import Descriptor, Digest
from fuseoverlay.store.images import Images
from fuseoverlay.store.load import load
from fuseoverlay.store.verify import aside, verify
from tests.store.pictures import OTHER, Painter

DEBIAN = "docker.io/library/debian:12"


@pytest.fixture
def shared(paint: Painter, images: Images) -> Descriptor:
    """A layer of two images, one of them in an index."""
    layer = paint.layer("shared")
    missing = Descriptor(paint.manifest("s").media_type, Digest.of(b"missing"), 5, {}, OTHER)
    one = paint.manifest(layers=[layer, paint.layer("a")])
    paint.name(paint.index(one, missing), DEBIAN)
    paint.name(paint.manifest(layers=[layer]), "other")
    return layer.descriptor


def test_all_is_right(images: Images, shared: Descriptor) -> None:
    steps: list[int] = []
    assert verify(images, progress=steps.append) == []
    sizes = dict(images.content.blobs())
    needed = {blob.digest for image in images.all() for blob in image.blobs}
    indexes = {digest for image in images.all() for digest in image.digests}
    assert sum(steps) == sum(sizes[digest] for digest in needed | indexes)


@pytest.mark.parametrize("damage", ["missing", "cut", "wrong"])
def test_a_broken_layer(images: Images, shared: Descriptor, damage: str) -> None:
    path = images.content.path(shared.digest)
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(whole[:-1] if damage == "cut" else whole[:-1] + b"?")
    (broken,) = verify(images)
    assert broken.blob.digest == shared.digest
    assert {"missing": "missing", "cut": "bytes, it", "wrong": "digest"}[damage] in broken.problem
    assert [entry.name for entry in broken.entries] == [DEBIAN, "other"]
    (one,) = [entry for entry in images.names.entries() if entry.name == "other"]
    assert [found.entries for found in verify(images, [one])] == [(one,)]
    there = path.exists()
    with pytest.raises(KeyError), aside(images, broken.blob):
        assert not path.exists()
        raise KeyError
    assert path.exists() == there


@pytest.mark.parametrize("damage", ["missing", "wrong"])
def test_a_broken_manifest(images: Images, shared: Descriptor, damage: str) -> None:
    image = images.resolve("other")
    path = images.content.path(image.manifest.digest)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"?" * image.manifest.size)
    (broken,) = verify(images)
    assert broken.blob.digest == image.manifest.digest
    assert [entry.name for entry in broken.entries] == ["other"]


def test_loading_again_repairs(images: Images, place: object, paint: Painter) -> None:
    source = Painter(f"{place}/source")
    manifest = source.name(source.manifest("a"), DEBIAN)
    load(images.store, f"{place}/source")
    for blob in images.resolve("debian:12").blobs:
        path = images.content.path(blob.digest)
        whole = path.read_bytes()
        path.write_bytes(bytes(len(whole)))
        (broken,) = verify(images)
        with aside(images, broken.blob):
            load(images.store, f"{place}/source")
        assert path.read_bytes() == whole
        assert verify(images) == []
    assert images.resolve("debian:12").digests == (manifest.digest,)
