"""The targets of fuseoverlay, and whether a run reached them. All values are medians of one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.peers import OURS, REFERENCE
from benchmarks.requests import OF_DIRECTORIES, synchronous
from benchmarks.session import Samples
from benchmarks.trees import Sizes, Tree

#: measure -> contender -> samples; a measure is WORKLOAD or WORKLOAD/PHASE.
Results = dict[str, dict[str, Samples]]
#: Gives the value reached; None if the run did not measure it.
Reached = Callable[[Results, Sizes], float | None]


@dataclass(frozen=True)
class Target:
    """`reached` must not be more than `limit`."""

    what: str
    measure: str
    limit: float
    reached: Reached
    #: How to print the numbers.
    form: str = "{:.2f} x"


def _median(results: Results, measure: str, contender: str) -> float | None:
    samples = results.get(measure, {}).get(contender)
    return samples.median if samples else None


def _divided(upper: float | None, lower: float | None) -> float | None:
    return upper / lower if upper is not None and lower else None


def _requests(results: Results, measure: str) -> dict[str, int] | None:
    samples = results.get(measure, {}).get(OURS)
    return samples.typical_requests if samples else None


def ratio(what: str, measure: str, limit: float) -> Target:
    """Our seconds divided by the reference's."""

    def reached(results: Results, _: Sizes) -> float | None:
        mine, theirs = (_median(results, measure, name) for name in (OURS, REFERENCE))
        return _divided(mine, theirs)

    return Target(what, measure, limit, reached)


def beside(what: str, measure: str, contender: str, limit: float) -> Target:
    """Our seconds divided by this contender's."""

    def reached(results: Results, _: Sizes) -> float | None:
        mine, theirs = (_median(results, measure, name) for name in (OURS, contender))
        return _divided(mine, theirs)

    return Target(f"{what}, {contender}", measure, limit, reached)


def more_seconds(what: str, measure: str, limit: float) -> Target:
    """Our seconds minus the reference's."""

    def reached(results: Results, _: Sizes) -> float | None:
        mine, theirs = (_median(results, measure, name) for name in (OURS, REFERENCE))
        return None if mine is None or theirs is None else mine - theirs

    return Target(what, measure, limit, reached, "{:+.2f} s")


def against(what: str, measure: str, other: str, limit: float) -> Target:
    """Our seconds in one measure divided by ours in another."""

    def reached(results: Results, _: Sizes) -> float | None:
        return _divided(_median(results, measure, OURS), _median(results, other, OURS))

    return Target(what, measure, limit, reached)


def no_requests(what: str, measure: str) -> Target:
    """The kernel sends no requests."""

    def reached(results: Results, _: Sizes) -> float | None:
        requests = _requests(results, measure)
        return None if requests is None else sum(requests.values())

    return Target(what, measure, 0, reached, "{:.0f} requests")


def requests_per(what: str, measure: str, limit: float, units: Callable[[Sizes], int]) -> Target:
    """Synchronous requests divided by the number of files or calls (`units`)."""

    def reached(results: Results, sizes: Sizes) -> float | None:
        requests = _requests(results, measure)
        return None if requests is None else synchronous(requests) / units(sizes)

    return Target(what, measure, limit, reached, "{:.3f} requests")


def requests_per_file_read(what: str, measure: str) -> Target:
    """Synchronous requests per file, not counting those of listings and one more per directory."""

    def reached(results: Results, sizes: Sizes) -> float | None:
        requests = _requests(results, measure)
        if requests is None:
            return None
        of_files = {name: n for name, n in requests.items() if name not in OF_DIRECTORIES}
        directories = len(Tree(sizes.files).directories)
        return max(0, synchronous(of_files) - directories) / sizes.files

    return Target(what, measure, 1, reached, "{:.3f} requests")


def at_most(what: str, measure: str, limit: float, form: str) -> Target:
    """The median itself, in its unit."""
    return Target(what, measure, limit, lambda results, _: _median(results, measure, OURS), form)


