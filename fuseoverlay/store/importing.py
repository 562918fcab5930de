"""An image of one layer from an archive of a root file system, as `docker import` makes it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Final, cast

from fuseoverlay.errors import ImageError, describe
from fuseoverlay.oci import model
from fuseoverlay.oci.blobs import Image, Layer
from fuseoverlay.oci.headers import NO_TAR
from fuseoverlay.oci.job import store_error
from fuseoverlay.oci.malformed import malformed
from fuseoverlay.oci.model import Descriptor, Digest, Hasher, Platform
from fuseoverlay.oci.streams import (
    CHUNK,
    HEAD,
    BlobReader,
    compression_of,
    decompress,
    gzip_writer,
)
from fuseoverlay.store.content import Content
from fuseoverlay.store.layers import StoredImage, check_attributes
from fuseoverlay.store.names import Names
from fuseoverlay.store.root import Store

#: Compressions that layers may have; others are made to gzip.
_SUFFIXES: Final = {"gzip": "+gzip", "zstd": "+zstd"}


@dataclass(frozen=True, slots=True)
class Imported:
    """The id of the image, its manifest, and which image had the name before, if another one."""

    id: Digest
    manifest: Descriptor
    replaced: Digest | None = None


def import_archive(
    store: Store,
    file: IO[bytes],
    where: str,
    *,
    name: str | None = None,
    platform: Platform | None = None,
    message: str | None = None,
    config: dict[str, Any] | None = None,
    warn: Callable[[str], None] = lambda line: None,
) -> Imported:
    """Make the archive in `file`, which is unbuffered, an image called `name`; it is also unpacked.

    A compressed archive stays as it is if layers may be compressed so; a plain one is compressed.
    `config`: how to run it. `where`: for messages. ImageError, StoreError; then nothing is left.
    """
    check_attributes(store)
    content = Content(store)
    with content.lease() as lease, store.workspace() as work, malformed(where):
        layer, diff_id = _read(store, file, work / "layer", where)
        lease.add([layer.digest])
        chosen = platform or Platform.host()
        image = Image(chosen, (Layer(diff_id, "", layer.size, layer.digest),))
        with _tar(where):
            StoredImage(store, _File(work / "layer", where), image, None, warn).layers()
        described, manifest, texts = _documents(layer, diff_id, chosen, message, config or {})
        lease.add([described.digest, manifest.digest])
        content.take(work / "layer", layer.digest)
        for text in texts:
            content.add(text)
        with Names(store).editing() as names:
            before = None
            if name is None:
                names.keep(manifest)
            else:
                before = names.set(name, manifest)
    return Imported(described.digest, manifest, None if before == manifest.digest else before)


@contextlib.contextmanager
def _tar(where: str) -> Iterator[None]:
    """Say what is no archive of that, and not of a layer in an image."""
    try:
        yield
    except ImageError as exc:
        if exc.what != NO_TAR:
            raise
        hint = "give a tar archive, which may be compressed"
        raise ImageError(NO_TAR, where=where, hint=hint) from exc


def _documents(
    layer: Descriptor,
    diff_id: Digest,
    platform: Platform,
    message: str | None,
    config: dict[str, Any],
) -> tuple[Descriptor, Descriptor, list[bytes]]:
    """Config and manifest of the image, and their texts."""
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    created = time.strftime(f"%Y-%m-%dT%H:%M:%S.{nanoseconds:09}Z", time.gmtime(seconds))
    comment = message or "Imported from -"
    described = {
        **model.platform_json(platform),
        "comment": comment,
        "created": created,
        "config": config,
        "history": [{"created": created, "comment": comment}],
        "rootfs": {"type": "layers", "diff_ids": [str(diff_id)]},
    }
    text = _encoded(described)
    descriptor = Descriptor(model.OCI_CONFIG, Digest.of(text), len(text))
    manifest = {
        "schemaVersion": 2,
        "mediaType": model.OCI_MANIFEST,
        "config": descriptor.to_json(),
        "layers": [layer.to_json()],
    }
    data = _encoded(manifest)
    return descriptor, Descriptor(model.OCI_MANIFEST, Digest.of(data), len(data)), [text, data]


def _encoded(data: dict[str, Any]) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()


def _read(
    store: Store, file: IO[bytes], path: pathlib.Path, where: str
) -> tuple[Descriptor, Digest]:
    """Write the layer to `path`; its descriptor, and the digest of the plain archive."""
    source = _Input(file, where)
    kept = compression_of(source.head) if compression_of(source.head) in _SUFFIXES else None
    plain = Digest.of(b"").hasher()
    with _written(path, store) as blob:
        if kept is not None:
            source.copy = blob
            stream = decompress(source, where)
            while data := stream.read(CHUNK):
                plain.update(data)
            # Whatever follows the compressed data is part of the blob.
            while source.read(CHUNK):
                pass
        else:
            stream = decompress(source, where)
            with gzip_writer(cast("IO[bytes]", blob)) as packer:
                while data := stream.read(CHUNK):
                    plain.update(data)
                    packer.write(data)
    if not source.head:
        raise ImageError("there is nothing in it", where=where, hint="give a tar archive")
    media_type = model.OCI_LAYER + _SUFFIXES[kept or "gzip"]
    digest = Digest("sha256", blob.hasher.hexdigest())
    return Descriptor(media_type, digest, blob.size), Digest("sha256", plain.hexdigest())


class _Input(io.RawIOBase):
    """The archive as it comes; `copy` gets all that is read of it."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        super().__init__()
        self._file = file
        self._where = where
        self.copy: _Blob | None = None
        self.head = self._left = b""
        # A pipe may give less than it is asked for.
        while len(self.head) < HEAD and (data := self._next(HEAD - len(self.head))):
            self.head += data
        self._left = self.head

    def readable(self) -> bool:
        """Always True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what comes next."""
        view = memoryview(buffer).cast("B")
        data = self._left[: len(view)] or self._next(len(view))
        self._left = self._left[len(data) :]
        view[: len(data)] = data
        if self.copy is not None:
            self.copy.write(data)
        return len(data)

    def _next(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except OSError as exc:
            raise ImageError(f"cannot read: {describe(exc)}", where=self._where) from exc


class _Blob:
    """A file that is being written, hashed and counted."""

    def __init__(self, file: IO[bytes], store: Store) -> None:
        self._file = file
        self._store = store
        self.hasher: Hasher = Digest.of(b"").hasher()
        self.size = 0

    def write(self, data: bytes) -> int:
        """Append. StoreError: what decompresses takes an OSError for its own."""
        try:
            self._file.write(data)
        except OSError as exc:
            raise store_error(exc, "cannot store a blob", self._store.root) from exc
        self.hasher.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing: the end of the context writes it."""


@contextlib.contextmanager
def _written(path: pathlib.Path, store: Store) -> Iterator[_Blob]:
    try:
        with open(path, "xb") as file:
            yield _Blob(file, store)
            file.flush()
            os.fsync(file.fileno())
    except OSError as exc:
        raise store_error(exc, "cannot store a blob", store.root) from exc


class _File:
    """The layer in a file, to be unpacked; `path` is for messages."""

    def __init__(self, file: pathlib.Path, path: str) -> None:
        self._file = file
        self.path = path

    def open_layer(self, layer: Layer, progress: Callable[[int], None] | None = None) -> BlobReader:
        """The bytes of the layer."""
        return BlobReader(open(self._file, "rb"), layer.size, layer.digest, self.path, progress)
