"""Open an image by name and find its layers.

Formats: an OCI layout directory or archive (image-spec image-layout.md); a `docker save` archive,
whose `manifest.json` names the config and the layers, in the old form `ID/layer.tar` or in the new
one, which is an OCI layout at the same time.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final, TypeVar

from fuseoverlay.errors import DigestError, ImageError
from fuseoverlay.oci import model
from fuseoverlay.oci.files import Files, open_files
from fuseoverlay.oci.model import Config, Descriptor, Digest, Index, Manifest, Platform, Step
from fuseoverlay.oci.streams import CHUNK, BlobReader

_T = TypeVar("_T")

#: Manifests and configs are read into memory; real ones stay below 1 MiB.
_MAX_JSON: Final = 16 << 20
#: For all of them together: an index may name other indexes, and the same ones again and again.
_MAX_JSON_TOTAL: Final = 32 << 20

#: At most so many names in one message.
_SHOWN: Final = 20

_HUB: Final = ("docker.io/library/", "docker.io/")
_HEX_NAME: Final = re.compile(r"(?:^|/)([0-9a-f]{64})(?:\.json)?\Z")


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of an image: `name` of the file in the image, its size, and its digest if known.

    `diff_id` is the digest of the plain tar stream.
    """

    diff_id: Digest
    name: str
    size: int
    digest: Digest | None


@dataclass(frozen=True, slots=True)
class Image:
    """One image for one platform; `layers` bottom first; `steps`: `model.steps_of_history`. `id`
    is the digest of its config, if known."""

    platform: Platform | None
    layers: tuple[Layer, ...]
    steps: tuple[Step, ...] = ()
    id: Digest | None = None


@dataclass(frozen=True, slots=True)
class SavedImage:
    """An image of a `docker save` archive: its names, and its config as it is there."""

    names: tuple[str, ...]
    config: bytes
    image: Image


@contextlib.contextmanager
def open_image(
    path: str, *, scratch: str | None = None, listed: bool = True
) -> Iterator[ImageSource]:
    """Open the image file or directory `path`; `listed`: see `ImageSource`.

    A compressed archive is decompressed into the directory `scratch` (default: that of `tempfile`).
    ImageError if `path` is missing or not an image.
    """
    with open_files(path, scratch) as files:
        yield ImageSource(files, path, listed=listed)


