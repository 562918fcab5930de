"""Images from files into the store, bit for bit: OCI layouts and archives, `docker save` archives.

An index comes whole, with all its manifests that are complete, or with those of one platform. A
`docker save` archive has no manifests: its images get one over its layers as they are. The same
archive gives the same manifest, and the id is docker's. Source: OCI image-spec image-layout.md.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Final

from fuseoverlay.errors import DigestError, ImageError, describe
from fuseoverlay.oci import model
from fuseoverlay.oci.blobs import ImageSource, Layer, SavedImage, open_image
from fuseoverlay.oci.malformed import malformed
from fuseoverlay.oci.model import Descriptor, Digest, Platform
from fuseoverlay.oci.reference import Reference
from fuseoverlay.oci.streams import HEAD, compression_of
from fuseoverlay.store.content import Content, Lease, Partial
from fuseoverlay.store.images import Image, Images
from fuseoverlay.store.names import Entry
from fuseoverlay.store.reach import manifests
from fuseoverlay.store.root import Store

_CHUNK: Final = 1 << 20
_SUFFIXES: Final = {None: "", "gzip": "+gzip", "zstd": "+zstd"}


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image that was loaded: its full name, None if the file gives it none; what it is; and the
    id of the image that had the name before, if that was another one."""

    name: str | None
    descriptor: Descriptor
    replaced: Digest | None = None


#: What is found in a file: full names and images.
_Found = list[tuple[str | None, Descriptor]]


def load(
    store: Store,
    path: str,
    *,
    ref: str | None = None,
    platform: Platform | None = None,
    name: str | None = None,
    progress: Callable[[int], None] | None = None,
    unpack: Callable[[Image], None] = lambda image: None,
) -> list[Loaded]:
    """Bring all images of the file or directory `path` into the store, or only what `ref` names
    there; of each all, or only what is for `platform`. `name`: what the only image is to be
    called.

    `progress` is told how many bytes each step copied. What is in the store already is not read.
    `unpack` gets each image before anything has its name: of several platforms, the one for this
    machine. ImageError, DigestError, StoreError; what was copied by then stays, without a name.
    """
    store.prepare()
    content = Content(store)
    with (
        malformed(path),
        open_image(path, scratch=str(store.tmp)) as source,
        content.lease() as lease,
    ):
        loader = _Loader(source, content, lease, progress)
        found = loader.found(ref, platform)
        if name is not None:
            found = _renamed(path, found, name)
        images = Images(store)
        for descriptor in dict.fromkeys(descriptor for _, descriptor in found):
            unpack(_image(images, descriptor))
        return _name(images, found)


def load_description(
    images: Images, path: str, ref: str | None, platform: Platform | None
) -> Image:
    """Bring into a store of its own what describes the images of a file, no layers; the image that
    `ref` names there, or the only one. ImageError, DigestError, StoreError."""
    with (
        malformed(path),
        open_image(path, scratch=str(images.store.tmp)) as source,
        images.content.lease() as lease,
    ):
        loader = _Loader(source, images.content, lease, None, layers=False)
        _name(images, loader.found(ref, None))
        chosen = source.resolve(ref, platform)
    return images.resolve(str(chosen.id))


def _renamed(path: str, found: _Found, name: str) -> _Found:
    descriptors = {descriptor.digest: descriptor for _, descriptor in found}
    if len(descriptors) != 1:
        raise ImageError("there are several images, which cannot have one name", where=path)
    return [(str(Reference.parse(name)), found[0][1])]


def _image(images: Images, descriptor: Descriptor) -> Image:
    (image,) = images.of([Entry(None, descriptor)])
    return image


def _name(images: Images, found: _Found) -> list[Loaded]:
    loaded = []
    with images.names.editing() as index:
        for name, descriptor in found:
            if name is None:
                index.keep(descriptor)
                loaded.append(Loaded(None, descriptor))
                continue
            before = [entry for entry in index.entries() if entry.name == name]
            index.set(name, descriptor)
            id_ = _image(images, descriptor).id
            others = [image.id for image in images.of(before) if image.id != id_]
            loaded.append(Loaded(name, descriptor, others[0] if others else None))
    return loaded


