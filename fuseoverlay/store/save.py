"""Images of the store as files that others load: OCI layouts, archives of them, docker's archives.

In an OCI layout manifests, configs and layers are as they came. An archive of one has a
`manifest.json`, too, as `docker save` writes since version 25. A docker archive has plain layers:
what docker, podman and skopeo all read, and the id stays. The same images give the same bytes.
Source: OCI image-spec image-layout.md.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any, Final

from fuseoverlay.errors import ImageError, StoreError
from fuseoverlay.oci import model
from fuseoverlay.oci.malformed import malformed
from fuseoverlay.oci.model import Descriptor, Digest, Platform
from fuseoverlay.oci.reference import Reference
from fuseoverlay.oci.streams import BlobReader, ForwardStream, decompress
from fuseoverlay.store import targets
from fuseoverlay.store.content import Content
from fuseoverlay.store.images import Image, Images
from fuseoverlay.store.reach import reach
from fuseoverlay.store.targets import Target, encoded

_LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'

_Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Saved:
    """What was saved of an image: its names, and what stands for them: the index that they have in
    the store if it is `whole`, else the manifest of one platform."""

    image: Image
    names: tuple[str, ...]
    descriptor: Descriptor
    whole: bool


def save_archive(
    images: Images,
    texts: Sequence[str],
    file: IO[bytes],
    *,
    platform: Platform | None = None,
    progress: _Progress | None = None,
) -> list[Saved]:
    """Write the images that `texts` name into one OCI archive. See `save_layout`.

    `file` is written front to back. OSError if it cannot be.
    """
    saved = [chosen(images, text, platform) for text in texts]
    with images.content.held(_blobs(images, saved)), targets.archive(file) as target:
        _write_layout(images.content, saved, target, progress)
        items = [_docker_item(item, _oci_layers(item.image)) for item in _by_id(saved)]
        _write_bytes(target, "manifest.json", encoded(items))
    return saved


def save_layout(
    images: Images,
    texts: Sequence[str],
    path: str | os.PathLike[str],
    *,
    platform: Platform | None = None,
    progress: _Progress | None = None,
) -> list[Saved]:
    """Write the images that `texts` name into a directory: a new one, or a layout, where they take
    the place of those of the same names.

    A name brings its index whole, or the image of `platform`. `progress` is told how many bytes
    each step wrote. ImageError if there is no such image, or parts of it are missing; DigestError;
    StoreError if the directory cannot be written.
    """
    saved = [chosen(images, text, platform) for text in texts]
    root = pathlib.Path(path)
    if root.exists() and root.samefile(images.store.root):
        raise StoreError("this is the store", where=root, hint="name another directory")
    with (
        images.content.held(_blobs(images, saved)),
        targets.saving(root),
        targets.layout(root) as target,
    ):
        _write_layout(images.content, saved, target, progress)
    return saved


def save_docker(
    images: Images,
    texts: Sequence[str],
    file: IO[bytes],
    *,
    platform: Platform | None = None,
    progress: _Progress | None = None,
) -> list[Saved]:
    """Write the images that `texts` name into one docker archive: of several platforms, the one for
    `platform` or this machine. `file` is written front to back. OSError if it cannot be."""
    saved = [_of_platform(images, text, platform) for text in texts]
    with images.content.held(_blobs(images, saved)), targets.archive(file) as target:
        written: set[Digest] = set()
        for item in saved:
            _write_plain(images.content, item.image, target, written, progress)
        items = [_docker_item(item, item.image.diff_ids) for item in _by_id(saved)]
        _write_bytes(target, "manifest.json", encoded(items))
    return saved


# what is saved


def chosen(images: Images, text: str, platform: Platform | None) -> Saved:
    """What the name stands for, an index whole; or of it the image for `platform`. ImageError if
    that is not there, or parts of it are missing."""
    image, names, top = _found(images, text, platform)
    if platform is not None:
        return _complete(images.content, text, image, names, top)
    if is_complete(images.content, top):
        return Saved(image, names, top, whole=True)
    if top.media_type in model.INDEX_TYPES and is_complete(images.content, image.manifest):
        there = image.platform or "OS/ARCHITECTURE"
        hint = f"write --platform {there}, or pull --all-platforms before"
        raise ImageError("not all platforms of it are here", where=text, hint=hint)
    raise _incomplete(text)


def _of_platform(images: Images, text: str, platform: Platform | None) -> Saved:
    image, names, top = _found(images, text, platform)
    return _complete(images.content, text, image, names, top)


def _found(
    images: Images, text: str, platform: Platform | None
) -> tuple[Image, tuple[str, ...], Descriptor]:
    """The image, the names that are meant, and what the index has for them."""
    image, entry = images.find(text, platform)
    if image.problem is not None:
        raise ImageError(image.problem, where=text, hint="get it again, or remove it")
    if platform is not None and (image.platform is None or image.platform.rank(platform) is None):
        raise ImageError(f"no image for {platform}", where=text, hint=f"there is {image.platform}")
    names = image.names if entry is None else (entry.name,) if entry.name else ()
    return image, names, (entry or image.entries[0]).descriptor


def _complete(
    content: Content, text: str, image: Image, names: tuple[str, ...], top: Descriptor
) -> Saved:
    if not is_complete(content, image.manifest):
        raise _incomplete(text)
    return Saved(image, names, image.manifest, whole=top.digest == image.manifest.digest)


def _incomplete(text: str) -> ImageError:
    return ImageError("parts of the image are missing", where=text, hint="pull it again")


def is_complete(content: Content, descriptor: Descriptor) -> bool:
    """Whether all that a manifest or index names is there."""
    found = reach(content, [descriptor])
    return not found.unreadable and all(content.size(blob) is not None for blob in found.blobs)


def _blobs(images: Images, saved: Sequence[Saved]) -> set[Digest]:
    return reach(images.content, [item.descriptor for item in saved]).blobs


# OCI


def _write_layout(
    content: Content, saved: Sequence[Saved], target: Target, progress: _Progress | None
) -> None:
    """The index comes last: what ends before leaves a layout without these images."""
    entries = [entry for item in saved for entry in _entries(item)]
    kept = [raw for raw in target.entries() if not _is_replaced(raw, entries)]
    if not target.has(targets.LAYOUT, len(_LAYOUT)):
        _write_bytes(target, targets.LAYOUT, _LAYOUT)
    written: set[Digest] = set()
    for item in saved:
        for digest in sorted(reach(content, [item.descriptor]).blobs - written, key=str):
            _write_blob(content, digest, target, progress)
            written.add(digest)
    index = {"schemaVersion": 2, "mediaType": model.OCI_INDEX, "manifests": kept + entries}
    _write_bytes(target, targets.INDEX, encoded(index))


def _write_bytes(target: Target, name: str, data: bytes) -> None:
    target.write(name, io.BytesIO(data), len(data))


def _write_blob(
    content: Content, digest: Digest, target: Target, progress: _Progress | None
) -> None:
    size = content.size(digest) or 0
    if target.has(_place(digest), size):
        return
    with contextlib.closing(_opened(content, digest, size, progress)) as reader:
        target.write(_place(digest), reader, size)
        # The end is where the digest is verified.
        reader.finish()


def _opened(
    content: Content, digest: Digest, size: int, progress: _Progress | None = None
) -> BlobReader:
    file = content.open(Descriptor(model.OCI_LAYER, digest, size))
    return BlobReader(file, size, digest, str(digest), progress)


def _place(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _entries(item: Saved) -> list[dict[str, Any]]:
    """The entries of the index for an image: one for each of its names."""
    names: list[dict[str, str]] = [
        {model.REF_NAME: name, model.CONTAINERD_NAME: name} for name in item.names
    ]
    plain = replace(item.descriptor, annotations={})
    return [replace(plain, annotations=annotations).to_json() for annotations in names or [{}]]


def _is_replaced(raw: Any, entries: Sequence[dict[str, Any]]) -> bool:
    """Whether an entry that is there has a name of ours, or is one of ours without a name."""
    if not isinstance(raw, dict):
        return False
    annotations = raw.get("annotations")
    names = annotations if isinstance(annotations, dict) else {}
    name = names.get(model.CONTAINERD_NAME) or names.get(model.REF_NAME)
    return any(
        entry["annotations"][model.REF_NAME] == name
        if "annotations" in entry
        else name is None and entry["digest"] == raw.get("digest")
        for entry in entries
    )


# docker


def _write_plain(
    content: Content,
    image: Image,
    target: Target,
    written: set[Digest],
    progress: _Progress | None,
) -> None:
    """The config of an image, and its layers without compression."""
    if image.id not in written:
        _write_blob(content, image.id, target, None)
        written.add(image.id)
    for blob, diff_id in zip(image.layers, image.diff_ids, strict=True):
        if diff_id not in written:
            with malformed(str(blob.digest)):
                size = _plain_size(content, blob, diff_id)
            with _plain(content, blob, diff_id, progress) as stream:
                target.write(_place(diff_id), stream, size)
                stream.finish()
            written.add(diff_id)


def _plain_size(content: Content, blob: Descriptor, diff_id: Digest) -> int:
    """A tar header comes before the data. To read a layer twice needs no room on the disk, and
    whatever is wrong with it is found before anything is written."""
    if blob.digest == diff_id:
        return blob.size
    with _plain(content, blob, diff_id) as stream:
        stream.finish()
        return stream.tell()


@contextlib.contextmanager
def _plain(
    content: Content, blob: Descriptor, diff_id: Digest, progress: _Progress | None = None
) -> Iterator[ForwardStream]:
    """The plain bytes of a layer; `finish` verifies them."""
    with contextlib.closing(_opened(content, blob.digest, blob.size, progress)) as reader:
        where = str(blob.digest)
        with ForwardStream(decompress(reader, where), diff_id, where) as stream:
            yield stream


def _by_id(saved: Sequence[Saved]) -> list[Saved]:
    """Each image once, with all its names."""
    found: dict[Digest, Saved] = {}
    for item in saved:
        before = found.get(item.image.id, replace(item, names=()))
        names = dict.fromkeys((*before.names, *item.names))
        found[item.image.id] = replace(before, names=tuple(names))
    return list(found.values())


def _oci_layers(image: Image) -> tuple[Digest, ...]:
    return tuple(blob.digest for blob in image.layers)


def _docker_item(item: Saved, layers: Sequence[Digest]) -> dict[str, Any]:
    """What `manifest.json` says of an image."""
    return {
        "Config": _place(item.image.id),
        "RepoTags": [_tag(name) for name in item.names if "@" not in name],
        "Layers": [_place(digest) for digest in layers],
    }


def _tag(name: str) -> str:
    """The name as docker writes it."""
    with contextlib.suppress(ImageError):
        return Reference.parse(name).familiar()
    return name