class ImageSource:
    """An open image file or directory, which may hold several images. With `listed` off, what lists
    them is not read: somebody else knows the manifests."""

    def __init__(self, files: Files, path: str, *, listed: bool = True) -> None:
        self._files = files
        self.path = path
        self._json_left = _MAX_JSON_TOTAL
        self._index = self._read_index() if listed else None
        self._saved = self._read_saved() if listed else []
        if listed and self._index is None and not self._saved:
            raise ImageError(
                "not an image",
                where=path,
                hint="there is neither an index.json (OCI) nor a manifest.json (docker save) in it",
            )

    def refs(self) -> list[str]:
        """The names of the images inside, sorted."""
        found = {tag for saved in self._saved for tag in saved.tags}
        for descriptor in self._index.manifests if self._index else ():
            found.update(_names(descriptor))
        return sorted(found)

    def resolve(self, ref: str | None = None, platform: Platform | None = None) -> Image:
        """Find one image, and check its manifest and config.

        Without `platform`, the only image there is, else the one for this machine.
        """
        if self._index is not None and self._index.manifests:
            chosen = self._by_ref(self._index.manifests, ref)
            if chosen or not self._saved:
                return self.image(self._by_platform(chosen, ref, platform))
        return self._load_saved(self._saved_by_ref(ref), platform)

    def image(self, entry: Descriptor) -> Image:
        """The image with this manifest."""
        manifest = self._manifest(entry)
        config = self._config(manifest)
        layers = [(_blob_name(item), item.size, item.digest) for item in manifest.layers]
        return self._image(manifest.config.digest, config, layers)

    def open_layer(self, layer: Layer, progress: Callable[[int], None] | None = None) -> BlobReader:
        """The bytes of a layer as stored in the image, checked while they are read."""
        return self._open(layer.name, layer.size, layer.digest, progress)

    # what is inside, to be copied

    @property
    def entries(self) -> tuple[Descriptor, ...]:
        """The entries of the OCI index; none if this is only a `docker save` archive."""
        return self._index.manifests if self._index else ()

    def named(self, ref: str) -> tuple[Descriptor, ...]:
        """Those of `entries` that are called so. ImageError if there is none, here or among those
        of `saved`."""
        return tuple(self._by_ref(self.entries, ref))

    def has_blob(self, blob: Descriptor) -> bool:
        """Whether the file of this blob is here."""
        return self._files.has(_blob_name(blob))

    def open_blob(self, blob: Descriptor) -> IO[bytes]:
        """A blob, from its beginning. Nothing is verified but that it is not too long. ImageError,
        DigestError."""
        return self._open_file(_blob_name(blob), blob.size, str(blob.digest))[0]

    def read_blob(self, blob: Descriptor) -> bytes:
        """The content of a manifest or config, verified. ImageError, DigestError."""
        return self._read(_blob_name(blob), blob.size, blob.digest)

    def saved(self, ref: str | None = None) -> list[SavedImage]:
        """The images of a `docker save` archive, or the one that `ref` names. ImageError."""
        return [
            SavedImage(saved.tags, self._read(saved.config, None, _digest_in(saved.config)), image)
            for saved in (self._saved if ref is None else [self._saved_by_ref(ref)])
            for image in [self._load_saved(saved, None)]
        ]

    def open_saved(self, layer: Layer) -> IO[bytes]:
        """The file of a layer, as `open_blob` does."""
        return self._open_file(layer.name, layer.size, layer.name)[0]

    # OCI

    def _by_ref(self, entries: tuple[Descriptor, ...], ref: str | None) -> list[Descriptor]:
        images = [entry for entry in entries if model.is_image(entry)]
        if not images and entries:
            model.check_media_type(
                entries[0].media_type, model.MANIFEST_TYPES | model.INDEX_TYPES, "manifest"
            )
        if ref is not None:
            found = _matching([(entry, _names(entry)) for entry in images], ref)
            if not found and not self._saved:
                raise self._no_ref(f"there is no image {ref!r}")
            return found
        # One image under several names is still one; several without a name are one image for
        # several platforms.
        named = {entry.digest for entry in images if _names(entry)}
        if len(named) > 1 or (named and {entry.digest for entry in images} != named):
            raise self._no_ref("there are several images")
        return images

    def _by_platform(
        self, entries: list[Descriptor], ref: str | None, wanted: Platform | None
    ) -> Descriptor:
        found = list(self._manifests(entries, 0, set()))
        if not found:
            raise ImageError(f"no image in the index{f' {ref!r}' if ref else ''}", where=self.path)
        if wanted is None and len({entry.digest for entry in found}) == 1:
            return found[0]
        ranked: list[tuple[int, int, Descriptor]] = []
        platforms = []
        for entry in found:
            platform = entry.platform or self._config(self._manifest(entry)).platform
            platforms.append(platform)
            rank = platform.rank(wanted or Platform.host()) if platform else None
            if rank is not None:
                ranked.append((rank, len(ranked), entry))
        if not ranked:
            raise self._no_platform(wanted or Platform.host(), platforms)
        return min(ranked, key=lambda item: item[:2])[2]

    def _manifests(
        self, entries: list[Descriptor], depth: int, seen: set[Digest]
    ) -> Iterator[Descriptor]:
        """The manifests that `entries` lead to. An index that was `seen` yields no more of them."""
        if depth > model.MAX_INDEX_DEPTH:
            raise ImageError("too many indexes inside indexes", where=self.path)
        for entry in entries:
            if entry.media_type in model.MANIFEST_TYPES:
                yield entry
            elif entry.media_type in model.INDEX_TYPES and entry.digest not in seen:
                seen.add(entry.digest)
                index = Index.parse(self._json(entry))
                inner = [item for item in index.manifests if model.is_image(item)]
                yield from self._manifests(inner, depth + 1, seen)

    def _manifest(self, entry: Descriptor) -> Manifest:
        return Manifest.parse(self._json(entry))

    def _config(self, manifest: Manifest) -> Config:
        return Config.parse(self._json(manifest.config))

    # docker save

    def _saved_by_ref(self, ref: str | None) -> _Saved:
        found = self._saved
        if ref is not None:
            found = _matching([(saved, list(saved.tags)) for saved in found], ref)
        configs = {saved.config for saved in found}
        if len(configs) != 1:
            raise self._no_ref(
                f"there is no image {ref!r}" if not configs else "there are several images"
            )
        return found[0]

    def _load_saved(self, saved: _Saved, wanted: Platform | None) -> Image:
        config = Config.parse(self._saved_json(saved.config))
        if wanted is not None and (config.platform is None or config.platform.rank(wanted) is None):
            raise self._no_platform(wanted, [config.platform])
        layers = []
        for name in saved.layers:
            file, size = self._files.open(name)
            file.close()
            layers.append((name, size, _digest_in(name)))
        return self._image(_digest_in(saved.config), config, layers)

    def _saved_json(self, name: str) -> Any:
        """Read a config, whose name is its digest in both forms of the archive."""
        data = self._read(name, None, _digest_in(name))
        return model.decode_json(data, f"{self.path}: {name}")

    # both

    def _image(
        self, id_: Digest | None, config: Config, blobs: Sequence[tuple[str, int, Digest | None]]
    ) -> Image:
        if len(config.diff_ids) != len(blobs):
            raise ImageError(
                f"the manifest has {len(blobs)} layers, the config {len(config.diff_ids)}",
                where=self.path,
            )
        pairs = zip(config.diff_ids, blobs, strict=True)
        layers = tuple(Layer(diff_id, *blob) for diff_id, blob in pairs)
        return Image(config.platform, layers, config.steps, id_)

    def _read_index(self) -> Index | None:
        if not self._files.has("index.json"):
            return None
        data = self._read("index.json", None, None)
        return Index.parse(model.decode_json(data, f"{self.path}: index.json"))

    def _read_saved(self) -> list[_Saved]:
        if not self._files.has("manifest.json"):
            return []
        where = f"{self.path}: manifest.json"
        items = model.decode_json(self._read("manifest.json", None, None), where)
        if not isinstance(items, list):
            raise ImageError("not a JSON array", where=where)
        return [_Saved.parse(item, where) for item in items]

    def _json(self, entry: Descriptor) -> Any:
        name = _blob_name(entry)
        return model.decode_json(
            self._read(name, entry.size, entry.digest), f"{self.path}: {entry.digest}"
        )

    def _read(self, name: str, size: int | None, digest: Digest | None) -> bytes:
        with self._open(name, size, digest) as blob:
            text = bytearray()
            # Read what is there, whatever size is claimed.
            while data := blob.read(CHUNK):
                text += data
                if len(text) > _MAX_JSON:
                    raise ImageError(f"{name} is larger than {_MAX_JSON} bytes", where=self.path)
        self._json_left -= len(text)
        if self._json_left < 0:
            raise ImageError("manifests and configs without end", where=self.path)
        return bytes(text)

    def _open(
        self,
        name: str,
        size: int | None,
        digest: Digest | None,
        progress: Callable[[int], None] | None = None,
    ) -> BlobReader:
        where = f"{self.path}: {digest or name}"
        file, found = self._open_file(name, size, where)
        return BlobReader(file, found if size is None else size, digest, where, progress)

    def _open_file(self, name: str, size: int | None, where: str) -> tuple[IO[bytes], int]:
        file, found = self._files.open(name)
        if size is not None and found > size:
            file.close()
            raise DigestError(f"{found} bytes, it should be {size}", where=where)
        return file, found

    def _no_ref(self, what: str) -> ImageError:
        refs = _some([repr(ref) for ref in self.refs()]) or "none that has a name"
        return ImageError(what, where=self.path, hint=f"choose with IMAGE:REF among: {refs}")

    def _no_platform(self, wanted: Platform, found: list[Platform | None]) -> ImageError:
        names = _some(sorted({str(platform or "unknown") for platform in found}))
        return ImageError(f"no image for {wanted}", where=self.path, hint=f"there are: {names}")


