"""The table's results: for every case and set of features, how fuseoverlay differs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.differential import run
from tests.differential.cases import TABLE
from tests.differential.table import Case

#: By aspect: lines that say how two outcomes differ.
Differences = dict[str, list[str]]
Key = tuple[str, str]

BY_NAME = {case.name: case for case in TABLE}


def everything() -> list[Key]:
    """(set of features, case) of all that can be run here."""
    return [
        (features, case.name)
        for features in run.SETS
        for case in TABLE
        if features in case.sets and run.able(case)
    ]


@dataclass
class Results:
    """What came out. `peer` is another program, measured beside us or not."""

    differences: dict[Key, Differences] = field(default_factory=dict)
    answers: dict[Key, list[object]] = field(default_factory=dict)
    kernel_answers: dict[Key, list[object]] = field(default_factory=dict)
    peer: dict[Key, Differences] = field(default_factory=dict)
    touched: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether the whole table was run."""
        return self.differences.keys() == set(everything())

    def unexpected(self, key: Key) -> Differences:
        """Where we differ and nothing says that it is by design."""
        by_design = BY_NAME[key[1]].by_design(key[0])
        return {what: how for what, how in self.differences[key].items() if what not in by_design}

    def stale(self, case: Case) -> list[str]:
        """Reasons for differing that come true in no set of features. Those sets that were
        not run are not asked."""
        found = []
        for design in case.design:
            sets = [f for f in run.SETS if f in case.sets and design.covers(f)]
            if any((features, case.name) not in self.differences for features in sets):
                continue
            if sets and not any(
                self.differences[features, case.name].keys() & set(design.aspects)
                for features in sets
            ):
                found.append(design.reason)
        return found


def collect(keys: Iterable[Key], peer: str | None = None) -> Results:
    """Run these, on layers that all mounts share. `peer` names one more implementation."""
    wanted: dict[str, set[str]] = {}
    for features, name in keys:
        wanted.setdefault(features, set()).add(name)
    cases = [case for case in TABLE if any(case.name in names for names in wanted.values())]
    results = Results()
    with run.ground(cases) as ground:
        for features, names in wanted.items():
            chosen = [case for case in cases if case.name in names]
            _one_set(results, ground, features, chosen, peer)
        results.touched = ground.touched()
    return results


def _one_set(
    results: Results, ground: run.Ground, features: str, cases: list[Case], peer: str | None
) -> None:
    kernel = run.Runner(ground, "kernel", features, cases)
    ours = run.Runner(ground, "fuse", features, cases)
    for runner in (kernel, ours):
        runner.run()
    ours.visit("kernel")
    kernel.visit("fuse")
    for name, reference in kernel.outcomes.items():
        key = (features, name)
        results.differences[key] = run.differences(reference, ours.outcomes[name], features)
        results.answers[key] = ours.outcomes[name].calls
        results.kernel_answers[key] = reference.calls
    if peer is not None and features == "off":
        other = run.Runner(ground, peer, features, cases)
        other.run()
        other.visit("kernel")
        kernel.visit(peer)
        for name, reference in kernel.outcomes.items():
            found = run.differences(reference, other.outcomes[name], features, peer)
            results.peer[features, name] = found
