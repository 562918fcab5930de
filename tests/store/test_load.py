"""Images come from files into the store bit for bit, with their names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from fuseoverlay.errors import DigestError, ImageError
from fuseoverlay.oci import model
from fuseoverlay.oci.layout import Node, layer_tar, pack
from fuseoverlay.oci.model import Descriptor, Digest
from fuseoverlay.store.garbage import prune
from fuseoverlay.store.images import Image, Images
from fuseoverlay.store.layers import stored
from fuseoverlay.store.load import Loaded, load
from fuseoverlay.store.save import save_docker
from tests.store.pictures import HOST, OTHER, Painter

DEBIAN = "docker.io/library/debian:12"


@pytest.fixture
def source(place: Path) -> Painter:
    return Painter(place / "source")


def blobs(root: Path) -> dict[str, bytes]:
    """The blobs of a layout, with their content."""
    return {path.name: path.read_bytes() for path in root.glob("blobs/*/*")}


def packed(source: Painter, how: str) -> str:
    """The path of the source: the layout itself, an archive, or a compressed one."""
    path = source.writer.path
    if how == "directory":
        return str(path)
    archive = path.with_suffix(".tar")
    pack(path, archive)
    if how == "compressed":
        subprocess.run(["gzip", archive], check=True)
        archive = path.with_suffix(".tar.gz")
    return str(archive)


@pytest.mark.parametrize("how", ["directory", "archive", "compressed"])
def test_a_whole_index(source: Painter, images: Images, how: str) -> None:
    about = source.manifest("proof")
    attested = Descriptor(
        about.media_type,
        about.digest,
        about.size,
        {"vnd.docker.reference.type": "attestation-manifest"},
    )
    other = source.index(source.manifest("s", platform=OTHER))
    index = source.name(source.index(source.manifest("a", "b"), other, attested), DEBIAN)
    steps: list[int] = []
    path = packed(source, how)
    assert load(images.store, path, progress=steps.append) == [
        Loaded(DEBIAN, Descriptor(index.media_type, index.digest, index.size))
    ]
    assert blobs(images.store.root) == blobs(source.writer.path)
    assert sum(steps) > 0
    image = images.resolve("debian:12")
    assert image.digests == (index.digest,)
    assert image.platform == HOST
    with stored(images.store, image.manifest, "debian") as found:
        assert (found.layers()[0] / "b").exists()
    # Again, nothing is read.
    steps.clear()
    assert load(images.store, path, progress=steps.append)[0].replaced is None
    assert steps == []
    assert len(images.all()) == 1
    assert os.listdir(images.store.tmp) == []


def test_one_platform(source: Painter, images: Images) -> None:
    """The index comes whole all the same: its digest is the image's."""
    other = source.manifest("s", platform=OTHER)
    index = source.name(source.index(source.manifest("a"), source.index(other)), DEBIAN)
    load(images.store, str(source.writer.path), platform=OTHER)
    (image,) = images.all()
    assert image.digests == (index.digest,)
    assert image.manifest.digest == other.digest
    missing = blobs(source.writer.path).keys() - blobs(images.store.root).keys()
    assert len(missing) == 3
    # The rest can follow.
    load(images.store, str(source.writer.path))
    assert blobs(source.writer.path) == blobs(images.store.root)


def test_a_platform_that_is_not_there(source: Painter, images: Images) -> None:
    source.name(source.manifest("a"), DEBIAN)
    with pytest.raises(ImageError, match=f"no image for {OTHER}"):
        load(images.store, str(source.writer.path), platform=OTHER)
    assert images.all() == []


def test_a_platform_that_only_the_config_tells(source: Painter, images: Images) -> None:
    plain = [
        Descriptor(found.media_type, found.digest, found.size)
        for found in (source.manifest("a"), source.manifest("s", platform=OTHER))
    ]
    source.name(source.index(*plain), DEBIAN)
    load(images.store, str(source.writer.path), platform=OTHER)
    assert images.resolve("debian:12").platform == OTHER


def test_manifests_that_are_not_complete_stay_behind(source: Painter, images: Images) -> None:
    """Archives of `docker save` may have indexes of which one platform is there."""
    other = source.manifest("s", platform=OTHER)
    index = source.name(source.index(other, source.manifest("a")), DEBIAN)
    layer = json.loads((source.writer.path / f"blobs/sha256/{other.digest.hex}").read_bytes())
    digest = layer["layers"][0]["digest"].partition(":")[2]
    (source.writer.path / f"blobs/sha256/{digest}").unlink()
    load(images.store, str(source.writer.path))
    (image,) = images.all()
    assert image.digests == (index.digest,)
    assert image.platform == HOST
    assert not images.content.has(other)
    prune(images, unused=False)


