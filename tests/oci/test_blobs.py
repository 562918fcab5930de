"""Images in all their forms: which one a name means, and where its layers are."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fuseoverlay.errors import DigestError, ImageError
from fuseoverlay.oci import model
from fuseoverlay.oci.blobs import Image, open_image
from fuseoverlay.oci.layout import LayoutWriter, Node, layer_tar, pack
from fuseoverlay.oci.model import Digest, Platform
from fuseoverlay.oci.names import parse_image_name
from fuseoverlay.oci.streams import zstd_module

TARS = [layer_tar([Node(name, data=name.encode() * 500)]) for name in ("one", "two")]


def layout(path: Path, compression: str | None = None) -> LayoutWriter:
    """A layout with one image of two layers, called `latest`."""
    writer = LayoutWriter(path)
    writer.add_image([writer.add_layer(tar, compression) for tar in TARS], ref="latest")
    return writer


def read(path: Path, ref: str | None = None, platform: str | None = None) -> list[bytes]:
    """The layers of an image, as they are stored."""
    with open_image(str(path)) as source:
        image = source.resolve(ref, Platform.parse(platform) if platform else None)
        return [contents(source, item) for item in image.layers]


def contents(source: Any, layer: Any) -> bytes:
    with source.open_layer(layer) as blob:
        parts = []
        while part := blob.read(1000):
            parts.append(part)
        return b"".join(parts)


def resolve(path: Path, ref: str | None = None, platform: str | None = None) -> Image:
    with open_image(str(path)) as source:
        return source.resolve(ref, Platform.parse(platform) if platform else None)


# names


def test_names_of_images(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    Path("dir").mkdir()
    Path("a:b").write_text("")
    assert parse_image_name("dir") == ("dir", None)
    assert parse_image_name("dir:ref") == ("dir", "ref")
    assert parse_image_name("dir:debian:12") == ("dir", "debian:12")
    assert parse_image_name("a:b") == ("a:b", None)
    assert parse_image_name("a:b:c") == ("a:b", "c")
    assert parse_image_name("no:such:file") == ("no:such", "file")
    assert parse_image_name("nothing") == ("nothing", None)
    assert parse_image_name("dir:") == ("dir", None)


@pytest.mark.parametrize("ref", ["latest", None])
def test_a_layout(place: Path, ref: str | None) -> None:
    layout(place / "l")
    assert read(place / "l", ref) == TARS
    image = resolve(place / "l")
    assert [layer.diff_id for layer in image.layers] == [Digest.of(tar) for tar in TARS]


def test_an_archive(place: Path) -> None:
    layout(place / "l", "gzip")
    pack(place / "l", place / "a.tar")
    assert [gzip.decompress(blob) for blob in read(place / "a.tar")] == TARS


@pytest.mark.parametrize(
    "compress", [gzip.compress, zstd_module().compress, lzma.compress, bz2.compress]
)
def test_a_compressed_archive(place: Path, compress: Callable[[bytes], bytes]) -> None:
    layout(place / "l")
    pack(place / "l", place / "a.tar")
    data = compress((place / "a.tar").read_bytes())
    (place / "c").write_bytes(data)
    assert read(place / "c") == TARS
    (place / "c").write_bytes(data[:-5])
    with pytest.raises(ImageError, match=r"cut short|damaged"):
        read(place / "c")


def test_several_images(place: Path) -> None:
    writer = LayoutWriter(place / "l")
    for name, tar in zip(("a", "b"), TARS, strict=True):
        writer.add_image([writer.add_layer(tar)], ref=name)
    assert read(place / "l", "b") == [TARS[1]]
    with pytest.raises(ImageError, match=r"several images.*'a', 'b'"):
        read(place / "l")
    with pytest.raises(ImageError, match=r"no image 'c'.*'a', 'b'"):
        read(place / "l", "c")


def test_one_image_with_two_names(place: Path) -> None:
    writer = LayoutWriter(place / "l")
    for name in ("a", "b"):
        writer.add_image([writer.add_layer(TARS[0])], ref=name)
    assert read(place / "l") == [TARS[0]]


def platforms(path: Path, *names: str, nested: bool = True) -> None:
    """A layout with an image for each platform; the second layer's name is the platform's."""
    writer = LayoutWriter(path)
    entries = []
    for name in names:
        tar = layer_tar([Node(name.replace("/", "-"))])
        entries.append(writer.add_image([writer.add_layer(tar)], platform=name))
    if nested:
        attestation = {
            **entries[0].to_json(),
            "platform": {"os": "unknown", "architecture": "unknown"},
            "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
        }
        listed = [attestation, *(entry.to_json() for entry in entries)]
        inner = writer.add_json(model.OCI_INDEX, {"manifests": listed})
        outer = {**inner.to_json(), "annotations": {model.REF_NAME: "multi"}}
        (path / "index.json").write_text(json.dumps({"manifests": [outer]}))


@pytest.mark.parametrize("nested", [True, False])
def test_platforms(place: Path, nested: bool) -> None:
    platforms(place / "l", "linux/amd64", "linux/arm64/v8", "linux/s390x", nested=nested)
    for wanted in ("linux/amd64", "linux/arm64", "linux/arm64/v8", "s390x"):
        image = resolve(place / "l", None, wanted)
        assert image.platform is not None
        assert image.platform.rank(Platform.parse(wanted)) is not None
    with pytest.raises(ImageError, match=r"no image for linux/riscv64.*linux/amd64.*linux/s390x"):
        resolve(place / "l", None, "linux/riscv64")


def test_without_a_platform_it_is_ours(place: Path) -> None:
    platforms(place / "l", "linux/mips", str(Platform.host()))
    assert resolve(place / "l", "multi").platform == Platform.host()
    platforms(place / "m", "linux/mips", "linux/mips64")
    with pytest.raises(ImageError, match=r"there are: linux/mips, linux/mips64"):
        resolve(place / "m")


def test_the_only_image_is_taken_whatever_its_platform(place: Path) -> None:
    platforms(place / "l", "linux/mips")
    assert resolve(place / "l").platform == Platform("linux", "mips")
    with pytest.raises(ImageError, match="no image for linux/amd64"):
        resolve(place / "l", None, "linux/amd64")


def test_indexes_in_a_row(place: Path) -> None:
    writer = layout(place / "l")
    entry = json.loads((place / "l/index.json").read_text())["manifests"][0]
    for _ in range(20):
        entry = writer.add_json(model.OCI_INDEX, {"manifests": [entry]}).to_json()
    (place / "l/index.json").write_text(json.dumps({"manifests": [entry]}))
    with pytest.raises(ImageError, match="too many indexes"):
        read(place / "l")


# docker save


def saved(
    path: Path, *, form: str, tags: list[str] | None = None, links: str | None = None
) -> bytes:
    """A `docker save` archive; its third layer is the first again, as a link if requested."""
    tars = [*TARS, TARS[0]]
    digests = [Digest.of(tar) for tar in tars]
    config = json.dumps(
        {
            "os": "linux",
            "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": [str(digest) for digest in digests]},
        }
    ).encode()
    name = Digest.of(config).hex
    files: dict[str, bytes | str] = {}
    if form == "legacy":
        config_name = f"{name}.json"
        layers = [f"{number:064x}/layer.tar" for number in range(3)]
    else:
        config_name = f"blobs/sha256/{name}"
        layers = [f"blobs/sha256/{digest.hex}" for digest in digests]
    files[config_name] = config
    files.update(zip(layers, tars, strict=True))
    if links and form == "legacy":
        files[layers[2]] = f"../{layers[0]}" if links == "sym" else layers[0]
    manifest = [{"Config": config_name, "RepoTags": tags, "Layers": layers}]
    files["manifest.json"] = json.dumps(manifest).encode()
    write(path, files, tarfile.SYMTYPE if links == "sym" else tarfile.LNKTYPE)
    return config


def write(path: Path, files: dict[str, bytes | str], link_type: bytes = tarfile.SYMTYPE) -> None:
    """An archive of files and, for values that are text, links."""
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, str):
                info.type, info.linkname = link_type, data
                archive.addfile(info)
            else:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(
    ("form", "links"), [("legacy", None), ("legacy", "sym"), ("legacy", "hard"), ("blobs", None)]
)
def test_docker_archives(place: Path, form: str, links: str | None) -> None:
    saved(place / "d.tar", form=form, tags=["debian:12", "x/y:new"], links=links)
    for ref in (None, "debian:12", "12", "x/y:new", "new"):
        assert read(place / "d.tar", ref) == [*TARS, TARS[0]]
    with pytest.raises(ImageError, match=r"no image 'old'.*'debian:12', 'x/y:new'"):
        read(place / "d.tar", "old")
    with pytest.raises(ImageError, match="there are: linux/amd64"):
        read(place / "d.tar", None, "linux/s390x")
    assert read(place / "d.tar", None, "linux/amd64")


def test_docker_archive_without_tags(place: Path) -> None:
    saved(place / "d.tar", form="legacy")
    assert len(read(place / "d.tar")) == 3


def test_docker_archive_that_is_a_layout(place: Path) -> None:
    writer = layout(place / "l")
    index = json.loads((place / "l/index.json").read_text())
    index["manifests"][0]["annotations"] = {
        "io.containerd.image.name": "docker.io/library/debian:12",
        model.REF_NAME: "12",
    }
    (place / "l/index.json").write_text(json.dumps(index))
    entry = model.Manifest.parse(
        json.loads((place / "l/blobs/sha256" / index["manifests"][0]["digest"][7:]).read_text())
    )
    blobs = [f"blobs/sha256/{item.digest.hex}" for item in (entry.config, *entry.layers)]
    manifest = [{"Config": blobs[0], "RepoTags": ["debian:twelve"], "Layers": blobs[1:]}]
    (writer.path / "manifest.json").write_text(json.dumps(manifest))
    pack(place / "l", place / "d.tar")
    for ref in (None, "12", "debian:12", "docker.io/library/debian:12", "debian:twelve"):
        assert read(place / "d.tar", ref) == TARS
    with pytest.raises(ImageError, match="no image"):
        read(place / "d.tar", "13")


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../etc/passwd", "layer.tar", "nowhere"])
@pytest.mark.parametrize("link_type", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_that_lead_nowhere(place: Path, target: str, link_type: bytes) -> None:
    manifest = [{"Config": "c.json", "RepoTags": None, "Layers": ["layer.tar"]}]
    diff_ids = {"rootfs": {"type": "layers", "diff_ids": [str(Digest.of(b""))]}}
    files: dict[str, bytes | str] = {
        "manifest.json": json.dumps(manifest).encode(),
        "c.json": json.dumps(diff_ids).encode(),
        "layer.tar": target,
    }
    write(place / "d.tar", files, link_type)
    with pytest.raises(ImageError, match=r"layer.tar.*(missing|too many links)"):
        read(place / "d.tar")


@pytest.mark.parametrize("member", ["l.tar", "/l.tar", "./l.tar", "//a/../l.tar"])
@pytest.mark.parametrize("named", ["l.tar", "/l.tar", "/a/.././l.tar"])
def test_the_root_of_an_archive_is_slash(place: Path, member: str, named: str) -> None:
    digests = {"rootfs": {"type": "layers", "diff_ids": [str(Digest.of(TARS[0]))]}}
    manifest = [{"Config": "/c.json", "RepoTags": None, "Layers": [named]}]
    files: dict[str, bytes | str] = {
        "/manifest.json": json.dumps(manifest).encode(),
        "c.json": json.dumps(digests).encode(),
        member: "/real/../layer",
        "layer": TARS[0],
    }
    write(place / "d.tar", files)
    assert read(place / "d.tar") == [TARS[0]]
    (place / "d").mkdir()
    for name, data in files.items():
        path = place / "d" / os.path.normpath(name).lstrip("/")
        path.write_bytes(data if isinstance(data, bytes) else TARS[0])
    assert read(place / "d") == [TARS[0]]


@pytest.mark.parametrize("named", ["../l.tar", "/../l.tar", "a/../../l.tar"])
def test_what_leaves_an_image_is_not_read(place: Path, named: str) -> None:
    digests = {"rootfs": {"type": "layers", "diff_ids": [str(Digest.of(TARS[0]))]}}
    manifest = [{"Config": "c.json", "RepoTags": None, "Layers": [named]}]
    files: dict[str, bytes | str] = {
        "manifest.json": json.dumps(manifest).encode(),
        "c.json": json.dumps(digests).encode(),
        named: TARS[0],
    }
    write(place / "d.tar", files)
    (place / "d").mkdir()
    for name in ("manifest.json", "c.json"):
        (place / "d" / name).write_bytes(files[name])  # type: ignore[arg-type]
    (place / "l.tar").write_bytes(TARS[0])
    for image in ("d", "d.tar"):
        with pytest.raises(ImageError, match=r"l\.tar"):
            read(place / image)


def test_things_beside_an_image(place: Path) -> None:
    """They do not matter until they are asked for."""
    saved(place / "d.tar", form="legacy")
    with tarfile.open(place / "d.tar", "a") as archive:
        for kind in (tarfile.FIFOTYPE, tarfile.CHRTYPE, b"Z"):
            info = tarfile.TarInfo(f"odd-{kind.decode()}")
            info.type = kind
            archive.addfile(info)
    assert len(read(place / "d.tar")) == 3
    with tarfile.open(place / "d.tar", "a") as archive:
        info = tarfile.TarInfo(f"{0:064x}/layer.tar")
        info.type = tarfile.FIFOTYPE
        archive.addfile(info)
    with pytest.raises(ImageError, match="no regular file"):
        read(place / "d.tar")


SPARSE = ["--format=gnu", *(f"--sparse-version={version}" for version in ("0.0", "0.1", "1.0"))]


@pytest.mark.parametrize("form", SPARSE)
@pytest.mark.parametrize("ends", [b"", b"end"])
def test_an_archive_with_holes(place: Path, form: str, ends: bytes) -> None:
    """`tar --sparse` of an unpacked image."""
    tar = layer_tar([Node(name, data=bytes(3 << 20) + ends) for name in ("a", "b")])
    writer = LayoutWriter(place / "l")
    writer.add_image([writer.add_layer(tar)])
    for blob in blob_paths(place / "l"):
        subprocess.run(["fallocate", "--dig-holes", blob], check=True)
    subprocess.run(
        ["tar", "--sparse", "--format=posix", form, "-C", place / "l", "-cf", place / "a.tar", "."],
        check=True,
    )
    assert os.stat(place / "a.tar").st_size < 1 << 20
    assert read(place / "a.tar") == [tar]


def test_holes_without_end(place: Path) -> None:
    saved(place / "d.tar", form="legacy")
    with tarfile.open(place / "d.tar", "a", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo(f"{0:064x}/layer.tar")
        info.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 50)}
        archive.addfile(info)
    with pytest.raises(ImageError, match="holes"):
        read(place / "d.tar")


def test_docker_config_of_another_digest(place: Path) -> None:
    config = saved(place / "d.tar", form="legacy")
    data = (place / "d.tar").read_bytes()
    (place / "d.tar").write_bytes(data.replace(config, config.replace(b"amd64", b"amd65")))
    with pytest.raises(DigestError):
        read(place / "d.tar")


# what is no image


@pytest.mark.parametrize("data", [b"", b"text" * 1000, bytes(10240), b"\x1f\x8b", b"\x1f\x8bxxxx"])
def test_not_an_image(place: Path, data: bytes) -> None:
    (place / "f").write_bytes(data)
    with pytest.raises(ImageError) as caught:
        read(place / "f")
    assert str(place / "f") in str(caught.value)


def test_missing_and_odd_files(place: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        read(place / "missing")
    with pytest.raises(ImageError, match="not an image"):
        read(place)
    os.mkfifo(place / "pipe")
    with pytest.raises(ImageError, match="neither a directory nor a regular file"):
        read(place / "pipe")
    (place / "l").mkdir()
    os.mkfifo(place / "l/index.json")
    with pytest.raises(ImageError, match="not a regular file"):
        read(place / "l")


def test_cut_archives(place: Path) -> None:
    layout(place / "l")
    pack(place / "l", place / "a.tar")
    data = (place / "a.tar").read_bytes()
    needed = data.index(b"index.json") + 512 + (place / "l/index.json").stat().st_size
    for size in range(100, needed, 487):
        (place / "a.tar").write_bytes(data[:size])
        with pytest.raises(ImageError):
            read(place / "a.tar")


def test_archive_of_rubbish_at_the_end(place: Path) -> None:
    layout(place / "l")
    pack(place / "l", place / "a.tar")
    data = (place / "a.tar").read_bytes().rstrip(b"\0")
    (place / "a.tar").write_bytes(data + b"rubbish" * 1000)
    with pytest.raises(ImageError, match="cut short or damaged"):
        read(place / "a.tar")


def blob_paths(path: Path) -> list[Path]:
    return sorted((path / "blobs/sha256").iterdir())


def test_damaged_and_cut_blobs(place: Path) -> None:
    layout(place / "l")
    for blob in blob_paths(place / "l"):
        whole = blob.read_bytes()
        damaged = bytearray(whole)
        damaged[-1] ^= 0x40
        for bad, error in (
            (bytes(damaged), DigestError),
            (whole + b" ", DigestError),
            (whole[:-1], ImageError),
        ):
            blob.write_bytes(bad)
            with pytest.raises(error):
                read(place / "l")
        blob.unlink()
        with pytest.raises(ImageError, match="No such file"):
            read(place / "l")
        blob.write_bytes(whole)
    assert read(place / "l") == TARS


@pytest.mark.parametrize(
    "index",
    [
        "",
        "[]",
        '{"manifests": 5}',
        '{"manifests": [{}]}',
        '{"mediaType": "application/x-odd", "manifests": []}',
        '{"manifests": []}',
    ],
)
def test_bad_index(place: Path, index: str) -> None:
    layout(place / "l")
    (place / "l/index.json").write_text(index)
    with pytest.raises(ImageError):
        read(place / "l")


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "{}",
        "[]",
        "[{}]",
        '[{"Config": 5}]',
        '[{"Config": "x", "Layers": [5]}]',
        '[{"Config": "../../etc/passwd", "Layers": []}]',
        '[{"Config": "/etc/passwd", "Layers": []}]',
    ],
)
def test_bad_docker_manifest(place: Path, manifest: str) -> None:
    (place / "manifest.json").write_text(manifest)
    with pytest.raises(ImageError):
        read(place)


def test_unknown_manifest_type(place: Path) -> None:
    writer = layout(place / "l")
    entry = writer.add_json("application/x-odd", {}).to_json()
    (place / "l/index.json").write_text(json.dumps({"manifests": [entry]}))
    with pytest.raises(ImageError, match="application/x-odd"):
        read(place / "l")


def test_unknown_entries_beside_an_image_are_passed_over(place: Path) -> None:
    writer = layout(place / "l")
    index = json.loads((place / "l/index.json").read_text())
    index["manifests"].insert(0, writer.add_json("application/x-odd", {}).to_json())
    (place / "l/index.json").write_text(json.dumps(index))
    assert read(place / "l") == TARS


def test_layer_counts_differ(place: Path) -> None:
    writer = LayoutWriter(place / "l")
    layer = writer.add_layer(TARS[0])
    config = writer.add_json(model.OCI_CONFIG, {"rootfs": {"type": "layers", "diff_ids": []}})
    manifest = {"config": config.to_json(), "layers": [layer.descriptor.to_json()]}
    entry = writer.add_json(model.OCI_MANIFEST, manifest)
    (place / "l/index.json").write_text(json.dumps({"manifests": [entry.to_json()]}))
    with pytest.raises(ImageError, match="the manifest has 1 layers, the config 0"):
        read(place / "l")
