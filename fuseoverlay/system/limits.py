"""Limits that the daemon takes over from the shell that mounts, setrlimit(2).

They were meant for the programs of that shell, and would be those of the file system for everybody.
"""

from __future__ import annotations

import contextlib
import resource
from resource import RLIM_INFINITY, RLIMIT_AS, RLIMIT_CPU, RLIMIT_DATA, RLIMIT_FSIZE, RLIMIT_NOFILE
from typing import Final

#: What whoever uses the mount notices of a limit that stays, and how a shell sets it.
_FELT: Final = (
    (RLIMIT_FSIZE, "no file can become larger than {} bytes", "ulimit -f"),
    (RLIMIT_CPU, "the daemon will be killed after {} seconds of CPU time", "ulimit -t"),
)
_NOT_NEEDED: Final = (RLIMIT_FSIZE, RLIMIT_CPU, RLIMIT_AS, RLIMIT_DATA)


def lift() -> list[str]:
    """Raise limits as far as that goes; what will be noticed of those that stay, for warnings."""
    for limit in _NOT_NEEDED:
        _raise_to_hard(limit)
        # Takes a superuser.
        _set(limit, RLIM_INFINITY)
    # More than there ever will be is needed of no other.
    _raise_to_hard(RLIMIT_NOFILE)
    return [
        f"{what.format(soft)}: a limit of the shell that mounts ({command})"
        for limit, what, command in _FELT
        if (soft := resource.getrlimit(limit)[0]) != RLIM_INFINITY
    ]


def _raise_to_hard(limit: int) -> None:
    soft, hard = resource.getrlimit(limit)
    if soft != hard:
        _set(limit, hard)


def _set(limit: int, value: int) -> None:
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(limit, (value, value))
