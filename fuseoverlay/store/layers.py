"""Unpacked layers, each of them once, shared by all images of one user.

    ROOT/layers/sha256/DIFF_ID            unpacked with real owners, modes and devices
    ROOT/layers/chain/CHAIN_ID            the same, with data of the layers below in it
    ROOT/layers-override/...              the same two, owners and modes only recorded

A layer exists completely or not at all: it is made in `tmp`, verified, written to disk and
published by one rename.
"""

from __future__ import annotations

import contextlib
import io
import pathlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from fuseoverlay.errors import StoreError
from fuseoverlay.oci import names
from fuseoverlay.oci.blobs import Image, ImageSource, Layer, open_image
from fuseoverlay.oci.job import Job, store_error
from fuseoverlay.oci.malformed import malformed
from fuseoverlay.oci.model import Digest, Platform
from fuseoverlay.oci.streams import ForwardStream
from fuseoverlay.oci.unpack import unpack_blob, unpack_stream
from fuseoverlay.store.root import Store

#: An empty tar archive: what an image without layers shows.
_EMPTY_TAR: Final = bytes(1024)
_UNPACKED: Final = "layer"


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of unpacking. `done` and `total` are bytes, over all layers that were missing.

    `layer` counts from 1 to `layers`, the number of layers that were missing.
    """

    layer: int
    layers: int
    done: int
    total: int


ProgressCallback = Callable[[Progress], None]


def _ignore(_line: str) -> None:
    """Drop a warning."""


def unpacked(
    store: Store,
    image: str,
    *,
    platform: str | None = None,
    progress: ProgressCallback | None = None,
    warn: Callable[[str], None] = _ignore,
) -> list[pathlib.Path]:
    """The layer directories of the image at the path `IMAGE[:REF]`; see `StoredImage.layers`."""
    with opened(store, image, platform=platform, progress=progress, warn=warn) as found:
        return found.layers()


@contextlib.contextmanager
def opened(
    store: Store,
    image: str,
    *,
    platform: str | None = None,
    progress: ProgressCallback | None = None,
    warn: Callable[[str], None] = _ignore,
) -> Iterator[StoredImage]:
    """The image at the path `IMAGE[:REF]`. No layer has been read yet, only what describes the
    image.

    Raises ImageError, DigestError, StoreError.
    """
    path, ref = names.find(image)
    wanted = Platform.parse(platform) if platform else None
    store.prepare()
    scratch = str(store.tmp) if store.is_writable() else None
    with malformed(path), open_image(path, scratch=scratch) as source:
        chosen = source.resolve(ref, wanted)
        if wanted is None and chosen.platform is not None:
            _check_platform(image, chosen.platform, warn)
        yield StoredImage(store, source, chosen, progress, warn)


def _check_platform(image: str, platform: Platform, warn: Callable[[str], None]) -> None:
    """Warn if the image, the only one there, is for other machines."""
    host = Platform.host()
    # A 64-bit kernel runs these, too.
    also = replace(host, architecture="386", variant="") if host.architecture == "amd64" else host
    if platform.rank(host) is None and platform.rank(also) is None:
        warn(
            f"{image}: is for {platform}, and this machine is {host}: its programs may not run; "
            f"--platform {platform} says that it is meant"
        )


class StoredImage:
    """One image, and the unpacking of its layers into the store."""

    def __init__(
        self,
        store: Store,
        source: ImageSource,
        image: Image,
        progress: ProgressCallback | None,
        warn: Callable[[str], None],
    ) -> None:
        self._store = store
        self._source = source
        self._image = image
        self._progress = progress
        self._warn = warn
        self._override = store.override()
        self._base = store.root / ("layers-override" if self._override else "layers")
        self._done = self._total = self._number = self._count = 0

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """The digests of its plain layers, bottom first."""
        return tuple(str(layer.diff_id) for layer in self._image.layers)

    def layers(self) -> list[pathlib.Path]:
        """The layer directories, top first. Unpacks what is missing.

        No directory comes twice, and there is at least one. Raises ImageError, DigestError,
        StoreError; layers finished by then stay.
        """
        # If a layer comes twice, only the upper one is kept: what the lower one holds or hides is
        # held or hidden by the upper already, whatever lies between.
        return list(dict.fromkeys(reversed(self._directories())))

    def _directories(self) -> list[pathlib.Path]:
        chains = _chain_ids(self._image.layers)
        missing = [
            layer
            for layer, chain in zip(self._image.layers, chains, strict=True)
            if self._find(layer.diff_id, chain) is None
        ]
        self._count = len(missing)
        self._total = sum(layer.size for layer in missing)
        found: list[pathlib.Path] = []
        for layer, chain in zip(self._image.layers, chains, strict=True):
            found.append(self._find(layer.diff_id, chain) or self._unpack(layer, chain, found))
        return found or [self._empty()]

    def _find(self, diff_id: Digest, chain: str) -> pathlib.Path | None:
        for path in (self._plain_path(diff_id), self._chain_path(chain)):
            if path.is_dir():
                return path
        return None

    def _plain_path(self, diff_id: Digest) -> pathlib.Path:
        return self._base / diff_id.algorithm / diff_id.hex

    def _chain_path(self, chain: str) -> pathlib.Path:
        return self._base / "chain" / chain

    def _unpack(self, layer: Layer, chain: str, below: list[pathlib.Path]) -> pathlib.Path:
        self._number += 1
        self._tell(0)
        job = Job(
            override=self._override,
            lowers=list(reversed(below)),
            warn=self._warn,
            where=f"{self._source.path}: layer {layer.digest or layer.diff_id}",
            place=str(self._store.root),
        )
        with self._making() as target, self._source.open_layer(layer, self._tell) as blob:
            used_lowers = unpack_blob(blob, layer.diff_id, str(target), job)
            place = self._chain_path(chain) if used_lowers else self._plain_path(layer.diff_id)
            self._store.publish(target, place)
        return place

    def _empty(self) -> pathlib.Path:
        diff_id = Digest.of(_EMPTY_TAR)
        place = self._plain_path(diff_id)
        if not place.is_dir():
            with self._making() as target:
                job = Job(override=self._override, place=str(self._store.root))
                stream = ForwardStream(io.BytesIO(_EMPTY_TAR), diff_id, "empty layer")
                unpack_stream(stream, str(target), job)
                self._store.publish(target, place)
        return place

    @contextlib.contextmanager
    def _making(self) -> Iterator[pathlib.Path]:
        """A new empty directory to unpack into, inside a workspace."""
        with self._store_errors(), self._store.workspace() as work:
            target = work / _UNPACKED
            target.mkdir(mode=0o700)
            yield target

    @contextlib.contextmanager
    def _store_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise self._store_error(exc) from exc

    def _store_error(self, exc: OSError) -> StoreError:
        return store_error(exc, "cannot store a layer", self._store.root)

    def _tell(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(Progress(self._number, self._count, self._done, self._total))


def _chain_ids(layers: tuple[Layer, ...]) -> list[str]:
    """The ChainID, in hex, of each layer with all below it; image-spec config.md."""
    chains: list[str] = []
    chain = ""
    for layer in layers:
        chain = str(Digest.of(f"{chain} {layer.diff_id}".encode()) if chain else layer.diff_id)
        chains.append(chain.partition(":")[2])
    return chains
