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
from fuseoverlay.store.content import REPAIR, Content

_REPAIR: Final = f"remove the image, or {REPAIR}"


def manifests(content: Content, entry: Descriptor) -> Iterator[Descriptor]:
    """The manifests of images that are there, of those that `entry` is or leads to, in order.
    ImageError for a damaged index."""
    yield from _manifests(content, entry, set(), 0)


def _manifests(
    content: Content, entry: Descriptor, seen: set[Digest], depth: int
) -> Iterator[Descriptor]:
    if depth > model.MAX_INDEX_DEPTH:
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
    # An index keeps the descriptors of manifests that were never fetched; what has a name was.
    wanted = {descriptor.digest for descriptor in todo}
    # A blob may be named as one thing here and as another there: what it needs depends on that.
    seen: set[tuple[Digest, str]] = set()
    while todo:
        descriptor = todo.pop()
        found.blobs.add(descriptor.digest)
        if (descriptor.digest, _role(descriptor)) not in seen:
            seen.add((descriptor.digest, _role(descriptor)))
            try:
                if descriptor.digest in wanted and content.size(descriptor.digest) is None:
                    raise ImageError("missing", where=descriptor.digest, hint=_REPAIR)
                todo += _needed(content, descriptor, found)
            except FuseOverlayError as exc:
                found.unreadable.append(str(exc))
    return found


def _role(descriptor: Descriptor) -> str:
    if model.is_manifest(descriptor.media_type):
        return "document"
    return "config" if descriptor.media_type in model.CONFIG_TYPES else "blob"


def _needed(content: Content, descriptor: Descriptor, found: Reach) -> list[Descriptor]:
    """The descriptors in a manifest or index; notes the layers of a config."""
    is_config = descriptor.media_type in model.CONFIG_TYPES
    if not is_config and not model.is_manifest(descriptor.media_type):
        return []
    if not content.has(descriptor):
        # Of another size it is damaged; missing, it is a manifest that was not fetched.
        if content.size(descriptor.digest) is not None:
            raise ImageError("damaged", where=descriptor.digest, hint=_REPAIR)
        return []
    data = decoded(content, descriptor)
    if is_config:
        pairs = places.places(Config.parse(data).diff_ids)
        found.layers.update(place for pair in pairs for place in pair)
        return []
    return model.needed(data)
