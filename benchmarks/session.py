"""One contender on one fresh mount: runs clients there and collects what they cost."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import processes
from benchmarks.peers import Contender, Place
from benchmarks.requests import Requests, synchronous
from benchmarks.trees import Layers, Sizes


@dataclass
class Samples:
    """All measurements of one contender in one phase of a workload."""

    #: Seconds, or MiB if `unit` says so; one per repetition.
    values: list[float] = field(default_factory=list)
    #: Requests by opcode, one dictionary per repetition; None if they are not counted.
    requests: list[dict[str, int] | None] = field(default_factory=list)
    #: CPU seconds of daemon and client together, one per repetition.
    cpu: list[float] = field(default_factory=list)
    unit: str = "s"

    @property
    def median(self) -> float | None:
        """The median of the values, if there are any."""
        return statistics.median(self.values) if self.values else None

    @property
    def cpu_median(self) -> float | None:
        """The median of the CPU seconds, if there are any."""
        return statistics.median(self.cpu) if self.cpu else None

    @property
    def typical_requests(self) -> dict[str, int] | None:
        """The requests of the repetition that had the median number of them."""
        known = sorted((one for one in self.requests if one is not None), key=synchronous)
        return known[len(known) // 2] if known else None


@dataclass
class Bench:
    """What all sessions share."""

    mode: str
    client: Path
    #: A directory for the mounts; it and the layers are on the filesystem that is measured.
    scratch: Path
    layers: Layers
    sizes: Sizes
    requests: Requests
    limit: float
    count: int = 0

    def place(self) -> Place:
        """Fresh directories for a mount."""
        self.count += 1
        place = Place(self.scratch / f"{self.count}")
        place.make()
        return place

    def put_away(self, place: Place, *, changed: bool) -> None:
        """Remove the big files in `place`, and write out dirty data if it was `changed`, so that
        the next contender starts without them.

        Small files stay until the end of the run. ext4 skips inodes that were freed in the last
        minutes, so that the next contender to make files would pay for the search.
        """
        if os.geteuid():
            subprocess.run(
                ["chmod", "-R", "u+rwX", str(place.base)], check=False, capture_output=True
            )
        big = ["-xdev", "-type", "f", "-size", "+1M", "-delete"]
        subprocess.run(["find", str(place.base), *big], check=True)
        if changed:
            subprocess.run(["sync", "-f", str(self.scratch)], check=True)


class Session:
    """A mounted stack. The methods that measure take the name of a phase: `cold`, `warm` ...…"""

    def __init__(self, bench: Bench, contender: Contender, place: Place, mnt: Path) -> None:
        self.bench, self.contender, self.place, self.mnt = bench, contender, place, mnt
        self.sizes, self.layers = bench.sizes, bench.layers
        self.phases: dict[str, Samples] = {}
        self._device = 0
        if contender.fuse and bench.requests.possible:
            self._device = int(self.run("stat", "-c", "%d", str(mnt)))

    def run(self, *argv: str) -> str:
        """Run a command that is not measured."""
        return processes.run(list(argv), limit=self.bench.limit)

    def measure(self, phase: str, command: str, *args: object) -> float:
        """Run the C client with this command, in the mount point; returns the seconds."""
        argv = [str(self.bench.client), command, *map(str, args)]
        with self._counted(phase) as samples:
            before = self._cpu_times()
            output = processes.run(argv, limit=self.bench.limit, cwd=self.mnt)
            seconds, used = map(float, output.split())
            samples.values.append(seconds)
            after = self._cpu_times()
            samples.cpu.append(used + sum(after[pid] - before.get(pid, 0) for pid in after))
        return seconds

    def fio(self, phase: str, *options: str) -> None:
        """Run fio on one file; it measures by itself."""
        argv = ["fio", "--name=bench", "--output-format=json", "--ioengine=psync", *options]
        with self._counted(phase) as samples:
            job = json.loads(processes.run(argv, limit=self.bench.limit))["jobs"][0]
            samples.values.append(job["job_runtime"] / 1000)

    def value(self, phase: str, value: float, unit: str) -> None:
        """Record a value that is no duration, or that was measured elsewhere."""
        samples = self.phases.setdefault(phase, Samples(unit=unit))
        samples.values.append(value)

    def memory(self) -> dict[str, float]:
        """The daemon's memory, in MiB."""
        return processes.memory(processes.users_of(self.place.mnt))

    def _cpu_times(self) -> dict[int, float]:
        """The daemon's CPU times; for a moment after the mount also those of the process that
        started it."""
        fuse = self.contender.fuse
        return processes.cpu_times(processes.users_of(self.place.mnt)) if fuse else {}

    @contextmanager
    def _counted(self, phase: str) -> Iterator[Samples]:
        samples = self.phases.setdefault(phase, Samples())
        if not self._device:
            yield samples
            return
        self.bench.requests.begin(self._device)
        yield samples
        samples.requests.append(self.bench.requests.end())
