"""Counts FUSE requests of one mount by opcode, by the tracepoint fuse:fuse_request_send."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.mounts import MODE

_TRACEFS = Path("/sys/kernel/tracing")
_LINE = re.compile(r"connection (\d+) .*opcode \d+ \(FUSE_(\w+)\)")


@contextlib.contextmanager
def counted(mnt: Path) -> Iterator[Counter[str]]:
    """The requests that the kernel sends to the daemon of `mnt` in the block, by name (`READ`);
    filled in at its end. Skips the test if requests cannot be traced, which takes root."""
    if MODE != "root" or not (_TRACEFS / "events/fuse/fuse_request_send").exists():
        pytest.skip("requests cannot be traced")
    dropped = _dropped()
    requests: Counter[str] = Counter()
    connection = os.minor(os.stat(mnt).st_dev)
    # A random name: another run, in its own pid namespace, may have the same process id.
    instance = Path(tempfile.mkdtemp(prefix="fuseoverlay-test-", dir=_TRACEFS / "instances"))
    event = instance / "events/fuse/fuse_request_send"
    try:
        (event / "filter").write_text(f"connection == {connection}")
        (event / "enable").write_text("1")
        yield requests
        (event / "enable").write_text("0")
        for line in (instance / "trace").read_text().splitlines():
            found = _LINE.search(line)
            if found:
                requests[found[2]] += 1
    finally:
        instance.rmdir()
    if _dropped() != dropped:
        pytest.skip("somebody had the kernel drop its caches meanwhile")


def _dropped() -> list[str]:
    """How often caches were dropped on this computer through /proc/sys/vm/drop_caches."""
    lines = Path("/proc/vmstat").read_text().splitlines()
    return [line for line in lines if line.startswith("drop_")]
