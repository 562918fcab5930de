"""Images from registries into the store: bit for bit, and no byte twice.

Blobs come in parallel, each into its partial file, where a later pull goes on. Layers are unpacked
while they come. The index is kept whole, and of its manifests those that were asked for, each once
all its blobs are there; last of all the name is set.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

import trio

from fuseoverlay.errors import DigestError, ImageError, RegistryError
from fuseoverlay.oci import model
from fuseoverlay.oci.malformed import malformed
from fuseoverlay.oci.model import Config, Descriptor, Digest, Manifest, Platform
from fuseoverlay.oci.reference import Reference
from fuseoverlay.registry import remote
from fuseoverlay.registry.remote import Registry
from fuseoverlay.registry.settings import Settings
from fuseoverlay.store.arriving import Arrivals
from fuseoverlay.store.content import Content, Lease, Partial
from fuseoverlay.store.layers import check_attributes
from fuseoverlay.store.names import Names
from fuseoverlay.store.parallel import in_thread, nursery
from fuseoverlay.store.root import Store
from fuseoverlay.store.unpacking import Unpacker, Unpacking

#: Blobs at a time, as docker and podman do by default about.
_PARALLEL: Final = 4
#: Bytes that are collected before a thread writes them.
_PIECE: Final = 512 << 10
#: Seconds between two looks whether another process has ended or completed its download.
_LOOK: Final = 0.2
#: At most so many platforms in one message.
_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class Arrival:
    """How far a blob is: `done` of its bytes are there, of which `before` were before this pull.
    `waiting`: another process is at it. `queued`: it has not begun."""

    blob: Descriptor
    done: int
    before: int = 0
    waiting: bool = False
    queued: bool = False

    @property
    def complete(self) -> bool:
        """Whether it is verified and in its place, or about to be."""
        return self.done == self.blob.size and not self.waiting


#: Takes reports of a pull, also from a thread.
Watch = Callable[[Arrival | Unpacking], None]


@dataclass(frozen=True, slots=True)
class Pulled:
    """What was pulled: the full name; the manifest or index that it stands for; the manifests that
    are complete now; how many bytes came; and the digest of the image that had the name, if that
    was another one."""

    name: str
    descriptor: Descriptor
    manifests: tuple[Descriptor, ...]
    received: int
    replaced: Digest | None = None


async def pull(
    store: Store,
    reference: Reference,
    *,
    platform: Platform | None = None,
    all_platforms: bool = False,
    unpack: bool = True,
    settings: Settings | None = None,
    progress: Watch = lambda step: None,
    warn: Callable[[str], None] = lambda line: None,
) -> Pulled:
    """Bring an image into the store, for `platform` (default: this machine's) or for all.

    With `unpack`, the layers of one platform are unpacked, too. What is there is not asked for.
    RegistryError, ImageError, DigestError, StoreError; whatever ends it, what was downloaded stays
    for the next time.
    """
    await in_thread(store.prepare)
    if unpack:
        await in_thread(check_attributes, store)
    content = Content(store)
    name = _name_of(reference)
    async with remote.connect(reference, settings) as registry:
        with content.lease() as lease, malformed(name):
            puller = _Puller(registry, content, lease, progress)
            top = await puller.find(reference)
            chosen, image = await puller.choose(top, platform, all_platforms=all_platforms)
            unpacking = Unpacker(store, name, progress, warn) if unpack else None
            await puller.fetch(chosen, image, unpacking)
            await in_thread(puller.keep, [*chosen, *puller.indexes])
            replaced = await in_thread(_set_name, Names(store), name, top)
    return Pulled(name, top, tuple(chosen), puller.received, replaced)


async def fetch(
    content: Content,
    repository: Reference,
    blob: Descriptor,
    *,
    settings: Settings | None = None,
    progress: Watch = lambda step: None,
) -> None:
    """Bring one blob, manifest or index of a repository into the store.

    RegistryError, ImageError, DigestError, StoreError.
    """
    async with remote.connect(repository, settings) as registry:
        with content.lease() as lease:
            await in_thread(lease.add, [blob.digest])
            puller = _Puller(registry, content, lease, progress)
            async with nursery() as opened:
                opened.start_soon(puller.get, blob)


class _Puller:
    """One pull."""

    def __init__(
        self,
        registry: Registry,
        content: Content,
        lease: Lease,
        progress: Watch,
    ) -> None:
        self._registry = registry
        self._content = content
        self._lease = lease
        self._progress = progress
        self._limiter = trio.CapacityLimiter(_PARALLEL)
        #: Manifests and indexes; they are kept when what they need is there.
        self._documents: dict[Digest, bytes] = {}
        #: All indexes of the image, the innermost first.
        self.indexes: list[Descriptor] = []
        #: Bytes that came of blobs.
        self.received = 0

    # manifests

    async def find(self, reference: Reference) -> Descriptor:
        """What the reference stands for: a manifest or an index."""
        what = reference.digest or reference.tag or ""
        try:
            found = await self._registry.manifest(what)
        except RegistryError as exc:
            if exc.status != 404 or reference.digest is not None:
                raise
            raise await self._registry.no_such_tag(str(what)) from None
        self._documents[found.digest] = found.data
        return found.descriptor

    async def choose(
        self, top: Descriptor, platform: Platform | None, *, all_platforms: bool
    ) -> tuple[list[Descriptor], Descriptor | None]:
        """The manifests to pull: all, or the one for `platform`; and which of them that is, if it
        is there."""
        found = [entry async for entry in self._manifests(top, 0)]
        if found == [top] and platform is None:
            return found, top
        images = [entry for entry in found if model.is_image(entry)]
        ranked = await self._ranked(images, platform or Platform.host())
        best = ranked[0][1] if ranked else None
        if all_platforms:
            return list(dict.fromkeys(found)), best
        if best is None:
            raise await self._no_platform(images, platform or Platform.host())
        return [best], best

    async def _manifests(self, entry: Descriptor, depth: int) -> AsyncIterator[Descriptor]:
        if depth > model.MAX_INDEX_DEPTH:
            raise ImageError("too many indexes inside indexes", where=entry.digest)
        if entry.media_type not in model.INDEX_TYPES:
            yield entry
            return
        if any(entry.digest == index.digest for index in self.indexes):
            return
        for inner in model.needed(await self._document(entry)):
            if model.is_manifest(inner.media_type):
                async for manifest in self._manifests(inner, depth + 1):
                    yield manifest
        self.indexes.append(entry)

    async def _ranked(
        self, images: list[Descriptor], wanted: Platform
    ) -> list[tuple[int, Descriptor]]:
        """Those that serve the platform, the best first."""
        ranked = []
        for entry in images:
            platform = entry.platform or await self._platform(entry)
            rank = platform.rank(wanted) if platform else None
            if rank is not None:
                ranked.append((rank, entry))
        return sorted(ranked, key=lambda item: item[0])

    async def _platform(self, entry: Descriptor) -> Platform | None:
        """The platform that the config of an image tells."""
        config = Manifest.parse(await self._document(entry)).config
        await in_thread(self._lease.add, [config.digest])
        await self._complete(config, Arrivals(self._content, [config]))
        data = await in_thread(self._content.read, config)
        return Config.parse(model.decode_json(data, config.digest)).platform

    async def _no_platform(self, images: list[Descriptor], wanted: Platform) -> ImageError:
        there = {str(entry.platform or await self._platform(entry)) for entry in images}
        hint = f"there are: {', '.join(sorted(there)[:_SHOWN])}"
        return ImageError(f"no image for {wanted}", where=self._registry.reference, hint=hint)

    async def _document(self, descriptor: Descriptor) -> Any:
        """A decoded manifest or index."""
        digest = descriptor.digest
        if digest not in self._documents:
            self._documents[digest] = await self._fetched(descriptor)
        return model.decode_json(self._documents[digest], digest)

    async def _fetched(self, descriptor: Descriptor) -> bytes:
        if self._content.has(descriptor):
            with contextlib.suppress(DigestError):
                return await in_thread(self._content.read, descriptor)
        found = await self._registry.manifest(descriptor.digest)
        if found.descriptor.size != descriptor.size:
            what = f"{len(found.data)} bytes, the index says {descriptor.size}"
            raise DigestError(what, where=descriptor.digest)
        if found.media_type != descriptor.media_type:
            what = f"sent as {found.media_type}, the index says {descriptor.media_type}"
            raise ImageError(what, where=descriptor.digest)
        return found.data

    def keep(self, documents: Iterable[Descriptor]) -> None:
        """Store manifests and indexes, of which all that was asked for is there."""
        for descriptor in documents:
            self._content.add(self._documents[descriptor.digest], descriptor.digest)

    # blobs

    async def get(self, blob: Descriptor) -> None:
        """Complete a blob, manifest or index."""
        if model.is_manifest(blob.media_type):
            self._documents[blob.digest] = await self._fetched(blob)
            await in_thread(self.keep, [blob])
        else:
            await self._complete(blob, Arrivals(self._content, [blob]))

    async def fetch(
        self,
        manifests: list[Descriptor],
        image: Descriptor | None,
        unpacking: Unpacker | None,
    ) -> None:
        """Complete all blobs of the manifests, and unpack those of one image."""
        blobs: dict[Digest, Descriptor] = {}
        # What is unpacked comes first.
        for manifest in sorted(manifests, key=lambda one: one != image):
            for blob in model.needed(await self._document(manifest)):
                if blobs.setdefault(blob.digest, blob).size != blob.size:
                    raise ImageError("a blob of two sizes", where=blob.digest)
        documents = [*manifests, *self.indexes]
        await in_thread(self._lease.add, [*blobs, *(item.digest for item in documents)])
        arrivals = Arrivals(self._content, blobs.values())
        for blob in blobs.values():
            self._progress(Arrival(blob, 0, queued=True))
        async with nursery() as opened:
            if unpacking is not None and image is not None:
                parsed = Manifest.parse(await self._document(image))
                opened.start_soon(unpacking.run, parsed, self._content, arrivals)
            # In this order, the config first, since they are unpacked in it.
            for blob in blobs.values():
                await self._limiter.acquire_on_behalf_of(blob.digest)
                opened.start_soon(self._download, blob, arrivals)

    async def _download(self, blob: Descriptor, arrivals: Arrivals) -> None:
        try:
            await self._complete(blob, arrivals)
        finally:
            self._limiter.release_on_behalf_of(blob.digest)

    async def _complete(self, blob: Descriptor, arrivals: Arrivals) -> None:
        """Complete a blob: what is there already is verified, not asked for, and what the manifest
        has itself is not either."""
        if blob.data is not None:
            await in_thread(self._content.add, blob.data, blob.digest)
        with contextlib.ExitStack() as stack:
            partial = await self._claimed(blob, stack)
            if partial is None:
                self._progress(Arrival(blob, blob.size, blob.size))
            else:
                await self._receive(blob, partial, arrivals)
        arrivals.completed(blob.digest)

    async def _claimed(self, blob: Descriptor, stack: contextlib.ExitStack) -> Partial | None:
        """The partial file of the blob, ours alone; None if the blob is complete."""
        while True:
            try:
                claim = self._content.partial(blob, wait=False)
                return await in_thread(stack.enter_context, claim)
            except BlockingIOError:
                self._progress(Arrival(blob, 0, waiting=True))
                await trio.sleep(_LOOK)

    async def _receive(self, blob: Descriptor, partial: Partial, arrivals: Arrivals) -> None:
        before = partial.offset
        try:
            await self._append(blob, partial, arrivals, before)
        except DigestError:
            if not before:
                raise
            # What was there may have been wrong, and is gone now.
            await self._append(blob, partial, arrivals, 0)

    async def _append(
        self, blob: Descriptor, partial: Partial, arrivals: Arrivals, before: int
    ) -> None:
        self._progress(Arrival(blob, partial.offset, before))
        collected, written = bytearray(), partial.offset
        try:
            async with self._registry.blob(blob, partial.offset) as parts:
                async for data in parts:
                    collected += data
                    if len(collected) >= _PIECE:
                        await in_thread(partial.write, collected)
                        self.received += partial.offset - written
                        collected, written = bytearray(), partial.offset
                        self._progress(Arrival(blob, partial.offset, before))
                        arrivals.arrived(blob.digest, partial.offset)
        finally:
            # Whatever ends it, what came is kept, unless it cannot be written.
            if collected and partial.offset == written:
                partial.write(collected)
                self.received += len(collected)
        # In this order, since what has come may be reported as unpacked.
        self._progress(Arrival(blob, partial.offset, before))
        arrivals.arrived(blob.digest, partial.offset)
        await in_thread(partial.commit)


def _name_of(reference: Reference) -> str:
    """The full name: with a digest, which decides, there is not a tag."""
    return str(replace(reference, tag=None) if reference.digest else reference)


def _set_name(names: Names, name: str, descriptor: Descriptor) -> Digest | None:
    with names.editing() as index:
        before = index.set(name, descriptor)
    return None if before == descriptor.digest else before
