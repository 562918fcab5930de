"""Tokens: when they are fetched, for what, and what is refused."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trio

from fuseoverlay.errors import RegistryError
from fuseoverlay.oci.reference import Reference
from fuseoverlay.registry import remote
from fuseoverlay.registry.accounts import Account
from fuseoverlay.registry.settings import Settings
from tests.registry.hostile import (
    HASTE,
    Answer,
    Asked,
    Hostile,
    as_manifest,
    blob_of,
    hostile,
    manifest_of,
)

USER = Account("me", "pass")
DATA = b"some bytes"


class Tokens:
    """A registry that wants tokens, and the server that gives them."""

    def __init__(self) -> None:
        self.registry: Hostile
        self.server: Hostile
        self.reply: dict[str, Any] = {}
        self.status = 200
        self._given = 0
        self._lock = threading.Lock()

    def give(self, asked: Asked) -> Answer:
        """The token server."""
        with self._lock:
            self._given += 1
        reply = {"token": f"t{self._given}"} | self.reply
        return Answer(self.status, json.dumps(reply).encode())

    def answer(self, asked: Asked) -> Answer:
        """The registry: only the newest token is good."""
        if asked.headers.get("authorization") == f"Bearer t{self._given}":
            return as_manifest(manifest_of()) if "manifests" in asked.path else Answer(200, DATA)
        challenge = f'Bearer realm="{self.server.url}/token?x=1",service="the registry"'
        return Answer(401, b"please", headers={"WWW-Authenticate": challenge})

    def forget(self) -> None:
        """The token given last is not good any more."""
        self._given += 1


@pytest.fixture
def tokens() -> Iterator[Tokens]:
    """Both servers, on this computer, without TLS."""
    made = Tokens()
    with (
        hostile(lambda asked: made.give(asked)) as made.server,
        hostile(made.answer) as made.registry,
    ):
        yield made


def settings(account: Account | None = None) -> Settings:
    """For tests."""
    return Settings(patience=HASTE, account=account, environment={"HOME": "/nonexistent"})


async def pull(tokens: Tokens, account: Account | None = None, *, at_once: bool = False) -> None:
    """Get a manifest, unless `at_once`, and then some blobs at once."""
    reference = Reference.parse(f"{tokens.registry.host}/a/b")
    async with remote.connect(reference, settings(account)) as registry:
        if not at_once:
            await registry.manifest("1")

        async def one() -> None:
            async with registry.blob(blob_of(DATA)) as parts:
                assert [part async for part in parts] == [DATA]

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one)


@pytest.mark.parametrize("at_once", [True, False])
async def test_one_token_for_all(tokens: Tokens, at_once: bool) -> None:
    await pull(tokens, at_once=at_once)
    (asked,) = tokens.server.of("/token")
    wanted = {"x": ["1"], "service": ["the registry"], "scope": ["repository:a/b:pull"]}
    assert parse_qs(urlsplit(asked.path).query) == wanted
    assert "authorization" not in asked.headers


async def test_who_asks_is_told_to_the_token_server_only(tokens: Tokens) -> None:
    await pull(tokens, USER)
    (asked,) = tokens.server.of("/token")
    assert asked.headers["authorization"] == USER.basic
    assert parse_qs(urlsplit(asked.path).query)["account"] == ["me"]
    sent = {asked.headers.get("authorization", "") for asked in tokens.registry.asked}
    assert sent == {"", "Bearer t1"}


async def test_an_identity_token_is_posted(tokens: Tokens) -> None:
    tokens.reply = {"token": None, "access_token": "t1"}
    await pull(tokens, Account(identity_token="it"))
    (asked,) = tokens.server.of("/token")
    assert asked.method == "POST"
    assert parse_qs(asked.body.decode()) == {
        "grant_type": ["refresh_token"],
        "service": ["the registry"],
        "client_id": ["fuseoverlay"],
        "scope": ["repository:a/b:pull"],
        "refresh_token": ["it"],
    }


async def test_an_identity_token_is_not_posted_to_another_host(tokens: Tokens) -> None:
    other = tokens.server.url.replace("127.0.0.1", "127.0.0.9")
    tokens.give = lambda asked: Answer(307, headers={"Location": f"{other}/other"})  # type: ignore[method-assign]
    with pytest.raises(RegistryError, match="a redirect of a password or token to"):
        await pull(tokens, Account(identity_token="it"))
    assert tokens.server.of("/other") == []


async def test_a_token_that_is_old_is_fetched_anew(tokens: Tokens) -> None:
    reference = Reference.parse(f"{tokens.registry.host}/a")
    async with remote.connect(reference, settings()) as registry:
        for _ in range(3):
            await registry.manifest("1")
            tokens.forget()
    assert [asked.path for asked in tokens.server.asked] == [tokens.server.asked[0].path] * 3


async def test_a_token_for_the_registry_needs_no_server(tokens: Tokens) -> None:
    tokens.forget()
    await pull(tokens, Account(registry_token="t1"))
    assert not tokens.server.asked


@pytest.mark.parametrize(
    ("account", "message"),
    [
        (None, r"access denied without a login.*log in with `fuseoverlay login 127"),
        (USER, "the credentials of user me are refused"),
        (Account(identity_token="it"), "the credentials are refused"),
    ],
)
@pytest.mark.parametrize("status", [400, 401, 403])
async def test_no_token(tokens: Tokens, status: int, account: Account | None, message: str) -> None:
    tokens.status = status
    with pytest.raises(RegistryError, match=message) as caught:
        await pull(tokens, account)
    assert caught.value.status == 401
    assert len(tokens.server.of("/token")) == 1


async def test_a_token_that_does_not_help(tokens: Tokens) -> None:
    tokens.reply = {"token": "another"}
    with pytest.raises(RegistryError, match="access denied") as caught:
        await pull(tokens)
    assert caught.value.status == 401
    assert len(tokens.server.of("/token")) == 1


async def test_a_token_server_that_is_busy_is_asked_again(tokens: Tokens) -> None:
    tokens.status = 503
    with pytest.raises(RegistryError, match="503"):
        await pull(tokens)
    assert len(tokens.server.of("/token")) == HASTE.tries


@pytest.mark.parametrize("token", [None, "", 7, "a b", "a\r\nx: y", "é"])
async def test_tokens_that_are_none(tokens: Tokens, token: object) -> None:
    tokens.reply = {"token": token}
    with pytest.raises(RegistryError, match="answers without a token"):
        await pull(tokens)


async def test_secrets_are_not_sent_in_the_clear(
    tokens: Tokens, certified: Path, trusting: Path
) -> None:
    with hostile(tokens.answer, certificate=certified) as registry:
        reference = Reference.parse(f"{registry.host}/a")
        strict = Settings(True, certificates=str(trusting), account=USER, patience=HASTE)
        async with remote.connect(reference, strict) as connected:
            with pytest.raises(RegistryError, match="wants secrets sent in the clear"):
                await connected.manifest("1")
    assert not tokens.server.asked


async def test_basic_where_there_is_no_better(certified: Path, trusting: Path) -> None:
    def answer(asked: Asked) -> Answer:
        wanted = f"Basic {base64.b64encode(b'me:pass').decode()}"
        if asked.headers.get("authorization") == wanted:
            return as_manifest(manifest_of())
        return Answer(401, headers={"WWW-Authenticate": 'Negotiate, Basic realm="x"'})

    strict = Settings(True, certificates=str(trusting), account=USER, patience=HASTE)
    with hostile(answer, certificate=certified) as server:
        reference = Reference.parse(f"{server.host}/a")
        async with remote.connect(reference, strict) as registry:
            await registry.manifest("1")
            await registry.manifest("1")
        assert len(server.asked) == 3
        wrong = Settings(True, certificates=str(trusting), account=Account("me", "x"))
        async with remote.connect(reference, wrong) as registry:
            with pytest.raises(RegistryError) as caught:
                await registry.manifest("1")
            assert caught.value.status == 401


async def test_connections_are_used_again(tokens: Tokens) -> None:
    """Also after a 401, whose body has to be read for that."""
    reference = Reference.parse(f"{tokens.registry.host}/a")
    async with remote.connect(reference, settings()) as registry:
        for _ in range(5):
            await registry.manifest("1")
            tokens.forget()
    assert len(tokens.registry.of("manifests")) == 10
    assert tokens.registry.connections == 1
