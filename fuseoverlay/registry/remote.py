"""A repository in a registry, as it is configured: with its mirrors, and with who asks.

async with remote.connect(reference, settings) as registry:
    received = await registry.manifest(reference.tag)
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Final, TypeVar

import trio

from fuseoverlay.errors import ImageError, RegistryError
from fuseoverlay.oci.model import Descriptor, Digest
from fuseoverlay.oci.reference import Reference
from fuseoverlay.registry import manifests, referrers, tags, upload
from fuseoverlay.registry.accounts import Account
from fuseoverlay.registry.authfiles import account_of
from fuseoverlay.registry.configuration import Configuration, read
from fuseoverlay.registry.download import Download
from fuseoverlay.registry.endpoints import Endpoint, endpoints, registry_of
from fuseoverlay.registry.manifests import Received
from fuseoverlay.registry.referrers import Referrer
from fuseoverlay.registry.session import Session
from fuseoverlay.registry.settings import Settings
from fuseoverlay.registry.upload import Source

_T = TypeVar("_T")
#: Seconds to find out what to advise.
_SOON: Final = 5


@contextlib.asynccontextmanager
async def connect(
    reference: Reference, settings: Settings | None = None
) -> AsyncIterator[Registry]:
    """The repository of `reference`. Nothing is sent yet; connections end with the context.

    RegistryError if the registry is blocked, or files of its configuration are malformed.
    """
    chosen = settings or Settings()
    configuration = read(chosen.environment, chosen.warn)
    async with contextlib.AsyncExitStack() as stack:
        sessions = [
            await stack.enter_async_context(_session(endpoint, configuration, chosen))
            for endpoint in endpoints(reference, configuration, chosen)
        ]
        to = registry_of(reference, configuration, chosen)
        target = await stack.enter_async_context(_session(to, configuration, chosen))
        yield Registry(reference, sessions, target)


class Registry:
    """One repository. All methods may run at the same time; all raise RegistryError, of which
    `status` and `limits` say more."""

    def __init__(self, reference: Reference, sessions: list[Session], target: Session) -> None:
        self.reference = reference
        #: What is pushed goes here: where the name says, whatever mirrors there are.
        self._target = target
        #: Mirrors first, in the order in which they are asked. The last one is the registry.
        self._sessions = sessions

    async def manifest(self, what: Digest | str) -> Received:
        """The manifest or index with this digest or tag, verified; `status` 404 if there is none.
        DigestError if the bytes are others."""
        return await self._first(lambda session: manifests.fetch(session, what))

    async def head(self, what: Digest | str) -> Descriptor | None:
        """What is said of a manifest where it would come from, unverified; None if nobody has it or
        says so."""
        *mirrors, registry = self._sessions
        for session in mirrors:
            with contextlib.suppress(RegistryError, ImageError):
                if (found := await manifests.head(session, what)) is not None:
                    return found
        return await manifests.head(registry, what)

    def blob(self, descriptor: Descriptor, offset: int = 0) -> Download:
        """A context manager and async iterator: the bytes of a blob from `offset`, up to its size.

        It goes on where a connection breaks. The digest is not checked.
        """
        return Download([*self._sessions], descriptor, offset)

    async def tags(self) -> list[str]:
        """All tags, in the registry's order; `status` 404 if there is no such repository."""
        return await tags.fetch(self._sessions[-1])

    async def exists(self, digest: Digest) -> bool:
        """Whether the repository has the blob."""
        return await upload.exists(self._target, digest)

    async def mount(self, digest: Digest, source: Reference) -> bool:
        """Have the registry take a blob from another of its repositories; whether it did."""
        here = self._target.endpoint.host == source.host
        return here and await upload.mount(self._target, digest, source.repository)

    async def upload(self, descriptor: Descriptor, source: Source) -> None:
        """Put a blob into the repository. `source(offset)` gives its bytes from there to its end,
        and is called anew for each try. Large blobs go in pieces, and on where a piece broke."""
        await upload.upload(self._target, descriptor, source)

    async def put_manifest(
        self, data: bytes, media_type: str, what: Digest | str | None = None
    ) -> Digest:
        """Put a manifest into the repository, with a tag, or by its digest; its digest.

        What it needs has to be there already. If it has a subject of which the registry takes no
        notice, the list of what refers to that is changed, too.
        """
        digest = what if isinstance(what, Digest) else Digest.of(data)
        received = Received(data, media_type, digest)
        reply = await manifests.put(self._target, received, digest if what is None else what)
        subject = referrers.subject_of(data)
        if subject is not None and "oci-subject" not in reply.headers:
            await referrers.note(self._target, subject, data, received.descriptor)
        return digest

    async def referrers(self, digest: Digest, artifact_type: str | None = None) -> list[Referrer]:
        """What refers to a manifest, unverified; only of `artifact_type`, if given."""
        return await referrers.fetch(self._sessions[-1], digest, artifact_type)

    async def no_such_tag(self, tag: str) -> RegistryError:
        """The error for a tag that is not there, with the near ones, as far as they can be got."""
        hint = "check the name"
        what = "no such tag"
        try:
            with trio.move_on_after(_SOON):
                found = tags.near(tag, await self.tags())
                hint = f"similar tags: {', '.join(found)}" if found else "it has no tags at all"
        except RegistryError as exc:
            if exc.status == 404:
                what = f"{self.reference.host} has no such image"
        where = self.reference.with_tag(tag).familiar()
        return RegistryError(what, where=where, hint=hint, status=404)

    async def _first(self, ask: Callable[[Session], Awaitable[_T]]) -> _T:
        """The answer of the first that has one."""
        *mirrors, registry = self._sessions
        for session in mirrors:
            with contextlib.suppress(RegistryError, ImageError):
                return await ask(session)
            # What a mirror lacks, is asked of the others from now on.
            with contextlib.suppress(ValueError):
                self._sessions.remove(session)
        return await ask(registry)


def _session(endpoint: Endpoint, configuration: Configuration, settings: Settings) -> Session:
    # Who asks by name and password means the registry that was named.
    asking = replace(settings, account=None) if endpoint.mirror else settings

    async def find() -> Account | None:
        return await account_of(endpoint.host, endpoint.repository, asking, configuration.helpers)

    return Session(endpoint, settings, find)
