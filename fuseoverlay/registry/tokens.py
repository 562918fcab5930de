"""Proves to a registry who is asking: by tokens, one for each scope, or by name and password.

Source: the distribution project's "Token Authentication Specification" and "Token Authentication
via OAuth2".
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

import httpx2
import trio

from fuseoverlay.errors import ImageError, RegistryError
from fuseoverlay.oci.model import decode_json
from fuseoverlay.registry.accounts import Account
from fuseoverlay.registry.challenges import Challenge
from fuseoverlay.registry.refusals import refusal
from fuseoverlay.registry.replies import Reply, read
from fuseoverlay.registry.retries import retried
from fuseoverlay.registry.settings import Settings
from fuseoverlay.registry.transport import Request, Transport, joined, shown, with_query

_CLIENT: Final = "fuseoverlay"
#: Bytes of a token server's answer.
_MAX_ANSWER: Final = 1 << 20
#: Seconds that a token is good for unless the server says more.
_LIFE: Final = 60.0
#: A token is taken for old after this part of its life.
_FRESH: Final = 0.9
_TOKEN: Final = re.compile(r"[\x21-\x7e]+\Z")

Scopes = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Token:
    header: str
    #: On trio's clock.
    until: float


class Authorizer:
    """What is known of one registry's demands, and the tokens got for them.

    `find_account` is called once, when the registry first asks. `host` and `name`, HOST/REPOSITORY,
    are for messages.
    """

    def __init__(
        self,
        transport: Transport,
        settings: Settings,
        host: str,
        name: str,
        find_account: Callable[[], Awaitable[Account | None]],
    ) -> None:
        self._transport = transport
        self._settings = settings
        self._host = host
        self._name = name
        self._find_account = find_account
        self._account: Account | None = None
        self._asked = False
        self._basic = False
        self._tokens: dict[Scopes, _Token] = {}
        self._lock = trio.Lock()

    def header(self, scopes: Scopes) -> str | None:
        """The Authorization header for a request that needs `scopes`, as far as it is known."""
        token = self._tokens.get(scopes)
        if token is not None and trio.current_time() < token.until:
            return token.header
        return self._account.basic if self._basic and self._account else None

    async def answer(
        self, found: list[Challenge], scopes: Scopes, sent: str | None, url: httpx2.URL
    ) -> None:
        """Make `header` meet what a 401 for `url` asked for; RegistryError if that cannot be.

        `sent`: the header that was refused.
        """
        async with self._lock:
            if self.header(scopes) not in {None, sent}:
                # Another request has brought a new one.
                return
            account = await self._known_account()
            for challenge in found:
                if challenge.scheme == "bearer" and await self._bearer(
                    challenge, scopes, sent, url
                ):
                    return
            by_name = any(challenge.scheme == "basic" for challenge in found)
            if not by_name or account is None or account.basic in {None, sent}:
                raise self.denied()
            self._basic = True

    async def _known_account(self) -> Account | None:
        if not self._asked:
            self._account = await self._find_account()
            self._asked = True
        return self._account

    async def _bearer(
        self, challenge: Challenge, scopes: Scopes, sent: str | None, url: httpx2.URL
    ) -> bool:
        account = self._account
        if account is not None and account.registry_token:
            header = f"Bearer {account.registry_token}"
            self._tokens[scopes] = _Token(header, float("inf"))
            return header != sent
        realm = challenge.values.get("realm")
        if not realm:
            return False
        self._tokens[scopes] = await self._fetch(self._checked(url, realm), challenge, scopes)
        return True

    def _checked(self, url: httpx2.URL, realm: str) -> httpx2.URL:
        """The token server's URL, which gets secrets."""
        target = joined(url, realm)
        if target.scheme != "https" and not self._transport.insecure:
            raise RegistryError(
                f"wants secrets sent in the clear, to {shown(target)}", where=self._name,
                hint="only --tls-verify=false or `insecure` in registries.conf allow that",
            )  # fmt: skip
        return target

    async def _fetch(self, realm: httpx2.URL, challenge: Challenge, scopes: Scopes) -> _Token:
        request = self._request(realm, challenge.values, _all(scopes, challenge))

        async def once() -> _Token:
            response = await self._transport.send(request)
            reply = await read(response, realm, self._settings.patience, _MAX_ANSWER)
            if reply.status == 200:
                return self._parsed(reply, realm)
            if reply.status in {400, 401, 403}:
                raise self.denied()
            raise refusal(
                reply.status, reply.headers, reply.body, where=shown(realm), host=self._host
            )

        return await retried(self._settings.patience, once)

    def _request(self, realm: httpx2.URL, values: Mapping[str, str], scopes: Scopes) -> Request:
        account = self._account
        service = {"service": values["service"]} if "service" in values else {}
        if account is not None and account.identity_token:
            form = {
                "grant_type": "refresh_token",
                **service,
                "client_id": _CLIENT,
                "scope": " ".join(scopes),
                "refresh_token": account.identity_token,
            }
            headers = {"content-type": "application/x-www-form-urlencoded"}
            return Request("POST", realm, headers, urlencode(form).encode(), secret=True)
        query: dict[str, Any] = {**service, "scope": list(scopes)}
        basic = account.basic if account is not None else None
        if account is not None and basic is not None:
            query |= {"account": account.user, "client_id": _CLIENT}
        return Request("GET", with_query(realm, query), authorization=basic)

    def _parsed(self, reply: Reply, realm: httpx2.URL) -> _Token:
        try:
            data = decode_json(reply.body, shown(realm))
        except ImageError as exc:
            raise RegistryError(exc.what, where=shown(realm), hint="ask who runs it") from exc
        fields = data if isinstance(data, dict) else {}
        token = fields.get("token") or fields.get("access_token")
        if not isinstance(token, str) or not _TOKEN.match(token):
            raise RegistryError(
                "answers without a token", where=shown(realm), hint="ask who runs it"
            )
        life = fields.get("expires_in")
        seconds = float(life) if isinstance(life, int) and _LIFE < life < 1 << 31 else _LIFE
        return _Token(f"Bearer {token}", trio.current_time() + seconds * _FRESH)

    def denied(self) -> RegistryError:
        """The error for a 401 in spite of all that can be proved."""
        account = self._account
        if account is None:
            what = "access denied without a login, or there is no such repository"
            hint = f"correct the name, or log in with `fuseoverlay login {self._host}`"
        else:
            name = f" of user {account.user}" if account.user else ""
            what = f"the credentials{name} are refused"
            hint = f"log in anew with `fuseoverlay login {self._host}`"
        return RegistryError(what, where=self._name, hint=hint, status=401)


def _all(scopes: Scopes, challenge: Challenge) -> Scopes:
    """Our scopes and what the registry says is needed."""
    asked = challenge.values.get("scope", "").split()
    return (*scopes, *(scope for scope in asked if scope not in scopes))
