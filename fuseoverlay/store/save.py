"""Images of the store as files that others load: OCI layouts, and archives of them.

An archive is at the same time what `docker save` writes: a layout with a `manifest.json`, which
docker, podman and skopeo read (`oci-archive:`, `docker-archive:`). Manifests, configs and layers
are as they came. The same images give the same bytes. Source: OCI image-spec image-layout.md.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any, Final, Protocol, cast

from fuseoverlay.errors import ImageError, StoreError, describe
from fuseoverlay.oci import model
from fuseoverlay.oci.model import Descriptor, Digest, Platform
from fuseoverlay.oci.reference import Reference
from fuseoverlay.oci.streams import CHUNK, BlobReader
from fuseoverlay.store.content import Content
from fuseoverlay.store.images import Image, Images
from fuseoverlay.store.reach import reach

_LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'


@dataclass(frozen=True, slots=True)
class Saved:
    """What was saved of an image: its names, and what stands for them: the index that they have in
    the store if it is `whole`, else the manifest of one platform."""

    image: Image
    names: tuple[str, ...]
    descriptor: Descriptor
    whole: bool


class _Target(Protocol):
    """Where files are written, by their names in the layout."""

    def write(self, name: str, source: IO[bytes], size: int) -> None: ...


def save_archive(
    images: Images,
    texts: Sequence[str],
    file: IO[bytes],
    *,
    platform: Platform | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Saved]:
    """Write the images that `texts` name into one archive. See `save_layout`.

    `file` is written front to back. OSError if it cannot be.
    """
    saved = [_chosen(images, text, platform) for text in texts]
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        target = _Archive(archive)
        _write(images.content, saved, target, progress)
        data = json.dumps([_docker_item(item) for item in _by_id(saved)]).encode()
        target.write("manifest.json", io.BytesIO(data), len(data))
    return saved


def save_layout(
    images: Images,
    texts: Sequence[str],
    path: str | os.PathLike[str],
    *,
    platform: Platform | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Saved]:
    """Write the images that `texts` name into a new directory.

    A name brings its index whole if all of it is in the store, else the image of one platform:
    this machine's if it is there, or `platform`. `progress` is told how many bytes each step wrote.
    ImageError if there is no such image, or parts of it are missing; DigestError; StoreError if the
    directory cannot be written.
    """
    saved = [_chosen(images, text, platform) for text in texts]
    root = pathlib.Path(path)
    try:
        root.mkdir(parents=True, exist_ok=True)
        if os.listdir(root):
            raise StoreError("the directory is not empty", where=root, hint="name a new one")
        _write(images.content, saved, _Directory(root), progress)
    except OSError as exc:
        raise StoreError(f"cannot save: {describe(exc)}", where=root) from exc
    return saved


def _chosen(images: Images, text: str, platform: Platform | None) -> Saved:
    image, entry = images.find(text, platform)
    if image.problem is not None:
        raise ImageError(image.problem, where=text)
    if platform is not None and (image.platform is None or image.platform.rank(platform) is None):
        raise ImageError(f"no image for {platform}", where=text, hint=f"there is {image.platform}")
    names = image.names if entry is None else (entry.name,) if entry.name else ()
    top = (entry or image.entries[0]).descriptor
    if platform is None and _is_complete(images.content, top):
        return Saved(image, names, top, whole=True)
    if not _is_complete(images.content, image.manifest):
        raise ImageError("parts of the image are missing", where=text, hint="pull it again")
    return Saved(image, names, image.manifest, whole=top.digest == image.manifest.digest)


def _is_complete(content: Content, descriptor: Descriptor) -> bool:
    found = reach(content, [descriptor])
    return not found.unreadable and all(content.size(blob) is not None for blob in found.blobs)


def _write(
    content: Content,
    saved: Sequence[Saved],
    target: _Target,
    progress: Callable[[int], None] | None,
) -> None:
    written: set[Digest] = set()
    for item in saved:
        for digest in sorted(reach(content, [item.descriptor]).blobs - written, key=str):
            _write_blob(content, digest, target, progress)
            written.add(digest)
    entries = [entry for item in saved for entry in _entries(item)]
    index = {"schemaVersion": 2, "mediaType": model.OCI_INDEX, "manifests": entries}
    for name, data in (("oci-layout", _LAYOUT), ("index.json", json.dumps(index).encode())):
        target.write(name, io.BytesIO(data), len(data))


def _write_blob(
    content: Content, digest: Digest, target: _Target, progress: Callable[[int], None] | None
) -> None:
    size = content.size(digest) or 0
    file = content.open(Descriptor(model.OCI_LAYER, digest, size))
    with contextlib.closing(BlobReader(file, size, digest, str(digest), progress)) as reader:
        target.write(f"blobs/{digest.algorithm}/{digest.hex}", cast("IO[bytes]", reader), size)
        # The end is where the digest is verified.
        reader.finish()


def _entries(item: Saved) -> list[dict[str, Any]]:
    """The entries of the index for an image: one for each of its names."""
    names: list[dict[str, str]] = [
        {model.REF_NAME: name, model.CONTAINERD_NAME: name} for name in item.names
    ]
    plain = replace(item.descriptor, annotations={})
    return [replace(plain, annotations=annotations).to_json() for annotations in names or [{}]]


def _by_id(saved: Sequence[Saved]) -> list[Saved]:
    """Each image once, with all its names."""
    found: dict[Digest, Saved] = {}
    for item in saved:
        before = found.get(item.image.id, replace(item, names=()))
        names = dict.fromkeys((*before.names, *item.names))
        found[item.image.id] = replace(before, names=tuple(names))
    return list(found.values())


def _docker_item(item: Saved) -> dict[str, Any]:
    """What `manifest.json` says of an image."""
    blobs = [f"blobs/{blob.digest.algorithm}/{blob.digest.hex}" for blob in item.image.layers]
    return {
        "Config": f"blobs/{item.image.id.algorithm}/{item.image.id.hex}",
        "RepoTags": [_tag(name) for name in item.names if "@" not in name],
        "Layers": blobs,
    }


def _tag(name: str) -> str:
    """The name as docker writes it."""
    with contextlib.suppress(ImageError):
        return Reference.parse(name).familiar()
    return name


class _Archive:
    """A tar archive that is written from front to back."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._directories = {""}

    def write(self, name: str, source: IO[bytes], size: int) -> None:
        """Add a file. Time and owner are always the same."""
        self._add_directory(name.rpartition("/")[0])
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o644
        self._archive.addfile(info, source)

    def _add_directory(self, name: str) -> None:
        """Add a directory with those above: skopeo gives those that are not listed to root, which
        other users may not."""
        if name not in self._directories:
            self._add_directory(name.rpartition("/")[0])
            self._directories.add(name)
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            self._archive.addfile(info)


class _Directory:
    """A directory."""

    def __init__(self, root: pathlib.Path) -> None:
        self._root = root

    def write(self, name: str, source: IO[bytes], _size: int) -> None:
        """Add a file."""
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "xb") as file:
            while data := source.read(CHUNK):
                file.write(data)