def test_nothing_complete(source: Painter, images: Images) -> None:
    manifest = source.name(source.manifest("a"), DEBIAN)
    data = json.loads((source.writer.path / f"blobs/sha256/{manifest.digest.hex}").read_bytes())
    digest = data["layers"][0]["digest"].partition(":")[2]
    (source.writer.path / f"blobs/sha256/{digest}").unlink()
    with pytest.raises(ImageError, match="parts of the image are missing"):
        load(images.store, str(source.writer.path))
    assert images.all() == []


@pytest.mark.parametrize("what", ["layer", "manifest"])
def test_damage(source: Painter, images: Images, what: str) -> None:
    manifest = source.name(source.manifest("a"), DEBIAN)
    path = source.writer.path / f"blobs/sha256/{manifest.digest.hex}"
    if what == "layer":
        digest = json.loads(path.read_bytes())["layers"][0]["digest"].partition(":")[2]
        path = path.with_name(digest)
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    with pytest.raises(DigestError):
        load(images.store, str(source.writer.path))
    assert images.all() == []
    assert path.name not in blobs(images.store.root)
    assert list(images.content.partials()) == []


def test_names(source: Painter, images: Images) -> None:
    manifests = [source.manifest(text) for text in ("1", "2", "3")]
    source.name(manifests[0], "debian:12")
    source.name(manifests[1], "latest")
    source.name(manifests[2])
    assert [item.name for item in load(images.store, str(source.writer.path))] == [
        DEBIAN,
        None,
        None,
    ]
    assert sum(image.dangling for image in images.all()) == 2
    with pytest.raises(ImageError, match="several images"):
        load(images.store, str(source.writer.path), name="x")


def test_a_given_name(source: Painter, images: Images) -> None:
    source.name(source.manifest("1"), "latest")
    load(images.store, str(source.writer.path), name="localhost/mine")
    assert images.resolve("localhost/mine:latest").names == ("localhost/mine:latest",)


def test_a_name_that_moves(source: Painter, images: Images, place: Path) -> None:
    old = source.name(source.manifest("1"), DEBIAN)
    load(images.store, str(source.writer.path))
    (before,) = images.all()
    assert before.manifest.digest == old.digest
    newer = Painter(place / "newer")
    newer.name(newer.manifest("2"), DEBIAN)
    (loaded,) = load(images.store, str(place / "newer"))
    assert loaded.replaced == before.id
    assert sorted(image.dangling for image in images.all()) == [False, True]


def test_nothing_has_a_name_that_cannot_be_unpacked(
    source: Painter, images: Images, place: Path
) -> None:
    source.name(source.manifest("1"), DEBIAN)
    load(images.store, str(source.writer.path))
    before = images.all()
    newer = Painter(place / "newer")
    newer.name(newer.manifest("2"), DEBIAN)
    newer.name(newer.manifest("3"), "docker.io/library/other:1")

    def unpack(image: Image) -> None:
        if image.layers != before[0].layers:
            raise ImageError("no tar archive")

    with pytest.raises(ImageError, match="no tar archive"):
        load(images.store, str(place / "newer"), unpack=unpack)
    assert images.all() == before
    prune(images)
    assert images.all() == before


def test_an_archive_of_what_is_there(source: Painter, images: Images, place: Path) -> None:
    """The image keeps the manifest of its registry, which an archive has lost."""
    source.name(source.manifest("a"), DEBIAN)
    load(images.store, str(source.writer.path))
    before, blobs = images.all(), dict(images.content.blobs())
    with (place / "a.tar").open("wb") as file:
        save_docker(images, [DEBIAN], file)
    (loaded,) = load(images.store, str(place / "a.tar"))
    assert loaded.replaced is None
    assert images.all() == before and dict(images.content.blobs()) == blobs
    # Without one of its layers it is no longer there.
    (layer,) = before[0].layers
    images.content.path(layer.digest).unlink()
    load(images.store, str(place / "a.tar"))
    (image,) = images.all()
    assert image.id == before[0].id and image.names == before[0].names
    assert all(map(images.content.has, image.blobs))


def test_what_another_load_left_may_be_wrong(source: Painter, images: Images) -> None:
    manifest = source.name(source.manifest("a"), DEBIAN)
    data = json.loads((source.writer.path / f"blobs/sha256/{manifest.digest.hex}").read_bytes())
    layer = Descriptor.parse(data["layers"][0])
    images.content.partial_path(layer.digest).write_bytes(b"wrong")
    load(images.store, str(source.writer.path))
    assert all(map(images.content.has, images.resolve(DEBIAN).blobs))


