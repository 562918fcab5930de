"""The content of image files, as frozen dataclasses that are valid once they exist.

Sources: OCI image-spec descriptor.md, image-index.md, manifest.md, config.md; for docker's older
formats the distribution project's "Image Manifest V 2, Schema 2". Every `parse` takes decoded JSON
and raises `ImageError` with what is wrong.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from fuseoverlay.errors import ImageError, printable

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"

INDEX_TYPES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFEST_TYPES: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIG_TYPES: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})
_LAYER_BASES: Final = (
    (OCI_LAYER, "+"),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar", "+"),
    ("application/vnd.docker.image.rootfs.diff.tar", "."),
    ("application/vnd.docker.image.rootfs.foreign.diff.tar", "."),
)
LAYER_TYPES: Final = frozenset(
    base + suffix for base, joint in _LAYER_BASES for suffix in ("", f"{joint}gzip", f"{joint}zstd")
)

REF_NAME: Final = "org.opencontainers.image.ref.name"
#: The full name, where containerd and docker write an index; REF_NAME is then only the tag.
CONTAINERD_NAME: Final = "io.containerd.image.name"
#: On a manifest that belongs to another one, such as an attestation of where it came from.
_REFERENCE_TYPE: Final = "vnd.docker.reference.type"

#: No file is larger.
_MAX_SIZE: Final = (1 << 63) - 1
#: Values in one JSON text; each takes about 250 bytes. Real images have a few thousand.
_MAX_VALUES: Final = 1 << 18

#: Depth of indexes inside indexes. Real images have one.
MAX_INDEX_DEPTH: Final = 8

#: The texts of a line of the history: fields of the config and of `Step`.
_STEP: Final = ("created", "created_by", "author", "comment")

_HEX_LENGTH: Final = {"sha256": 64, "sha512": 128}
_DIGEST: Final = re.compile(r"(sha256|sha512):([0-9a-f]+)\Z")
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")

#: What machines call themselves -> architecture and variant as images have them (Go's names).
_ARCHITECTURES: Final = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armv8l": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "loongarch64": ("loong64", ""),
}
#: The variant that an image without one means.
_DEFAULT_VARIANT: Final = {"arm64": "v8", "arm": "v7", "amd64": "v1"}


class Hasher(Protocol):
    """The methods of a `hashlib` object used here."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Digest:
    """`sha256:HEX` or `sha512:HEX`. Safe as part of a path: no other text is accepted."""

    algorithm: str
    hex: str

    def __post_init__(self) -> None:
        if not _DIGEST.match(str(self)) or len(self.hex) != _HEX_LENGTH[self.algorithm]:
            raise ImageError(f"not a sha256 or sha512 digest: {short(str(self))}")

    @classmethod
    def parse(cls, text: object) -> Digest:
        """Parse `ALGORITHM:HEX`; ImageError for anything but the exact canonical form."""
        match = _DIGEST.match(text) if isinstance(text, str) else None
        if match is None:
            raise ImageError(f"not a sha256 or sha512 digest: {short(text)}")
        return cls(match[1], match[2])

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """The sha256 digest of `data`."""
        return cls("sha256", hashlib.sha256(data).hexdigest())

    def hasher(self) -> Hasher:
        """A new hash object of this algorithm."""
        return hashlib.new(self.algorithm)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


