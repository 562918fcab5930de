"""HTTP requests to one registry, and to where it redirects: connections, TLS, proxies, timeouts.

Redirects are followed here, by hand: what proves who we are never goes to another origin, and
nobody leads from https to http unnoticed. Source: RFC 9110 15.4, distribution-spec "Pulling blobs".
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import ssl
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlencode

import httpx2
import trio

from fuseoverlay import __version__
from fuseoverlay.errors import RegistryError
from fuseoverlay.registry.certificates import context
from fuseoverlay.registry.loopback import is_loopback
from fuseoverlay.registry.retries import Passing
from fuseoverlay.registry.settings import Settings

_MAX_REDIRECTS: Final = 10
#: Followed with the same method; the others only where that is GET or HEAD.
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_SAME_METHOD: Final = frozenset({307, 308})

#: Bytes and seconds for a body that does not matter.
_LITTLE: Final = 1 << 16
_SOON: Final = 1.0

#: What to do about answers that are against the rules.
ASK: Final = "ask who runs the registry"

#: Bytes of a request, made anew for each time that they are sent.
Content = Callable[[], AsyncIterator[bytes]]


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `authorization` is the header for the origin of `url`, and for no other. Nor is
    the content, if it is `secret`."""

    method: str
    url: httpx2.URL
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | Content | None = None
    authorization: str | None = None
    secret: bool = False


class Transport:
    """Clients of all the hosts that one registry's requests go to; an async context manager.

    `insecure`: plain HTTP and any certificate will do. `names`: how hosts are called in certs.d, if
    not as in the URL.
    """

    def __init__(self, settings: Settings, *, insecure: bool, names: Mapping[str, str]) -> None:
        self.insecure = insecure
        self._settings = settings
        self._names = names
        self._clients: dict[str, httpx2.AsyncClient] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _exc: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        for client in self._clients.values():
            await client.aclose()

    async def send(self, request: Request) -> httpx2.Response:
        """Send `request`, follow redirects, and return the answer, whose body is not yet read.

        The caller closes it. `Passing` if the network fails, RegistryError if it will not work.
        """
        url = request.url
        for _ in range(_MAX_REDIRECTS + 1):
            response = await self._send_once(request, url)
            if response.status_code not in _REDIRECTS:
                return response
            location = response.headers.get("location")
            await put_away(response)
            url = self._redirected(request, url, response.status_code, location)
        raise RegistryError(
            f"more than {_MAX_REDIRECTS} redirects",
            where=shown(request.url),
            hint="try again later",
        )

    async def _send_once(self, request: Request, url: httpx2.URL) -> httpx2.Response:
        headers = {**request.headers, "accept-encoding": "identity"}
        if request.authorization is not None and same_origin(url, request.url):
            headers["authorization"] = request.authorization
        content = request.content() if callable(request.content) else request.content
        # Informational answers (1xx) without end are no silence. To send content may take long.
        seconds = self._settings.patience.reply if content is None else math.inf
        with told(url), trio.move_on_after(seconds):
            client = self._client(url)
            built = client.build_request(request.method, url, headers=headers, content=content)
            return await client.send(built, stream=True)
        raise RegistryError("never comes to an answer", where=shown(url), hint=ASK)

    def _redirected(
        self, request: Request, url: httpx2.URL, status: int, location: str | None
    ) -> httpx2.URL:
        """Where a redirect of `request`, which went to `url`, leads."""
        if not location:
            raise _bad_redirect(url, "a redirect to nowhere")
        if status not in _SAME_METHOD and request.method not in {"GET", "HEAD"}:
            raise _bad_redirect(url, f"a redirect ({status}) of {request.method}")
        target = joined(url, location)
        if target.scheme != "https" and url.scheme == "https" and not self.insecure:
            raise RegistryError(
                f"redirects from https to {shown(target)}", where=shown(url),
                hint="only --tls-verify=false or `insecure` in registries.conf allow that",
            )  # fmt: skip
        if request.secret and not same_origin(target, request.url):
            raise _bad_redirect(url, f"a redirect of a password or token to {netloc(target)}")
        return target

    def _client(self, url: httpx2.URL) -> httpx2.AsyncClient:
        """The client for the host and port of `url`: each has certificates of its own."""
        place = netloc(url)
        if place not in self._clients:
            self._clients[place] = self._new_client(url.host, self._names.get(place, place))
        return self._clients[place]

    def _new_client(self, host: str, name: str) -> httpx2.AsyncClient:
        patience = self._settings.patience
        timeout = httpx2.Timeout(patience.silence, connect=patience.connect, pool=None)
        # As everywhere with Go's libraries: no proxy serves this computer.
        direct = {f"all://{_bracketed(host)}": None} if is_loopback(host) else {}
        return httpx2.AsyncClient(
            verify=context(name, self._settings, insecure=self.insecure),
            # HTTP/2 in Python takes twice the CPU time and brings a third of the bytes, measured
            # with a registry on the same computer; and with its one connection all blobs break.
            http2=False,
            timeout=timeout,
            mounts=direct,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            headers={"user-agent": f"fuseoverlay/{__version__}"},
        )


