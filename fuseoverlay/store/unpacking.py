"""Layers of an image that is pulled, unpacked while they come."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import trio

from fuseoverlay.errors import ImageError
from fuseoverlay.oci import model
from fuseoverlay.oci.blobs import Image, Layer
from fuseoverlay.oci.malformed import malformed
from fuseoverlay.oci.model import Config, Descriptor, Manifest
from fuseoverlay.store.arriving import Arrivals, ArrivingLayers, StoppedError
from fuseoverlay.store.content import Content
from fuseoverlay.store.layers import Progress, ProgressCallback, StoredImage
from fuseoverlay.store.parallel import in_thread
from fuseoverlay.store.root import Store


@dataclass(frozen=True, slots=True)
class Unpacking:
    """How far the unpacking of a layer is of which all has come: `done` bytes of its blob are
    unpacked. `complete`: it is verified, too."""

    blob: Descriptor
    done: int
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Unpacker:
    """Unpacks the layers of an image while they come; `name` is for messages."""

    store: Store
    name: str
    progress: Callable[[Unpacking], None]
    warn: Callable[[str], None]

    async def run(self, manifest: Manifest, content: Content, arrivals: Arrivals) -> None:
        """Unpack all layers, bottom first. Ends soon if it is cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_at_end, arrivals)
            await in_thread(self._unpack, manifest, content, arrivals)
            nursery.cancel_scope.cancel()

    def _unpack(self, manifest: Manifest, content: Content, arrivals: Arrivals) -> None:
        with malformed(self.name), contextlib.suppress(StoppedError):
            arrivals.wait_complete(manifest.config.digest)
            image = self._image(manifest, content)
            source = ArrivingLayers(self.name, arrivals)
            tell = self._teller(manifest, arrivals)
            try:
                StoredImage(self.store, source, image, tell, self.warn).layers()
            except ImageError:
                # A blob that came wrong fails at its end, which says more; or it came again.
                for layer in manifest.layers:
                    arrivals.wait_complete(layer.digest)
                StoredImage(self.store, source, image, tell, self.warn).layers()

    def _teller(self, manifest: Manifest, arrivals: Arrivals) -> ProgressCallback:
        """Reports on layers of which all has come; before, how much came says as much."""
        blobs = {blob.digest: blob for blob in manifest.layers}

        def tell(now: Progress) -> None:
            blob = blobs.get(now.blob) if now.blob else None
            if blob is not None and arrivals.is_here(blob.digest):
                self.progress(Unpacking(blob, now.read, now.complete))

        return tell

    def _image(self, manifest: Manifest, content: Content) -> Image:
        data = model.decode_json(content.read(manifest.config), manifest.config.digest)
        config = Config.parse(data)
        if len(config.diff_ids) != len(manifest.layers):
            raise ImageError(
                f"the manifest has {len(manifest.layers)} layers, the config"
                f" {len(config.diff_ids)}",
                where=self.name,
            )
        pairs = zip(config.diff_ids, manifest.layers, strict=True)
        return Image(
            config.platform,
            tuple(Layer(diff_id, "", blob.size, blob.digest) for diff_id, blob in pairs),
        )


async def _stop_at_end(arrivals: Arrivals) -> None:
    """Let nobody wait for what does not come any more. A thread cannot be cancelled otherwise."""
    try:
        await trio.sleep_forever()
    finally:
        arrivals.stop()
