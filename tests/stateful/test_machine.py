"""Random operations on random layers; see `tests.stateful.machine`.

A failure prints the steps that lead to it, shortened by hypothesis, and the seed. It is
fixed when the steps have become a named test (`test_found.py`, or by topic in `tests/ops`).
"""

from __future__ import annotations

import os
import random
import time

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.helpers.mounts import IMPL
from tests.stateful.machine import OverlayMachine

#: Seconds of search in one mode: an hour for all three.
SEARCH = 1200
#: Seconds that hypothesis takes to shorten the steps to a failure, at most, and some more.
SHORTEN = 480

BUDGET = settings(
    max_examples=10,
    stateful_step_count=100,
    deadline=None,
    database=None,
    print_blob=True,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)

pytestmark = pytest.mark.skipif(IMPL == "kernel", reason="mounts both")


def walk(number: int) -> None:
    """Ten examples of a hundred steps, the same ones for the same seed."""
    run_state_machine_as_test(seed(number)(OverlayMachine), settings=BUDGET)


@pytest.mark.timeout(120 + SHORTEN)
@pytest.mark.parametrize("number", range(4))
def test_walk(number: int) -> None:
    walk(number)


@pytest.mark.skipif(not os.environ.get("FUSEOVERLAY_LONG"), reason="only in the long run")
@pytest.mark.timeout(SEARCH + 240 + SHORTEN)
def test_search() -> None:
    """Seeds that nobody tried; the last one printed fails, and `walk(SEED)` repeats it."""
    end = time.monotonic() + SEARCH
    while time.monotonic() < end:
        number = random.randrange(10**9)
        print(f"seed {number}", flush=True)
        walk(number)
