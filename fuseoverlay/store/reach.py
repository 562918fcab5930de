"""What an entry of the index leads to: manifests, and the blobs and layers that they need.

Nothing is said of a blob that is not there: an index keeps the descriptors of all its manifests,
whichever of them are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from fuseoverlay.errors import FuseOverlayError, ImageError
from fuseoverlay.oci import model
from fuseoverlay.oci.model import Config, Descriptor, Digest, Index
from fuseoverlay.store import places
from fuseoverlay.store.content import Content

#: Depth of indexes inside indexes. Real images have one.
_MAX_DEPTH: Final = 8
#: The fields of manifests and indexes, artifacts' among them, that hold descriptors of what they
#: need. `subject` is not one: it is what a manifest is about.
_NEEDED: Final = ("config", "layers", "manifests", "blobs")


def manifests(content: Content, entry: Descriptor) -> Iterator[Descriptor]:
    """The manifests of images that are there, of those that `entry` is or leads to, in order.
    ImageError for a damaged index."""
    yield from _manifests(content, entry, set(), 0)


def _manifests(
    content: Content, entry: Descriptor, seen: set[Digest], depth: int
) -> Iterator[Descriptor]:
    if depth > _MAX_DEPTH:
        raise ImageError("too many indexes inside indexes", where=entry.digest)
    if entry.digest in seen or not content.has(entry):
        return
    seen.add(entry.digest)
    if entry.media_type in model.MANIFEST_TYPES:
        yield entry
    elif entry.media_type in model.INDEX_TYPES:
        index = Index.parse(decoded(content, entry))
        for inner in filter(model.is_image, index.manifests):
            yield from _manifests(content, inner, seen, depth + 1)


def decoded(content: Content, descriptor: Descriptor) -> Any:
    """The JSON in a blob. ImageError, DigestError."""
    return model.decode_json(content.read(descriptor), descriptor.digest)


@dataclass(slots=True)
class Reach:
    """What some entries need: blobs, whether they are there or not, and unpacked layers by their
    place below `layers`. `unreadable`: what cannot be read, so that nobody knows what it needs."""

    blobs: set[Digest] = field(default_factory=set)
    layers: set[str] = field(default_factory=set)
    unreadable: list[str] = field(default_factory=list)


def reach(content: Content, entries: Iterable[Descriptor]) -> Reach:
    """What these entries need."""
    found = Reach()
    todo = list(entries)
    while todo:
        descriptor = todo.pop()
        if descriptor.digest not in found.blobs:
            found.blobs.add(descriptor.digest)
            try:
                todo += _needed(content, descriptor, found)
            except FuseOverlayError as exc:
                found.unreadable.append(str(exc))
    return found


def _needed(content: Content, descriptor: Descriptor, found: Reach) -> list[Descriptor]:
    """The descriptors in a manifest or index; notes the layers of a config."""
    media_type = descriptor.media_type
    if not content.has(descriptor):
        # Of another size it is damaged; missing, it is a manifest that was not fetched.
        if content.size(descriptor.digest) is not None and _is_json(media_type):
            raise ImageError("damaged", where=descriptor.digest, hint="remove or fetch the image")
        return []
    if media_type in model.CONFIG_TYPES:
        config = Config.parse(decoded(content, descriptor))
        found.layers.update(place for pair in places.places(config.diff_ids) for place in pair)
        return []
    if not _is_json(media_type):
        return []
    data = model.expect_fields(decoded(content, descriptor), "manifest")
    return [inner for name in _NEEDED for inner in _descriptors(data.get(name))]


def _is_json(media_type: str) -> bool:
    """Whether it is a manifest or index, also one of a kind that we do not know."""
    known = model.MANIFEST_TYPES | model.INDEX_TYPES | model.CONFIG_TYPES
    return media_type in known or ".manifest." in media_type


def _descriptors(value: object) -> list[Descriptor]:
    items = value if isinstance(value, list) else [value]
    return [Descriptor.parse(item) for item in items if isinstance(item, dict)]