TARGETS = [
    ratio("warm stat walk, 1 layer, read-only", "stat-ro-1/warm", 0.25),
    no_requests("the same: requests", "stat-ro-1/warm"),
    ratio("warm stat walk, 40 layers, read-only", "stat-ro-40/warm", 0.40),
    no_requests("the same: requests", "stat-ro-40/warm"),
    ratio("warm stat walk, 1 layer, read-write", "stat-rw-1/warm", 0.12),
    ratio("warm stat walk, 40 layers, read-write", "stat-rw-40/warm", 0.12),
    ratio("warm read of every file, 1 layer, read-only", "read-ro-1/warm", 0.10),
    no_requests("the same: requests", "read-ro-1/warm"),
    ratio("warm read of every file, 40 layers, read-only", "read-ro-40/warm", 0.10),
    no_requests("the same: requests", "read-ro-40/warm"),
    ratio("warm read of every file, 40 layers, read-write", "read-rw-40/warm", 0.12),
    ratio("cold stat walk, 1 layer", "stat-rw-1/cold", 0.70),
    ratio("cold stat walk, 40 layers", "stat-rw-40/cold", 0.35),
    against("cold look-up, 40 layers to 1", "lookup-40/cold", "lookup-1/cold", 1.2),
    ratio("cold read of every file, 1 layer", "read-rw-1/cold", 0.40),
    requests_per_file_read("the same: requests per file", "read-rw-1/cold"),
    ratio("cold read of every file, 40 layers", "read-rw-40/cold", 0.40),
    requests_per_file_read("the same: requests per file", "read-rw-40/cold"),
    ratio("cold read, 1 layer, read-only (goal)", "read-ro-1/cold", 0.20),
    ratio("cold read, 40 layers, read-only (goal)", "read-ro-40/cold", 0.20),
    ratio("absent names, 40 layers", "absent-40/cold", 0.50),
    ratio("sequential read of 512 MiB, cold", "seqread/cold", 0.50),
    ratio("sequential write of 512 MiB, fsync", "seqwrite", 1.00),
    ratio("untar 12,000 files", "untar", 0.39),
    ratio("append to 2,000 lower files, 1 layer", "append-1", 0.40),
    ratio("append to 2,000 lower files, 40 layers", "append-40", 0.40),
    ratio("rm -rf of everything, 40 layers", "rm-40", 0.50),
    ratio("chmod of 512 MiB, metacopy=on", "chmod-metacopy", 0.05),
    against(
        "first byte with reflinks, 512 MiB to 1 MiB",
        "firstbyte-reflink/big",
        "firstbyte-reflink/1 MiB",
        2.0,
    ),
    requests_per("create a file of 100 bytes", "create/files", 5.05, lambda sizes: sizes.created),
    requests_per("a small write", "create/writes", 1.05, lambda sizes: sizes.small_writes),
    against("a change in a directory of 10^6 names to 10^2", "names/10^6", "names/10^2", 1.3),
    at_most("mount until it answers, 1 layer", "mount-1/mount", 0.35, "{:.3f} s"),
    at_most("mount until it answers, 40 layers", "mount-40/mount", 0.35, "{:.3f} s"),
    at_most("memory per 100,000 inodes", "memory/rss per 100,000", 80, "{:.0f} MiB"),
    ratio("containers: a build of four steps", "containers/build", 1.00),
    ratio("containers: the same, each committed", "containers/build-layers", 1.00),
    ratio("containers: dpkg, useradd, rm -rf, chown -R", "containers/dpkg", 1.00),
    more_seconds("containers: start", "containers/start", 0.3),
    beside("images: pull of 12 layers", "images/pull-12", "umoci", 0.70),
    beside("images: pull of 12 layers", "images/pull-12", "podman", 0.70),
    *(
        beside(f"images: load of {count} layers", f"images/load-{count}", peer, 0.80)
        for count in (1, 12, 60)
        for peer in ("umoci", "podman")
    ),
    beside("images: pull over 10 MB/s, the download", "images/slow-pull", "curl", 1.05),
    at_most("images: a list of 200", "images/ls-200", 0.15, "{:.3f} s"),
    at_most("images: mount by name", "images/mount", 0.25, "{:.3f} s"),
    at_most("images: memory of a pull of 160 MB", "images/memory", 120, "{:.0f} MiB"),
    beside("layers: index of 60 layers", "layers/index", "tar", 1.00),
    at_most("layers: memory of that", "layers/index-memory", 300, "{:.0f} MiB"),
    *(
        at_most(f"layers: {step}", f"layers/{step}", limit, "{:.3f} s")
        for step, limit in (
            ("layers", 0.3),
            ("tree", 0.3),
            ("tree-changes", 0.3),
            ("ls", 0.3),
            ("cat", 0.3),
            ("which", 0.2),
            ("find", 0.3),
            ("efficiency", 0.3),
            ("diff-layers", 0.3),
            ("diff-images", 0.3),
        )
    ),
]
