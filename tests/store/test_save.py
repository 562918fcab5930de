"""What is saved is what was loaded, bit for bit, and others read it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from fuseoverlay.errors import DigestError, ImageError, StoreError
from fuseoverlay.oci import model
from fuseoverlay.store.images import Images
from fuseoverlay.store.load import load
from fuseoverlay.store.root import Store
from fuseoverlay.store.save import Saved, save_archive, save_docker, save_layout
from tests.store.pictures import HOST, OTHER, Painter

DEBIAN = "docker.io/library/debian:12"


@pytest.fixture
def other(place: Path) -> Images:
    """Another store."""
    store = Store(place / "other")
    store.prepare()
    return Images(store)


def blobs(root: Path) -> dict[str, bytes]:
    """The blobs of a layout, with their content."""
    return {path.name: path.read_bytes() for path in root.glob("blobs/*/*")}


def saved(images: Images, path: Path, how: str, *texts: str) -> list[Saved]:
    """Save in one of the forms."""
    if how == "layout":
        return save_layout(images, texts, path)
    with path.open("wb") as file:
        return save_archive(images, texts, file)


@pytest.mark.parametrize("how", ["layout", "archive"])
def test_there_and_back(
    images: Images, paint: Painter, other: Images, place: Path, how: str
) -> None:
    index = paint.index(paint.manifest("a", "b"), paint.manifest("s", platform=OTHER))
    paint.name(index, DEBIAN)
    paint.name(paint.manifest("a", "c"), "localhost:5000/x:1")
    done = saved(images, place / "out", how, "debian:12", "localhost:5000/x:1")
    assert [(item.names, item.whole) for item in done] == [
        ((DEBIAN,), True),
        (("localhost:5000/x:1",), True),
    ]
    loaded = load(other.store, str(place / "out"))
    assert [item.name for item in loaded] == [DEBIAN, "localhost:5000/x:1"]
    assert loaded[0].descriptor.digest == index.digest
    assert blobs(other.store.root) == blobs(images.store.root)
    again = saved(other, place / "again", how, "debian:12", "localhost:5000/x:1")
    assert len(again) == 2
    if how == "archive":
        assert (place / "again").read_bytes() == (place / "out").read_bytes()


def test_only_what_is_needed(images: Images, paint: Painter, place: Path) -> None:
    paint.name(paint.manifest("a"), "one")
    paint.name(paint.manifest("b"), "two")
    save_layout(images, ["one"], place / "out")
    assert len(blobs(place / "out")) == 3


def test_an_index_that_is_not_whole(images: Images, paint: Painter, place: Path) -> None:
    """Its digest would promise what is not there."""
    missing = paint.manifest("s", platform=OTHER)
    ours = paint.manifest("a")
    paint.name(paint.index(missing, ours), DEBIAN)
    images.content.path(missing.digest).unlink()
    with pytest.raises(ImageError) as caught:
        save_layout(images, ["debian:12"], place / "out")
    said = f"not all platforms of it are here; write --platform {HOST}, or pull --all-platforms"
    assert said in str(caught.value)
    assert not (place / "out").exists()
    (done,) = save_layout(images, ["debian:12"], place / "out", platform=HOST)
    assert not done.whole
    assert done.descriptor.digest == ours.digest
    assert done.image.platform == HOST
    index = json.loads((place / "out/index.json").read_bytes())
    assert [entry["digest"] for entry in index["manifests"]] == [str(ours.digest)]


def test_one_platform(images: Images, paint: Painter, place: Path) -> None:
    theirs = paint.manifest("s", platform=OTHER)
    paint.name(paint.index(paint.manifest("a"), theirs), DEBIAN)
    (done,) = save_layout(images, ["debian:12"], place / "out", platform=OTHER)
    assert done.descriptor.digest == theirs.digest
    paint.name(paint.manifest("b"), "two")
    with pytest.raises(ImageError, match=f"no image for {OTHER}"):
        save_layout(images, ["two"], place / "more", platform=OTHER)


def test_by_id_with_all_names(images: Images, paint: Painter, place: Path) -> None:
    paint.name(paint.manifest("a"), DEBIAN)
    images.tag("debian:12", "mine")
    image = images.resolve("mine")
    with (place / "a.tar").open("wb") as file:
        save_archive(images, [image.id.hex[:12]], file)
        file.flush()
    with tarfile.open(place / "a.tar") as archive:
        member = archive.extractfile("manifest.json")
        assert member is not None
        (item,) = json.loads(member.read())
    assert item["RepoTags"] == ["debian:12", "mine:latest"]
    assert item["Config"] == f"blobs/sha256/{image.id.hex}"


@pytest.mark.parametrize("damage", ["missing", "wrong", "cut"])
def test_damage(images: Images, paint: Painter, place: Path, damage: str) -> None:
    paint.name(paint.manifest("a"), DEBIAN)
    path = images.content.path(images.resolve("debian:12").layers[0].digest)
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(ImageError if damage == "missing" else DigestError):
        save_layout(images, ["debian:12"], place / "out")


def test_a_layout_is_added_to(images: Images, paint: Painter, place: Path) -> None:
    """What others have there stays; a name that comes again is the new image's."""
    paint.name(paint.manifest("a"), DEBIAN)
    paint.name(paint.manifest("b"), "two")
    save_layout(images, ["debian:12"], place / "out")
    index = json.loads((place / "out/index.json").read_bytes())
    strange = {**index["manifests"][0], "annotations": {model.REF_NAME: "theirs", "x": "y"}}
    index["manifests"].append(strange)
    (place / "out/index.json").write_text(json.dumps(index))
    save_layout(images, ["two"], place / "out")
    new = paint.manifest("c")
    with images.names.editing() as names:
        names.set(DEBIAN, new)
    save_layout(images, ["debian:12"], place / "out")
    listed = json.loads((place / "out/index.json").read_bytes())["manifests"]
    assert listed[0] == strange
    named = {entry["annotations"][model.REF_NAME]: entry["digest"] for entry in listed[1:]}
    assert len(listed) == 3
    assert named[DEBIAN] == str(new.digest)
    there = set(blobs(place / "out"))
    for text in ("two", DEBIAN):
        assert {blob.digest.hex for blob in images.resolve(text).blobs} < there


