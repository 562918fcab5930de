"""Lists that come in pages: each names the next one in its Link header (RFC 8288)."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Final

import httpx2

from fuseoverlay.registry.replies import Reply
from fuseoverlay.registry.session import Call, Session
from fuseoverlay.registry.transport import joined, same_origin

_MAX_PAGES: Final = 1000
_LINK: Final = re.compile(r"<([^>]*)>([^,<]*)")
_NEXT: Final = re.compile(r";\s*rel\s*=\s*\"?next\"?\s*(?:;|\Z)", re.IGNORECASE)


async def pages(session: Session, call: Call, limit: int) -> AsyncGenerator[Reply]:
    """The answer to `call`, at most `limit` bytes, and those that follow it. RegistryError if the
    list goes on for ever, or at another host."""
    seen: set[httpx2.URL] = set()
    for _ in range(_MAX_PAGES):
        reply = await session.reply(call, limit)
        yield reply
        following = _next(reply, session)
        if following is None:
            return
        if following in seen:
            raise session.wrong("a list that goes on in a circle")
        seen.add(following)
        call = replace(call, path=following)
    raise session.wrong(f"a list of more than {_MAX_PAGES} pages")


def _next(reply: Reply, session: Session) -> httpx2.URL | None:
    """The URL of the page that follows; None after the last one."""
    for target, parameters in _LINK.findall(reply.headers.get("link", "")):
        if _NEXT.search(parameters):
            url = joined(reply.url, target)
            if not same_origin(url, reply.url):
                raise session.wrong("a list that goes on at another host")
            return url
    return None
