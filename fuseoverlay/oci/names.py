"""How images are named on the command line. Imports no module that reads them."""

from __future__ import annotations

import os
import re
import stat
from typing import Final

from fuseoverlay.errors import ImageError, describe

#: Transports that skopeo and podman write before a name, and whether a local file follows that we
#: can read.
_TRANSPORTS: Final = {
    "oci": True,
    "oci-archive": True,
    "docker-archive": True,
    "docker": False,
    "docker-daemon": False,
    "containers-storage": False,
    "dir": False,
}
#: NAME[:TAG][@DIGEST] in a registry; `last`: the last part of the name. Stricter than registries
#: are, because it becomes part of a command that is shown.
_REMOTE: Final = re.compile(
    r"(?:[a-z0-9][a-z0-9.-]*(?::[0-9]+)?/)?(?:[a-z0-9._-]+/)*(?P<last>[a-z0-9][a-z0-9._-]*)"
    r"(?::[A-Za-z0-9._-]+)?(?:@sha256:[0-9a-f]+)?\Z"
)
_PATH: Final = re.compile(r"[/.~]|.*\.(?:tar|tgz|tar\.[a-z0-9]+)(?::|\Z)")


def parse_image_name(text: str) -> tuple[str, str | None]:
    """Split `IMAGE[:REF]` into path and ref.

    If the whole text exists as a path, there is no ref. Else the path is the longest part before a
    colon that exists, so that `image.tar:debian:12` works. Else the last colon splits.
    """
    if os.path.lexists(text):
        return text, None
    at = text.rfind(":")
    while at > 0:
        if os.path.lexists(text[:at]):
            return text[:at], text[at + 1 :] or None
        at = text.rfind(":", 0, at)
    path, colon, ref = text.rpartition(":")
    return (path, ref or None) if colon and path else (text, None)


def find(text: str) -> tuple[str, str | None]:
    """`parse_image_name` for an image that must exist; ImageError says how to get one that does
    not."""
    path, ref = parse_image_name(text)
    try:
        os.stat(path)
    except FileNotFoundError:
        raise _missing(text, path) from None
    except OSError as exc:
        hint = "name a file that you may read"
        raise ImageError(f"cannot open: {describe(exc)}", where=path, hint=hint) from None
    return path, ref


def _missing(text: str, path: str) -> ImageError:
    transport, colon, rest = text.partition(":")
    if colon and transport in _TRANSPORTS:
        return _skopeos(text, transport, rest)
    if os.path.islink(path):
        what = f"{path} is a link to {os.readlink(path)}, which does not exist"
        return ImageError(what, where=text, hint="correct it")
    missing = "such file or directory" if path == text else f"file or directory {path}"
    what = f"there is no {missing}"
    if _PATH.match(text) or not _REMOTE.match(text):
        return ImageError(what, where=text, hint="correct the path")
    how = _copied(f"docker://{text}", text)
    return ImageError(f"{what} here", where=text, hint=f"if a registry has it, {how}")


def _skopeos(text: str, transport: str, rest: str) -> ImageError:
    """The error for a name with a transport of skopeo and podman."""
    if _TRANSPORTS[transport]:
        path, _ = parse_image_name(rest)
        if os.path.lexists(path):
            what = f"{transport}: does not belong here"
            return ImageError(what, where=text, hint=f"write {rest}")
        return ImageError(f"there is no file or directory {path}", where=text, hint="correct it")
    return ImageError(
        "images come from files, there is no download",
        where=text,
        hint=_copied(text, rest.lstrip("/")),
    )


def _copied(source: str, name: str) -> str:
    match = _REMOTE.match(name)
    file = f"{match['last'] if match else 'image'}.tar"
    return f"get it with skopeo copy {source} oci-archive:{file}, and mount {file}"


def is_image(text: str) -> bool:
    """Whether `IMAGE[:REF]` names a file, or a directory that looks like an image."""
    path, _ = parse_image_name(text)
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            return True
    except OSError:
        return False
    parts = ("index.json", "manifest.json")
    return any(os.path.exists(os.path.join(path, part)) for part in parts)
