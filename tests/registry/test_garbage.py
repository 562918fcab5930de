"""Answers that are right but for a few bytes: whatever they are, there is one error of ours."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import socket
import threading
from collections.abc import AsyncGenerator, Iterator

import pytest

from fuseoverlay.errors import DigestError, RegistryError
from fuseoverlay.oci import model
from fuseoverlay.oci.model import Digest
from fuseoverlay.oci.reference import Reference
from fuseoverlay.registry import remote
from fuseoverlay.registry.remote import Registry
from fuseoverlay.registry.settings import Patience, Settings
from tests.registry.hostile import blob_of, manifest_of

ROUNDS = 300 if os.environ.get("FUSEOVERLAY_LONG") else 4
HURRY = Patience(connect=2, silence=0.03, reply=0.5, tries=2, first_delay=0, longest_delay=0)
DATA = b"0123456789"
MANIFEST = manifest_of()


def _answer(status: str, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {text}" for name, text in headers.items())]
    lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).replace("_", "-").encode() + b"\r\n\r\n" + body


ANSWERS = [
    _answer(
        "200", MANIFEST, Content_Type=model.OCI_MANIFEST,
        Docker_Content_Digest=f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}",
    ),
    _answer("401", WWW_Authenticate='Bearer realm="/token",service="x",scope="a b"'),
    _answer("200", b'{"token": "abc", "expires_in": 100}'),
    _answer("307", Location="/v2/x?y=1"),
    _answer("307", Location="http://127.0.0.1:1/x"),
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n",
    _answer("206", DATA[5:], Content_Range="bytes 5-9/10"),
    _answer("429", b'{"errors": [{"message": "slow"}]}', Retry_After="0", RateLimit_Limit="5"),
    _answer("202", Location="/v2/a/blobs/uploads/1", Range="0-5", OCI_Chunk_Min_Length="4"),
    _answer("200", b'{"tags": ["a"]}', Link="</v2/a/tags/list?x>; rel=next"),
]  # fmt: skip
BITS = [b"\r\n", b"\0", b":", b"\xff", b"9" * 20, b"<>;", b"%zz", b"[::", b"@", b'"', b"-1", b","]


def _mutated(answer: bytes, choice: random.Random) -> bytes:
    text = bytearray(answer)
    for _ in range(choice.choice([0, 1, 1, 2, 5])):
        at = choice.randrange(len(text) + 1)
        match choice.randrange(5):
            case 0:
                text[at : at + 1] = bytes([choice.randrange(256)])
            case 1:
                text[at:at] = choice.choice(BITS)
            case 2:
                del text[at : at + choice.randrange(1, 30)]
            case 3:
                text[at:at] = text[at : at + 20]
            case _:
                del text[at:]
                text += b"\r\n" * choice.randrange(3)
    return bytes(text)


class _Garbage:
    """A server of such answers, one for each thing that is sent to it."""

    def __init__(self, seed: int) -> None:
        self._choice = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """Take no more connections, and wait for the end of the others."""
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(connection,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(5)
            if connection.recv(1, socket.MSG_PEEK) == b"\x16":
                return
            while connection.recv(1 << 16) and self._choice.random() < 0.8:
                connection.sendall(_mutated(self._choice.choice(ANSWERS), self._choice))


@pytest.fixture(params=range(3))
def garbage(request: pytest.FixtureRequest) -> Iterator[_Garbage]:
    """A running server."""
    server = _Garbage(request.param)
    yield server
    server.close()


async def _source(offset: int) -> AsyncGenerator[bytes]:
    yield DATA[offset:]


async def _download(registry: Registry, offset: int) -> None:
    async with registry.blob(blob_of(DATA), offset) as parts:
        got = b"".join([part async for part in parts])
    assert len(got) == len(DATA) - offset


@pytest.mark.timeout(1200)
async def test_garbage(garbage: _Garbage) -> None:
    reference = Reference.parse(f"{garbage.host}/a")
    settings = Settings(patience=HURRY, environment={"HOME": "/nonexistent"}, chunk=4)
    asks = [
        lambda registry: registry.manifest("1"),
        lambda registry: registry.head("1"),
        lambda registry: registry.tags(),
        lambda registry: registry.referrers(Digest.of(b"")),
        lambda registry: registry.upload(blob_of(DATA), _source),
        lambda registry: registry.put_manifest(MANIFEST, model.OCI_MANIFEST, "1"),
        lambda registry: _download(registry, 0),
        lambda registry: _download(registry, 5),
    ]
    refused = 0
    for number in range(ROUNDS * len(asks)):
        async with remote.connect(reference, settings) as registry:
            try:
                await asks[number % len(asks)](registry)
            except (RegistryError, DigestError) as exc:
                assert "\n" not in str(exc)
                refused += 1
    assert refused
