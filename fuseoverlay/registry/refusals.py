"""What a registry's answer means that is not the one hoped for.

Source: OCI distribution-spec, "Error Codes": {"errors": [{"code", "message", "detail"}]}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from fuseoverlay.errors import RegistryError, printable
from fuseoverlay.registry.retries import Passing, retry_after

#: Statuses that may pass.
PASSING: Final = frozenset({408, 500, 502, 503, 504})
TOO_MANY: Final = 429

#: Headers that tell a quota: Docker Hub's, and those of others.
_LIMITS: Final = (
    *("ratelimit-limit", "ratelimit-remaining", "ratelimit-reset", "docker-ratelimit-source"),
    *("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "retry-after"),
)
#: Characters of a message that are shown.
_SHOWN: Final = 200

#: What a web server says of the paths of registries, and how its answers begin.
_ABSENT: Final = frozenset({404, 405, 501})
_PAGES: Final = ("text/html", "application/xhtml")

_MEANINGS: Final = {
    401: ("access denied", "log in with `fuseoverlay login {host}`, or correct the name"),
    403: ("access denied", "ask who owns the repository, or log in as another user"),
    404: ("not found", "correct the name"),
    405: ("the registry does not do this", "ask who runs it"),
    408: ("the registry waited too long", "try again later"),
    413: ("too large for the registry", "ask who runs it"),
    416: ("the registry has no such part of the blob", "try again later"),
    TOO_MANY: ("too many requests", "wait, or log in with `fuseoverlay login {host}`"),
}


def refusal(
    status: int, headers: Mapping[str, str], body: bytes, *, where: str, host: str
) -> RegistryError | Passing:
    """The error for an answer with this `status`: `Passing` where another try makes sense.

    `headers` are looked up in lower case; `body` may be cut off; `host`: the registry's name.
    """
    what, hint = _MEANINGS.get(status, ("", "try again later"))
    limits = {name: headers[name][:_SHOWN] for name in _LIMITS if name in headers}
    if status in _ABSENT and headers.get("content-type", "").lower().startswith(_PAGES):
        # Registries answer with JSON, or with nothing.
        what, hint = "no registry answers there, but a web server", "correct the name"
    what = what or ("the registry fails" if status >= 500 else "unexpected answer")
    error = RegistryError(
        f"{what} ({_details(status, body, limits)})",
        where=where,
        hint=hint.format(host=host),
        status=status,
        limits=limits,
    )
    wait = retry_after(headers.get("retry-after"))
    if status in PASSING:
        return Passing(error, wait=wait)
    if status == TOO_MANY and wait is not None:
        return Passing(error, wait=wait, once=True)
    return error


def _details(status: int, body: bytes, limits: Mapping[str, str]) -> str:
    parts = [str(status), *([message] if (message := said(body)) else [])]
    parts += [f"{name}: {value}" for name, value in limits.items()]
    return ", ".join(parts)


def said(body: bytes) -> str:
    """What the registry says in the `body` of an error, cut to a sensible length; "" if it says
    nothing in the spec's form."""
    try:
        data: Any = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    errors = data.get("errors") if isinstance(data, dict) else None
    found = errors[0] if isinstance(errors, list) and errors else None
    if not isinstance(found, dict):
        return ""
    texts = [found.get("message"), found.get("code")]
    text = next((text for text in texts if isinstance(text, str) and text), "")
    return printable(text[:_SHOWN])
