"""How images are named on the command line. Imports no module that reads them."""

from __future__ import annotations

import os
import re
import stat
from typing import Final

from fuseoverlay.errors import ImageError, UsageError, describe

#: Transports that skopeo and podman write before the name of a file that we can read, and the
#: others of theirs.
FILES: Final = frozenset({"oci", "oci-archive", "docker-archive", "dir"})
OTHERS: Final = frozenset({"docker", "docker-daemon", "containers-storage"})
#: What `save` calls them.
_SAVED: Final = {
    "oci": "oci",
    "oci-archive": "oci-archive",
    "docker-archive": "docker-archive",
    "dir": "oci",
}
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
    """`parse_image_name` for an image file that must exist; skopeo's transports for files may be
    written before it. ImageError."""
    path, ref = parse_image_name(without_transport(text))
    try:
        os.stat(path)
    except FileNotFoundError:
        raise _missing(text, path) from None
    except OSError as exc:
        hint = "name a file that you may read"
        raise ImageError(f"cannot open: {describe(exc)}", where=path, hint=hint) from None
    return path, ref


def transport(text: str) -> str | None:
    """The transport of skopeo and podman that the name begins with, unless a file is called so."""
    word, colon, _ = text.partition(":")
    known = bool(colon) and word in FILES | OTHERS
    return word if known and not os.path.lexists(parse_image_name(text)[0]) else None


def in_registry(text: str) -> str:
    """The name of an image in a registry, without the transport `docker:`."""
    return text[len("docker:") :].removeprefix("//") if transport(text) == "docker" else text


def check_pulled(text: str) -> None:
    """Refuse what can only be a file. UsageError."""
    if transport(text) not in (None, "docker") or (not transport(text) and _PATH.match(text)):
        what = f"{text} is in no registry"
        raise UsageError(what, hint=f"write fuseoverlay load -i {text}")


def check_pushed(text: str) -> None:
    """Refuse a destination that can only be a file. UsageError."""
    found = transport(text)
    if found in _SAVED:
        hint = f"write fuseoverlay save --format {_SAVED[found]} -o {without_transport(text)} IMAGE"
        raise UsageError(f"{text} is in no registry", hint=hint)
    if found not in (None, "docker") or _PATH.match(text):
        raise UsageError(f"{text} is in no registry", hint="write fuseoverlay save -o FILE IMAGE")


def check_stored(text: str) -> None:
    """Refuse what can only be a file, for a command that wants an image of the store.
    ImageError."""
    if transport(text) not in (None, "docker") or is_path(text):
        hint = f"write fuseoverlay load -i {text}, and then the name that it has there"
        raise ImageError("not in the store", where=text, hint=hint)


def without_transport(text: str) -> str:
    """The name without the transport of a file."""
    return text.partition(":")[2] if transport(text) in FILES else text


def is_path(text: str) -> bool:
    """Whether the name can only be one of a file: it begins like a path, ends like an archive, or
    leads into a directory that is here."""
    if transport(text):
        return transport(text) in FILES
    path, _ = parse_image_name(text)
    first, slash, _ = path.partition("/")
    return _PATH.match(text) is not None or (bool(slash) and os.path.isdir(first))


def url_error(text: str) -> ImageError:
    """The error for a URL in place of a name."""
    scheme = text.partition("://")[0]
    return ImageError("a URL, and no name", where=text, hint=f"leave {scheme}:// out")


def _missing(text: str, path: str) -> ImageError:
    if "://" in text:
        return url_error(text)
    if os.path.islink(path):
        what = f"{path} is a link to {os.readlink(path)}, which does not exist"
        return ImageError(what, where=text, hint="correct it")
    missing = "such file or directory" if path == text else f"file or directory {path}"
    return ImageError(f"there is no {missing}", where=text, hint="correct the path")


def is_image(text: str) -> bool:
    """Whether `IMAGE[:REF]` names a file, or a directory that looks like an image."""
    path, _ = parse_image_name(without_transport(text))
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            return True
    except OSError:
        return False
    parts = ("index.json", "manifest.json")
    return any(os.path.exists(os.path.join(path, part)) for part in parts)
