"""`scripts/bench --containers`: the time that podman and buildah take with each driver.

Each contender has its own store, whose clients run in its own namespaces (tests/clients/store.py),
and does all steps once in each round.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.peers import OURS, PROJECT, REFERENCE, Contender
from benchmarks.processes import Failure
from benchmarks.runner import Outcome
from benchmarks.session import Samples
from tests.clients import store as clients
from tests.clients.store import Store
from tests.helpers.layouts import layer_blobs
from tests.images import build

_BASE = "localhost/base"
_CONTAINER = "worked"
_CONTAINERFILE = f"""\
FROM {_BASE}
RUN rm -rf /usr/share/man /usr/share/locale && mv /usr/share/doc /usr/share/documents
RUN mkdir /srv/app && cp -a /usr/lib/python3* /srv/app && find /etc -type f -exec touch {{}} +
RUN useradd app && chown -R app /srv/app && rm -rf /etc/apt && mkdir /etc/apt
RUN find /var/lib/dpkg/info -name '*.list' -exec sed -i s/x/x/ {{}} + && rm -rf /usr/share/documents
"""
_WORK = "dpkg -i /extra.deb && useradd app && rm -rf /usr/share/doc && chown -R app /usr/lib"


@dataclass(frozen=True)
class Step:
    """A command that is timed; {debian}, {package} and {context} in it stand for paths."""

    name: str
    what: str
    argv: tuple[str, ...]
    #: How often it is run in each round.
    times: int = 1


_BUILD = ("buildah", "bud", "--quiet", "--no-cache", "--tag", "built")
_RUN = ("podman", "run")
STEPS = (
    Step("import", "an archive of Debian becomes an image",
         ("podman", "import", "--quiet", "{debian}", _BASE)),
    Step("build", "four steps, committed at the end", (*_BUILD, "{context}")),
    Step("build-layers", "four steps, each committed", (*_BUILD, "--layers", "{context}")),
    Step("start", "a container that does nothing", (*_RUN, "--rm", _BASE, "true"), times=3),
    Step("dpkg", f"a container: {_WORK}",
         (*_RUN, "--name", _CONTAINER, "--volume", "{package}:/extra.deb:ro", _BASE,
          "sh", "-c", _WORK)),
    Step("commit", "what that one has changed becomes an image",
         ("podman", "commit", "--quiet", _CONTAINER, "committed")),
)  # fmt: skip


class Driver(Contender):
    """What mounts for podman and buildah."""

    def __init__(self, name: str, driver: str, kind: str, *options: str) -> None:
        super().__init__(name)
        #: A driver that the store knows, the type of its mounts, more arguments for the program.
        self.driver, self.kind, self.options = driver, kind, options

    def missing(self, mode: str) -> str | None:
        """The program has to be there."""
        if self.driver == REFERENCE and shutil.which(REFERENCE) is None:
            return "not found"
        return None


DRIVERS = (
    Driver(OURS, OURS, "fuse.fuseoverlay"),
    # For comparison: the reference does not sync copies either.
    Driver("fsync=0", OURS, "fuse.fuseoverlay", "-o", "fsync=0"),
    Driver(REFERENCE, REFERENCE, "fuse.fuse-overlayfs"),
    Driver("kernel", "kernel", "overlay"),
)


@dataclass(frozen=True)
class Files:
    """The files that the steps need."""

    #: A tar archive of a debootstrap tree.
    debian: Path
    package: Path


def files() -> Files:
    """The files that the steps need. Builds the tests' real image if there is none, which takes
    root. Raises `Failure`."""
    lacking = clients.missing()
    if lacking is not None:
        raise Failure(f"missing: {lacking}")
    try:
        image = build.ensure()
    except (build.MissingTool, RuntimeError) as exc:
        raise Failure(f"missing: {exc}") from None
    return Files(layer_blobs(image / "oci-plain")[0], image / "extra.deb")


def run(
    base: Path, drivers: list[Driver], rounds: int, *, limit: float, warm: bool, outcome: Outcome
) -> None:
    """Fill `outcome`, with the drivers in turn; if `warm`, after a round that is not measured."""
    given = files()
    with contextlib.ExitStack() as undo:
        stores = [
            (driver, undo.enter_context(_store(base / str(number), driver)))
            for number, driver in enumerate(drivers)
        ]
        for turn in range(-int(warm), rounds):
            sys.stderr.write(f"[{turn + 1}/{rounds}] containers: " if turn >= 0 else "warm: ")
            start = turn % len(stores)
            for driver, store in stores[start:] + stores[:start]:
                measured = outcome if turn >= 0 else replace(outcome, results={})
                _round(driver, store, given, limit, measured)
            sys.stderr.write("\n")


def _store(base: Path, driver: Driver) -> Store:
    base.mkdir()
    store = Store(base, driver.driver)
    (base / "context").mkdir()
    (base / "context/Containerfile").write_text(_CONTAINERFILE)
    if driver.driver == OURS:
        _install(base / OURS, driver.options)
    return store


def _install(program: Path, options: tuple[str, ...]) -> None:
    """Write a program that runs this checkout like an installed one, with compiled Python
    modules."""
    settings = f"PYTHONPATH={PROJECT} PYTHONPYCACHEPREFIX={program.with_name('pycache')}"
    words = " ".join((sys.executable, "-P", "-m", "fuseoverlay", *options))
    program.write_text(f'#!/bin/sh\n{settings} exec {words} "$@"\n')


def _round(driver: Driver, store: Store, given: Files, limit: float, outcome: Outcome) -> None:
    """All steps once."""
    if any(name == driver.name for _, name, _ in outcome.failures):
        return
    sys.stderr.write(".")
    sys.stderr.flush()
    step = STEPS[0]
    try:
        for step in STEPS:
            row = outcome.results.setdefault(f"containers/{step.name}", {})
            samples = row.setdefault(driver.name, Samples())
            samples.values += [_seconds(store, step, given, limit) for _ in range(step.times)]
            if step.name == "import":
                _check(driver, store)
        store.podman("rm", "--all", "--force", "--time", "0")
        store.podman("rmi", "--all", "--force")
    except (AssertionError, Failure, OSError, subprocess.TimeoutExpired) as exc:
        why = " … ".join(_ends(str(exc).splitlines()))
        outcome.failures.append((f"containers/{step.name}", driver.name, why))
        sys.stderr.write(f" {driver.name}: {why} ")


def _ends(lines: list[str]) -> list[str]:
    """The first line, which says what was run, and the last one, which says what went wrong."""
    return lines[:1] + lines[1:][-1:]


def _seconds(store: Store, step: Step, given: Files, limit: float) -> float:
    """The seconds from start to end of one command. What the last one left to be done is finished
    first."""
    store.wait_until_idle()
    subprocess.run(["sync", "-f", str(store.base)], check=True)
    paths = {**vars(given), "context": store.base / "context"}
    words = [word.format(**paths) for word in step.argv]
    begin = time.monotonic()
    store.run(*words, timeout=limit)
    return time.monotonic() - begin


def _check(driver: Driver, store: Store) -> None:
    """Raise `Failure` if podman has taken another driver, which it sometimes does unasked."""
    kind = store.podman("run", "--rm", _BASE, "sed", "-n", r"s,^[^ ]* / \([^ ]*\) .*,\1,p",
                        "/proc/mounts")  # fmt: skip
    if kind.split()[-1:] != [driver.kind]:
        raise Failure(f"podman mounts {kind}")
