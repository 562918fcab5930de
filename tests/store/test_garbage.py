"""What is removed is all that nothing needs, and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest

from fuseoverlay.errors import ImageError, UsageError
from fuseoverlay.oci.model import OCI_LAYER, Descriptor, Digest
from fuseoverlay.store import places, sizes
from fuseoverlay.store.garbage import Removed, prune, remove
from fuseoverlay.store.images import Image, Images
from fuseoverlay.store.layers import stored, unpacked
from fuseoverlay.store.root import Store
from fuseoverlay.store.usage import disk_usage, usage
from tests.store.pictures import OTHER, Painter

DEBIAN = "docker.io/library/debian:12"
OTHERS = "localhost:5000/other:1"


@pytest.fixture
def two(paint: Painter, images: Images) -> Images:
    """Two images that share a layer, unpacked."""
    shared = paint.layer("shared")
    paint.name(paint.manifest(layers=[shared, paint.layer("a")]), DEBIAN)
    paint.name(paint.manifest(layers=[shared, paint.layer("b")]), OTHERS)
    for name in (DEBIAN, OTHERS):
        unpack(images, name)
    return images


def unpack(images: Images, name: str, held: contextlib.ExitStack | None = None) -> list[Path]:
    """The unpacked layers of an image, top first."""
    with stored(images.store, images.resolve(name).manifest, name) as found:
        return found.layers(held)


def files(store: Store) -> set[str]:
    """All blobs, partial blobs and unpacked layers."""
    patterns = ("blobs/*/*", "partial/*", "layers*/*/*")
    found = [path for pattern in patterns for path in store.root.glob(pattern)]
    return {str(path.relative_to(store.root)) for path in found}


def size(store: Store, names: set[str]) -> int:
    """What these take up: blobs by their length, layers on disk."""
    return sum(
        (store.root / name).stat().st_size
        if name.startswith(("blobs", "partial"))
        else disk_usage(store.root / name)
        for name in names
    )


def blobs(images: Images, *descriptors: Descriptor) -> set[str]:
    return {
        str(images.content.path(blob.digest).relative_to(images.store.root)) for blob in descriptors
    }


def check_gone(store: Store, before: set[str], sizes: int, removed: Removed) -> set[str]:
    """Check that what is said to be removed is gone; returns what that is."""
    gone = before - files(store)
    said = {f"blobs/{digest.algorithm}/{digest.hex}" for digest in removed.blobs}
    said |= {f"partial/{digest.algorithm}-{digest.hex}" for digest in removed.partial}
    assert gone == said | set(removed.layers)
    assert removed.freed == sizes
    assert os.listdir(store.tmp) == []
    return gone


def test_remove(two: Images) -> None:
    """What other images need stays."""
    store, before = two.store, files(two.store)
    image, other = two.resolve(DEBIAN), two.resolve(OTHERS)
    gone = blobs(two, *image.blobs) - blobs(two, *other.blobs)
    unpacked_now = [name for name in before if name.startswith("layers")]
    layer = next(name for name in unpacked_now if name.endswith(image.diff_ids[1].hex))
    total = size(store, {*gone, layer})
    removed = remove(two, "debian:12")
    assert removed.untagged == [DEBIAN]
    assert removed.images == [image.id]
    assert check_gone(store, before, total, removed) == {*gone, layer}
    assert [found.names for found in two.all()] == [(OTHERS,)]
    assert unpack(two, OTHERS)
    remove(two, OTHERS)
    assert files(store) == set()


@pytest.mark.parametrize("how", ["remove", "prune"])
def test_a_dry_run(two: Images, how: str) -> None:
    before, index = files(two.store), (two.store.root / "index.json").read_bytes()
    two.content.add(b"needless")

    def run(dry_run: bool) -> Removed:
        if how == "remove":
            return remove(two, "debian:12", dry_run=dry_run)
        return prune(two, unused=True, dry_run=dry_run)

    planned = run(True)
    assert files(two.store) == before | blobs(two, Descriptor("", Digest.of(b"needless"), 8))
    assert (two.store.root / "index.json").read_bytes() == index
    assert planned.freed
    assert run(False) == planned
    assert files(two.store) != before


def test_one_name_of_two(two: Images) -> None:
    before = files(two.store)
    two.tag(DEBIAN, "debian:bookworm")
    removed = remove(two, "debian:12")
    assert removed.untagged == [DEBIAN]
    assert not removed.images
    assert removed.freed == 0
    assert files(two.store) == before
    assert two.resolve("debian:bookworm")


def test_by_id_all_names_of_one_repository(two: Images) -> None:
    two.tag(DEBIAN, "debian:bookworm")
    image = two.resolve(DEBIAN)
    removed = remove(two, image.id.hex[:12])
    assert removed.untagged == [DEBIAN, "docker.io/library/debian:bookworm"]
    assert removed.images == [image.id]


def test_by_id_of_several_repositories(two: Images) -> None:
    two.tag(DEBIAN, "mine")
    image, before = two.resolve(DEBIAN), files(two.store)
    with pytest.raises(UsageError, match=r"several repositories.*-f"):
        remove(two, str(image.id))
    assert files(two.store) == before
    assert two.resolve("mine") == two.resolve(DEBIAN)
    assert remove(two, str(image.id), force=True).images == [image.id]


def test_what_is_not_there(two: Images) -> None:
    with pytest.raises(ImageError, match="no such image"):
        remove(two, "debian:13")


def test_several_platforms(paint: Painter, images: Images) -> None:
    """All of an index is needed, also what is for other machines; and nothing more of it is."""
    other = paint.manifest("s", platform=OTHER)
    missing = Descriptor(other.media_type, Digest.of(b"missing"), 5, {}, OTHER)
    paint.name(paint.index(paint.manifest("a"), paint.index(other), missing), DEBIAN)
    before = files(images.store)
    assert len(before) == 8
    assert prune(images, unused=False) == Removed()
    assert files(images.store) == before
    remove(images, DEBIAN)
    assert files(images.store) == set()


def test_a_part_that_has_a_name_stays(paint: Painter, images: Images) -> None:
    ours = paint.manifest("a")
    paint.name(paint.index(ours, paint.manifest("s", platform=OTHER)), DEBIAN)
    paint.name(ours, OTHERS)
    image = images.resolve(OTHERS)
    assert image.names == (DEBIAN, OTHERS)
    removed = remove(images, "debian:12")
    # The image has another name. What is only in the index goes.
    assert not removed.images
    assert files(images.store) == blobs(images, *image.blobs)


def test_artifacts_keep_what_they_need(paint: Painter, images: Images) -> None:
    config = paint.writer.add_json("application/vnd.oci.empty.v1+json", {})
    part = paint.writer.add_json("application/x", [1])
    data = {"schemaVersion": 2, "config": config.to_json(), "layers": [part.to_json()]}
    made = paint.writer.add_json("application/vnd.oci.image.manifest.v1+json", data)
    old = {"blobs": [paint.writer.add_json("application/y", [2]).to_json()]}
    artifact = paint.writer.add_json("application/vnd.oci.artifact.manifest.v1+json", old)
    paint.name(made, "a")
    paint.name(artifact, "b")
    before = files(images.store)
    assert len(before) == 5
    prune(images)
    assert files(images.store) == before
    remove(images, "a")
    remove(images, "b")
    assert files(images.store) == set()


def test_prune_takes_what_dangles_and_garbage(two: Images, paint: Painter, place: Path) -> None:
    wanted = files(two.store)
    paint.name(paint.manifest("dangling"))
    dangling = next(image for image in two.all() if image.dangling)
    unpack(two, dangling.id.hex)
    unnamed = Painter(place / "file")
    unnamed.name(unnamed.manifest("path"))
    unpacked(two.store, str(place / "file"))
    paint.manifest("needless")
    two.content.partial_path(Digest.of(b"x")).write_bytes(b"x" * 1000)
    before = files(two.store)
    total = size(two.store, before - wanted)
    removed = prune(two)
    assert removed.images == [dangling.id]
    assert removed.untagged == []
    assert check_gone(two.store, before, total, removed) == before - wanted
    assert len(removed.layers) == 2
    assert removed.partial == {Digest.of(b"x"): 1000}
    assert prune(two) == Removed()


def test_prune_of_all_unused(two: Images) -> None:
    with contextlib.ExitStack() as held:
        unpack(two, OTHERS, held)
        removed = prune(two, unused=True)
        assert removed.untagged == [DEBIAN]
        assert [image.names for image in two.all()] == [(OTHERS,)]
        assert prune(two, unused=True) == Removed()
    assert prune(two, unused=True).untagged == [OTHERS]
    assert files(two.store) == set()


def test_prune_of_what_is_wanted(two: Images, paint: Painter) -> None:
    paint.name(paint.manifest("x", config={"Labels": {"keep": "1"}}), "keep")
    paint.name(paint.manifest("y", config={"Labels": {"keep": "1"}}))

    def wanted(image: Image) -> bool:
        return "keep" not in image.labels

    assert sorted(prune(two, unused=True, wanted=wanted).untagged) == sorted([DEBIAN, OTHERS])
    assert [image.labels for image in two.all()] == [{"keep": "1"}] * 2


def test_what_is_in_use_stays(two: Images) -> None:
    with contextlib.ExitStack() as held:
        layers = unpack(two, DEBIAN, held)
        removed = remove(two, DEBIAN)
        assert removed.in_use == [str(layers[0].relative_to(two.store.root))]
        assert removed.layers == {}
        assert removed.blobs
        assert all((layer).is_dir() for layer in layers)
    removed = prune(two)
    assert list(removed.layers) == [str(layers[0].relative_to(two.store.root))]
    assert not layers[0].exists()
    assert layers[1].exists()


def test_a_shared_layer_in_use_does_not_make_an_image_used(two: Images) -> None:
    fd = places.hold(unpack(two, DEBIAN)[1])
    assert fd is not None
    assert sorted(prune(two, unused=True).untagged) == sorted([DEBIAN, OTHERS])
    os.close(fd)


def test_leased_blobs_stay(two: Images) -> None:
    """They are about to be named by somebody else."""
    digest = two.content.add(b"new")
    path = two.content.path(digest)
    with two.content.lease() as lease:
        lease.add([digest])
        removed = prune(two)
        assert removed.in_use == [str(path.relative_to(two.store.root))]
        assert path.exists()
        # Also blobs that another image is losing just now.
        image = two.resolve(DEBIAN)
        lease.add([blob.digest for blob in image.blobs])
        remove(two, DEBIAN)
        assert all(map(two.content.has, image.blobs))
    prune(two)
    assert not path.exists()
    assert not two.content.has(image.manifest)


def test_a_download_that_goes_on_stays(two: Images) -> None:
    blob = Descriptor(OCI_LAYER, Digest.of(b"12345"), 5)
    with two.content.partial(blob) as partial:
        assert partial is not None
        partial.write(b"123")
        assert prune(two).in_use == [f"partial/sha256-{blob.digest.hex}"]
        partial.write(b"45")
        partial.commit()
    assert list(prune(two).blobs) == [blob.digest]


def test_nothing_goes_while_it_is_unknown_what_is_needed(two: Images, paint: Painter) -> None:
    broken = paint.name(paint.manifest("x"), "broken")
    path = two.content.path(broken.digest)
    path.write_bytes(b"?" * broken.size)
    before = files(two.store)
    removed = remove(two, DEBIAN)
    assert removed.untagged == [DEBIAN]
    assert any(
        problem.startswith("broken: ") and str(broken.digest) in problem
        for problem in removed.problems
    )
    assert removed.freed == 0
    assert files(two.store) == before
    # Without it, all is known again.
    assert remove(two, "broken").problems == []
    assert prune(two).freed
    assert [image.names for image in two.all()] == [(OTHERS,)]
    assert len(files(two.store)) == 6


def test_foreign_files_stay(two: Images) -> None:
    foreign = [two.store.root / name for name in ("README", "blobs/sha256/README", "partial/x")]
    for path in foreign:
        path.touch()
    prune(two, unused=True)
    assert all(path.exists() for path in foreign)


def test_what_other_tools_wrote_stays(two: Images) -> None:
    path = two.store.root / "index.json"
    data = json.loads(path.read_bytes())
    path.write_text(json.dumps({**data, "vendor": 1, "manifests": [*data["manifests"], "odd"]}))
    remove(two, DEBIAN)
    data = json.loads(path.read_bytes())
    assert data["vendor"] == 1
    assert data["manifests"][1:] == ["odd"]


# usage


def test_usage(two: Images, paint: Painter) -> None:
    two.content.add(b"needless")
    two.content.partial_path(Digest.of(b"x")).write_bytes(b"x" * 1000)
    with contextlib.ExitStack() as held:
        unpack(two, DEBIAN, held)
        found = usage(two)
    paths = files(two.store)
    assert found.total == size(two.store, paths)
    assert found.needless == 8
    assert found.partial == 1000
    assert [image.image.names for image in found.images] == [(DEBIAN,), (OTHERS,)]
    shared = two.resolve(DEBIAN).layers[0].size
    assert [image.shared for image in found.images] == [shared, shared]
    assert [image.unique for image in found.images] == [
        two.resolve(name).size - shared for name in (DEBIAN, OTHERS)
    ]
    assert sorted(layer.in_use for layer in found.layers) == [False, True, True]
    assert all(layer.needed for layer in found.layers)
    remove(two, OTHERS)
    assert [image.shared for image in usage(two).images] == [0]


def test_disk_usage(place: Path) -> None:
    """As du counts, and however deep."""
    (place / "a").write_bytes(b"x" * 100_000)
    (place / "d").mkdir()
    (place / "d/b").hardlink_to(place / "a")
    (place / "hole").touch()
    os.truncate(place / "hole", 1 << 30)
    expected = sum(os.lstat(place / name).st_blocks * 512 for name in (".", "a", "d", "hole"))
    assert disk_usage(place) == expected
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(200):
        os.mkdir("n" * 100, dir_fd=fd)
        inner = os.open("n" * 100, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        expected += os.fstat(inner).st_blocks * 512
        os.close(fd)
        fd = inner
    os.close(fd)
    assert disk_usage(place) >= expected


def test_the_size_of_what_stays_is_kept(two: Images) -> None:
    """It is measured only when a layer is unpacked."""
    before = Images(two.store).resolve(DEBIAN)
    assert None not in before.unpacked
    manifest = two.content.read(before.manifest), two.content.read(before.config)
    layers = [two.content.read(layer) for layer in before.layers]
    with contextlib.ExitStack() as held:
        unpack(two, DEBIAN, held)
        assert remove(two, DEBIAN).in_use
    for data in (*manifest, *layers):
        two.content.add(data)
    with two.names.editing() as index:
        index.set(DEBIAN, before.manifest)
    assert Images(two.store).resolve(DEBIAN).unpacked == before.unpacked
    remove(two, DEBIAN)
    remove(two, OTHERS)
    prune(two)
    assert sizes.noted(two.store) == []
