"""Uploads blobs: whole, or in pieces that go on where a connection broke.

Source: distribution-spec "Pushing blobs": "POST then PUT", "Pushing a blob in chunks", "Mounting a
blob from another repository".
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Final
from urllib.parse import quote

import httpx2

from fuseoverlay.errors import RegistryError
from fuseoverlay.oci.model import Descriptor, Digest
from fuseoverlay.registry.replies import Reply
from fuseoverlay.registry.retries import Passing, Tries, retried
from fuseoverlay.registry.session import Call, Session
from fuseoverlay.registry.transport import with_query

#: The bytes of a blob, from an offset to its end.
Source = Callable[[int], AsyncGenerator[bytes]]

_BEGIN: Final = "blobs/uploads/"
_CREATED: Final = 201
_BEGUN: Final = 202
_NO_CONTENT: Final = 204
_NOT_FOUND: Final = 404
_OUT_OF_ORDER: Final = 416
_RANGE: Final = re.compile(r"(?:bytes=)?0-(\d{1,19})\Z")
_BYTES: Final = {"content-type": "application/octet-stream"}


async def exists(session: Session, digest: Digest) -> bool:
    """Whether the repository has the blob."""
    accept = frozenset({200, _NOT_FOUND})
    call = Call("HEAD", f"blobs/{digest}", accept, f"@{digest}", push=True)
    return (await session.reply(call)).status != _NOT_FOUND


async def mount(session: Session, digest: Digest, source: str) -> bool:
    """Have the registry take the blob from its repository `source`; whether it did. If not, it has
    to be uploaded."""
    path = f"{_BEGIN}?mount={quote(str(digest))}&from={quote(source)}"
    accept = frozenset({_CREATED, _BEGUN})
    call = Call("POST", path, accept, f"@{digest}", push=True, source=source)
    try:
        reply = await session.reply(call)
    except RegistryError as exc:
        # Who may not read the source may still write the target.
        if exc.status in {401, 403, _NOT_FOUND, 405}:
            return False
        raise
    if reply.status == _BEGUN:
        await _abandon(session, session.located(reply))
    return reply.status == _CREATED


async def upload(session: Session, descriptor: Descriptor, source: Source) -> None:
    """Put the blob into the repository. Blobs larger than `Settings.chunk` go in pieces.

    `source` is called anew for each try. RegistryError if the registry refuses the blob.
    """
    if descriptor.size > session.settings.chunk:
        await _Pieces(session, descriptor, source).run()
    else:
        await retried(session.settings.patience, lambda: _whole(session, descriptor, source))


async def _whole(session: Session, descriptor: Descriptor, source: Source) -> None:
    """One try to upload all at once."""
    begun = await session.once(_begin(descriptor))
    length = {"content-length": str(descriptor.size)}
    await session.once(
        Call(
            "PUT",
            _finished(session.located(begun), descriptor),
            frozenset({_CREATED}),
            f"@{descriptor.digest}",
            _BYTES | length,
            (lambda: _part(source(0), descriptor.size)) if descriptor.size else b"",
            push=True,
        )
    )


async def _abandon(session: Session, location: httpx2.URL) -> None:
    """Tell the registry that an upload will not go on. That it listens is not needed."""
    with contextlib.suppress(RegistryError, Passing):
        await session.once(Call("DELETE", location, frozenset({_NO_CONTENT}), push=True))


class _Pieces:
    """An upload in pieces. The registry says what it has; so nothing is sent twice."""

    def __init__(self, session: Session, descriptor: Descriptor, source: Source) -> None:
        self._session = session
        self._descriptor = descriptor
        self._source = source
        self._tries = Tries(session.settings.patience)
        self._location: httpx2.URL | None = None
        #: What the registry has.
        self._position = 0
        #: The most that it ever had: an upload that begins anew is no progress.
        self._furthest = 0
        #: The smallest piece that it takes, but for the last.
        self._minimum = 0

    async def run(self) -> None:
        """Upload everything."""
        while True:
            try:
                await self._go_on()
                return
            except Passing as passing:
                await self._tries.failed(passing)
                if await self._done_or_located():
                    return

    async def _go_on(self) -> None:
        location = self._location or await self._begun()
        while self._position < self._descriptor.size:
            location = await self._piece(location)
        await self._session.once(
            self._call("PUT", _finished(location, self._descriptor), {_CREATED}, {}, b"")
        )

    async def _begun(self) -> httpx2.URL:
        reply = await self._session.once(_begin(self._descriptor))
        minimum = reply.headers.get("oci-chunk-min-length", "")
        self._minimum = int(minimum) if re.fullmatch(r"[0-9]{1,12}", minimum) else 0
        self._position = 0
        return self._located(reply)

    async def _piece(self, location: httpx2.URL) -> httpx2.URL:
        """Send the next piece; where the one after it goes."""
        start = self._position
        wanted = max(self._session.settings.chunk, self._minimum)
        length = min(wanted, self._descriptor.size - start)
        headers = {
            "content-range": f"{start}-{start + length - 1}",
            "content-length": str(length),
        }
        call = self._call(
            "PATCH",
            location,
            {_BEGUN, _OUT_OF_ORDER},
            _BYTES | headers,
            lambda: _part(self._source(start), length),
        )
        reply = await self._session.once(call)
        if reply.status == _OUT_OF_ORDER:
            raise Passing(self._wrong(f"refuses the piece from byte {start} on", 416))
        self._position = self._received(reply, start + length)
        if self._position <= start:
            raise Passing(self._wrong(f"does not keep the piece from byte {start} on"))
        if self._position > self._furthest:
            self._furthest = self._position
            self._tries.progress()
        return self._located(reply)

    async def _done_or_located(self) -> bool:
        """After a failure: whether all is there; else find out where to go on."""
        if self._location is None:
            return False
        if self._position == self._descriptor.size and await exists(
            self._session, self._descriptor.digest
        ):
            return True
        accept = {_NO_CONTENT, _NOT_FOUND}
        reply = await self._session.reply(self._call("GET", self._location, accept, {}, None))
        if reply.status == _NOT_FOUND:
            self._location = None
        else:
            self._position = self._received(reply, 0)
            if "location" in reply.headers:
                self._located(reply)
        return False

    def _received(self, reply: Reply, default: int) -> int:
        """How many bytes the registry says that it has."""
        match = _RANGE.match(reply.headers.get("range", ""))
        if match is None:
            return default
        last = int(match[1])
        if last >= self._descriptor.size:
            raise self._wrong(f"has {last + 1} bytes of a blob of {self._descriptor.size}")
        # One byte and none cannot be told apart. Nobody sends one.
        return last + 1 if last else 0

    def _located(self, reply: Reply) -> httpx2.URL:
        self._location = self._session.located(reply)
        return self._location

    def _call(
        self,
        method: str,
        path: httpx2.URL,
        accept: set[int],
        headers: dict[str, str],
        content: bytes | Callable[[], AsyncIterator[bytes]] | None,
    ) -> Call:
        what = f"@{self._descriptor.digest}"
        return Call(method, path, frozenset(accept), what, headers, content, push=True)

    def _wrong(self, what: str, status: int | None = None) -> RegistryError:
        error = self._session.wrong(what, f"@{self._descriptor.digest}")
        error.status = status
        return error


def _begin(descriptor: Descriptor) -> Call:
    accept = frozenset({_BEGUN})
    length = {"content-length": "0"}
    return Call("POST", _BEGIN, accept, f"@{descriptor.digest}", length, b"", push=True)


def _finished(location: httpx2.URL, descriptor: Descriptor) -> httpx2.URL:
    return with_query(location, {"digest": str(descriptor.digest)})


async def _part(parts: AsyncGenerator[bytes], length: int) -> AsyncGenerator[bytes]:
    """The first `length` bytes; RegistryError if there are fewer."""
    async with contextlib.aclosing(parts):
        async for data in parts:
            taken = data[:length]
            length -= len(taken)
            if taken:
                yield taken
            if not length:
                return
    raise RegistryError(
        f"{length} bytes of a blob are missing here", hint="see whether its file is whole"
    )
