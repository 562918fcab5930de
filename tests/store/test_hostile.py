"""What strange images, other programs and odd directories must not do to a store."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fuseoverlay.errors import ImageError, StoreError, UsageError
from fuseoverlay.oci import model
from fuseoverlay.oci.layout import Node, layer_tar
from fuseoverlay.oci.model import Descriptor, Digest
from fuseoverlay.store import garbage, largest, places
from fuseoverlay.store.garbage import prune, remove
from fuseoverlay.store.images import Images
from fuseoverlay.store.layers import stored
from fuseoverlay.store.load import load
from fuseoverlay.store.root import Store
from fuseoverlay.store.verify import check
from tests.helpers.mounts import MODE
from tests.store.pictures import Painter, painter

GOOD = "docker.io/library/good:1"


@pytest.fixture
def good(paint: Painter) -> Descriptor:
    """A named image with two layers."""
    return paint.name(paint.manifest(layers=[paint.layer("base"), paint.layer("top")]), GOOD)


def whole(images: Images, good: Descriptor) -> None:
    """Everything of the image can be read."""
    image = images.resolve(GOOD)
    assert image.problem is None and image.manifest.digest == good.digest
    for blob in image.blobs:
        check(images.content, blob)


def unpacked(images: Images) -> list[Path]:
    image = images.resolve(GOOD)
    with stored(images.store, image.manifest, "good") as found:
        return found.layers()


def index_of(images: Images) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((images.store.root / "index.json").read_text())
    return found


def write_index(images: Images, data: dict[str, Any]) -> None:
    (images.store.root / "index.json").write_text(json.dumps(data))


def test_an_index_that_calls_a_manifest_something_else(
    paint: Painter, images: Images, good: Descriptor
) -> None:
    """What a blob needs depends on what it is named as."""
    layers = unpacked(images)
    other = paint.manifest(layers=[paint.layer("other")])
    odd = Descriptor("application/octet-stream", good.digest, good.size)
    for order in ([other, odd], [odd, other]):
        evil = paint.index(*order)
        paint.name(evil, "docker.io/library/evil:1")
        prune(images)
        whole(images, good)
        assert all(path.is_dir() for path in layers)
    remove(images, "evil:1")
    whole(images, good)


@pytest.mark.parametrize("entry", [{}, None, {"digest": "sha384:" + "0" * 96, "size": 2}])
def test_entries_of_another_kind(images: Images, good: Descriptor, entry: object) -> None:
    """What they need is not known, so nothing goes; and they hinder nobody."""
    write_index(images, {**index_of(images), "manifests": [*index_of(images)["manifests"], entry]})
    stray = images.content.add(b"what such an entry may need")
    removed = prune(images)
    assert removed.problems and not removed.blobs
    assert images.content.size(stray) is not None
    assert unpacked(images)
    whole(images, good)


def test_index_that_is_gone(images: Images, good: Descriptor) -> None:
    (images.store.root / "index.json").unlink()
    for act in (images.all, lambda: prune(images), lambda: remove(images, GOOD)):
        with pytest.raises(StoreError, match="the names of all images are gone; put the file back"):
            act()
    assert images.content.size(good.digest) is not None


def test_directory_that_is_no_store(place: Path) -> None:
    """Nothing in it is touched."""
    other = place / "home"
    (other / "tmp" / "thesis").mkdir(parents=True)
    (other / "tmp" / "thesis" / "text").write_text("years of work")
    (other / "letter").touch()
    before = sorted(other.rglob("*"))
    with pytest.raises(StoreError, match="not a store of images, and not empty"):
        Store(other).prepare()
    assert sorted(other.rglob("*")) == before


def test_what_lies_in_tmp_is_not_ours(kept: Store) -> None:
    (kept.tmp / "thesis").mkdir()
    (kept.tmp / "0123456789abcdef").mkdir()
    kept.prepare()
    assert (kept.tmp / "thesis").is_dir()
    assert not (kept.tmp / "0123456789abcdef").exists()


def test_tag_and_remove_at_the_same_time(images: Images, good: Descriptor) -> None:
    """A name is there only if all of its image is."""
    with images.store.locked():
        errors: list[Exception] = []

        def tag() -> None:
            try:
                Images(images.store).tag(GOOD, "mine")
            except ImageError as exc:
                errors.append(exc)

        workers = [
            threading.Thread(target=remove, args=(Images(images.store), GOOD)),
            threading.Thread(target=tag),
        ]
        for worker in workers:
            worker.start()
            time.sleep(0.2)
    for worker in workers:
        worker.join(30)
    if errors:
        assert images.all() == []
    else:
        image = images.resolve("mine")
        assert image.problem is None and image.manifest.digest == good.digest


def test_new_blobs_of_another_program(
    images: Images, good: Descriptor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names them only at its end, and knows nothing of our leases."""
    monkeypatch.setattr(garbage, "_NEW", 3600)
    stray = images.content.path(images.content.add(b"being copied"))
    os.utime(stray)
    removed = prune(images)
    assert not removed.blobs and removed.new == [str(stray.relative_to(images.store.root))]
    os.utime(stray, (1, 1))
    assert len(prune(images).blobs) == 1
    whole(images, good)


