"""`scripts/bench --layers`: looking into the layers of a large image, against a plain listing of
its archives.

The first command reads all layers and keeps an index, which the others read.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import largeimage, processes
from benchmarks.largeimage import Shape
from benchmarks.peers import OURS, PROJECT, Contender
from benchmarks.processes import Failure
from benchmarks.runner import Outcome
from benchmarks.session import Samples
from fuseoverlay.oci.blobs import open_image

TAR: Final = "tar"
#: Lists the archives that are given, one after the other.
_LISTING: Final = 'set -o pipefail; for blob; do zcat "$blob" | tar t || exit; done > /dev/null'
#: How often each quick command runs in a round.
_TIMES: Final = 5


@dataclass(frozen=True)
class Step:
    """A command that finds its indexes made: {image} and {other} stand for the two images, {top}
    and {below} for the numbers of their upper layers, {package} and {only} for names in the
    image."""

    what: str
    argv: tuple[str, ...]
    #: Its exit code.
    code: int = 0


_FILE: Final = "/usr/lib/{package}/part000/file3.py"
QUICK_STEPS: Final = {
    "layers": Step("the layers, and what each does", ("layers", "{image}")),
    "tree": Step("three directories deep", ("tree", "-L", "3", "{image}")),
    "tree-changes": Step("what the top layer did",
                         ("tree", "--layer", "{top}", "--changes", "{image}")),
    "ls": Step("a directory", ("ls", "-l", "{image}", "/usr/lib/{package}/part000")),
    "cat": Step("a file of a layer in the middle", ("cat", "{image}", _FILE)),
    "which": Step("the layer of a file", ("which", "{image}", _FILE)),
    "find": Step("a name that one layer has", ("find", "{image}", "{only}")),
    "find-many": Step("a name that every 30th entry has", ("find", "{image}", "file3.py")),
    "efficiency": Step("what the image wastes", ("efficiency", "{image}")),
    "diff-layers": Step("the two upper layers",
                        ("diff", "--layers", "{below}", "{top}", "{image}"), code=1),
    "diff-images": Step("two images that differ in their top layers",
                        ("diff", "{image}", "{other}"), code=1),
}  # fmt: skip
#: What each step is, without its prefix.
STEPS: Final = {
    "index": "the first command: indexes of all layers; tar: zcat and tar t of each",
    "index-memory": "resident memory of that, of all its processes together",
    **{name: step.what for name, step in QUICK_STEPS.items()},
}


class Lister(Contender):
    """What lists layers."""

    def missing(self, mode: str) -> str | None:
        """The programs have to be there."""
        lacking = (name for name in ("bash", "zcat", "tar") if not shutil.which(name))
        return next((f"{name} not found" for name in lacking), None) if self.name == TAR else None


TOOLS_COMPARED: Final = (Lister(OURS), Lister(TAR))


def run(
    base: Path, shape: Shape, tools: list[Contender], rounds: int, *, limit: float, outcome: Outcome
) -> None:
    """Fill `outcome`, with the tools in turn."""
    sys.stderr.write("making the image\n")
    largeimage.write(base / "layout", shape)
    bench = _Bench(base, shape, limit, outcome)
    for turn in range(rounds):
        sys.stderr.write(f"[{turn + 1}/{rounds}] layers: ")
        start = turn % len(tools)
        for tool in tools[start:] + tools[:start]:
            bench.round(tool.name)
        sys.stderr.write("\n")


class _Bench:
    """What the steps share."""

    def __init__(self, base: Path, shape: Shape, limit: float, outcome: Outcome) -> None:
        self._limit, self._outcome = limit, outcome
        self._store, layout = base / "ours", base / "layout"
        self._env = {
            **os.environ, "FUSEOVERLAY_ROOT": str(self._store), "PYTHONPATH": str(PROJECT)
        }  # fmt: skip
        middle = shape.layers // 2
        self._words = {
            "image": f"oci:{layout}:{largeimage.REF}",
            "other": f"oci:{layout}:{largeimage.OTHER}",
            "top": str(shape.layers),
            "below": str(shape.layers - 1),
            "package": largeimage.package(middle),
            "only": largeimage.only_in(middle),
        }
        with open_image(str(layout)) as source:
            layers = source.resolve(largeimage.REF).layers
        self._blobs = [str(layout / "blobs/sha256" / layer.digest.hex)
                       for layer in layers if layer.digest]  # fmt: skip

    def round(self, tool: str) -> None:
        """All steps of one contender."""
        if tool == TAR:
            self._take("index", tool, self._list)
            return
        self._clear()
        self._take("index-memory", tool, self._memory, unit="MiB")
        self._clear()
        self._take("index", tool, lambda: self._timed(QUICK_STEPS["layers"]))
        # The other image has a layer that is not indexed yet.
        self._take(None, tool, lambda: self._timed(Step("", ("layers", "{other}"))))
        for name, step in QUICK_STEPS.items():
            for _ in range(_TIMES):
                self._take(name, tool, lambda step=step: self._timed(step))  # type: ignore[misc]
        self._clear()

    def _take(
        self, name: str | None, tool: str, measure: Callable[[], float], unit: str = "s"
    ) -> None:
        """Measure a step, unless it has failed; without a name only do it."""
        key = f"layers/{name}"
        if any((key, tool) == one[:2] for one in self._outcome.failures):
            return
        sys.stderr.write(".")
        sys.stderr.flush()
        try:
            value = measure()
        except (Failure, OSError, subprocess.SubprocessError) as exc:
            why = (str(exc).splitlines() or [type(exc).__name__])[-1]
            self._outcome.failures.append((key, tool, why))
            return
        if name is not None:
            row = self._outcome.results.setdefault(key, {})
            row.setdefault(tool, Samples(unit=unit)).values.append(value)

    def _clear(self) -> None:
        if self._store.exists():
            shutil.rmtree(self._store)
        subprocess.run(["sync", "-f", str(self._store.parent)], check=True)

    def _argv(self, step: Step) -> list[str]:
        words = [word.format(**self._words) for word in step.argv]
        return [sys.executable, "-P", "-m", "fuseoverlay", *words]

    def _timed(self, step: Step) -> float:
        begin = time.monotonic()
        said = processes.run(self._argv(step), limit=self._limit, env=self._env, codes=(step.code,))
        seconds = time.monotonic() - begin
        if not said:
            raise Failure("it says nothing")
        return seconds

    def _memory(self) -> float:
        return processes.peak(self._argv(QUICK_STEPS["layers"]), limit=self._limit, env=self._env)

    def _list(self) -> float:
        begin = time.monotonic()
        processes.run(["bash", "-c", _LISTING, "bash", *self._blobs], limit=self._limit)
        return time.monotonic() - begin
