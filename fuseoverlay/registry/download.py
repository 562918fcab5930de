"""Downloads a blob: from any offset, and on from there when a connection breaks.

Source: distribution-spec "Pulling blobs"; RFC 9110 14 for ranges. The digest is not checked here:
who writes the bytes down hashes them anyway.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Final, Self

import httpx2

from fuseoverlay.errors import RegistryError
from fuseoverlay.oci.model import Descriptor
from fuseoverlay.registry.retries import Passing, Tries
from fuseoverlay.registry.session import Call, Session
from fuseoverlay.registry.transport import bytes_of, told

_WHOLE: Final = 200
_PART: Final = 206
_NO_SUCH_PART: Final = 416
_RANGE: Final = re.compile(r"bytes (\d{1,19})-\d{1,19}/(?:(\d{1,19})|\*)\Z")
#: So many bytes since the last failure are progress. Fewer could go on for ever.
_PROGRESS: Final = 1 << 20


class Download:
    """The bytes of a blob from an offset on: an async iterator, and a context manager.

    After what may pass it goes on where it was. When one of `sessions`, in order, gives up, the
    next goes on; RegistryError is raised by the last. It ends after exactly the size that
    `descriptor` says. `position` is the offset of the next byte.
    """

    def __init__(self, sessions: list[Session], descriptor: Descriptor, offset: int) -> None:
        self._sessions = sessions
        self._descriptor = descriptor
        self.position = offset
        self._tries = Tries(sessions[0].settings.patience)
        self._broken_at = offset
        #: Whether to ask for a part: not if the registry has refused to give one.
        self._by_range = True
        self._open = contextlib.AsyncExitStack()
        self._body: AsyncGenerator[bytes] | None = None
        self._url = httpx2.URL()
        #: Bytes of the answer that come before `position`.
        self._skip = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _exc: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self._close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while True:
            try:
                data = await self._next()
            except Passing as passing:
                await self._close()
                await self._failed(passing)
            except RegistryError as exc:
                await self._close()
                self._go_elsewhere(exc)
            else:
                if data is None:
                    raise StopAsyncIteration
                if data:
                    return data

    async def _next(self) -> bytes | None:
        """The next bytes, perhaps none; None at the end."""
        if self._body is None:
            if self._left <= 0:
                return None
            self._body = await self._started()
        try:
            with told(self._url):
                data = await anext(self._body, None)
        except Passing:
            # All is there: how the connection ends does not matter.
            if self._left == 0:
                return None
            raise
        if data is None:
            self._check_end()
            return None
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        return self._taken(data[skipped:])

    def _taken(self, data: bytes) -> bytes:
        if len(data) > self._left:
            raise self._wrong(f"more than the {self._descriptor.size} bytes that it should have")
        self.position += len(data)
        return data

    def _check_end(self) -> None:
        if self._left:
            raise Passing(self._wrong(f"the blob ends after {self.position} bytes"))

    @property
    def _left(self) -> int:
        return self._descriptor.size - self.position

    @property
    def _session(self) -> Session:
        return self._sessions[0]

    async def _started(self) -> AsyncGenerator[bytes]:
        """Ask for what is missing; the body of the answer."""
        ranged = self.position > 0 and self._by_range
        accept = {_WHOLE, _PART, _NO_SUCH_PART} if ranged else {_WHOLE}
        call = Call(
            "GET",
            f"blobs/{self._descriptor.digest}",
            frozenset(accept),
            f"@{self._descriptor.digest}",
            {"range": f"bytes={self.position}-"} if ranged else {},
        )
        response = await self._open.enter_async_context(self._session.opened(call))
        self._url = response.url
        if response.status_code == _NO_SUCH_PART:
            # Some registries know no ranges. If the blob is indeed shorter, this shows next.
            await self._close()
            self._by_range = False
            return await self._started()
        self._check(response)
        return await self._open.enter_async_context(contextlib.aclosing(bytes_of(response)))

    def _check(self, response: httpx2.Response) -> None:
        """Find out what the body of `response` begins with, and whether it is of the right size."""
        if response.status_code == _WHOLE:
            self._skip = self.position
            length = response.headers.get("content-length", "")
            total = int(length) if re.fullmatch(r"[0-9]{1,19}", length) else None
        else:
            match = _RANGE.match(response.headers.get("content-range", ""))
            if match is None or int(match[1]) != self.position:
                raise self._wrong("another part of the blob than the one asked for")
            self._skip = 0
            total = int(match[2]) if match[2] else None
        size = self._descriptor.size
        if total is not None and total > size:
            raise self._wrong(f"the blob has {total} bytes there, it should have {size}")

    async def _failed(self, passing: Passing) -> None:
        if self.position - self._broken_at >= _PROGRESS:
            self._tries.progress()
            self._broken_at = self.position
        try:
            await self._tries.failed(passing)
        except RegistryError as exc:
            self._go_elsewhere(exc)

    def _go_elsewhere(self, exc: RegistryError) -> None:
        """Let the next session go on; raise `exc` if there is none."""
        if len(self._sessions) == 1:
            raise exc
        del self._sessions[0]
        self._tries = Tries(self._session.settings.patience)
        self._by_range = True

    async def _close(self) -> None:
        self._body = None
        await self._open.aclose()

    def _wrong(self, what: str) -> RegistryError:
        return self._session.wrong(what, f"@{self._descriptor.digest}")
