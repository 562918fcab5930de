"""A server that answers as a test tells it to: it lies, cuts off, stalls, redirects, refuses."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fuseoverlay.oci import model
from fuseoverlay.oci.model import Descriptor, Digest
from fuseoverlay.registry.settings import Patience

#: Enough for the tests' own servers.
HASTE = Patience(connect=5, silence=0.4, reply=3, tries=4, first_delay=0.01, longest_delay=0.02)


@dataclass(frozen=True)
class Asked:
    """A request as it came in; names of headers in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def start(self) -> int:
        """Where the part begins that is asked for."""
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", "bytes=0-"))
        assert match
        return int(match[1])


@dataclass(frozen=True)
class Answer:
    """What the server does: after `cut` bytes of the body it resets the connection, or `stalls`
    until the client goes away. `length` is the Content-Length it claims; -1: it sends none, and
    closes the connection at the end."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None
    cut: int | None = None
    stalls: bool = False


class Hostile:
    """The server: `answer` is called for each request, `asked` holds all that came."""

    def __init__(
        self, answer: Callable[[Asked], Answer], *, certificate: Path | None, address: str
    ) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        #: How many connections brought requests.
        self.connections = 0
        self.ending = threading.Event()
        outer = self

        class Handler(_Handler):
            hostile = outer

        self._server = ThreadingHTTPServer((address, 0), Handler)
        self._server.daemon_threads = True
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.host = f"{address}:{self._server.server_address[1]}"
        self.url = f"http{'s' if certificate else ''}://{self.host}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Hostile:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.ending.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def of(self, part: str) -> list[Asked]:
        """The requests for paths that have `part` in them."""
        return [asked for asked in self.asked if part in asked.path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hostile: Hostile

    def log_message(self, *_args: Any) -> None:
        """Nothing."""

    def handle(self) -> None:
        # A client that tries TLS first would wait for an answer to what is no request.
        plain = not isinstance(self.connection, ssl.SSLSocket)
        with contextlib.suppress(OSError):
            if plain and self.connection.recv(1, socket.MSG_PEEK) == b"\x16":
                return
            self.hostile.connections += 1
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()

    def _any(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path, headers, self._body(headers))
        self.hostile.asked.append(asked)
        self._send(asked, self.hostile.answer(asked))

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _any

    def _body(self, headers: Mapping[str, str]) -> bytes:
        return self.rfile.read(int(headers.get("content-length", 0)))

    def _send(self, asked: Asked, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        length = len(answer.body) if answer.length is None else answer.length
        if length >= 0:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if asked.method == "HEAD":
            return
        self.wfile.write(answer.body[: answer.cut])
        self.wfile.flush()
        if answer.stalls:
            self.hostile.ending.wait(20)
        if answer.cut is not None:
            # A reset, not an orderly end.
            reset = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        if length != len(answer.body) or answer.cut is not None:
            self.close_connection = True
            self.connection.close()


@contextlib.contextmanager
def hostile(
    answer: Callable[[Asked], Answer],
    *,
    certificate: Path | None = None,
    address: str = "127.0.0.1",
) -> Iterator[Hostile]:
    """A running server; https with the file `certificate`, which holds its key, too."""
    with Hostile(answer, certificate=certificate, address=address) as server:
        yield server


def certificate(directory: Path) -> Path:
    """A new certificate that vouches for itself, for this computer's names; with its key."""
    made = directory / "made.pem"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:127.0.0.2"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    argv = [*command.split(), "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=localhost"]
    argv += ["-addext", names]
    subprocess.run(argv, cwd=directory, check=True, capture_output=True, timeout=30)
    made.write_bytes((directory / "key.pem").read_bytes() + (directory / "cert.pem").read_bytes())
    return made


# What there is to ask for


def blob_of(data: bytes, media_type: str = model.OCI_LAYER) -> Descriptor:
    """The descriptor of `data`."""
    return Descriptor(media_type, Digest.of(data), len(data))


def manifest_of(**fields: Any) -> bytes:
    """An OCI manifest without layers."""
    config = {"mediaType": model.OCI_CONFIG, "digest": f"sha256:{'0' * 64}", "size": 2}
    data = {"schemaVersion": 2, "mediaType": model.OCI_MANIFEST, "config": config, "layers": []}
    return json.dumps(data | fields).encode()


def as_manifest(data: bytes, media_type: str = model.OCI_MANIFEST, **headers: str) -> Answer:
    """The right answer for a manifest."""
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    told = {"Content-Type": media_type, "Docker-Content-Digest": digest}
    return Answer(
        200, data, told | {name.replace("_", "-"): text for name, text in headers.items()}
    )


def ranged(data: bytes, asked: Asked, **more: Any) -> Answer:
    """The right answer for a blob, whole or the part that is asked for."""
    if "range" not in asked.headers:
        return Answer(200, data, **more)
    if asked.start >= len(data):
        return Answer(416)
    told = {"Content-Range": f"bytes {asked.start}-{len(data) - 1}/{len(data)}"}
    return Answer(206, data[asked.start :], told, **more)
