"""Blobs over connections that break, from servers that lie."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count

import pytest
import trio

from fuseoverlay.errors import RegistryError
from fuseoverlay.oci.reference import Reference
from fuseoverlay.registry import remote
from fuseoverlay.registry.settings import Settings
from tests.registry.hostile import (
    HASTE,
    Answer,
    Asked,
    Hostile,
    blob_of,
    hostile,
    ranged,
)

SETTINGS = Settings(patience=HASTE, environment={"HOME": "/nonexistent"})
DATA = os.urandom(300_000)
#: More than what counts as progress.
PIECE = 1_100_000


async def got(
    server: Hostile, data: bytes = DATA, offset: int = 0, settings: Settings = SETTINGS
) -> bytes:
    """What of `data` comes from `offset` on."""
    async with (
        remote.connect(Reference.parse(f"{server.host}/a"), settings) as registry,
        registry.blob(blob_of(data), offset) as parts,
    ):
        return b"".join([part async for part in parts])


def starts(server: Hostile) -> list[str | None]:
    """The ranges asked for."""
    return [asked.headers.get("range") for asked in server.of("blobs")]


def first(*answers: Callable[[Asked], Answer]) -> Callable[[Asked], Answer]:
    """The n-th request for a blob gets the n-th of these; the last one goes on for ever."""
    number = count()

    def answer(asked: Asked) -> Answer:
        if "/blobs/" not in asked.path:
            return Answer()
        return answers[min(next(number), len(answers) - 1)](asked)

    return answer


def right(asked: Asked) -> Answer:
    """The blob as it should be."""
    return ranged(DATA, asked)


@pytest.mark.parametrize(
    "broken",
    [
        Answer(200, DATA, cut=100_000),
        Answer(200, DATA[:100_000], length=len(DATA)),
        Answer(200, DATA[:100_000]),
        Answer(200, DATA[:100_000], length=-1),
        Answer(200, DATA, cut=100_000, stalls=True),
    ],
    ids=["reset", "closed early", "too short", "closed without a length", "stalled"],
)
async def test_a_broken_download_goes_on(broken: Answer) -> None:
    with hostile(first(lambda _: broken, right)) as server:
        assert await got(server) == DATA
        begun, resumed = starts(server)
    assert begun is None
    # A reset may take bytes with it that were on their way.
    assert resumed is None or 0 < int(resumed[6:-1]) <= 100_000


@pytest.mark.parametrize("offset", [1, 299_999])
async def test_from_an_offset(offset: int) -> None:
    with hostile(first(right)) as server:
        assert await got(server, offset=offset) == DATA[offset:]
        assert starts(server) == [f"bytes={offset}-"]


async def test_nothing_is_asked_for_when_all_is_there() -> None:
    with hostile(first(right)) as server:
        assert await got(server, offset=len(DATA)) == b""
        assert await got(server, b"") == b""
        assert not server.asked


async def test_a_registry_that_knows_no_ranges_begins_again() -> None:
    with hostile(first(lambda _: Answer(200, DATA))) as server:
        assert await got(server, offset=250_000) == DATA[250_000:]


async def test_a_registry_that_refuses_ranges_is_asked_for_the_whole() -> None:
    def answer(asked: Asked) -> Answer:
        return Answer(416) if "range" in asked.headers else Answer(200, DATA)

    with hostile(first(answer)) as server:
        assert await got(server, offset=250_000) == DATA[250_000:]
        assert starts(server) == ["bytes=250000-", None]


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
async def test_what_may_pass_is_tried_again(status: int) -> None:
    with hostile(first(lambda _: Answer(status), right)) as server:
        assert await got(server) == DATA


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 416, 418, 501])
async def test_what_will_not_pass_is_not_tried_again(status: int) -> None:
    with hostile(first(lambda _: Answer(status))) as server:
        with pytest.raises(RegistryError) as caught:
            await got(server)
        assert caught.value.status == status
        assert len(starts(server)) == 1


@pytest.mark.parametrize(
    "broken", [Answer(503), Answer(200, DATA, cut=0), Answer(200, length=-1)], ids=str
)
async def test_tries_are_bounded(broken: Answer) -> None:
    with hostile(first(lambda _: broken)) as server:
        with pytest.raises(RegistryError):
            await got(server)
        assert len(starts(server)) == HASTE.tries


async def test_a_byte_at_a_time_is_no_progress() -> None:
    def answer(asked: Asked) -> Answer:
        return ranged(DATA, asked, cut=1)

    with hostile(first(answer)) as server:
        with pytest.raises(RegistryError):
            await got(server)
        assert len(starts(server)) == HASTE.tries


async def test_progress_makes_old_failures_good() -> None:
    data = os.urandom(2 * HASTE.tries * PIECE)

    def answer(asked: Asked) -> Answer:
        part = data[asked.start : asked.start + PIECE]
        told = {"Content-Range": f"bytes {asked.start}-{len(data) - 1}/{len(data)}"}
        return Answer(206 if asked.start else 200, part, told if asked.start else {})

    with hostile(first(answer)) as server:
        assert await got(server, data) == data
        assert len(starts(server)) == 2 * HASTE.tries


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(200, DATA + b"x"), "has 300001 bytes there, it should have 300000"),
        (Answer(200, DATA + b"x", length=-1), "more than the 300000 bytes"),
        (Answer(200, DATA, {"Content-Encoding": "gzip"}), "compressed"),
    ],
)
async def test_a_blob_that_is_too_long(answer: Answer, message: str) -> None:
    with hostile(first(lambda _: answer)) as server:
        with pytest.raises(RegistryError, match=message):
            await got(server)
        assert len(starts(server)) == 1


async def test_a_blob_that_is_too_short() -> None:
    """All the registry has is asked for, and then the rest, which is not there."""
    short = DATA[:-1]
    with hostile(first(lambda asked: ranged(short, asked))) as server:
        with pytest.raises(RegistryError, match="the blob ends after 299999 bytes"):
            await got(server)
        assert len(starts(server)) <= 2 * HASTE.tries


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("bytes 0-299999/300000", "another part"),
        ("bytes 101-299999/300000", "another part"),
        ("", "another part"),
        ("bytes 100-299999/300001", "has 300001 bytes there"),
    ],
)
async def test_a_wrong_part(told: str, message: str) -> None:
    answer = Answer(206, DATA[100:], {"Content-Range": told})
    wrong = pytest.raises(RegistryError, match=message)
    with hostile(first(lambda _: answer)) as server, wrong:
        await got(server, offset=100)


async def test_a_connection_that_ends_badly_after_the_last_byte() -> None:
    with hostile(first(lambda _: Answer(200, DATA, length=-1, stalls=True))) as server:
        once = replace(SETTINGS, patience=replace(HASTE, tries=1))
        assert await got(server, settings=once) == DATA


async def test_retry_after_is_honoured() -> None:
    wanted = Answer(503, headers={"Retry-After": "0"})
    unwanted = Answer(503, headers={"Retry-After": "100000"})
    with hostile(first(lambda _: wanted, right)) as server:
        assert await got(server) == DATA
    with hostile(first(lambda _: unwanted, right)) as server:
        with pytest.raises(RegistryError, match="retry-after: 100000"):
            await got(server)
        assert len(starts(server)) == 1


async def test_a_quota_is_told_and_not_burned() -> None:
    quota = {"ratelimit-limit": "100;w=21600", "ratelimit-remaining": "0;w=21600"}
    with hostile(first(lambda _: Answer(429, headers=quota), right)) as server:
        with pytest.raises(RegistryError, match="too many requests") as caught:
            await got(server)
        assert caught.value.limits == quota
        assert "ratelimit-remaining: 0;w=21600" in str(caught.value)
        assert len(starts(server)) == 1


async def test_a_short_quota_is_asked_again_once() -> None:
    soon = Answer(429, headers={"Retry-After": "0"})
    late = Answer(429, headers={"Retry-After": "31"})
    with hostile(first(lambda _: soon, right)) as server:
        assert await got(server) == DATA
    for answer, asked in ((soon, 2), (late, 1)):
        with hostile(first(lambda _, answer=answer: answer)) as server:  # type: ignore[misc]
            with pytest.raises(RegistryError) as caught:
                await got(server)
            assert caught.value.status == 429
            assert len(starts(server)) == asked


async def test_many_at_once() -> None:
    with hostile(first(lambda asked: ranged(DATA, asked))) as server:
        reference = Reference.parse(f"{server.host}/a")
        found: list[bytes] = []
        async with (
            remote.connect(reference, SETTINGS) as registry,
            trio.open_nursery() as nursery,
        ):

            async def one(offset: int) -> None:
                async with registry.blob(blob_of(DATA), offset) as parts:
                    found.append(b"".join([part async for part in parts]))

            for offset in range(10):
                nursery.start_soon(one, offset)
        assert sorted(map(len, found)) == [len(DATA) - 9 + n for n in range(10)]


async def test_a_download_can_be_left_and_cancelled() -> None:
    with hostile(first(lambda _: Answer(200, DATA, cut=200_000, stalls=True))) as server:
        reference = Reference.parse(f"{server.host}/a")
        async with remote.connect(reference, SETTINGS) as registry:
            async with registry.blob(blob_of(DATA)) as parts:
                assert await anext(parts)
            with trio.CancelScope() as scope:
                async with registry.blob(blob_of(DATA)) as parts:
                    async for _ in parts:
                        scope.cancel()
            assert scope.cancelled_caught
            assert await registry.head("1") is None


async def test_informational_answers_without_end() -> None:
    def answer(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            while True:
                connection.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")
                time.sleep(0.01)

    def serve(listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        reference = Reference.parse(f"127.0.0.1:{listening.getsockname()[1]}/a")
        patient = replace(SETTINGS, patience=replace(HASTE, reply=1))
        with trio.fail_after(20), pytest.raises(RegistryError, match="never comes to an answer"):
            async with remote.connect(reference, patient) as registry:
                await registry.manifest("1")
