"""The images of the store, as a person sees them.

An image is what has one config; the digest of that is its id. It may have several names, each an
entry of the index. Of an image for several platforms, the one for this machine is shown if it is
there. Source: OCI image-spec config.md, manifest.md.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from fuseoverlay.errors import FuseOverlayError, ImageError
from fuseoverlay.oci import model
from fuseoverlay.oci.model import Config, Descriptor, Digest, Manifest, Platform, Step
from fuseoverlay.oci.names import in_registry
from fuseoverlay.oci.prefix import DigestPrefix
from fuseoverlay.oci.reference import Reference
from fuseoverlay.oci.times import parse_time
from fuseoverlay.store import sizes
from fuseoverlay.store.content import Content
from fuseoverlay.store.names import Entry, Names, repository_of
from fuseoverlay.store.reach import decoded, manifests
from fuseoverlay.store.root import Store

#: Ids are shown and named by so many digits.
SHORT_ID: Final = 12


class NoImageError(ImageError):
    """Nothing in the store is called so, or nothing for that platform."""


@dataclass(frozen=True, slots=True)
class Image:
    """One image. `entries`: its places in the index. `manifest` and what follows: of the platform
    shown; `layers` bottom first, with the digests of the plain layers in `diff_ids`. `created` is
    RFC 3339 text as the config has it, or "". `unpacked`: of each layer, how many bytes its files
    have; None where it was never unpacked here. `problem` says what is wrong with an image that
    cannot be read; its id is then the digest of what the index names."""

    id: Digest
    entries: tuple[Entry, ...]
    manifest: Descriptor
    config: Descriptor | None = None
    platform: Platform | None = None
    created: str = ""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    layers: tuple[Descriptor, ...] = ()
    diff_ids: tuple[Digest, ...] = ()
    unpacked: tuple[int | None, ...] = ()
    problem: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Its full names with tags, sorted. One with a digest, by which it was pulled, is none that
        keeps it, as in Docker."""
        return tuple(sorted(x.name for x in self.entries if x.name and "@" not in x.name))

    @property
    def dangling(self) -> bool:
        """Whether it has no name."""
        return not self.names

    @property
    def digests(self) -> tuple[Digest, ...]:
        """The digests of what its names stand for: manifests, or indexes of several platforms."""
        return tuple(dict.fromkeys(entry.descriptor.digest for entry in self.entries))

    @property
    def repo_digests(self) -> tuple[str, ...]:
        """REPOSITORY@DIGEST, with full names, sorted: where its registry has it."""
        found = set()
        for entry in self.entries:
            repository = repository_of(entry.name) if entry.name else entry.repository
            if repository:
                found.add(f"{repository}@{entry.descriptor.digest}")
        return tuple(sorted(found))

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Manifest, config and layers, each once."""
        config = () if self.config is None else (self.config,)
        found = {blob.digest: blob for blob in (self.manifest, *config, *self.layers)}
        return tuple(found.values())

    @property
    def size(self) -> int:
        """The size of `blobs` in bytes: what is downloaded for it."""
        return sum(blob.size for blob in self.blobs)

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """Bytes of each layer: of its files if it was unpacked, else of its blob."""
        pairs = zip(self.unpacked, self.layers, strict=True)
        return tuple(blob.size if files is None else files for files, blob in pairs)

    @property
    def created_at(self) -> datetime | None:
        """When it was made; None if that is not known."""
        return parse_time(self.created)


class Images:
    """The images in `store`. `meanings`: what a short name may mean to this user, the likeliest
    first, before what Docker takes it for."""

    def __init__(
        self, store: Store, meanings: Callable[[str], Sequence[Reference]] = lambda text: ()
    ) -> None:
        self.store = store
        self._meanings = meanings
        self.content = Content(store)
        self.names = Names(store)
        #: What is known of unpacked layers, which many images share.
        self._sizes: dict[Digest, int | None] = {}

    def all(self, platform: Platform | None = None) -> list[Image]:
        """All images, dangling and unreadable ones, too, in the order of the index. Of several
        platforms, `platform` is preferred to this machine's. ImageError for a damaged index."""
        return self.of(self.names.entries(), platform)

    def of(self, entries: Sequence[Entry], platform: Platform | None = None) -> list[Image]:
        """The images that these entries name."""
        wanted = platform or Platform.host()
        read: dict[tuple[Digest, str], Image] = {}
        listed: dict[Digest, Image] = {}
        for entry in entries:
            descriptor = entry.descriptor
            key = descriptor.digest, descriptor.media_type
            if key not in read:
                read[key] = self._read(descriptor, wanted)
            image = read[key]
            before = listed.get(image.id, replace(image, entries=()))
            # What has a name may be whole where what lost it is not.
            shown = image if before.dangling and entry.name else before
            listed[image.id] = replace(shown, entries=(*before.entries, entry))
        return list(listed.values())

    def _read(self, descriptor: Descriptor, wanted: Platform) -> Image:
        try:
            found = list(manifests(self.content, descriptor))
            if not found:
                return _unreadable(descriptor, "nothing of it that is an image is here")
            if len(found) == 1:
                return self._describe(found[0])
            ranks = [self._rank(manifest, wanted) for manifest in found]
            return self._describe(found[ranks.index(min(ranks))])
        except FuseOverlayError as exc:
            return _unreadable(descriptor, str(exc))

    def _rank(self, manifest: Descriptor, wanted: Platform) -> float:
        """How well the image serves `wanted`; the less the better."""
        platform = manifest.platform or self._describe(manifest).platform
        rank = platform.rank(wanted) if platform else None
        return math.inf if rank is None else rank

    def _describe(self, descriptor: Descriptor) -> Image:
        manifest = Manifest.parse(decoded(self.content, descriptor))
        data = decoded(self.content, manifest.config)
        config = Config.parse(data)
        fields = model.expect_fields(data, "image config")
        if len(config.diff_ids) != len(manifest.layers):
            count = f"{len(manifest.layers)} layers, the config {len(config.diff_ids)}"
            raise ImageError(f"the manifest has {count}", where=descriptor.digest)
        return Image(
            id=manifest.config.digest,
            entries=(),
            manifest=descriptor,
            config=manifest.config,
            platform=config.platform,
            created=_text(fields.get("created")),
            labels=_labels(fields.get("config")),
            layers=manifest.layers,
            diff_ids=config.diff_ids,
            unpacked=tuple(map(self._unpacked_size, config.diff_ids)),
        )

    def _unpacked_size(self, diff_id: Digest) -> int | None:
        if diff_id not in self._sizes:
            self._sizes[diff_id] = sizes.known(self.store, diff_id)
        return self._sizes[diff_id]

    def config(self, image: Image) -> Any:
        """The decoded config of an image. ImageError."""
        if image.config is None:
            raise ImageError(image.problem or "no image", where=image.id)
        return decoded(self.content, image.config)

    def history(self, image: Image) -> list[Step]:
        """How the image was made, oldest first; layers that it does not tell of come last.
        ImageError."""
        data = model.expect_fields(self.config(image), "image config").get("history")
        return model.steps_of_history(data, len(image.layers))

    def resolve(self, text: str, platform: Platform | None = None) -> Image:
        """The image that `text` names: see `find`. Of several platforms it may be another one's
        than that which is shown, by its id or digest, or if it is for `platform`."""
        return self.locate(text, platform)[0]

    def locate(self, text: str, platform: Platform | None = None) -> tuple[Image, Entry | None]:
        """`resolve`, and the entry if `text` names the image by name."""
        try:
            found, entry = self.find(text, platform)
        except NoImageError:
            name = in_registry(text)
            others = _by_digest(self._of_all_platforms(self.names.entries()), name)
            if len(others) != 1:
                raise
            return others[0], None
        if platform is not None and found.problem is None and not _serves(found, platform):
            hint = f"there is one for {found.platform}"
            raise NoImageError(f"no image for {platform}", where=text, hint=hint)
        return found, entry

    def platforms(self, image: Image) -> list[Image]:
        """The image for each of its platforms that is here."""
        return self._of_all_platforms(image.entries)

    def _of_all_platforms(self, entries: Sequence[Entry]) -> list[Image]:
        found: dict[Digest, Image] = {}
        for entry in entries:
            with contextlib.suppress(FuseOverlayError):
                for manifest in manifests(self.content, entry.descriptor):
                    image = replace(self._describe(manifest), entries=(entry,))
                    found.setdefault(image.id, image)
        return list(found.values())

    def find(self, text: str, platform: Platform | None = None) -> tuple[Image, Entry | None]:
        """The image that `text` names, and the entry if it does so by name.

        A name in the short or the full form, also after `docker://`; NAME@DIGEST; the id, the
        digest of a manifest or index, or the beginning of one of these. ImageError if there is
        none, or two.
        """
        images = self.all(platform)
        name = in_registry(text)
        named = _by_name(images, name, self._references(name))
        found = _by_digest(images, name)
        if named and any(image.id != named[0].id for image in found):
            other = next(image for image in found if image.id != named[0].id)
            raise _ambiguous(text, [named[0], other])
        if named:
            image, entry = named
            if len(image.digests) > 1:
                # Its names stand for different manifests.
                wanted = platform or Platform.host()
                image = replace(self._read(entry.descriptor, wanted), entries=image.entries)
            return image, entry
        if len(found) > 1:
            raise _ambiguous(text, found)
        if not found:
            hint = "`fuseoverlay images` lists those that are"
            raise NoImageError("no such image", where=text, hint=hint)
        return found[0], None

    def _references(self, text: str) -> list[Reference]:
        try:
            return list(dict.fromkeys([*self._meanings(text), Reference.parse(text)]))
        except ImageError:
            # Other tools' names need not be those of registries.
            return []

    def tag(self, text: str, name: str) -> Digest | None:
        """Give the image that `text` names the further name `name`; returns the digest of the
        image that lost it, which may dangle now. ImageError, StoreError."""
        reference = Reference.parse(name)
        if reference.digest is not None:
            raise ImageError("a name with a digest cannot be given", where=name)
        with self.names.editing() as index:
            # Found in here: nobody can remove it before it has the name.
            image, entry = self.find(text)
            return index.set(str(reference), entry or image.entries[0])