class _Loader:
    """Copies blobs from `source` into `content`."""

    def __init__(
        self,
        source: ImageSource,
        content: Content,
        lease: Lease,
        progress: Callable[[int], None] | None,
        *,
        layers: bool = True,
    ) -> None:
        self._source = source
        #: Whether layers are copied, too, or only looked for.
        self._layers = layers
        self._content = content
        self._lease = lease
        self._progress = progress
        #: Whether all that a manifest or index needs is here.
        self._complete: dict[Digest, bool] = {}

    def found(self, ref: str | None, platform: Platform | None) -> _Found:
        """The images of the source, or those that `ref` names, with their names."""
        entries = self._source.entries if ref is None else self._source.named(ref)
        return self._listed(entries, platform) if entries else self._archived(ref, platform)

    # OCI

    def _listed(self, entries: Sequence[Descriptor], platform: Platform | None) -> _Found:
        found = []
        for entry in filter(model.is_image, entries):
            chosen = None if platform is None else self._chosen(entry, platform)
            self._copy(entry, chosen, 0)
            if next(manifests(self._content, entry), None) is None:
                raise ImageError("parts of the image are missing", where=self._source.path)
            found.append((_name_of(entry), _plain(entry)))
        return found

    def _chosen(self, entry: Descriptor, platform: Platform) -> Digest:
        """The manifest for `platform`, among those that `entry` is or leads to."""
        ranked: list[tuple[int, int, Digest]] = []
        for manifest in self._manifests(entry, 0, set()):
            rank = self._platform(manifest).rank(platform)
            if rank is not None:
                ranked.append((rank, len(ranked), manifest.digest))
        if not ranked:
            raise ImageError(f"no image for {platform}", where=self._source.path)
        return min(ranked)[2]

    def _manifests(self, entry: Descriptor, depth: int, seen: set[Digest]) -> Iterator[Descriptor]:
        if depth > model.MAX_INDEX_DEPTH:
            raise ImageError("too many indexes inside indexes", where=self._source.path)
        if entry.media_type in model.MANIFEST_TYPES:
            yield entry
        elif entry.digest not in seen and self._source.has_blob(entry):
            seen.add(entry.digest)
            for inner in filter(model.is_image, self._needed(entry)[1]):
                yield from self._manifests(inner, depth + 1, seen)

    def _platform(self, manifest: Descriptor) -> Platform:
        nothing = Platform("", "")
        if manifest.platform is not None or not self._source.has_blob(manifest):
            return manifest.platform or nothing
        image = self._source.image(manifest)
        return image.platform or nothing

    def _needed(self, descriptor: Descriptor) -> tuple[bytes, list[Descriptor]]:
        """A manifest or index, and the descriptors in it."""
        data = self._source.read_blob(descriptor)
        return data, model.needed(model.decode_json(data, descriptor.digest))

    def _copy(self, descriptor: Descriptor, chosen: Digest | None, depth: int) -> bool:
        """Copy what a blob needs, and then itself if that is complete; returns whether it is.

        `chosen`: the only manifest of an image to be copied; None for all.
        """
        digest, media_type = descriptor.digest, descriptor.media_type
        if depth > model.MAX_INDEX_DEPTH:
            raise ImageError("too many indexes inside indexes", where=self._source.path)
        if digest in self._complete:
            return self._complete[digest]
        if not model.is_manifest(media_type):
            return self._copy_blob(descriptor)
        if not self._source.has_blob(descriptor):
            return False
        is_index = media_type in model.INDEX_TYPES
        if chosen is not None and not is_index and digest != chosen:
            return False
        data, needed = self._needed(descriptor)
        self._lease.add([digest, *(inner.digest for inner in needed)])
        parts = [self._copy(inner, chosen, depth + 1) for inner in needed]
        self._complete[digest] = is_index or all(parts)
        if self._complete[digest]:
            self._content.add(data, digest)
        return self._complete[digest]

    def _copy_blob(self, descriptor: Descriptor) -> bool:
        if self._content.has(descriptor):
            return True
        if not self._source.has_blob(descriptor):
            return False
        if self._layers or descriptor.media_type in model.CONFIG_TYPES:
            self._fill(descriptor, lambda: self._source.open_blob(descriptor))
        return True

    # docker save

    def _archived(self, ref: str | None, platform: Platform | None) -> _Found:
        """Each with all its names."""
        found: _Found = []
        here = {image.id: image for image in Images(self._content.store).all()}
        for saved in self._source.saved(ref):
            if platform is None or _is_for(saved, platform):
                names = [str(Reference.parse(name)) for name in saved.names]
                known = here.get(Digest.of(saved.config))
                found += self._known(known, names or [None]) or self._made(saved, names or [None])
        if not found:
            raise ImageError(f"no image for {platform}", where=self._source.path)
        return found

    def _known(self, image: Image | None, names: Sequence[str | None]) -> _Found:
        """The image as it is in the store already, maybe with the manifest of a registry, which
        archives lose; empty if it is not, or not whole."""
        if image is None or image.problem is not None:
            return []
        self._lease.add(blob.digest for blob in image.blobs)
        if not all(map(self._content.has, image.blobs)):
            return []
        entries = {entry.name: _plain(entry.descriptor) for entry in image.entries}
        manifest = _plain(image.manifest)
        return [(name, entries.get(name, manifest)) for name in names]

    def _made(self, saved: SavedImage, names: Sequence[str | None]) -> _Found:
        manifest = self._make_manifest(saved)
        return [(name, manifest) for name in names]

    def _make_manifest(self, saved: SavedImage) -> Descriptor:
        config = Descriptor(model.OCI_CONFIG, Digest.of(saved.config), len(saved.config))
        layers = [self._describe(layer) for layer in saved.image.layers]
        data = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": model.OCI_MANIFEST,
                "config": config.to_json(),
                "layers": [blob.to_json() for blob, _ in layers],
            },
            separators=(",", ":"),
        ).encode()
        manifest = Descriptor(model.OCI_MANIFEST, Digest.of(data), len(data))
        self._lease.add([manifest.digest, config.digest, *(blob.digest for blob, _ in layers)])
        for blob, layer in layers if self._layers else ():
            self._fill(blob, lambda layer=layer: self._source.open_saved(layer))  # type: ignore[misc]
        self._content.add(saved.config)
        self._content.add(data)
        return manifest

    def _describe(self, layer: Layer) -> tuple[Descriptor, Layer]:
        """The descriptor of the file of a layer, which is plain almost always."""
        with self._source.open_saved(layer) as file:
            head = file.read(HEAD)
            compression = compression_of(head)
            if compression not in _SUFFIXES:
                what = f"a layer in a compression that manifests have no name for: {compression}"
                raise ImageError(what, where=f"{self._source.path}: {layer.name}")
            digest = layer.diff_id
            if compression is not None:
                hasher = digest.hasher()
                while head:
                    hasher.update(head)
                    head = file.read(_CHUNK)
                digest = Digest(digest.algorithm, hasher.hexdigest())
        media_type = model.OCI_LAYER + _SUFFIXES[compression]
        return Descriptor(media_type, digest, layer.size), layer

    # both

    def _fill(self, descriptor: Descriptor, opened: Callable[[], IO[bytes]]) -> None:
        """Copy a blob, or what is missing of it."""
        with self._content.partial(descriptor) as partial:
            if partial is None:
                return
            before = partial.offset
            try:
                self._append(descriptor, partial, opened)
            except DigestError:
                if not before:
                    raise
                # What was there may have been wrong, and is gone now.
                self._append(descriptor, partial, opened)

    def _append(
        self, descriptor: Descriptor, partial: Partial, opened: Callable[[], IO[bytes]]
    ) -> None:
        with contextlib.closing(opened()) as file:
            skipped = partial.offset
            while skipped and (data := self._read(file, min(skipped, _CHUNK))):
                skipped -= len(data)
            while partial.offset < descriptor.size and (data := self._read(file, _CHUNK)):
                partial.write(data)
                if self._progress is not None:
                    self._progress(len(data))
        partial.commit()

    def _read(self, file: IO[bytes], size: int) -> bytes:
        try:
            return file.read(size)
        except OSError as exc:
            raise ImageError(f"cannot read: {describe(exc)}", where=self._source.path) from exc


def _name_of(entry: Descriptor) -> str | None:
    """The full name that an index gives an image. A tag alone is none."""
    for key in (model.CONTAINERD_NAME, model.REF_NAME):
        text = entry.annotations.get(key)
        if text and ("/" in text or ":" in text):
            with contextlib.suppress(ImageError):
                return str(Reference.parse(text))
    return None


def _plain(entry: Descriptor) -> Descriptor:
    """The entry without annotations, which tell of the file that it came from."""
    return Descriptor(entry.media_type, entry.digest, entry.size, {}, entry.platform)


def _is_for(saved: SavedImage, platform: Platform) -> bool:
    found = saved.image.platform
    return found is not None and found.rank(platform) is not None
