"""Redirects: where they may lead, and that no secret goes along."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from fuseoverlay.errors import RegistryError
from fuseoverlay.oci.reference import Reference
from fuseoverlay.registry import remote
from fuseoverlay.registry.accounts import Account
from fuseoverlay.registry.settings import Settings
from tests.registry.hostile import HASTE, Answer, Asked, Hostile, blob_of, hostile, ranged

DATA = os.urandom(10_000)
HOME: Mapping[str, str] = {"HOME": "/nonexistent"}
OPEN = Settings(patience=HASTE, environment=HOME, account=Account("user", "secret"))
ASKED = {"WWW-Authenticate": 'Basic realm="x"'}


async def got(server: Hostile, settings: Settings, offset: int = 0) -> bytes:
    """A blob from `server`."""
    async with (
        remote.connect(Reference.parse(f"{server.host}/a"), settings) as registry,
        registry.blob(blob_of(DATA), offset) as parts,
    ):
        return b"".join([part async for part in parts])


def leading(where: str, status: int = 307) -> Answer:
    """A redirect."""
    return Answer(status, headers={"Location": where})


def guarded(answer: Answer) -> object:
    """Answers 401 to those who do not say who they are."""
    return lambda asked: answer if "authorization" in asked.headers else Answer(401, headers=ASKED)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_secret_goes_to_another_host(status: int) -> None:
    with hostile(lambda asked: ranged(DATA, asked)) as other:
        there = leading(f"http://eve:pw@{other.host}/data?signature=1", status)
        with hostile(guarded(there)) as server:  # type: ignore[arg-type]
            assert await got(server, OPEN, 100) == DATA[100:]
            assert "authorization" in server.of("blobs")[-1].headers
        (asked,) = other.asked
    assert asked.path == "/data?signature=1"
    assert asked.headers["range"] == "bytes=100-"
    assert not {"authorization", "cookie"} & asked.headers.keys()


async def test_a_secret_stays_on_the_same_host() -> None:
    def answer(asked: Asked) -> Answer:
        if "authorization" not in asked.headers:
            return Answer(401, headers=ASKED)
        return ranged(DATA, asked) if asked.path == "/moved" else leading("/moved")

    with hostile(answer) as server:
        assert await got(server, OPEN) == DATA


async def test_a_401_from_elsewhere_gets_no_secret() -> None:
    with hostile(lambda _: Answer(401, headers=ASKED)) as other:
        there = leading(f"http://{other.host}/data")
        with hostile(lambda _: there) as server:
            with pytest.raises(RegistryError) as caught:
                await got(server, OPEN)
            assert caught.value.status == 401
        assert all("authorization" not in asked.headers for asked in other.asked)
        assert all("authorization" not in asked.headers for asked in server.asked)


async def test_cookies_are_not_kept() -> None:
    def answer(asked: Asked) -> Answer:
        if "data" in asked.path:
            return ranged(DATA, asked)
        return Answer(307, headers={"Location": "/data", "Set-Cookie": "who=me; Path=/"})

    with hostile(answer) as server:
        assert await got(server, OPEN) == DATA
    assert all("cookie" not in asked.headers for asked in server.asked)


async def test_redirects_are_bounded() -> None:
    with hostile(lambda _: leading("/again")) as server:
        with pytest.raises(RegistryError, match="more than 10 redirects"):
            await got(server, OPEN)
        assert len(server.of("again")) == 10


async def test_from_https_to_http(certified: Path, trusting: Path) -> None:
    strict = Settings(True, patience=HASTE, certificates=str(trusting), environment=HOME)
    lax = Settings(False, patience=HASTE, environment=HOME)
    with hostile(lambda asked: ranged(DATA, asked)) as plain:
        there = leading(f"http://{plain.host}/data?signature=1")
        with hostile(lambda _: there, certificate=certified) as server:
            with pytest.raises(RegistryError, match="redirects from https to http") as caught:
                await got(server, strict)
            assert "signature" not in str(caught.value)
            assert not plain.asked
            assert await got(server, lax) == DATA


@pytest.mark.parametrize(
    "where",
    [
        *("", "ftp://x/", "file:///etc/passwd", "http://", "http://[", "\x00"),
        *("http://x:99999/", "http://x:99999999999999999999/", "http://x:0/"),
    ],
)
async def test_redirects_to_nowhere(where: str) -> None:
    with hostile(lambda _: leading(where)) as server, pytest.raises(RegistryError):
        await got(server, OPEN)


async def test_what_cannot_be_trusted(certified: Path, trusting: Path, tmp_path: Path) -> None:
    with hostile(lambda asked: ranged(DATA, asked), certificate=certified) as server:
        unknown = Settings(True, patience=HASTE, environment=HOME)
        with pytest.raises(
            RegistryError,
            match=r"not trusted \(self-signed certificate\).*certs.d/127.0.0.1:\d+/ca.crt",
        ):
            await got(server, unknown)
        assert not server.asked
        known = Settings(True, patience=HASTE, certificates=str(trusting), environment=HOME)
        assert await got(server, known) == DATA
        # The user's certs.d
        directory = tmp_path / ".config" / "containers" / "certs.d" / server.host
        directory.mkdir(parents=True)
        (directory / "ca.crt").write_bytes((trusting / "ca.crt").read_bytes())
        assert await got(server, Settings(True, environment={"HOME": str(tmp_path)})) == DATA


async def test_http_only_where_it_is_allowed() -> None:
    with hostile(lambda asked: ranged(DATA, asked)) as server:
        with pytest.raises(RegistryError):
            await got(server, Settings(True, patience=HASTE, environment=HOME))
        assert not server.asked
        assert await got(server, Settings(patience=HASTE, environment=HOME)) == DATA
        assert await got(server, Settings(False, patience=HASTE, environment=HOME)) == DATA


@pytest.mark.parametrize("name", ["ca.crt", "me.cert"])
async def test_certificates_that_are_none(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("nothing")
    settings = Settings(True, certificates=str(tmp_path), environment=HOME)
    with hostile(lambda _: Answer()) as server:
        with pytest.raises(RegistryError, match=f"{tmp_path}/{name}: (not a usable|cannot read)"):
            await got(server, settings)
        assert not server.asked
