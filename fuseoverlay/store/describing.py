"""Images in files, described without being loaded."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator

from fuseoverlay.oci import names
from fuseoverlay.oci.model import Platform
from fuseoverlay.store.images import Image, Images
from fuseoverlay.store.load import load_description
from fuseoverlay.store.root import Store


@contextlib.contextmanager
def described(text: str, platform: Platform | None = None) -> Iterator[tuple[Images, Image]]:
    """The image that `[TRANSPORT:]PATH[:REF]` names, in a store of its own for as long as the
    context lasts, where only its layers are missing. ImageError, DigestError, StoreError."""
    path, ref = names.find(text)
    with tempfile.TemporaryDirectory(prefix="fuseoverlay-") as base:
        images = Images(Store(base))
        images.store.prepare()
        yield images, load_description(images, path, ref, platform)
