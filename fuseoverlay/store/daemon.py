"""Images of a Docker daemon, through its socket. Source: Docker's Engine API."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pathlib
import socket
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import quote

from fuseoverlay.errors import ImageError, describe
from fuseoverlay.oci import model
from fuseoverlay.oci.job import store_error
from fuseoverlay.oci.model import Digest
from fuseoverlay.store.root import Store

_SOCKET: Final = "unix:///var/run/docker.sock"
#: Seconds without a byte: the daemon may first have to pack large layers.
_SILENCE: Final = 300
_PIECE: Final = 1 << 20
#: More than it says of any image.
_MAX_JSON: Final = 16 << 20


def image_id(name: str, environment: Mapping[str, str] | None = None) -> Digest:
    """The id of an image of the daemon. ImageError if it has none, or cannot be reached."""
    with _asked(f"/images/{quote(name, safe='')}/json", name, environment) as reply:
        data = model.expect_fields(model.decode_json(reply.read(_MAX_JSON), name), "image")
    return Digest.parse(data.get("Id"))


@contextlib.contextmanager
def archive(
    store: Store, name: str, environment: Mapping[str, str] | None = None
) -> Iterator[pathlib.Path]:
    """The image as an archive, as `docker save` writes it, while the context lasts. ImageError,
    StoreError."""
    with store.workspace() as work:
        path = work / "docker-daemon.tar"
        with _asked(f"/images/{quote(name, safe='')}/get", name, environment) as reply:
            _copy(reply, path, store, name)
        yield path


def _copy(reply: http.client.HTTPResponse, path: pathlib.Path, store: Store, where: str) -> None:
    try:
        with path.open("xb") as file:
            while data := _next(reply, where):
                file.write(data)
    except OSError as exc:
        raise store_error(exc, "cannot copy the image", store.root) from exc


def _next(reply: http.client.HTTPResponse, where: str) -> bytes:
    """What comes next. It must not be taken for an error of the store if that fails."""
    try:
        return reply.read(_PIECE)
    except (OSError, http.client.HTTPException) as exc:
        what = f"the daemon has ended: {exc}"
        raise ImageError(what, where=where, hint="try again") from exc


@contextlib.contextmanager
def _asked(
    path: str, name: str, environment: Mapping[str, str] | None
) -> Iterator[http.client.HTTPResponse]:
    """The answer to a request, which says that all is well."""
    host = (environment or os.environ).get("DOCKER_HOST") or _SOCKET
    where = f"docker-daemon:{name}"
    scheme, _, file = host.partition("://")
    if scheme != "unix":
        hint = "set DOCKER_HOST to unix://PATH, or pipe docker save into fuseoverlay load"
        raise ImageError(f"the daemon at {host} is not on this computer", where=where, hint=hint)
    connection = _Connection(file)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        if reply.status != http.client.OK:
            raise ImageError(f"the daemon says: {_told(reply)}", where=where, hint="correct it")
        yield reply
    except http.client.HTTPException as exc:
        what = f"the daemon answers wrongly: {type(exc).__name__}"
        raise ImageError(what, where=where, hint="try again") from exc
    except OSError as exc:
        hint = "see whether the daemon runs, and whether you may use it"
        raise ImageError(f"cannot use {file}: {describe(exc)}", where=where, hint=hint) from exc
    finally:
        connection.close()


def _told(reply: http.client.HTTPResponse) -> str:
    try:
        return str(json.loads(reply.read(_MAX_JSON))["message"])[:200]
    except (ValueError, KeyError, TypeError):
        return f"{reply.status} {reply.reason}"


class _Connection(http.client.HTTPConnection):
    """A connection to a socket in the file system."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_SILENCE)
        self._path = path

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_SILENCE)
        self.sock.connect(self._path)