def test_two_save_into_one_layout(images: Images, paint: Painter, place: Path) -> None:
    """One after the other: what the first takes back, the second does not rely on."""
    shared = paint.layer("shared")
    paint.name(paint.manifest(layers=[shared, paint.layer("one")]), DEBIAN)
    paint.name(paint.manifest(layers=[shared, paint.layer("two")]), "two")
    copied, second = 0, threading.Thread(target=save_layout, args=(images, ["two"], place / "out"))

    def fail(count: int) -> None:
        nonlocal copied
        copied += 1
        if copied == 3:
            second.start()
            second.join(0.5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_layout(images, ["debian:12"], place / "out", progress=fail)
    second.join(20)
    (entry,) = json.loads((place / "out/index.json").read_bytes())["manifests"]
    assert entry["annotations"][model.REF_NAME] == "two"
    assert {blob.digest.hex for blob in images.resolve("two").blobs} == set(blobs(place / "out"))


def test_where_it_cannot_be_saved(images: Images, paint: Painter, place: Path) -> None:
    paint.name(paint.manifest("a"), DEBIAN)
    (place / "full").mkdir()
    (place / "full/x").touch()
    with pytest.raises(StoreError, match="not empty"):
        save_layout(images, ["debian:12"], place / "full")
    assert os.listdir(place / "full") == ["x"]
    with pytest.raises(StoreError, match="Not a directory"):
        save_layout(images, ["debian:12"], place / "full/x/y")
    with pytest.raises(ImageError, match="no such image"):
        save_layout(images, ["debian:13"], place / "new")
    assert not (place / "new").exists()
    with pytest.raises(StoreError, match="this is the store"):
        save_layout(images, ["debian:12"], images.store.root)


def test_what_fails_leaves_nothing(images: Images, paint: Painter, place: Path) -> None:
    paint.name(paint.manifest("a"), DEBIAN)
    paint.name(paint.manifest("b"), "two")
    save_layout(images, ["debian:12"], place / "out")
    before = {path: path.stat().st_mtime_ns for path in (place / "out").rglob("*")}
    path = images.content.path(images.resolve("two").layers[0].digest)
    path.write_bytes(bytes(path.stat().st_size))
    for target in ("out", "new/deep"):
        with pytest.raises(DigestError):
            save_layout(images, ["two"], place / target)
    after = set((place / "out").rglob("*"))
    assert after == set(before)
    assert not (place / "new").exists()


@pytest.mark.parametrize("compression", ["gzip", "zstd", None])
def test_docker_archive(
    images: Images, paint: Painter, other: Images, place: Path, compression: str | None
) -> None:
    """Plain layers under the digests that the config has; the id stays."""
    layers = [paint.layer(text, compression) for text in ("a", "b", "a")]
    paint.name(paint.manifest(layers=layers), DEBIAN)
    paint.name(paint.manifest(layers=layers[:1], author="me"), "mine:1")
    with (place / "a.tar").open("wb") as file:
        save_docker(images, ["debian:12", "mine:1"], file)
    with tarfile.open(place / "a.tar") as archive:
        found = {
            member.name: archive.extractfile(member).read()  # type: ignore[union-attr]
            for member in archive.getmembers()
            if member.isfile()
        }
    assert [name for name in found if name != "manifest.json"] == [
        f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"
        for name, data in found.items()
        if name != "manifest.json"
    ]
    first, second = json.loads(found["manifest.json"])
    assert first["RepoTags"] == ["debian:12"] and second["RepoTags"] == ["mine:1"]
    assert first["Layers"] == [f"blobs/sha256/{layer.diff_id.hex}" for layer in layers]
    assert second["Layers"] == first["Layers"][:1]
    load(other.store, str(place / "a.tar"))
    assert {image.id for image in other.all()} == {image.id for image in images.all()}


@pytest.mark.parametrize("what", ["blob", "content"])
def test_docker_archive_of_a_damaged_layer(
    images: Images, paint: Painter, place: Path, what: str
) -> None:
    good, bad = paint.layer("a"), paint.layer("b")
    if what == "content":
        good = replace(good, diff_id=bad.diff_id)
    paint.name(paint.manifest(layers=[good]), DEBIAN)
    path = images.content.path(good.descriptor.digest)
    if what == "blob":
        path.write_bytes(path.read_bytes()[:-4] + b"????")
    with (place / "a.tar").open("wb") as file, pytest.raises(ImageError):
        save_docker(images, ["debian:12"], file)


def test_one_platform_in_a_docker_archive(images: Images, paint: Painter, place: Path) -> None:
    """This machine's, of an index that is not whole, too."""
    theirs, missing = paint.manifest("s", platform=OTHER), paint.manifest("x", author="m")
    paint.name(paint.index(theirs, paint.manifest("a"), missing), DEBIAN)
    images.content.path(missing.digest).unlink()
    for platform, wanted in ((None, HOST), (OTHER, OTHER)):
        with (place / "a.tar").open("wb") as file:
            (done,) = save_docker(images, ["debian:12"], file, platform=platform)
        assert done.image.platform == wanted


def tool(*args: object) -> str:
    """Run a program; its output."""
    if shutil.which(str(args[0])) is None:
        pytest.skip(f"missing tool: {args[0]}")
    done = subprocess.run([str(arg) for arg in args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("transport", ["oci", "oci-archive", "docker-archive"])
def test_skopeo_reads_it(images: Images, paint: Painter, place: Path, transport: str) -> None:
    manifest = paint.name(paint.manifest("a", "b"), DEBIAN)
    saved(images, place / "out", "layout" if transport == "oci" else "archive", "debian:12")
    where = f"{transport}:{place / 'out'}:{DEBIAN}"
    config = json.loads(tool("skopeo", "--tmpdir", place, "inspect", "--config", where))
    image = images.resolve("debian:12")
    assert config["rootfs"]["diff_ids"] == [str(diff_id) for diff_id in image.diff_ids]
    if transport != "docker-archive":
        found = json.loads(tool("skopeo", "--tmpdir", place, "inspect", where))
        assert found["Digest"] == str(manifest.digest)
