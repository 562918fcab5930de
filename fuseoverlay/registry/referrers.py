"""What refers to a manifest: signatures, attestations, lists of parts.

Source: distribution-spec "Listing Referrers" and, for registries that cannot do that, "Referrers
Tag Schema": an index under the tag ALGORITHM-HEX.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from fuseoverlay.errors import ImageError
from fuseoverlay.oci import model
from fuseoverlay.oci.model import Descriptor, Digest, Fields
from fuseoverlay.registry.manifests import MAX_MANIFEST
from fuseoverlay.registry.pages import pages
from fuseoverlay.registry.replies import Reply
from fuseoverlay.registry.session import Call, Session

_OK: Final = frozenset({200})
_MAYBE: Final = frozenset({200, 404})
#: Of all pages together.
_MAX_REFERRERS: Final = 100_000


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest that refers to another one. `artifact_type` says what it is, "" if nobody does."""

    descriptor: Descriptor
    artifact_type: str


async def fetch(session: Session, digest: Digest, artifact_type: str | None) -> list[Referrer]:
    """What refers to `digest`, unverified; only of `artifact_type`, if given."""
    query = f"?artifactType={quote(artifact_type, safe='')}" if artifact_type else ""
    call = Call("GET", f"referrers/{digest}{query}", _MAYBE, f"@{digest}")
    found: list[Referrer] = []
    async with contextlib.aclosing(pages(session, call, MAX_MANIFEST)) as replies:
        async for reply in replies:
            if not _is_index(reply):
                # Not found, or a page for people: the registry does not know what this is.
                found = _parsed(await _tagged(session, digest), session)
                break
            found += _parsed(reply, session)
            if len(found) > _MAX_REFERRERS:
                raise session.wrong(f"more than {_MAX_REFERRERS} referrers", f"@{digest}")
    return [item for item in found if artifact_type in {None, item.artifact_type}]


def subject_of(data: bytes) -> Digest | None:
    """What the manifest `data` refers to; None if nothing."""
    with contextlib.suppress(ImageError):
        fields = model.expect_fields(model.decode_json(data, "manifest"), "manifest")
        if fields.get("subject") is not None:
            return Descriptor.parse(fields.get("subject")).digest
    return None


async def note(session: Session, subject: Digest, data: bytes, found: Descriptor) -> None:
    """Note under the tag of `subject` that the manifest `data`, which is `found`, refers to it."""
    reply = await _tagged(session, subject)
    known = _entries(reply, session)
    if any(Fields(entry).get("digest") == str(found.digest) for entry in known):
        return
    index = {
        "schemaVersion": 2,
        "mediaType": model.OCI_INDEX,
        "manifests": [*known, _entry(data, found)],
    }
    headers = {"content-type": model.OCI_INDEX}
    content = json.dumps(index).encode()
    path = f"manifests/{_tag(subject)}"
    accept = frozenset({201})
    call = Call("PUT", path, accept, f":{_tag(subject)}", headers, content, push=True)
    await session.reply(call)


def _tag(digest: Digest) -> str:
    return f"{digest.algorithm[:32]}-{digest.hex[:64]}"


async def _tagged(session: Session, digest: Digest) -> Reply:
    headers = {"accept": model.OCI_INDEX}
    tag = _tag(digest)
    return await session.reply(
        Call("GET", f"manifests/{tag}", _MAYBE, f":{tag}", headers), MAX_MANIFEST
    )


def _is_index(reply: Reply) -> bool:
    kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    return reply.status == 200 and kind == model.OCI_INDEX


def _entries(reply: Reply, session: Session) -> list[dict[str, Any]]:
    """The entries of an index, as they are; none if there is no index."""
    if reply.status != 200:
        return []
    try:
        data = model.expect_fields(model.decode_json(reply.body, session.name), "index")
        entries = data.get("manifests") or []
    except ImageError as exc:
        raise session.wrong(exc.what) from exc
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise session.wrong("a list of referrers that is none")
    return entries


def _parsed(reply: Reply, session: Session) -> list[Referrer]:
    try:
        return list(_referrers(_entries(reply, session)))
    except ImageError as exc:
        raise session.wrong(f"a list of referrers that is none: {exc.what}") from exc


def _referrers(entries: Iterable[dict[str, Any]]) -> Iterable[Referrer]:
    for entry in entries:
        kind = Fields(entry).get("artifactType")
        yield Referrer(Descriptor.parse(entry), kind if isinstance(kind, str) else "")


def _entry(data: bytes, found: Descriptor) -> dict[str, Any]:
    """What an index says of the manifest `data`."""
    fields = model.expect_fields(model.decode_json(data, "manifest"), "manifest")
    config = fields.get("config")
    kind = fields.get("artifactType")
    if not kind and isinstance(config, dict):
        kind = Fields(config).get("mediaType")
    entry = found.to_json()
    if isinstance(kind, str):
        entry["artifactType"] = kind
    annotations = fields.get("annotations")
    if isinstance(annotations, dict) and annotations:
        entry["annotations"] = annotations
    return entry
