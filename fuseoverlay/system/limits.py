"""Resource limits that the daemon inherits from the mounting shell, setrlimit(2).

They are meant for the programs of that shell; in the daemon they would apply to everybody who uses
the mount.
"""

from __future__ import annotations

import contextlib
import resource
from resource import RLIM_INFINITY, RLIMIT_AS, RLIMIT_CPU, RLIMIT_DATA, RLIMIT_FSIZE, RLIMIT_NOFILE
from typing import Final

#: Effects that users of the mount notice if a limit stays, and how a shell sets that limit.
_FELT: Final = (
    (RLIMIT_FSIZE, "no file can become larger than {} bytes", "ulimit -f"),
    (RLIMIT_CPU, "the daemon will be killed after {} seconds of CPU time", "ulimit -t"),
)
_NOT_NEEDED: Final = (RLIMIT_FSIZE, RLIMIT_CPU, RLIMIT_AS, RLIMIT_DATA)


def lift() -> list[str]:
    """Raise the limits as far as allowed. Returns a warning for each that stays and will be
    noticed."""
    for limit in _NOT_NEEDED:
        _raise_to_hard(limit)
        # Raising the hard limit needs CAP_SYS_RESOURCE.
        _set(limit, RLIM_INFINITY)
    # Here the hard limit is enough: what is kept open is bounded by it.
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
