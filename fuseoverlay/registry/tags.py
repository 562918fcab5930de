"""Lists the tags of a repository, and finds those that somebody may have meant.

Source: distribution-spec "Listing Tags".
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable
from typing import Final

from fuseoverlay.errors import ImageError
from fuseoverlay.oci.model import decode_json, expect_fields, expect_texts
from fuseoverlay.registry.pages import pages
from fuseoverlay.registry.replies import Reply
from fuseoverlay.registry.session import Call, Session

#: More is no list for people.
_MAX_TAGS: Final = 200_000
#: Characters of a tag.
_MAX_TAG: Final = 128
_MAX_PAGE: Final = 16 << 20
_OK: Final = frozenset({200})
#: Numbers in a tag.
_NUMBERS: Final = re.compile(r"\d+")


async def fetch(session: Session) -> list[str]:
    """All tags, in the registry's order; RegistryError if there is no such repository (`status`
    404), or a list without end."""
    found: dict[str, None] = {}
    call = Call("GET", "tags/list", _OK)
    async with contextlib.aclosing(pages(session, call, _MAX_PAGE)) as replies:
        async for reply in replies:
            found.update(dict.fromkeys(_parsed(reply, session)))
            if len(found) > _MAX_TAGS:
                raise session.wrong(f"more than {_MAX_TAGS} tags")
    return list(found)


def near(wanted: str, tags: Iterable[str], count: int = 5) -> list[str]:
    """Up to `count` of `tags` that are most like `wanted`: for the message that there is no such
    tag.

    Versions that begin alike come first ("13" -> "13.1"), then similar spellings, then the highest
    versions. Tags that are digests or signatures are left out.
    """
    tags = (tag for tag in tags if len(tag) <= _MAX_TAG)
    candidates = [tag for tag in tags if not tag.startswith(("sha256-", "sha512-"))]
    begin = [tag for tag in candidates if tag.startswith(wanted) or wanted.startswith(tag)]
    begin.sort(key=lambda tag: (abs(len(tag) - len(wanted)), tag))
    alike = difflib.get_close_matches(wanted, candidates, count)
    newest = sorted(candidates, key=_version, reverse=True)
    return list(dict.fromkeys([*begin[:count], *alike, *newest[:count]]))[:count]


def _version(tag: str) -> tuple[bool, bool, list[int], int]:
    """Sorts versions by their numbers; `latest` is the newest."""
    numbers = [int(number[:18]) for number in _NUMBERS.findall(tag)]
    return tag == "latest", tag[:1].isdigit() or tag[:2].lstrip("v").isdigit(), numbers, -len(tag)


def _parsed(reply: Reply, session: Session) -> tuple[str, ...]:
    try:
        data = expect_fields(decode_json(reply.body, session.name), "list of tags")
        return expect_texts(data.get("tags"), "list of tags")
    except ImageError as exc:
        raise session.wrong(exc.what) from exc
