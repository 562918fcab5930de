"""Fetches manifests and indexes, byte for byte.

Source: distribution-spec "Pulling manifests"; image-spec manifest.md and image-index.md for what a
document may hold.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

from fuseoverlay.errors import DigestError, ImageError, RegistryError
from fuseoverlay.oci import model
from fuseoverlay.oci.model import Descriptor, Digest
from fuseoverlay.registry.replies import Reply
from fuseoverlay.registry.session import Call, Session
from fuseoverlay.registry.transport import ASK

#: What the spec says that registries take at least, and what others read at most.
MAX_MANIFEST: Final = 4 << 20

_TYPES: Final = model.INDEX_TYPES | model.MANIFEST_TYPES
_ACCEPT: Final = {"accept": ", ".join(sorted(_TYPES))}
_SCHEMA_1: Final = "application/vnd.docker.distribution.manifest.v1"
_OK: Final = frozenset({200})
_MAYBE: Final = frozenset({200, 404})


@dataclass(frozen=True, slots=True)
class Received:
    """A manifest or an index as it came: `data` has the digest `digest` and is what `media_type`
    says. It is not yet parsed."""

    data: bytes
    media_type: str
    digest: Digest

    @property
    def descriptor(self) -> Descriptor:
        """What points to it."""
        return Descriptor(self.media_type, self.digest, len(self.data))


async def fetch(session: Session, what: Digest | str) -> Received:
    """The manifest with this digest or tag.

    RegistryError if it is not there (`status` 404) or no manifest, DigestError if it is another.
    """
    path, shown = _path(what)
    call = Call("GET", path, _OK, shown, _ACCEPT)
    reply = await session.reply(call, MAX_MANIFEST)
    where = f"{session.name}{shown}"
    return Received(reply.body, _media_type(reply, where), _verified(reply, what, where))


async def head(session: Session, what: Digest | str) -> Descriptor | None:
    """What the registry says of a manifest, unverified; None if there is none, or the registry does
    not say. Docker Hub does not count this as a pull."""
    path, shown = _path(what)
    reply = await session.reply(Call("HEAD", path, _MAYBE, shown, _ACCEPT))
    digest, size = (
        reply.headers.get(name, "") for name in ("docker-content-digest", "content-length")
    )
    if reply.status == 404 or not digest or not (size.isascii() and size.isdigit()):
        return None
    try:
        return Descriptor(_content_type(reply), Digest.parse(digest), int(size))
    except ImageError as exc:
        raise session.wrong(exc.what, shown) from exc


async def put(session: Session, received: Received, what: Digest | str) -> Reply:
    """Put a manifest into the repository, by its digest or with a tag. RegistryError if the
    registry refuses it, or keeps another."""
    path, shown = _path(what)
    headers = {"content-type": received.media_type}
    accept = frozenset({201})
    call = Call("PUT", path, accept, shown, headers, received.data, push=True)
    reply = await session.reply(call)
    kept = reply.headers.get("docker-content-digest", str(received.digest))
    # A registry may name a manifest by another algorithm than we do.
    if kept.partition(":")[0] == received.digest.algorithm and kept != str(received.digest):
        raise session.wrong(f"keeps the manifest {received.digest} as {model.short(kept)}", shown)
    return reply


def _path(what: Digest | str) -> tuple[str, str]:
    return f"manifests/{what}", f"{'@' if isinstance(what, Digest) else ':'}{what}"


def _verified(reply: Reply, what: Digest | str, where: str) -> Digest:
    """The digest of the body: the one asked for, else of the kind that the registry names."""
    named = reply.headers.get("docker-content-digest")
    if isinstance(what, Digest):
        wanted = what
    elif named is None:
        return Digest.of(reply.body)
    else:
        try:
            wanted = Digest.parse(named)
        except ImageError as exc:
            raise RegistryError(exc.what, where=where, hint=ASK) from exc
    found = hashlib.new(wanted.algorithm, reply.body).hexdigest()
    if found != wanted.hex:
        raise DigestError(
            f"the manifest has the digest {wanted.algorithm}:{found}, it should be {wanted}",
            where=where, hint="try again; if it stays, the registry or a proxy is broken",
        )  # fmt: skip
    return wanted


def _media_type(reply: Reply, where: str) -> str:
    """The media type of a manifest, on which the header and the document agree."""
    header = _content_type(reply)
    try:
        data = model.decode_json(reply.body, where)
    except ImageError as exc:
        raise RegistryError(exc.what, where=where, hint=ASK) from exc
    if not isinstance(data, dict):
        raise RegistryError("not a JSON object", where=where, hint="this is no image")
    inside = _field(data, "mediaType")
    said = header or inside
    if isinstance(said, str) and said.startswith(_SCHEMA_1):
        raise RegistryError(
            "docker's schema 1, which nobody reads any more", where=where,
            hint="push the image anew with a recent docker or skopeo",
        )  # fmt: skip
    if inside is not None and inside != said:
        raise RegistryError(
            f"sent as {model.short(said)}, but says that it is {model.short(inside)}", where=where,
            hint="this image cannot be trusted",
        )  # fmt: skip
    if not isinstance(said, str) or said not in _TYPES:
        hint = "this is no image, or of a kind that is not supported"
        raise RegistryError(f"unknown media type {model.short(said)}", where=where, hint=hint)
    foreign = ("config", "layers") if said in model.INDEX_TYPES else ("manifests",)
    if any(_field(data, name) is not None for name in foreign):
        hint = "this image cannot be trusted"
        raise RegistryError("both an index and a manifest", where=where, hint=hint)
    return said


def _field(data: dict[str, Any], name: str) -> Any:
    return model.Fields(data).get(name)


def _content_type(reply: Reply) -> str:
    """The media type in the header, without parameters; "" if there is none."""
    return reply.headers.get("content-type", "").partition(";")[0].strip().lower()
