"""A slow link: a network namespace that reaches this computer at a given speed. Needs root."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks import processes
from tests.helpers.mounts import wait_for

#: The programs that are needed.
TOOLS: Final = ("ip", "tc", "curl")
#: Our end of the link, and the other one; link-local addresses.
HERE: Final = "169.254.77.1"
_THERE: Final = "169.254.77.2"


@contextlib.contextmanager
def link(megabytes: int) -> Iterator[list[str]]:
    """What stands before a command that runs on the other end, to which so many MB/s go. Both ends
    vanish with the namespace."""
    with subprocess.Popen(["unshare", "-n", "sleep", "infinity"]) as holder:
        try:
            ours = Path("/proc/self/ns/net").readlink()
            there = Path(f"/proc/{holder.pid}/ns/net")
            wait_for(lambda: there.readlink() != ours, 10, "a network namespace")
            inside = ["nsenter", "-n", "-t", str(holder.pid)]
            name = f"fo{holder.pid}"
            for argv in (
                ["ip", "link", "add", name, "type", "veth", "peer", "eth0", "netns", holder.pid],
                ["ip", "address", "add", f"{HERE}/30", "dev", name],
                ["ip", "link", "set", name, "up"],
                [*inside, "ip", "address", "add", f"{_THERE}/30", "dev", "eth0"],
                [*inside, "ip", "link", "set", "eth0", "up"],
                [*inside, "ip", "link", "set", "lo", "up"],
                ["tc", "qdisc", "add", "dev", name, "root", "tbf", "rate", f"{8 * megabytes}mbit",
                 "burst", "64kb", "latency", "50ms"],
            ):  # fmt: skip
                processes.run([str(word) for word in argv], limit=10)
            yield inside
        finally:
            holder.kill()
