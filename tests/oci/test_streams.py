"""Compression and digests of layers."""

from __future__ import annotations

import gzip
import hashlib
import io
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuseoverlay.errors import DigestError, ImageError
from fuseoverlay.oci.entries import read_entries
from fuseoverlay.oci.layout import Node, layer_tar
from fuseoverlay.oci.model import Digest
from fuseoverlay.oci.streams import BlobReader, ForwardStream, decompress, zstd_module
from tests.oci.helpers import Unpacker

TAR = layer_tar([Node("a", data=b"abc" * 5000), Node("b")])


def compress(data: bytes, kind: str) -> bytes:
    if kind == "gzip":
        return gzip.compress(data)
    if kind == "zstd":
        return bytes(zstd_module().compress(data))
    return data


def blob(data: bytes, size: int | None = None, digest: Digest | None = None) -> BlobReader:
    real = len(data) if size is None else size
    return BlobReader(io.BytesIO(data), real, digest or Digest.of(data), "blob")


@pytest.mark.parametrize("kind", ["plain", "gzip", "zstd"])
def test_layers(unpacker: Unpacker, kind: str) -> None:
    layer = unpacker.blob(compress(TAR, kind), Digest.of(TAR))
    assert (layer / "a").read_bytes() == b"abc" * 5000


def test_several_members_and_frames(unpacker: Unpacker) -> None:
    for kind in ("gzip", "zstd"):
        data = compress(TAR[:700], kind) + compress(TAR[700:], kind)
        assert (unpacker.blob(data, Digest.of(TAR)) / "b").exists()


def test_a_skippable_zstd_frame(unpacker: Unpacker) -> None:
    data = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc" + compress(TAR, "zstd")
    assert (unpacker.blob(data, Digest.of(TAR)) / "b").exists()


def test_gzip_without_isal(unpacker: Unpacker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isal", None)
    assert (unpacker.blob(compress(TAR, "gzip"), Digest.of(TAR)) / "b").exists()
    with pytest.raises(ImageError, match="cut short"):
        unpacker.blob(compress(TAR, "gzip")[:-9], Digest.of(TAR))


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
@pytest.mark.parametrize("cut", [1, 4, 8, 40])
def test_cut_compressed_data(unpacker: Unpacker, kind: str, cut: int) -> None:
    """The blob is what its digest says, but its writer did not finish."""
    with pytest.raises(ImageError, match=r"cut short|damaged"):
        unpacker.blob(compress(TAR, kind)[:-cut], Digest.of(TAR))


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_rubbish_after_compressed_data(unpacker: Unpacker, kind: str) -> None:
    with pytest.raises(ImageError):
        unpacker.blob(compress(TAR, kind) + b"rubbish", Digest.of(TAR))


@pytest.mark.parametrize("kind", ["plain", "gzip", "zstd"])
def test_rubbish_after_the_archive_is_hashed(unpacker: Unpacker, kind: str) -> None:
    tar = TAR + b"rubbish" * 1000
    assert (unpacker.blob(compress(tar, kind), Digest.of(tar)) / "b").exists()
    with pytest.raises(DigestError, match="unpacked layer"):
        unpacker.blob(compress(tar, kind), Digest.of(TAR))


@pytest.mark.parametrize("kind", ["plain", "gzip", "zstd"])
def test_wrong_diff_id(unpacker: Unpacker, kind: str) -> None:
    with pytest.raises(DigestError, match="the image config says"):
        unpacker.blob(compress(TAR, kind), Digest.of(b""))


def test_wrong_digest_and_size() -> None:
    with pytest.raises(DigestError, match="wrong digest"):
        blob(b"data", digest=Digest.of(b"date")).finish()
    with pytest.raises(ImageError, match="cut short, 3 bytes"):
        blob(b"data", size=7).finish()
    blob(b"data").finish()


def test_sha512() -> None:
    tar = bytes(1024)
    digest = Digest("sha512", hashlib.sha512(tar).hexdigest())
    blob(tar, digest=digest).finish()
    with pytest.raises(DigestError):
        blob(tar[:-1], digest=digest).finish()


@settings(database=None, deadline=None)
@given(st.binary(max_size=3000), st.sampled_from(["gzip", "zstd"]), st.data())
def test_any_damage_is_an_image_error(data: bytes, kind: str, draw: st.DataObject) -> None:
    """Whatever a decompressor raises comes out as ImageError, or the hash differs."""
    packed = bytearray(compress(data, kind))
    at = draw.draw(st.integers(4, len(packed) - 1))
    packed[at] ^= draw.draw(st.integers(1, 255))
    try:
        stream = ForwardStream(decompress(blob(bytes(packed)), "x"), Digest.of(data), "x")
        stream.finish()
    except ImageError:
        pass


@settings(database=None, deadline=None)
@given(st.integers(0, len(TAR) - 1), st.integers(1, 255))
def test_any_damage_of_an_archive_is_an_image_error(at: int, flip: int) -> None:
    tar = bytearray(TAR)
    tar[at] ^= flip
    stream = ForwardStream(io.BytesIO(bytes(tar)), Digest.of(TAR), "x")
    with pytest.raises(ImageError):
        for _ in read_entries(stream, "x"):
            pass
        stream.finish()
