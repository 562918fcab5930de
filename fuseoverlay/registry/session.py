"""Requests to one repository in one registry: authorized, and tried again where it makes sense."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

import httpx2
import trio

from fuseoverlay.errors import RegistryError
from fuseoverlay.oci.reference import HUB
from fuseoverlay.registry.accounts import Account
from fuseoverlay.registry.challenges import challenges
from fuseoverlay.registry.endpoints import Endpoint
from fuseoverlay.registry.refusals import refusal
from fuseoverlay.registry.replies import Reply, read
from fuseoverlay.registry.retries import Passing, retried
from fuseoverlay.registry.settings import Settings
from fuseoverlay.registry.tokens import Authorizer, Scopes
from fuseoverlay.registry.transport import (
    ASK,
    Content,
    Request,
    Transport,
    beginning,
    joined,
    netloc,
    put_away,
    same_origin,
    told,
)

#: Docker Hub's registry has another name than its images.
_HUB_HOST: Final = "registry-1.docker.io"
#: Bytes and seconds for what a registry says to an error.
_MESSAGE: Final = 1 << 16
_MESSAGE_SECONDS: Final = 10.0
#: Bytes of a small answer of which nobody says otherwise.
_MAX_REPLY: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Call:
    """One request of the distribution-spec.

    `path` is below /v2/REPOSITORY/, or a whole URL. `accept`: the statuses that are answers. `what`
    follows the repository's name in messages: ":12". `push`: it needs that right. `source`: a
    repository that it reads, too.
    """

    method: str
    path: str | httpx2.URL
    accept: frozenset[int]
    what: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | Content | None = None
    push: bool = False
    source: str | None = None


class Session:
    """One repository in one registry; an async context manager."""

    def __init__(
        self,
        endpoint: Endpoint,
        settings: Settings,
        find_account: Callable[[], Awaitable[Account | None]],
    ) -> None:
        self.endpoint = endpoint
        self.settings = settings
        host = _HUB_HOST if endpoint.host == HUB else endpoint.host
        with told(httpx2.URL("https://registry")):
            self._secure, self._plain = (
                httpx2.URL(f"{scheme}://{host}/") for scheme in ("https", "http")
            )
        names = {netloc(url): endpoint.host for url in (self._secure, self._plain)}
        self._transport = Transport(settings, insecure=endpoint.insecure, names=names)
        self._authorizer = Authorizer(
            self._transport, settings, endpoint.host, self.name, find_account
        )
        self._root: httpx2.URL | None = None
        self._finding_root = trio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._transport.__aexit__(kind, exc, traceback)

    @property
    def name(self) -> str:
        """HOST/REPOSITORY, for messages."""
        return f"{self.endpoint.host}/{self.endpoint.repository}".rstrip("/")

    async def reply(self, call: Call, limit: int = _MAX_REPLY) -> Reply:
        """The answer to `call`, at most `limit` bytes; RegistryError if there is none in time."""
        return await retried(self.settings.patience, lambda: self.once(call, limit))

    async def once(self, call: Call, limit: int = _MAX_REPLY) -> Reply:
        """The same in a single try: `Passing` if another one makes sense."""
        async with self.opened(call) as response:
            return await read(response, response.url, self.settings.patience, limit)

    @contextlib.asynccontextmanager
    async def opened(self, call: Call) -> AsyncIterator[httpx2.Response]:
        """The answer to `call`, its body not yet read. `Passing` if another try makes sense,
        RegistryError if not."""
        response = await self._authorized(call)
        try:
            if response.status_code not in call.accept:
                body = await beginning(response, _MESSAGE, _MESSAGE_SECONDS)
                raise self._refusal(response, body, call)
            yield response
        finally:
            await response.aclose()

    async def url(self, path: str | httpx2.URL) -> httpx2.URL:
        """The whole URL of a `Call.path`."""
        if isinstance(path, httpx2.URL):
            return path
        root = await self._found_root()
        repository = f"{self.endpoint.repository}/" if self.endpoint.repository else ""
        with told(root):
            return root.join(f"/v2/{repository}{path}")

    def located(self, reply: Reply) -> httpx2.URL:
        """The Location header of `reply`, which may be relative; RegistryError without one, or if
        it would lead from https to http."""
        location = reply.headers.get("location")
        if not location:
            raise self.wrong("answers without a Location")
        target = joined(reply.url, location)
        if reply.url.scheme == "https" != target.scheme and not self.endpoint.insecure:
            raise self.wrong("leads from https to http")
        return target

    def wrong(self, what: str, detail: str = "") -> RegistryError:
        """The error for an answer against the rules; `detail` follows the repository's name."""
        return RegistryError(what, where=f"{self.name}{detail}", hint=ASK)

    async def _authorized(self, call: Call) -> httpx2.Response:
        """The answer to `call`, after what the registry asks for has been proved. What others ask
        for, to whom it has led, is not answered."""
        url = await self.url(call.path)
        root = await self._found_root()
        if not same_origin(url, root):
            return await self._sent(call, url, None)
        scopes = self._scopes(call)
        header = self._authorizer.header(scopes)
        response = await self._sent(call, url, header)
        if response.status_code == 401 and same_origin(response.url, root):
            found = challenges(response.headers.get_list("www-authenticate"))
            await put_away(response)
            await self._authorizer.answer(found, scopes, header, url)
            response = await self._sent(call, url, self._authorizer.header(scopes))
            if response.status_code == 401 and same_origin(response.url, root):
                await put_away(response)
                raise self._authorizer.denied()
        return response

    async def _sent(self, call: Call, url: httpx2.URL, header: str | None) -> httpx2.Response:
        request = Request(call.method, url, call.headers, call.content, header)
        return await self._transport.send(request)

    def _scopes(self, call: Call) -> Scopes:
        repository = self.endpoint.repository
        if not repository:
            return ()
        own = f"repository:{repository}:{'pull,push' if call.push else 'pull'}"
        return (own,) if call.source is None else (own, f"repository:{call.source}:pull")

    def _refusal(self, response: httpx2.Response, body: bytes, call: Call) -> Exception:
        where = f"{self.name}{call.what}"
        if response.url.host != self._secure.host:
            where = f"{where} from {netloc(response.url)}"
        return refusal(
            response.status_code, response.headers, body, where=where, host=self.endpoint.host
        )

    async def _found_root(self) -> httpx2.URL:
        """The registry's URL: https, or http where that is allowed and https does not answer."""
        async with self._finding_root:
            if self._root is None:
                self._root = await self._find_root()
        return self._root

    async def _find_root(self) -> httpx2.URL:
        if not self.endpoint.insecure:
            return self._secure
        try:
            await self._probe(self._secure)
        except (Passing, RegistryError):
            # Not remembered if it fails, too: then another try begins with https.
            await self._probe(self._plain)
            return self._plain
        return self._secure

    async def _probe(self, root: httpx2.URL) -> None:
        await put_away(await self._transport.send(Request("GET", root.join("/v2/"))))
