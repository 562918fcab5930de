"""Runs the workloads: in each round each contender once, in an order that rotates."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field

from benchmarks import processes
from benchmarks.peers import Contender
from benchmarks.processes import Failure
from benchmarks.session import Bench, Samples, Session
from benchmarks.targets import Results
from benchmarks.workloads import Workload


@dataclass
class Outcome:
    """Everything that a run has measured so far."""

    results: Results = field(default_factory=lambda: defaultdict(dict))
    #: (workload, contender, why)
    failures: list[tuple[str, str, str]] = field(default_factory=list)

    def take(self, workload: Workload, contender: Contender, phases: dict[str, Samples]) -> None:
        """Add one session's samples."""
        for phase, new in phases.items():
            measure = f"{workload.name}/{phase}" if phase else workload.name
            samples = self.results[measure].setdefault(contender.name, Samples(unit=new.unit))
            samples.values += new.values
            samples.requests += new.requests
            samples.cpu += new.cpu

    def failed(self, workload: Workload, contender: Contender) -> bool:
        """Whether this contender has failed this workload."""
        return (workload.name, contender.name) in {one[:2] for one in self.failures}


def run(
    bench: Bench,
    workloads: list[Workload],
    contenders: list[Contender],
    rounds: int,
    outcome: Outcome,
) -> None:
    """Run the workloads. Results go to `outcome` as they come, so that an interrupted run has
    some."""
    for number, workload in enumerate(workloads, 1):
        _say(f"[{number}/{len(workloads)}] {workload.name}: ")
        able = [one for one in contenders if one.fuse or not workload.fuse_only]
        for turn in range(rounds):
            _warm(bench, workload)
            # No contender is always first, not even with a single round.
            start = (turn + number) % len(able)
            for contender in able[start:] + able[:start]:
                if not outcome.failed(workload, contender):
                    _once(bench, workload, contender, outcome)
                    _say(".")
        _say("\n")


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _warm(bench: Bench, workload: Workload) -> None:
    """Bring the layers into the page cache."""
    stack = bench.layers.stack(workload.stack)
    for path in {*stack.lowers, stack.flat}:
        processes.run([str(bench.client), "readall", str(path)], limit=600)
    if workload.stack == "empty":
        processes.run(["cat", str(bench.layers.tarball())], limit=600)


def _once(bench: Bench, workload: Workload, contender: Contender, outcome: Outcome) -> None:
    stack, place = bench.layers.stack(workload.stack), bench.place()
    phases: dict[str, Samples] = {}
    try:
        mnt, seconds = contender.mount(
            bench.client,
            stack,
            place,
            writable=workload.writable,
            changes=workload.changes,
            metacopy=workload.metacopy,
            limit=bench.limit,
        )
        session = Session(bench, contender, place, mnt)
        phases = session.phases
        workload.body(session)
        gone = contender.unmount(bench.client, place, limit=bench.limit)
        if workload.mounting:
            session.value("mount", seconds, "s")
            session.value("unmount", gone, "s")
    except (Failure, OSError) as exc:
        outcome.failures.append((workload.name, contender.name, str(exc)))
        _say(f" {contender.name}: {exc} ")
    finally:
        outcome.take(workload, contender, phases)
        contender.drop(place)
        # What cannot be removed now goes with the working directory.
        with contextlib.suppress(subprocess.CalledProcessError):
            bench.put_away(place, changed=workload.changes)
