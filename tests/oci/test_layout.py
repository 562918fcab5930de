"""The small writer of images: others read what it writes."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from fuseoverlay.oci.layout import LayoutWriter, Node, layer_tar, pack
from fuseoverlay.oci.model import Digest, Platform

TAR = layer_tar([Node("f", data=b"data" * 1000)])


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_layers_are_reproducible(place: Path, compression: str | None) -> None:
    one = LayoutWriter(place / "1").add_layer(TAR, compression)
    two = LayoutWriter(place / "2").add_layer(io.BytesIO(TAR), compression)
    assert one == two
    assert one.diff_id == Digest.of(TAR)
    blob = (place / "1/blobs/sha256" / one.descriptor.digest.hex).read_bytes()
    assert Digest.of(blob) == one.descriptor.digest
    assert len(blob) == one.descriptor.size
    assert (one.descriptor.digest == one.diff_id) == (compression is None)


def test_unknown_compression(place: Path) -> None:
    with pytest.raises(ValueError, match="bzip2"):
        LayoutWriter(place / "l").add_layer(TAR, "bzip2")


def test_adding_to_a_layout(place: Path) -> None:
    for ref in ("a", "b"):
        writer = LayoutWriter(place / "l")
        writer.add_image([writer.add_layer(TAR)], ref=ref, platform="linux/arm64/v8")
    index = json.loads((place / "l/index.json").read_text())
    assert len(index["manifests"]) == 2
    assert index["manifests"][0]["platform"] == {
        "os": "linux",
        "architecture": "arm64",
        "variant": "v8",
    }


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_skopeo_reads_it(place: Path, compression: str | None) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("missing tool: skopeo")
    writer = LayoutWriter(place / "l")
    writer.add_image([writer.add_layer(TAR, compression)], ref="x")
    pack(place / "l", place / "a.tar")
    for name in (f"oci:{place / 'l'}:x", f"oci-archive:{place / 'a.tar'}:x"):
        done = subprocess.run(
            ["skopeo", "--tmpdir", place, "inspect", "--config", name],
            capture_output=True,
            check=True,
        )
        config = json.loads(done.stdout)
        assert config["rootfs"]["diff_ids"] == [str(Digest.of(TAR))]
        assert config["architecture"] == Platform.host().architecture
