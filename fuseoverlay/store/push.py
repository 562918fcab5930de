"""Images from the store into registries, bit for bit.

Blobs go in parallel, those that the repository has not. What they make up follows: manifests, then
the indexes that name them, last of all the one that gets the tag. So a push that ends before leaves
nothing that can be pulled and is not whole. Source: distribution-spec "Push".
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import IO, Final

import trio

from fuseoverlay.errors import ImageError, RegistryError, describe
from fuseoverlay.oci import model
from fuseoverlay.oci.model import Descriptor, Digest, Platform
from fuseoverlay.oci.reference import Reference
from fuseoverlay.registry import remote
from fuseoverlay.registry.remote import Registry
from fuseoverlay.registry.settings import Settings
from fuseoverlay.store.content import Content
from fuseoverlay.store.images import Images
from fuseoverlay.store.names import repository_of
from fuseoverlay.store.parallel import in_thread, nursery
from fuseoverlay.store.reach import decoded, reach
from fuseoverlay.store.save import chosen
from fuseoverlay.store.verify import check

#: Blobs at a time, as a pull has.
_PARALLEL: Final = 4
#: So much is read at once.
_PIECE: Final = 512 << 10
#: A blob is asked of so many other repositories at most: each may cost two requests.
_SOURCES: Final = 2


@dataclass(frozen=True, slots=True)
class Departure:
    """How far a blob is: `done` of its bytes were sent. `there`: the repository has it. `source`:
    the repository of the same registry that it was taken from, so that nothing was sent. `queued`:
    it has not begun."""

    blob: Descriptor
    done: int = 0
    there: bool = False
    source: str | None = None
    queued: bool = False


@dataclass(frozen=True, slots=True)
class Pushed:
    """What was pushed: the manifest or index, how it is called there now, and how many bytes
    the blobs have that were sent."""

    reference: Reference
    descriptor: Descriptor
    sent: int


def _nothing(_departure: Departure) -> None:
    pass


async def push(
    images: Images,
    text: str,
    to: Reference,
    *,
    platform: Platform | None = None,
    settings: Settings | None = None,
    progress: Callable[[Departure], None] = _nothing,
) -> Pushed:
    """Put the image that `text` names into a registry: an index whole, or of it the image for
    `platform`.

    ImageError if it is not there, or not whole; RegistryError, DigestError. What the registry got
    by then is not sent again.
    """
    top = (await in_thread(chosen, images, text, platform)).descriptor
    if to.digest is not None and to.digest != top.digest:
        raise ImageError(f"the image is {top.digest}", where=to, hint="leave the digest out")
    documents, blobs = await in_thread(_parts, images.content, top)
    sources = await in_thread(_sources, images, to)
    held = images.content.held({item.digest for item in (*documents, *blobs)})
    async with remote.connect(to, settings) as registry:
        with contextlib.ExitStack() as stack:
            await in_thread(stack.enter_context, held)
            pusher = _Pusher(registry, images.content, sources, progress)
            async with nursery() as opened:
                for blob in blobs:
                    progress(Departure(blob, queued=True))
                for blob in blobs:
                    opened.start_soon(pusher.send, blob)
            *inner, last = documents
            for document in inner:
                await pusher.put(document, document.digest)
            await pusher.put(last, to.tag or last.digest)
    return Pushed(to, top, pusher.sent)


def _parts(content: Content, top: Descriptor) -> tuple[list[Descriptor], list[Descriptor]]:
    """Manifests and indexes, each after what it names, and the blobs, each once."""
    documents: dict[Digest, Descriptor] = {}
    blobs: dict[Digest, Descriptor] = {}

    def add(descriptor: Descriptor) -> None:
        if not model.is_manifest(descriptor.media_type):
            blobs.setdefault(descriptor.digest, descriptor)
        elif descriptor.digest not in documents:
            for needed in model.needed(decoded(content, descriptor)):
                add(needed)
            documents[descriptor.digest] = descriptor

    # `chosen` has read all of it: it is not too deep.
    add(top)
    return [*documents.values()], [*blobs.values()]


def _sources(images: Images, to: Reference) -> dict[Digest, list[Reference]]:
    """Other repositories of the same registry that are likely to have blobs: images of the store
    came from there, or went there."""
    found: dict[Digest, list[Reference]] = {}
    for entry in images.names.entries():
        repository = repository_of(entry.name) if entry.name else entry.repository
        with contextlib.suppress(ImageError):
            source = Reference.parse(repository or "")
            if source.host == to.host and source.repository != to.repository:
                for digest in reach(images.content, [entry.descriptor]).blobs:
                    known = found.setdefault(digest, [])
                    if source not in known:
                        known.append(source)
    return found


class _Pusher:
    """One push."""

    def __init__(
        self,
        registry: Registry,
        content: Content,
        sources: dict[Digest, list[Reference]],
        progress: Callable[[Departure], None],
    ) -> None:
        self._registry = registry
        self._content = content
        self._sources = sources
        self._progress = progress
        self._limiter = trio.CapacityLimiter(_PARALLEL)
        #: Bytes of the blobs that were sent.
        self.sent = 0

    async def send(self, blob: Descriptor) -> None:
        """See to it that the repository has the blob."""
        async with self._limiter:
            if await self._registry.exists(blob.digest):
                self._progress(Departure(blob, there=True))
                return
            for source in self._sources.get(blob.digest, [])[:_SOURCES]:
                if await self._registry.mount(blob.digest, source):
                    self._progress(Departure(blob, there=True, source=source.repository))
                    return
            await self._upload(blob)

    async def _upload(self, blob: Descriptor) -> None:
        self._progress(Departure(blob))

        async def read(offset: int) -> AsyncGenerator[bytes]:
            file = await in_thread(self._content.open, blob)
            with contextlib.closing(file):
                file.seek(offset)
                while data := await in_thread(_read, file, blob):
                    offset += len(data)
                    self._progress(Departure(blob, offset))
                    yield data

        try:
            await self._registry.upload(blob, read)
        except RegistryError:
            # It may be refused because it is damaged here.
            await in_thread(check, self._content, blob)
            raise
        self.sent += blob.size
        self._progress(Departure(blob, blob.size, there=True))

    async def put(self, document: Descriptor, what: Digest | str) -> None:
        """Put a manifest or index, as it is, with a tag or by its digest."""
        data = await in_thread(self._content.read, document)
        await self._registry.put_manifest(data, document.media_type, what)


def _read(file: IO[bytes], blob: Descriptor) -> bytes:
    try:
        return file.read(_PIECE)
    except OSError as exc:
        raise ImageError(f"cannot read: {describe(exc)}", where=blob.digest) from exc