def bytes_of(response: httpx2.Response) -> AsyncGenerator[bytes]:
    """The body of `response` as it comes. RegistryError if it is compressed, which nobody asked for
    and which would change sizes and digests."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise RegistryError("compressed on the way", where=shown(response.url), hint=ASK)
    return response.aiter_raw()


async def beginning(response: httpx2.Response, limit: int, seconds: float) -> bytes:
    """As much of a body as comes: at most `limit` bytes, within `seconds`. For messages."""
    body = bytearray()
    with trio.move_on_after(seconds), contextlib.suppress(httpx2.HTTPError, httpx2.StreamError):
        async with contextlib.aclosing(response.aiter_raw()) as parts:
            async for data in parts:
                body += data
                if len(body) >= limit:
                    break
    return bytes(body[:limit])


async def put_away(response: httpx2.Response) -> None:
    """Close an answer whose body does not matter. The little that there is of it is read, so that
    its connection can be used again."""
    try:
        await beginning(response, _LITTLE, _SOON)
    finally:
        await response.aclose()


def with_query(url: httpx2.URL, values: Mapping[str, str | Sequence[str]]) -> httpx2.URL:
    """`url` with more `values` in its query. What is there stays as it is: it may be signed."""
    more = urlencode(values, doseq=True).encode()
    return url.copy_with(query=b"&".join(part for part in (url.query, more) if part))


def joined(url: httpx2.URL, location: str) -> httpx2.URL:
    """The target of a Location header, which may be relative; without user and password."""
    with told(url):
        target = url.join(location)
        port = 0 < _port(target) < 1 << 16
        if target.scheme not in {"http", "https"} or not target.host or not port:
            raise _bad_redirect(url, f"a redirect to {shown(target)}")
        # httpx would make a header of them.
        return target.copy_with(username=None, password=None, fragment=None)


def netloc(url: httpx2.URL) -> str:
    """HOST or HOST:PORT."""
    return url.netloc.decode("ascii")


def same_origin(one: httpx2.URL, other: httpx2.URL) -> bool:
    """Whether both have the same scheme, host and port."""
    return (one.scheme, one.host, _port(one)) == (other.scheme, other.host, _port(other))


def shown(url: httpx2.URL) -> str:
    """`url` for a message: without the query, which may hold signatures."""
    return f"{url.scheme}://{netloc(url)}{url.path}"


@contextlib.contextmanager
def told(url: httpx2.URL) -> Iterator[None]:
    """Errors of the HTTP library become `Passing` or RegistryError that name `url`."""
    try:
        yield
    except httpx2.ConnectError as exc:
        raise _not_connected(url, exc) from exc
    except httpx2.TimeoutException as exc:
        what = "no connection" if isinstance(exc, httpx2.ConnectTimeout) else "silence"
        raise Passing(_unreached(url, f"{what} for too long")) from exc
    except (httpx2.NetworkError, httpx2.RemoteProtocolError) as exc:
        raise Passing(_unreached(url, f"the connection broke{_because(exc)}")) from exc
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, ValueError) as exc:
        raise _unreached(url, f"the request fails{_because(exc)}") from exc


def _not_connected(url: httpx2.URL, exc: httpx2.ConnectError) -> RegistryError | Passing:
    causes = list(_causes(exc))
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return RegistryError(
            f"its certificate is not trusted{_because(_of(causes, ssl.SSLError))}",
            where=shown(url),
            hint=f"put its CA's certificate into /etc/containers/certs.d/{netloc(url)}/ca.crt",
        )
    name = _of(causes, socket.gaierror)
    if isinstance(name, socket.gaierror) and name.errno != socket.EAI_AGAIN:
        return _no_such_host(url, name)
    reason = _of(causes[::-1], OSError) or causes[-1]
    error = _unreached(url, f"no connection{_because(reason)}")
    if isinstance(reason, ConnectionRefusedError):
        # It seldom passes while somebody waits; but a registry may just start anew.
        return Passing(error, wait=1, once=True)
    return Passing(error)


def _no_such_host(url: httpx2.URL, cause: socket.gaierror) -> RegistryError:
    """It is the proxy's name where there is one: the proxy looks up the other."""
    what = f"no such host{_because(cause)}"
    proxies = urllib.request.getproxies()
    kind = url.scheme if url.scheme in proxies else "all"
    proxy = proxies.get(kind)
    if proxy and not is_loopback(url.host) and not urllib.request.proxy_bypass(url.host):
        # Without user and password.
        place = proxy.rpartition("@")[2].rpartition("://")[2].rstrip("/")
        hint = f"correct {kind.upper()}_PROXY, or see whether there is a network"
        return RegistryError(f"the proxy {place}: {what}", where=shown(url), hint=hint)
    hint = "correct the name, or see whether there is a network"
    return RegistryError(what, where=shown(url), hint=hint)


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """`exc`, what caused it, and so on; also inside groups."""
    yield exc
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from _causes(inner)
    cause = exc.__cause__ or exc.__context__
    if cause is not None:
        yield from _causes(cause)


def _of(causes: list[BaseException], kind: type[BaseException]) -> BaseException | None:
    return next((cause for cause in causes if isinstance(cause, kind)), None)


def _because(exc: BaseException | None) -> str:
    """The reason in brackets, in the system's words where it is the system's."""
    text = str(exc or "")
    if isinstance(exc, ssl.SSLCertVerificationError):
        text = exc.verify_message
    elif isinstance(exc, socket.gaierror):
        text = exc.strerror or text
    elif isinstance(exc, OSError) and not isinstance(exc, ssl.SSLError) and exc.errno:
        text = os.strerror(exc.errno)
    return f" ({text[:200]})" if text else ""


def _unreached(url: httpx2.URL, what: str) -> RegistryError:
    return RegistryError(what, where=shown(url), hint="try again later")


def _bad_redirect(url: httpx2.URL, what: str) -> RegistryError:
    return RegistryError(what, where=shown(url), hint=ASK)


def _port(url: httpx2.URL) -> int:
    usual = 443 if url.scheme == "https" else 80
    return usual if url.port is None else url.port


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
