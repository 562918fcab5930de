"""Run the table on one set of layers: kernel overlayfs, fuseoverlay, and others beside them.

One mount per implementation and set of features runs all cases, each in a directory of
its own. Then the upper is recorded, mounted again by the same implementation, and mounted
by the other one.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.differential import layers, observe
from tests.differential.calls import error_name
from tests.differential.table import Case
from tests.helpers.mounts import MODE, Daemon, Space, mounts_at, remove_tree, traces
from tests.helpers.tree import compare

#: Options of each set; the first three are those that most cases run under.
FEATURES = {
    "off": ("redirect_dir=off", "index=off", "metacopy=off"),
    "on": ("redirect_dir=on", "index=on", "metacopy=on"),
    "nofollow": ("redirect_dir=nofollow",),
    "follow": ("redirect_dir=follow",),
    "data-only": ("redirect_dir=on", "metacopy=on"),
    "userns": (),
}
SETS = ("userns",) if MODE == "userns" else ("off", "on", "nofollow", "follow", "data-only")
#: The implementations that must end as they should.
OURS = ("fuse", "kernel")
ASPECTS = ("calls", "tree", "upper", "remount", "ours elsewhere", "others' here")
#: Seconds for one case, after which the daemon is killed: ours, another's.
CASE_TIMEOUT, OTHERS_TIMEOUT = 60, 3


@dataclass
class Outcome:
    """What one case did on one implementation."""

    calls: list[object] = field(default_factory=list)
    tree: observe.Seen = field(default_factory=dict)
    upper: observe.Seen = field(default_factory=dict)
    remount: observe.Seen = field(default_factory=dict)
    #: Names whose numbers a remount changed.
    renumbered: list[str] = field(default_factory=list)
    #: The tree when other implementations mount this upper.
    elsewhere: dict[str, observe.Seen] = field(default_factory=dict)


Outcomes = dict[str, Outcome]


@dataclass
class Ground:
    """The layers that everything runs on. `cases` are those that can be made here."""

    base: Path
    cases: list[Case]

    def __post_init__(self) -> None:
        self.lowers = [self.base / name for name in ("top", "middle", "bottom")]
        self.data, self.upper = self.base / "data", self.base / "template"
        roots = [*self.lowers, self.data, self.upper]
        for root in roots:
            root.mkdir()
        with _plain_umask():
            for case in self.cases:
                place = layers.Layers(self.lowers, self.upper, self.data, case.name)
                layers.make(place, case.needs)
        layers.mark_impure(self.upper)
        layers.set_times(roots)
        self.known = observe.numbers_of([*self.lowers, self.data])
        self.before = [traces(root) for root in [*self.lowers, self.data]]

    def touched(self) -> list[str]:
        """What has changed in the lowers, which must be nothing."""
        lines = []
        for root, before in zip([*self.lowers, self.data], self.before, strict=True):
            lines += [f"{root.name}: {line}" for line in compare(before, traces(root))]
        return lines

    def space(self, name: str, features: str) -> Space:
        """A place for one implementation's upper, on the shared lowers."""
        base = self.base / name
        base.mkdir()
        space = Space(base, lowers=0)
        space.lowers = list(self.lowers)
        space.features = FEATURES[features]
        if features == "data-only":
            space.data_only = [self.data]
        space.upper.rmdir()
        subprocess.run(
            ["cp", "-a", str(self.upper), str(space.upper)], check=True, capture_output=True
        )
        return space


@contextlib.contextmanager
def ground(cases: list[Case]) -> Iterator[Ground]:
    """Layers for the cases, removed afterwards."""
    base = Path(tempfile.mkdtemp(prefix="fuseoverlay-test-")).resolve()
    base.chmod(0o755)
    try:
        yield Ground(base, cases)
    finally:
        if MODE == "root":
            layers.free_all(base)
        remove_tree(base)


def able(case: Case) -> bool:
    """Whether the case can run as whoever runs the tests."""
    return MODE == "root" or not case.root


@contextlib.contextmanager
def _plain_umask() -> Iterator[None]:
    old = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(old)


