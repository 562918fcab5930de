"""Where the time goes until a mount answers: how long Python takes to start and to import."""

from __future__ import annotations

import os
import statistics
import sys
import time

from benchmarks import processes
from benchmarks.peers import Contender

STEPS = {
    "Python starts": "pass",
    "and imports trio and pyfuse3": "import trio, pyfuse3",
    "and imports all that a mount needs": (
        "import fuseoverlay.commands.dispatch, fuseoverlay.fuse.mount"
    ),
}


def measure(ours: Contender, repeat: int = 5) -> dict[str, float]:
    """Median seconds until each step was done and the interpreter had ended."""
    return {name: _median(ours, code, repeat) for name, code in STEPS.items()}


def _median(ours: Contender, code: str, repeat: int) -> float:
    taken = []
    for _ in range(repeat):
        begin = time.monotonic()
        processes.run([sys.executable, "-c", code], limit=30, env=ours.env or dict(os.environ))
        taken.append(time.monotonic() - begin)
    return round(statistics.median(taken), 4)