def test_a_broken_load_goes_on(source: Painter, images: Images) -> None:
    """What another one had copied is not copied again."""
    manifest = source.name(source.manifest("a"), DEBIAN)
    data = json.loads((source.writer.path / f"blobs/sha256/{manifest.digest.hex}").read_bytes())
    layer = Descriptor.parse(data["layers"][0])
    content = (source.writer.path / f"blobs/sha256/{layer.digest.hex}").read_bytes()
    images.content.partial_path(layer.digest).write_bytes(content[:-3])
    steps: list[int] = []
    load(images.store, str(source.writer.path), progress=steps.append)
    assert sum(steps) == 3 + model.Manifest.parse(data).config.size
    assert images.content.read(layer) == content


def test_a_manifest_without_end(source: Painter, images: Images) -> None:
    layer = source.layer("a").descriptor
    config = source.writer.add_json(model.OCI_CONFIG, {})
    data = {"config": config.to_json(), "layers": [layer.to_json()] * 10_001}
    source.name(source.writer.add_json(model.OCI_MANIFEST, data), DEBIAN)
    with pytest.raises(ImageError, match="more than 10000 parts"):
        load(images.store, str(source.writer.path))
    assert blobs(images.store.root) == {}


# docker save


def save_archive(path: Path, *, compressed: bool = False) -> tuple[bytes, bytes]:
    """Write an archive as docker did for years; returns the config and the file of the layer."""
    tar = layer_tar([Node("f", data=b"data")])
    config = json.dumps(
        {
            **model.platform_json(HOST),
            "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(tar))]},
            "container_config": {"odd": True},
        },
        indent=3,
    ).encode()
    layer = tar
    if compressed:
        layer = subprocess.run(["gzip", "-n"], input=tar, capture_output=True, check=True).stdout
    folder = path.with_suffix("")
    (folder / "aaaa").mkdir(parents=True)
    (folder / f"{Digest.of(config).hex}.json").write_bytes(config)
    (folder / "aaaa/layer.tar").write_bytes(layer)
    item = {
        "Config": f"{Digest.of(config).hex}.json",
        "RepoTags": ["debian:12", "other:latest"],
        "Layers": ["aaaa/layer.tar"],
    }
    (folder / "manifest.json").write_text(json.dumps([item]))
    with tarfile.open(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.add(file, str(file.relative_to(folder)), recursive=False)
    return config, layer


@pytest.mark.parametrize("compressed", [False, True])
def test_docker_save(images: Images, place: Path, compressed: bool) -> None:
    config, layer = save_archive(place / "a.tar", compressed=compressed)
    loaded = load(images.store, str(place / "a.tar"))
    assert [item.name for item in loaded] == [DEBIAN, "docker.io/library/other:latest"]
    (image,) = images.all()
    assert image.id == Digest.of(config)
    assert images.content.read(image.layers[0]) == layer
    assert image.layers[0].media_type == model.OCI_LAYER + ("+gzip" if compressed else "")
    assert load(images.store, str(place / "a.tar")) == loaded
    with stored(images.store, image.manifest, "debian") as found:
        assert (found.layers()[0] / "f").read_bytes() == b"data"
    with pytest.raises(ImageError, match="no image for"):
        load(images.store, str(place / "a.tar"), platform=OTHER)


# other tools


def tool(*args: object) -> None:
    if shutil.which(str(args[0])) is None:
        pytest.skip(f"missing tool: {args[0]}")
    done = subprocess.run([str(arg) for arg in args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("transport", ["oci", "oci-archive", "docker-archive"])
def test_what_skopeo_writes(source: Painter, images: Images, place: Path, transport: str) -> None:
    """And what is loaded, skopeo copies out again unchanged."""
    manifest = source.name(source.manifest("a", "b"), "x")
    target = place / "copy"
    tool("skopeo", "copy", f"oci:{source.writer.path}:x", f"{transport}:{target}:{DEBIAN}")
    (loaded,) = load(images.store, str(target))
    assert loaded.name == DEBIAN
    image = images.resolve("debian:12")
    if transport != "docker-archive":
        assert image.digests == (manifest.digest,)
    again = place / "again"
    ours = f"oci:{images.store.root}:{DEBIAN}"
    tool("skopeo", "copy", "--preserve-digests", ours, f"dir:{again}")
    copied = {path.name: path.read_bytes() for path in again.iterdir() if len(path.name) == 64}
    copied[image.manifest.digest.hex] = (again / "manifest.json").read_bytes()
    assert copied == blobs(images.store.root)
