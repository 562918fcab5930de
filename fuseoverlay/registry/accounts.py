"""What proves who is asking."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Account:
    """A user's name and password, or an identity token, or a token for the registry itself.

    Its `repr` shows none of the secrets.
    """

    user: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str | None:
        """The Authorization header of RFC 7617; None without a user's name."""
        return f"Basic {self.encoded}" if self.user else None

    @property
    def encoded(self) -> str:
        """USER:PASSWORD in base64, as auth files have it."""
        return base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