@dataclass(frozen=True, slots=True)
class _Saved:
    """One item of `manifest.json`."""

    config: str
    tags: tuple[str, ...]
    layers: tuple[str, ...]

    @classmethod
    def parse(cls, value: object, where: str) -> _Saved:
        data = model.expect_fields(value, where)
        config = data.get("Config")
        if not isinstance(config, str):
            raise ImageError("Config: not text", where=where)
        tags = model.expect_texts(data.get("RepoTags"), "manifest.json: RepoTags")
        return cls(config, tags, model.expect_texts(data.get("Layers"), "manifest.json: Layers"))


def _names(entry: Descriptor) -> list[str]:
    keys = (model.CONTAINERD_NAME, model.REF_NAME)
    return [entry.annotations[key] for key in keys if key in entry.annotations]


def _matching(items: list[tuple[_T, list[str]]], ref: str) -> list[_T]:
    """Items named exactly `ref`; else those whose full name ends in `:ref`, or is `ref` after the
    prefix of Docker Hub."""
    exact = [item for item, names in items if ref in names]
    if exact:
        return exact
    full = {f"{hub}{ref}" for hub in _HUB}
    return [
        item
        for item, names in items
        if any(name in full or name.rpartition(":")[2] == ref for name in names)
    ]


def _some(names: list[str]) -> str:
    """`names` for a message, shortened so that it stays readable."""
    more = [f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join([name[:120] for name in names[:_SHOWN]] + more)


def _blob_name(entry: Descriptor) -> str:
    return f"blobs/{entry.digest.algorithm}/{entry.digest.hex}"


def _digest_in(name: str) -> Digest | None:
    """The sha256 digest in the name of a file in an archive (`HEX.json`, `blobs/sha256/HEX`)."""
    match = _HEX_NAME.search(name)
    return Digest("sha256", match[1]) if match else None
