"""A digest or its beginning, as people write it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from fuseoverlay.oci.model import Digest

_FORM: Final = re.compile(r"(?:(sha256|sha512):)?([0-9a-f]{1,128})\Z")


@dataclass(frozen=True, slots=True)
class DigestPrefix:
    """The first digits; `algorithm` is None if any will do."""

    algorithm: str | None
    hex: str

    @classmethod
    def parse(cls, text: str) -> DigestPrefix | None:
        """None if `text` can be no beginning of a digest."""
        match = _FORM.match(text)
        return cls(match[1], match[2]) if match else None

    def fits(self, digest: Digest | None) -> bool:
        """Whether the digest begins so."""
        return (
            digest is not None
            and digest.hex.startswith(self.hex)
            and self.algorithm in (None, digest.algorithm)
        )
