"""Compression and digests of layers."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import sys
import threading
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuseoverlay.errors import DigestError, ImageError
from fuseoverlay.oci.entries import read_entries
from fuseoverlay.oci.layout import Node, layer_tar
from fuseoverlay.oci.model import Digest
from fuseoverlay.oci.streams import CHUNK, BlobReader, ForwardStream, decompress, zstd_module
from tests.oci.helpers import Unpacker

KINDS = ["gzip", "zstd", "xz", "bzip2"]
TAR = layer_tar([Node("a", data=b"abc" * 5000), Node("b")])


def compress(data: bytes, kind: str) -> bytes:
    if kind == "gzip":
        return gzip.compress(data)
    if kind == "zstd":
        return bytes(zstd_module().compress(data))
    if kind == "xz":
        return lzma.compress(data)
    return bz2.compress(data) if kind == "bzip2" else data


def blob(data: bytes, size: int | None = None, digest: Digest | None = None) -> BlobReader:
    real = len(data) if size is None else size
    return BlobReader(io.BytesIO(data), real, digest or Digest.of(data), "blob")


@pytest.mark.parametrize("kind", ["plain", *KINDS])
def test_layers(unpacker: Unpacker, kind: str) -> None:
    layer = unpacker.blob(compress(TAR, kind), Digest.of(TAR))
    assert (layer / "a").read_bytes() == b"abc" * 5000


def test_several_members_and_frames(unpacker: Unpacker) -> None:
    for kind in KINDS:
        data = compress(TAR[:700], kind) + compress(TAR[700:], kind)
        assert (unpacker.blob(data, Digest.of(TAR)) / "b").exists()


def test_a_skippable_zstd_frame(unpacker: Unpacker) -> None:
    data = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc" + compress(TAR, "zstd")
    assert (unpacker.blob(data, Digest.of(TAR)) / "b").exists()


@pytest.mark.parametrize("kind", ["xz", "bzip2"])
def test_padding_between_and_after_streams(unpacker: Unpacker, kind: str) -> None:
    data = compress(TAR[:700], kind) + bytes(8) + compress(TAR[700:], kind) + bytes(600_000)
    assert (unpacker.blob(data, Digest.of(TAR)) / "b").exists()


def test_a_name_that_looks_like_bzip2(unpacker: Unpacker) -> None:
    tar = layer_tar([Node("BZh91", data=b"x")])
    assert (unpacker.blob(tar, Digest.of(tar)) / "BZh91").exists()


def test_an_empty_bzip2_stream(unpacker: Unpacker) -> None:
    data = bz2.compress(b"") + bz2.compress(TAR)
    assert (unpacker.blob(data, Digest.of(TAR)) / "b").exists()


def test_xz_that_wants_much_memory(unpacker: Unpacker) -> None:
    """A header may request 4 GiB before there is any data."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 64 << 20}]
    data = lzma.compress(TAR, filters=filters)
    assert (unpacker.blob(data, Digest.of(TAR)) / "b").exists()
    filters[0]["dict_size"] = 1 << 20
    block = bytearray(lzma.compress(TAR, filters=filters))
    # A block's header: size, flags, filter, size of its properties, the dictionary's size; CRC.
    at = 12
    assert bytes(block[at + 2 : at + 4]) == b"\x21\x01"
    block[at + 4] = 40
    block[at + 8 : at + 12] = zlib.crc32(bytes(block[at : at + 8])).to_bytes(4, "little")
    with pytest.raises(ImageError, match=r"[Mm]emory"):
        unpacker.blob(bytes(block), Digest.of(TAR))


def test_gzip_without_isal(unpacker: Unpacker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isal", None)
    assert (unpacker.blob(compress(TAR, "gzip"), Digest.of(TAR)) / "b").exists()
    with pytest.raises(ImageError, match="cut short"):
        unpacker.blob(compress(TAR, "gzip")[:-9], Digest.of(TAR))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [1, 4, 8, 40])
def test_cut_compressed_data(unpacker: Unpacker, kind: str, cut: int) -> None:
    """The digest of the blob is right, but its writer did not finish."""
    with pytest.raises(ImageError, match=r"cut short|damaged"):
        unpacker.blob(compress(TAR, kind)[:-cut], Digest.of(TAR))


@pytest.mark.parametrize("kind", KINDS)
def test_rubbish_after_compressed_data(unpacker: Unpacker, kind: str) -> None:
    with pytest.raises(ImageError):
        unpacker.blob(compress(TAR, kind) + b"rubbish", Digest.of(TAR))


@pytest.mark.parametrize("kind", ["plain", *KINDS])
def test_rubbish_after_the_archive_is_hashed(unpacker: Unpacker, kind: str) -> None:
    tar = TAR + b"rubbish" * 1000
    assert (unpacker.blob(compress(tar, kind), Digest.of(tar)) / "b").exists()
    with pytest.raises(DigestError, match="unpacked layer"):
        unpacker.blob(compress(tar, kind), Digest.of(TAR))


@pytest.mark.parametrize("kind", ["plain", *KINDS])
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
@given(st.binary(max_size=3000), st.sampled_from(KINDS), st.data())
def test_any_damage_is_an_image_error(data: bytes, kind: str, draw: st.DataObject) -> None:
    """Whatever a decompressor raises becomes an ImageError, or the hash differs."""
    packed = bytearray(compress(data, kind))
    at = draw.draw(st.integers(4, len(packed) - 1))
    packed[at] ^= draw.draw(st.integers(1, 255))
    try:
        plain = decompress(blob(bytes(packed)), "x")
        with ForwardStream(plain, Digest.of(data), "x") as stream:
            stream.finish()
    except ImageError:
        pass


@settings(database=None, deadline=None)
@given(st.integers(0, len(TAR) - 1), st.integers(1, 255))
def test_any_damage_of_an_archive_is_an_image_error(at: int, flip: int) -> None:
    tar = bytearray(TAR)
    tar[at] ^= flip
    source = io.BytesIO(bytes(tar))
    with ForwardStream(source, Digest.of(TAR), "x") as stream, pytest.raises(ImageError):
        for _ in read_entries(stream, "x"):
            pass
        stream.finish()


def test_what_is_read_ahead() -> None:
    """An error comes after the data before it, again and again; whoever stops early leaves no
    thread behind, and nothing is read any more."""
    threads = threading.active_count()
    plain = os.urandom(20 * CHUNK)
    cut = decompress(blob(gzip.compress(plain)[:-9]), "x")
    with ForwardStream(cut, Digest.of(plain), "x") as stream:
        assert stream.read(19 * CHUNK) == plain[: 19 * CHUNK]
        for _ in range(2):
            with pytest.raises(ImageError, match="cut short"):
                stream.finish()
    source = io.BytesIO(plain)
    with ForwardStream(source, Digest.of(plain), "x") as stream:
        stream.read(2 * CHUNK)
    position = source.tell()
    assert 2 * CHUNK <= position < 10 * CHUNK
    assert threading.active_count() == threads
    assert source.tell() == position


def test_an_error_does_not_wait_for_what_is_read_ahead() -> None:
    """The source may be a download that stalls."""
    come = threading.Event()

    class Stalling(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            assert self.tell() < 2 * CHUNK or come.wait(20), "it was waited for"
            return super().read(size)

    source = Stalling(bytes(20 * CHUNK))
    with pytest.raises(OSError, match="full"), ForwardStream(source, Digest.of(b""), "x") as stream:
        stream.read(2 * CHUNK)
        raise OSError("full")
    assert not come.is_set()
    come.set()
