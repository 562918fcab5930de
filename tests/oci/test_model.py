"""Image files as data: what is accepted, what is refused."""

from __future__ import annotations

import pytest

from fuseoverlay.errors import ImageError
from fuseoverlay.oci import model
from fuseoverlay.oci.model import Config, Descriptor, Digest, Index, Manifest, Platform

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEX,
        "sha256:",
        f"sha256:{HEX[:-1]}",
        f"sha256:{HEX}0",
        f"sha256:{HEX.upper()}",
        f"sha256:{HEX}\n",
        f"md5:{HEX}",
        f"sha512:{HEX}",
        "sha256:../../../../etc/passwd",
        f"sha256:{HEX[:-2]}/.",
        None,
        7,
    ],
)
def test_bad_digests(text: object) -> None:
    with pytest.raises(ImageError, match="digest"):
        Digest.parse(text)


def test_good_digests() -> None:
    assert str(Digest.parse(f"sha256:{HEX}")) == f"sha256:{HEX}"
    assert Digest.parse(f"sha512:{HEX}{HEX}").hex == HEX * 2
    assert Digest.of(b"").hasher().hexdigest() == Digest.of(b"").hex


def test_a_digest_cannot_be_made_wrong() -> None:
    with pytest.raises(ImageError):
        Digest("sha256", "..")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("linux/arm64/v8", Platform("linux", "arm64", "v8")),
        ("Linux/x86_64", Platform("linux", "amd64")),
        ("aarch64", Platform("linux", "arm64")),
        ("linux/armhf", Platform("linux", "arm", "v7")),
    ],
)
def test_platforms(text: str, expected: Platform) -> None:
    assert Platform.parse(text) == expected


@pytest.mark.parametrize("text", ["", "linux/", "/amd64", "a/b/c/d", "linux/am d64", "linux/../x"])
def test_bad_platforms(text: str) -> None:
    with pytest.raises(ImageError):
        Platform.parse(text)


def test_host_platform() -> None:
    assert Platform.host().os == "linux"


@pytest.mark.parametrize(
    ("image", "wanted", "rank"),
    [
        ("linux/arm64", "linux/arm64", 0),
        ("linux/arm64/v8", "linux/arm64", 1),
        ("linux/arm64", "linux/arm64/v8", 1),
        ("linux/arm64/v9", "linux/arm64/v8", None),
        ("linux/arm/v6", "linux/arm", 2),
        ("linux/amd64", "linux/arm64", None),
        ("windows/amd64", "linux/amd64", None),
    ],
)
def test_platform_rank(image: str, wanted: str, rank: int | None) -> None:
    assert Platform.parse(image).rank(Platform.parse(wanted)) == rank


def descriptor(media_type: str) -> dict[str, object]:
    return {"mediaType": media_type, "digest": f"sha256:{HEX}", "size": 3}


@pytest.mark.parametrize(
    "layer",
    [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
    ],
)
@pytest.mark.parametrize("config", [model.OCI_CONFIG, model.DOCKER_CONFIG])
def test_manifest(layer: str, config: str) -> None:
    manifest = Manifest.parse({"config": descriptor(config), "layers": [descriptor(layer)]})
    assert manifest.layers[0].size == 3


@pytest.mark.parametrize(
    ("config", "layer", "own"),
    [
        ("application/x-config", model.OCI_LAYER, model.OCI_MANIFEST),
        (model.OCI_CONFIG, "application/x-layer", model.OCI_MANIFEST),
        (model.OCI_CONFIG, model.OCI_LAYER, "application/x-manifest"),
        (model.OCI_CONFIG, model.OCI_LAYER + "+bzip2", model.OCI_MANIFEST),
    ],
)
def test_unknown_media_types_are_named(config: str, layer: str, own: str) -> None:
    data = {"mediaType": own, "config": descriptor(config), "layers": [descriptor(layer)]}
    with pytest.raises(ImageError, match=r"unknown media type '.*(x-|bzip2)"):
        Manifest.parse(data)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {"mediaType": "", "digest": f"sha256:{HEX}", "size": 1},
        {"mediaType": "x", "digest": f"sha256:{HEX}"},
        {"mediaType": "x", "digest": f"sha256:{HEX}", "size": "1"},
        {"mediaType": "x", "digest": f"sha256:{HEX}", "size": True},
        {"mediaType": "x", "digest": f"sha256:{HEX}", "size": -1},
        {"mediaType": "x", "digest": "../x", "size": 1},
    ],
)
def test_bad_descriptors(data: object) -> None:
    with pytest.raises(ImageError):
        Descriptor.parse(data)


@pytest.mark.parametrize(
    "data", [None, {}, {"rootfs": {"type": "layers", "diff_ids": "x"}}, {"rootfs": {"type": "x"}}]
)
def test_bad_configs(data: object) -> None:
    with pytest.raises(ImageError):
        Config.parse(data)


def test_config() -> None:
    config = Config.parse(
        {
            "os": "linux",
            "architecture": "arm64",
            "variant": "v8",
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{HEX}"]},
        }
    )
    assert config.platform == Platform("linux", "arm64", "v8")
    assert config.diff_ids == (Digest("sha256", HEX),)


def test_descriptor_round_trip() -> None:
    item = Descriptor("x", Digest("sha256", HEX), 5, {"a": "b"}, Platform("linux", "arm", "v7"))
    assert Descriptor.parse(item.to_json()) == item


def test_index_may_hold_null() -> None:
    assert Index.parse({"manifests": None}).manifests == ()


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000])
def test_bad_json(text: bytes) -> None:
    with pytest.raises(ImageError, match="JSON"):
        model.decode_json(text, "here")