def test_new_blobs_of_our_own(
    images: Images, good: Descriptor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once whoever was about to name it has ended, it goes."""
    monkeypatch.setattr(garbage, "_NEW", 3600)
    with images.content.lease() as lease:
        whole_one = images.content.add(b"whole")
        arriving = Descriptor(model.OCI_LAYER, Digest.of(b"arrived"), 7)
        lease.add([whole_one, arriving.digest])
        with images.content.partial(arriving) as partial:
            assert partial is not None
            partial.write(b"arrived")
            partial.commit()
        assert not prune(images).blobs
    assert set(prune(images).blobs) == {whole_one, arriving.digest}
    whole(images, good)


def test_layer_that_is_open_without_a_lock(images: Images, good: Descriptor) -> None:
    """As by a mount of an earlier version, or by the kernel's overlayfs."""
    layer = unpacked(images)[0]
    holder = subprocess.Popen(["sleep", "60"], cwd="/", stdin=os.open(layer, os.O_RDONLY))
    try:
        assert str(layer.relative_to(images.store.root)) in places.open_elsewhere(images.store.root)
        removed = remove(images, GOOD)
        assert str(layer.relative_to(images.store.root)) in removed.in_use
        assert layer.is_dir()
    finally:
        holder.kill()
        holder.wait()
    prune(images)
    assert not layer.exists()


@pytest.mark.skipif(MODE == "user", reason="a plain user mounts nothing")
@pytest.mark.parametrize("how", ["a space", "relative", "bind"])
def test_layer_that_something_else_has_mounted(place: Path, how: str) -> None:
    """The kernel's overlayfs, or a bind mount."""
    store = Store(place / "a store")
    images, painter_ = Images(store), painter(store)
    painter_.name(painter_.manifest(layers=[painter_.layer("top")]), GOOD)
    (layer,) = unpacked(images)
    (place / "mnt").mkdir()
    (place / "bottom").mkdir()
    within = layer.relative_to(layer.parents[2])
    mount = {
        "a space": ["-t", "overlay", "overlay", "-o", f"lowerdir={layer}:{place}/bottom"],
        "relative": ["-t", "overlay", "overlay", "-o", f"lowerdir={within}:{place}/bottom"],
        "bind": ["--bind", str(layer)],
    }[how]
    subprocess.run(["mount", *mount, place / "mnt"], cwd=layer.parents[2], check=True, timeout=30)
    try:
        assert len(remove(images, GOOD).in_use) == 1
        assert layer.is_dir()
    finally:
        subprocess.run(["umount", place / "mnt"], check=True, timeout=30)
    prune(images)
    assert not layer.exists()


def test_what_a_stranger_has_open_keeps_nothing(images: Images, good: Descriptor) -> None:
    """A file that is only called like a layer."""
    layer = unpacked(images)[0]
    fd = os.memfd_create(str(layer))
    holder = subprocess.Popen(["sleep", "60"], cwd="/", stdin=fd)
    try:
        assert places.open_elsewhere(images.store.root) == set()
    finally:
        holder.kill()
        holder.wait()
        os.close(fd)


def test_a_manifest_that_is_missing(images: Images, good: Descriptor) -> None:
    """Nobody knows what it needs; once it is back, all is there."""
    data = images.content.read(good)
    blobs, layers = dict(images.content.blobs()), unpacked(images)
    images.content.path(good.digest).unlink()
    removed = prune(images)
    (problem,) = removed.problems
    assert problem.startswith(f"{GOOD}: {good.digest}: missing; remove the image, or run")
    assert removed.freed == 0
    images.content.add(data)
    assert dict(images.content.blobs()) == blobs and all(layer.is_dir() for layer in layers)
    whole(images, good)


@pytest.mark.parametrize("kind", ["fifo", "zero"])
@pytest.mark.parametrize("name", ["version", "index.json", "partial"])
def test_what_is_no_file(images: Images, good: Descriptor, name: str, kind: str) -> None:
    """It is refused, not read without end; nobody waits for it with the store locked."""
    path = images.store.root / name
    if name == "partial":
        path /= f"sha256-{'a' * 64}"
    else:
        path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    if name == "partial":
        assert prune(images).partial == {}
        whole(images, good)
        return
    with pytest.raises(StoreError, match="not a regular file"):
        images.store.prepare()
        images.all()


@pytest.mark.skipif(MODE != "root", reason="needs the superuser")
def test_root_changes_nothing_in_the_store_of_another_user(
    images: Images,
    good: Descriptor,
    place: Path,
) -> None:
    """There, links may lead anywhere."""
    layers, blobs = unpacked(images), dict(images.content.blobs())
    theirs = Store(place / "theirs")
    theirs.prepare()
    for name in ("blobs", "layers"):
        shutil.rmtree(theirs.root / name, ignore_errors=True)
        (theirs.root / name).symlink_to(images.store.root / name)
    os.chown(theirs.root, 65534, 65534)
    for change in (lambda: prune(Images(theirs)), lambda: remove(Images(theirs), "x")):
        with pytest.raises(StoreError, match="the store is that of the user 65534"):
            change()
    assert dict(images.content.blobs()) == blobs and all(layer.is_dir() for layer in layers)


def test_same_config_other_layers(paint: Painter, images: Images) -> None:
    """What the name stood for before can be freed."""
    first = paint.manifest(layers=[paint.layer("same")])
    paint.name(first, GOOD)
    data = json.loads(images.content.read(first))
    data["annotations"] = {"of": "another build"}
    second = paint.writer.add_json(model.OCI_MANIFEST, data)
    with images.names.editing() as index:
        assert index.set(GOOD, second) == first.digest
    assert first.digest in prune(images).blobs
    whole(images, second)


def test_indexes_without_end(paint: Painter, images: Images, place: Path) -> None:
    """Each is read once, however often it is named."""
    entry = paint.manifest(layers=[paint.layer("one")])
    for _ in range(6):
        items = [replace(entry, annotations={"n": str(n)}) for n in range(300)]
        entry = paint.index(*items)
    paint.name(entry, GOOD)
    assert images.resolve(GOOD).problem is None
    other = Store(place / "other")
    load(other, str(images.store.root), platform=images.resolve(GOOD).platform)
    assert Images(other).resolve(GOOD).id == images.resolve(GOOD).id


def test_digest_of_another_size(paint: Painter, images: Images, good: Descriptor) -> None:
    wrong = Descriptor(model.OCI_MANIFEST, good.digest, good.size + 1)
    paint.name(paint.index(wrong), "docker.io/library/wrong:1")
    whole(images, good)
    assert images.content.size(Digest.parse(str(good.digest))) == good.size


def test_layer_that_grows_without_bounds(
    paint: Painter, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused with the word that allows it."""
    zeros = paint.writer.add_layer(layer_tar([Node("zeros", data=bytes(3 << 20))]), "gzip")
    paint.name(paint.manifest(layers=[zeros]), GOOD)
    monkeypatch.setattr(largest, "_ALWAYS", 1 << 20)
    with pytest.raises(ImageError, match=r"many times larger.*FUSEOVERLAY_MAX_LAYER"):
        unpacked(images)
    assert places.unpacked(images.store) == [] and os.listdir(images.store.tmp) == []
    monkeypatch.setenv("FUSEOVERLAY_MAX_LAYER", "1m")
    with pytest.raises(ImageError, match="many times larger"):
        unpacked(images)
    monkeypatch.setenv("FUSEOVERLAY_MAX_LAYER", "much")
    with pytest.raises(UsageError, match="FUSEOVERLAY_MAX_LAYER=much is not a size"):
        unpacked(images)
    monkeypatch.setenv("FUSEOVERLAY_MAX_LAYER", "1G")
    (layer,) = unpacked(images)
    assert (layer / "zeros").stat().st_size == 3 << 20


@pytest.mark.parametrize(
    ("text", "size"), [("", 1 << 30), ("5", 5), ("2K", 2048), ("3GiB", 3 << 30), ("1tb", 1 << 40)]
)
def test_limits(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    monkeypatch.setenv("FUSEOVERLAY_MAX_LAYER", text)
    assert largest.limit(1000) == size
    if not text:
        assert largest.limit(1 << 30) == 100 << 30


def test_blob_that_fits_nowhere(images: Images) -> None:
    """Nothing is written before it is known to fit."""
    endless = Descriptor(model.OCI_LAYER, Digest.of(b"endless"), 1 << 60)
    wanted = images.content.partial(endless)
    with pytest.raises(StoreError, match="bytes more are needed for a blob"):
        wanted.__enter__()
    assert list(images.content.partials()) == []
