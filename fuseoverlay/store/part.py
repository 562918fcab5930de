"""A part of an image: all of it up to one of its layers, or that layer alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fuseoverlay.errors import ImageError, UsageError
from fuseoverlay.oci.blobs import Image, Layer
from fuseoverlay.oci.prefix import DigestPrefix

#: No image has so many layers that a longer word is a number and not the beginning of a digest.
_NUMBER: Final = re.compile(r"[0-9]{1,4}\Z")
_LINE: Final = re.compile(r"history:([0-9]{1,9})\Z")
#: At most so many layers are listed in one message, by so many digits.
_LISTED: Final = 20
_DIGITS: Final = 12


@dataclass(frozen=True, slots=True)
class Part:
    """`word` says which layer: its number, from 1 at the bottom; the digest of its blob or of the
    plain layer, or the beginning of that; or `history:LINE`, from 1 for the newest. `alone`:
    without the layers below. Raises `UsageError` if it can be none of these."""

    word: str
    alone: bool = False

    def __post_init__(self) -> None:
        if not (_LINE.match(self.word) or DigestPrefix.parse(self.word)):
            raise UsageError(
                f"no layer can be called {self.word!r}",
                hint="write its number, from 1 at the bottom, its digest, or history:LINE",
            )

    def __str__(self) -> str:
        return f"layer {self.word} alone" if self.alone else f"as of layer {self.word}"

    def place(self, image: Image, where: str) -> int:
        """Which of `image.layers` is meant. ImageError, which calls the image `where`."""
        if _NUMBER.match(self.word):
            found = [int(self.word) - 1] if 1 <= int(self.word) <= len(image.layers) else []
        elif line := _LINE.match(self.word):
            found = _of_line(image, int(line[1]))
        else:
            found = [at for at, layer in enumerate(image.layers) if self._is_digest_of(layer)]
        if len(found) == 1:
            return found[0]
        if found:
            numbers = " or ".join(str(at + 1) for at in found[:_LISTED])
            raise ImageError(f"{self.word} may be layer {numbers}", where=where, hint="say which")
        raise ImageError(self._missing(image), where=where, hint=_listed(image.layers))

    def _is_digest_of(self, layer: Layer) -> bool:
        prefix = DigestPrefix.parse(self.word)
        return prefix is not None and (prefix.fits(layer.diff_id) or prefix.fits(layer.digest))

    def _missing(self, image: Image) -> str:
        line = _LINE.match(self.word)
        if line is None:
            return f"there is no layer {self.word}"
        if 1 <= int(line[1]) <= len(image.steps):
            return f"neither line {line[1]} of the history nor any below made a layer"
        return f"the history has no line {line[1]}, but {len(image.steps)}"


def _of_line(image: Image, line: int) -> list[int]:
    """The layer that this line of the history made, else the one below it; none if there is
    none."""
    older = image.steps[: max(len(image.steps) - line + 1, 0)] if line else ()
    return [step.layer for step in older if step.layer is not None][-1:]


def _listed(layers: Sequence[Layer]) -> str:
    """The layers, for the end of a message."""
    if not layers:
        return "the image has no layers"
    shown = [f"{at} {layer.diff_id.hex[:_DIGITS]}" for at, layer in enumerate(layers, 1)]
    if len(shown) > _LISTED:
        shown[_LISTED:] = [f"{len(shown) - _LISTED} more"]
    count = "1 layer" if len(layers) == 1 else f"{len(layers)} layers"
    return f"the image has {count}, from the bottom: {', '.join(shown)}"