class Runner:
    """One implementation under one set of features."""

    def __init__(self, ground: Ground, impl: str, features: str, cases: list[Case]) -> None:
        self.ground, self.impl = ground, impl
        self.space = ground.space(f"{features}-{impl}", features)
        self.cases = cases
        self.outcomes: Outcomes = {case.name: Outcome() for case in self.cases}
        self._numbers: dict[str, dict[str, int]] = {}

    def run(self) -> None:
        """All cases live, the upper, and the tree after a remount."""
        with self._mounted(self.impl):
            for case in self.cases:
                self._live(case)
        for case in self.cases:
            root = self.space.upper / case.name
            self.outcomes[case.name].upper = observe.upper(root, self.ground.lowers)
        with self._mounted(self.impl):
            for case in self.cases:
                self._guarded(self._again, case)

    def visit(self, impl: str) -> None:
        """Have another implementation mount the upper."""

        def look(case: Case, outcome: Outcome) -> None:
            outcome.elsewhere[impl] = observe.merged(self._path(case), self.ground.known)

        with self._mounted(impl):
            for case in self.cases:
                self._guarded(look, case)

    def _path(self, case: Case) -> Path:
        return self.space.mnt / case.name

    @contextlib.contextmanager
    def _mounted(self, impl: str) -> Iterator[None]:
        self._impl = impl
        mount(self.space, impl)
        try:
            with _plain_umask():
                yield
            if self.space.alive() and impl in OURS:
                self.space.unmount()
        finally:
            self.space.drop()

    def _guarded(self, look: Callable[[Case, Outcome], None], case: Case) -> None:
        """Look at a case; where the daemon is gone, mount again for the next."""
        if self.space.daemon is not None:
            self.space.daemon.rearm(CASE_TIMEOUT if self._impl in OURS else OTHERS_TIMEOUT)
        outcome = self.outcomes[case.name]
        try:
            look(case, outcome)
        except OSError as exc:
            outcome.calls.append(f"looking: {error_name(exc)}")
        if not self.space.alive():
            outcome.calls.append("the daemon died")
            self.space.drop()
            mount(self.space, self._impl)

    def _live(self, case: Case) -> None:
        def steps(case: Case, outcome: Outcome) -> None:
            outcome.calls = answers(case, self._path(case))
            numbers = self._numbers.setdefault(case.name, {})
            outcome.tree = observe.merged(self._path(case), self.ground.known, numbers)

        self._guarded(steps, case)

    def _again(self, case: Case, outcome: Outcome) -> None:
        now: dict[str, int] = {}
        outcome.remount = observe.merged(self._path(case), self.ground.known, now)
        was = self._numbers.get(case.name, {})
        outcome.renumbered = sorted(
            name for name in was.keys() & now.keys() if was[name] != now[name]
        )


def answers(case: Case, path: Path) -> list[object]:
    """Everything that the steps see."""
    found: list[object] = []
    steps = case.steps(path)
    try:
        found.extend(steps)
    except OSError as exc:
        found.append(error_name(exc))
    except Exception:
        found.append("steps failed: " + traceback.format_exc(limit=-1))
    return found


def mount(space: Space, impl: str) -> None:
    """Mount with one of the implementations: fuse (this one), kernel, fuse-overlayfs."""
    if impl in OURS:
        space.mount(impl=impl)
        return
    lowers = ":".join(map(str, space.lowers))
    options = f"lowerdir={lowers},upperdir={space.upper},workdir={space.work}"
    argv = ["fuse-overlayfs", "-f", "-o", options, str(space.mnt)]
    depth = len(mounts_at(space.mnt)) + 1
    space.daemon = Daemon(argv, space.mnt, space.log)
    space.daemon.wait_until_mounted(depth)


def differences(
    reference: Outcome, ours: Outcome, features: str, impl: str = "fuse"
) -> dict[str, list[str]]:
    """By aspect, how an outcome differs from the kernel's.

    In a user namespace the kernel may not follow file handles, so its copies get other numbers
    at copy-up or at the next mount: there they are no reference.
    """
    numbers = features != "userns"

    def compare(left: observe.Seen, right: observe.Seen) -> list[str]:
        return observe.compare(left, right, numbers=numbers)

    found = {
        "calls": _compare_calls(reference.calls, ours.calls),
        "tree": compare(reference.tree, ours.tree),
        "upper": compare(reference.upper, ours.upper),
        "remount": compare(reference.remount, ours.remount),
        "ours elsewhere": compare(reference.remount, ours.elsewhere.get("kernel", {})),
        "others' here": compare(reference.remount, reference.elsewhere.get(impl, {})),
    }
    if numbers and reference.renumbered != ours.renumbered:
        found["remount"].append(
            f"other numbers should be only those of {reference.renumbered}, are {ours.renumbered}"
        )
    return {aspect: lines for aspect, lines in found.items() if lines}


def _compare_calls(reference: list[object], ours: list[object]) -> list[str]:
    lines = [
        f"answer {index}: {_difference(left, right)}"
        for index, (left, right) in enumerate(zip(reference, ours, strict=False))
        if left != right
    ]
    for more in reference[len(ours) :]:
        lines.append(f"no answer where {more!r} was expected")
    for more in ours[len(reference) :]:
        lines.append(f"one more answer: {more!r}")
    return lines


def _difference(left: object, right: object) -> str:
    if isinstance(left, dict) and isinstance(right, dict):
        return ", ".join(
            f"{what} should be {left.get(what)!r}, is {right.get(what)!r}"
            for what in sorted(left.keys() | right.keys())
            if left.get(what) != right.get(what)
        )
    return f"should be {left!r}, is {right!r}"
