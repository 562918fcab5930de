"""How images are named on the command line. Imports nothing that reads them."""

from __future__ import annotations

import os
import stat


def parse_image_name(text: str) -> tuple[str, str | None]:
    """Split `IMAGE[:REF]` into path and ref.

    A path that exists as a whole has no ref. Else the longest part before a colon that
    exists is the path, so that `image.tar:debian:12` works; else the last colon splits.
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