def _serves(image: Image, platform: Platform) -> bool:
    return image.platform is not None and image.platform.rank(platform) is not None


def _unreadable(descriptor: Descriptor, problem: str) -> Image:
    return Image(descriptor.digest, (), descriptor, problem=problem)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _labels(config: object) -> dict[str, str]:
    labels = model.Fields(config).get("Labels") if isinstance(config, dict) else None
    if not isinstance(labels, dict):
        return {}
    return {key: value for key, value in labels.items() if isinstance(value, str)}


def _by_name(
    images: Sequence[Image], text: str, references: Sequence[Reference]
) -> tuple[Image, Entry] | None:
    """The first image of which the text is the name, or of those which it may mean."""
    entries = [(image, entry) for image in images for entry in image.entries]
    for name in (*map(str, references), text):
        for image, entry in entries:
            if entry.name == name:
                return image, entry
    for reference in references:
        for image, entry in entries:
            if reference.digest is not None and _is_of(image, entry, reference):
                return image, entry
    return None


def _is_of(image: Image, entry: Entry, reference: Reference) -> bool:
    """Whether the entry is of the repository and digest of `reference`."""
    repository = repository_of(entry.name) if entry.name else entry.repository
    known = (entry.descriptor.digest, image.manifest.digest)
    return repository == reference.name and reference.digest in known


def _by_digest(images: Sequence[Image], text: str) -> list[Image]:
    prefix = DigestPrefix.parse(text)
    if prefix is None:
        return []
    return [
        image
        for image in images
        if any(map(prefix.fits, (image.id, image.manifest.digest, *image.digests)))
    ]


def _ambiguous(text: str, images: Sequence[Image]) -> ImageError:
    shown = " and ".join(_shown(image) for image in images[:2])
    return ImageError(f"may be {shown}", where=text, hint="say which")


def _shown(image: Image) -> str:
    names = image.names or ("without a name",)
    return f"{image.id.hex[:SHORT_ID]} ({names[0]})"