@dataclass(frozen=True, slots=True)
class Platform:
    """Operating system, architecture and variant, in Go's terms; "" means unspecified.

    Those of an image may be any text; unknown ones match no machine.
    """

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Parse `OS/ARCHITECTURE[/VARIANT]`, or an architecture alone, which means linux."""
        parts = text.split("/")
        if len(parts) == 1:
            parts = ["linux", *parts]
        if len(parts) > 3 or not all(map(_WORD.match, parts)):
            raise ImageError(
                f"not a platform: {short(text)}", hint="write OS/ARCHITECTURE, like linux/arm64"
            )
        name, architecture, *rest = (part.lower() for part in parts)
        return cls(name, *_canonical(architecture, rest[0] if rest else ""))

    @classmethod
    def host(cls) -> Platform:
        """The platform of this machine."""
        system = os.uname()
        return cls(system.sysname.lower(), *_canonical(system.machine.lower(), ""))

    @classmethod
    def from_json(cls, data: Fields) -> Platform | None:
        """Read `os`, `architecture`, `variant` of an object; None if either of the first two is
        missing."""
        name, architecture = data.get("os"), data.get("architecture")
        variant = data.get("variant") or ""
        if not name or not architecture:
            return None
        if not all(isinstance(word, str) for word in (name, architecture, variant)):
            raise ImageError("platform: not text")
        return cls(name, *_canonical(architecture, variant))

    def rank(self, wanted: Platform) -> int | None:
        """How well an image for this platform serves `wanted`: 0 is best, None not at all."""
        if (self.os, self.architecture) != (wanted.os, wanted.architecture):
            return None
        if self.variant == wanted.variant:
            return 0
        default = _DEFAULT_VARIANT.get(self.architecture, "")
        if (self.variant or default) == (wanted.variant or default):
            return 1
        return None if wanted.variant else 2

    def __str__(self) -> str:
        parts = (self.os, self.architecture, self.variant)
        return "/".join(printable(part[:40]) for part in parts if part)


def _canonical(architecture: str, variant: str) -> tuple[str, str]:
    name, default = _ARCHITECTURES.get(architecture, (architecture, ""))
    return name, variant or default


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Points to a blob: media type, digest, size in bytes; descriptor.md. `data`: the blob itself,
    if the descriptor has it, and it is what the digest says."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    platform: Platform | None = None
    data: bytes | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.size <= _MAX_SIZE:
            raise ImageError(f"{self.digest}: no blob has this size")

    @classmethod
    def parse(cls, value: object) -> Descriptor:
        """Parse a descriptor."""
        data = expect_fields(value, "descriptor")
        media_type, size = data.get("mediaType"), data.get("size")
        if not isinstance(media_type, str) or not media_type:
            raise ImageError("descriptor without a media type")
        if isinstance(size, bool) or not isinstance(size, int):
            raise ImageError("descriptor without a size")
        platform, digest = data.get("platform"), Digest.parse(data.get("digest"))
        return cls(
            media_type,
            digest,
            size,
            _annotations(data),
            None if platform is None else Platform.from_json(expect_fields(platform, "platform")),
            _embedded(data.get("data"), digest, size),
        )

    def to_json(self) -> dict[str, Any]:
        """The descriptor as a JSON object."""
        data: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": str(self.digest),
            "size": self.size,
        }
        if self.annotations:
            data["annotations"] = dict(self.annotations)
        if self.platform is not None:
            data["platform"] = platform_json(self.platform)
        return data


def _embedded(value: object, digest: Digest, size: int) -> bytes | None:
    if not isinstance(value, str):
        return None
    try:
        data = base64.b64decode(value, validate=True)
    except ValueError:
        return None
    hasher = digest.hasher()
    hasher.update(data)
    return data if len(data) == size and hasher.hexdigest() == digest.hex else None


#: The fields of manifests and indexes, artifacts' among them, that hold descriptors of what they
#: need. `subject` is not one: it is what a manifest is about.
_NEEDED: Final = ("config", "layers", "manifests", "blobs")
#: A manifest or index that names more is no image of this world, and would take long to refuse.
_MAX_NEEDED: Final = 10_000


def needed(value: object) -> list[Descriptor]:
    """The descriptors in a decoded manifest or index of any kind. ImageError."""
    data = expect_fields(value, "manifest")
    found: list[Descriptor] = []
    for name in _NEEDED:
        part = data.get(name)
        items = part if isinstance(part, list) else [part]
        found += [Descriptor.parse(item) for item in items if isinstance(item, dict)]
        if len(found) > _MAX_NEEDED:
            raise ImageError(f"a manifest that names more than {_MAX_NEEDED} parts")
    return found


def is_manifest(media_type: str) -> bool:
    """Whether a blob is a manifest or index, also one of a kind that we do not know."""
    return media_type in MANIFEST_TYPES | INDEX_TYPES or ".manifest." in media_type


def is_image(entry: Descriptor) -> bool:
    """Whether an index entry can be an image; provenance attestations never are."""
    if _REFERENCE_TYPE in entry.annotations:
        return False
    return entry.media_type in MANIFEST_TYPES | INDEX_TYPES


@dataclass(frozen=True, slots=True)
class Index:
    """A list of manifests or further indexes; image-index.md, docker's manifest list."""

    manifests: tuple[Descriptor, ...]

    @classmethod
    def parse(cls, value: object) -> Index:
        """Parse an index. Its own media type, if given, must be that of an index."""
        data = expect_fields(value, "index")
        check_media_type(data.get("mediaType", OCI_INDEX), INDEX_TYPES, "index")
        return cls(tuple(Descriptor.parse(item) for item in _array(data, "manifests")))


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image: its config and its layers, bottom first; manifest.md."""

    config: Descriptor
    layers: tuple[Descriptor, ...]

    @classmethod
    def parse(cls, value: object) -> Manifest:
        """Parse a manifest. Unknown media types of config and layers are refused."""
        data = expect_fields(value, "manifest")
        check_media_type(data.get("mediaType", OCI_MANIFEST), MANIFEST_TYPES, "manifest")
        config = Descriptor.parse(data.get("config"))
        check_media_type(config.media_type, CONFIG_TYPES, "image config")
        layers = tuple(Descriptor.parse(item) for item in _array(data, "layers"))
        for layer in layers:
            check_media_type(layer.media_type, LAYER_TYPES, "layer")
        return cls(config, layers)


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the history of an image. `layer` is the number of the layer that it made, from 0
    at the bottom; None if it made none."""

    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    layer: int | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """The parts of an image's config used here: digests of the plain layers, bottom first;
    platform; `steps_of_history`."""

    diff_ids: tuple[Digest, ...]
    platform: Platform | None = None
    steps: tuple[Step, ...] = ()

    @classmethod
    def parse(cls, value: object) -> Config:
        """Parse an image config; config.md."""
        data = expect_fields(value, "image config")
        rootfs = expect_fields(data.get("rootfs"), "rootfs of the image config")
        if rootfs.get("type") != "layers":
            raise ImageError(f"unknown rootfs type {short(rootfs.get('type'))} in the image config")
        diff_ids = tuple(Digest.parse(item) for item in _array(rootfs, "diff_ids"))
        steps = steps_of_history(data.get("history"), len(diff_ids))
        return cls(diff_ids, Platform.from_json(data), tuple(steps))


