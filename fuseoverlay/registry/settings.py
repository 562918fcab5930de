"""What a user may set for the requests of one command."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from fuseoverlay.registry.accounts import Account

MIB: Final = 1 << 20


def _unheard(_warning: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, in seconds, and how often to try.

    `silence` is the longest time without a byte from the other side; `reply` the longest for a
    whole small answer. Of `tries`, those since the last progress count. The delay before the n-th
    retry is `first_delay` * 2^n, at most `longest_delay`, times a random factor from 0.5 to 1.5. A
    registry that wants to be left alone for longer than `longest_wait` is believed at once.
    """

    connect: float = 30
    silence: float = 60
    reply: float = 300
    tries: int = 5
    first_delay: float = 0.5
    longest_delay: float = 20
    longest_wait: float = 120
    #: The same for a quota (429), which is asked again only once.
    longest_quota_wait: float = 30


@dataclass(frozen=True, slots=True)
class Settings:
    """Options of a command.

    `tls_verify`: False allows plain HTTP and any certificate; None means what registries.conf says,
    and True neither, wherever the registry is. `account`: for the registry that is named, instead
    of what is in files; mirrors do not get it. `auth_file` and `certificates` (a directory) replace
    the usual places. `warn` gets one line at a time.
    `chunk`: larger blobs are uploaded in pieces of so many bytes.
    """

    tls_verify: bool | None = None
    account: Account | None = None
    auth_file: str | None = None
    certificates: str | None = None
    warn: Callable[[str], None] = _unheard
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    patience: Patience = Patience()
    chunk: int = 32 * MIB
