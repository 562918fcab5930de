"""Small answers, read into memory."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import httpx2
import trio

from fuseoverlay.errors import RegistryError
from fuseoverlay.registry.retries import Passing
from fuseoverlay.registry.settings import Patience
from fuseoverlay.registry.transport import ASK, bytes_of, shown, told


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer; `headers` in lower case; `url` is where it came from at last."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: httpx2.URL


async def read(response: httpx2.Response, url: httpx2.URL, patience: Patience, limit: int) -> Reply:
    """Read and close `response`. `Passing` if it does not come to its end, RegistryError if it has
    more than `limit` bytes."""
    body = bytearray()
    try:
        with told(url), trio.fail_after(patience.reply):
            async with contextlib.aclosing(bytes_of(response)) as parts:
                async for data in parts:
                    body += data
                    if len(body) > limit:
                        raise _too_much(url, limit)
    except trio.TooSlowError as exc:
        error = RegistryError("an answer without end", where=shown(url), hint="try again later")
        raise Passing(error) from exc
    finally:
        await response.aclose()
    return Reply(response.status_code, response.headers, bytes(body), response.url)


def _too_much(url: httpx2.URL, limit: int) -> RegistryError:
    what = f"an answer of more than {limit} bytes"
    return RegistryError(what, where=shown(url), hint=ASK)