def steps_of_history(history: object, count: int) -> list[Step]:
    """The lines of an image's history, oldest first, for `count` layers. Lines are added at the end
    for layers that it does not tell of; config.md."""
    layers = iter(range(count))
    lines = [Fields(line if isinstance(line, dict) else {})
             for line in (history if isinstance(history, list) else [])]  # fmt: skip
    steps = []
    for line in lines:
        texts = {name: text for name in _STEP if isinstance(text := line.get(name), str)}
        steps.append(Step(layer=None if line.get("empty_layer") else next(layers, None), **texts))
    return steps + [Step(layer=number) for number in layers]


def chain_ids(diff_ids: Sequence[Digest]) -> list[Digest]:
    """The ChainID of each layer with all below it; `diff_ids` bottom first; config.md."""
    chains: list[Digest] = []
    for diff_id in diff_ids:
        chain = Digest.of(f"{chains[-1]} {diff_id}".encode()) if chains else diff_id
        chains.append(chain)
    return chains


def platform_json(platform: Platform) -> dict[str, str]:
    """`platform` as a JSON object."""
    data = {"architecture": platform.architecture, "os": platform.os}
    if platform.variant:
        data["variant"] = platform.variant
    return data


def check_media_type(media_type: object, known: frozenset[str], what: str) -> None:
    """Raise ImageError, naming `media_type`, unless it is one of `known`."""
    if not isinstance(media_type, str) or media_type not in known:
        raise ImageError(
            f"unknown media type {short(media_type)} of {what}",
            hint="this is no container image, or of a kind that is not supported",
        )


def decode_json(data: bytes, where: object) -> Any:
    """Decode JSON of an image; ImageError with `where` if it is not valid."""
    if sum(map(data.count, (b",", b"[", b"{"))) > _MAX_VALUES:
        raise ImageError("JSON with too many values", where=where)
    try:
        return json.loads(data, object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise ImageError(f"not valid JSON: {exc}", where=where) from exc


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. As in Go, the last of equal keys counts, and objects are merged."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    found = {}
    for key, value in pairs:
        # The last one counts also if names differ in case, see `Fields`.
        found[key] = _merged(found.pop(key, None), value)
    return found


def _merged(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    for key, value in new.items():
        old[key] = _merged(old.pop(key, None), value)
    return old


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


class Fields:
    """A JSON object whose fields are looked up. As in Go, their names ignore case."""

    def __init__(self, data: dict[str, Any]) -> None:
        self._values = {key.casefold(): value for key, value in data.items()}

    def get(self, name: str, default: Any = None) -> Any:
        """The field `name`, or `default` if there is none."""
        return self._values.get(name.casefold(), default)


def expect_fields(value: object, what: str) -> Fields:
    """`value` as a JSON object, else ImageError."""
    return Fields(_expect_object(value, what))


def _expect_object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ImageError(f"{what}: not a JSON object")
    return value


def short(value: object) -> str:
    """`value` for a message, cut to a sensible length; for lists and objects only the kind."""
    if isinstance(value, list | dict):
        return "that is a list" if isinstance(value, list) else "that is an object"
    text = printable(value)
    return repr(text if len(text) <= 120 else text[:120] + "...")


def expect_texts(value: object, what: str) -> tuple[str, ...]:
    """`value` as a JSON array of text, else ImageError. Go writes an empty one as null."""
    items = [] if value is None else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ImageError(f"{what}: not a JSON array of text")
    return tuple(items)


def _array(data: Fields, name: str) -> list[Any]:
    value = data.get(name)
    if value is None:
        # Go writes an empty list as null.
        return []
    if not isinstance(value, list):
        raise ImageError(f"{name}: not a JSON array")
    return value


def _annotations(data: Fields) -> Mapping[str, str]:
    found = _expect_object(data.get("annotations") or {}, "annotations")
    return {key: value for key, value in found.items() if isinstance(value, str)}
