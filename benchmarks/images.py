"""`scripts/bench --images`: getting images from a registry and from archives, listing and mounting
them, against podman, and skopeo with umoci.

Each contender begins every step with an empty store; what others left to be written to disk is
written before.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import link, processes
from benchmarks.peers import OURS, PROJECT, Contender
from benchmarks.processes import Failure
from benchmarks.runner import Outcome
from benchmarks.session import Samples
from fuseoverlay.oci.layout import LayoutWriter, Node, layer_tar
from fuseoverlay.oci.model import OCI_MANIFEST, REF_NAME, needed
from tests.clients import store as clients
from tests.clients.store import Store
from tests.helpers.layouts import layer_blobs
from tests.images import build
from tests.registry.daemon import TOOLS, Daemon

UMOCI: Final = "umoci"
PODMAN: Final = "podman"
CURL: Final = "curl"
#: Debian's tree in so many layers.
LAYERS: Final = (1, 12, 60)
_LISTED: Final = 200
_LARGE: Final = 160 << 20
#: MB/s of the slow link.
_SLOW: Final = 10
_NAME: Final = "localhost/image:1"
#: Runs a command and prints its peak of resident memory, in KiB.
_PEAK: Final = """\
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""

#: What each step is, without its prefix.
STEPS: Final = {
    "pull-12": "Debian in 12 layers, from a registry on this machine; umoci: skopeo copy first",
    **{f"load-{count}": f"Debian in {count} layers, from an OCI archive; umoci: from a layout"
       for count in LAYERS},
    "slow-pull": f"Debian in 12 layers, over a link of {_SLOW} MB/s; curl: its blobs, 4 at a time",
    "ls-200": "a list of 200 images",
    "mount": "until the mount of an image of 12 layers that is there answers",
    "memory": "resident memory of a pull of a layer of 160 MB",
}  # fmt: skip


class Tool(Contender):
    """What keeps images."""

    def missing(self, mode: str) -> str | None:
        """The programs have to be there."""
        programs = {UMOCI: ("skopeo", "umoci"), PODMAN: ("podman",), CURL: link.TOOLS}
        lacking = (name for name in programs.get(self.name, ()) if not shutil.which(name))
        return next((f"{name} not found" for name in lacking), None)


TOOLS_COMPARED: Final = (Tool(OURS), Tool(UMOCI), Tool(PODMAN), Tool(CURL))


@dataclass(frozen=True)
class Files:
    """The images: layouts and archives of Debian by number of layers; one with a large layer."""

    layouts: dict[int, Path]
    archives: dict[int, Path]
    large: Path


def check() -> None:
    """Raise `Failure` if something is missing. Builds the tests' real image if there is none."""
    lacking = clients.missing() or next((one for one in TOOLS if not shutil.which(one)), None)
    if lacking is not None:
        raise Failure(f"missing: {lacking}")
    try:
        build.ensure()
    except (build.MissingTool, RuntimeError) as exc:
        raise Failure(f"missing: {exc}") from None


def run(base: Path, tools: list[Contender], rounds: int, *, limit: float, outcome: Outcome) -> None:
    """Fill `outcome`, with the tools in turn."""
    sys.stderr.write("making the images\n")
    files = _files(base)
    (base / "registry").mkdir()
    with contextlib.ExitStack() as undo:
        registry = undo.enter_context(Daemon(base / "registry"))
        registry.push(Path(f"{files.layouts[12]}:1"), "debian:12")
        registry.push(Path(f"{files.large}:1"), "large:1")
        bench = _Bench(base, files, registry.host, limit, outcome)
        if any(tool.name == CURL for tool in tools):
            bench.other_end = undo.enter_context(link.link(_SLOW))
            (base / "far").mkdir()
            far = undo.enter_context(Daemon(base / "far", address=link.HERE))
            far.push(Path(f"{files.layouts[12]}:1"), "debian:12")
            bench.far = far.host
        if any(tool.name == PODMAN for tool in tools):
            (base / "podman").mkdir()
            bench.podman = undo.enter_context(Store(base / "podman", "kernel"))
        for turn in range(rounds):
            sys.stderr.write(f"[{turn + 1}/{rounds}] images: ")
            start = turn % len(tools)
            for tool in tools[start:] + tools[:start]:
                bench.round(tool.name)
            sys.stderr.write("\n")


class _Bench:
    """What the steps share."""

    def __init__(self, base: Path, files: Files, host: str, limit: float, outcome: Outcome) -> None:
        self._base, self._files, self._host = base, files, host
        self._limit, self._outcome = limit, outcome
        self.podman: Store | None = None
        #: What runs a command on the other end of the slow link, and the registry on this end.
        self.other_end: list[str] = []
        self.far = ""
        self._env = {
            **os.environ,
            "FUSEOVERLAY_ROOT": str(base / "ours"),
            "PYTHONPATH": str(PROJECT),
        }

    def round(self, tool: str) -> None:
        """All steps of one contender."""
        steps: dict[str, Callable[[], float]] = {}
        if self.other_end and tool in (OURS, CURL):
            steps["slow-pull"] = self._slow_pull if tool == OURS else self._download
        if tool != CURL:
            steps["pull-12"] = lambda: self._pull(tool)
            for count in LAYERS:
                steps[f"load-{count}"] = lambda count=count: self._load(tool, count)  # type: ignore[misc]
        if tool == OURS:
            steps |= {"ls-200": self._ls, "mount": self._mount, "memory": self._memory}
        for name, step in steps.items():
            if any((f"images/{name}", tool) == one[:2] for one in self._outcome.failures):
                continue
            sys.stderr.write(".")
            sys.stderr.flush()
            try:
                self._clear(tool)
                value = step()
            except (AssertionError, Failure, OSError, subprocess.SubprocessError) as exc:
                why = (str(exc).splitlines() or [type(exc).__name__])[-1]
                self._outcome.failures.append((f"images/{name}", tool, why))
                continue
            unit = "MiB" if name == "memory" else "s"
            row = self._outcome.results.setdefault(f"images/{name}", {})
            row.setdefault(tool, Samples(unit=unit)).values.append(value)
        self._clear(tool)

    def _clear(self, tool: str) -> None:
        if tool == PODMAN:
            assert self.podman is not None
            self.podman.podman("rmi", "--all", "--force")
        for name in ("ours", "umoci", "layout"):
            if (self._base / name).exists():
                processes.run(["rm", "-rf", str(self._base / name)], limit=self._limit)
        subprocess.run(["sync", "-f", str(self._base)], check=True)

    def _ours(self, *words: str, before: Sequence[str] = ()) -> float:
        begin = time.monotonic()
        argv = [*before, sys.executable, "-P", "-m", "fuseoverlay", *words]
        processes.run(argv, limit=self._limit, env=self._env)
        return time.monotonic() - begin

    def _podman(self, *words: str) -> float:
        assert self.podman is not None
        begin = time.monotonic()
        self.podman.run("podman", *words, timeout=self._limit)
        return time.monotonic() - begin

    def _unpack(self, layout: Path) -> float:
        begin = time.monotonic()
        argv = ["umoci", "unpack", "--image", f"{layout}:1", str(self._base / "umoci")]
        processes.run(argv, limit=self._limit)
        return time.monotonic() - begin

    def _pull(self, tool: str) -> float:
        name = f"{self._host}/debian:12"
        if tool == OURS:
            return self._ours("pull", "-q", name)
        if tool == PODMAN:
            return self._podman("pull", "-q", "--tls-verify=false", f"docker://{name}")
        layout = self._base / "layout"
        begin = time.monotonic()
        argv = ["skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false"]
        processes.run([*argv, f"docker://{name}", f"oci:{layout}:1"], limit=self._limit)
        return time.monotonic() - begin + self._unpack(layout)

    def _slow_pull(self) -> float:
        words = ["pull", "-q", "--tls-verify=false", f"{self.far}/debian:12"]
        return self._ours(*words, before=self.other_end)

    def _download(self) -> float:
        """The manifest, and all that it names, without keeping any of it."""
        url = f"http://{self.far}/v2/debian"
        begin = time.monotonic()
        curl = [*self.other_end, "curl", "-sSf", "-H", f"Accept: {OCI_MANIFEST}"]
        said = processes.run([*curl, f"{url}/manifests/12"], limit=self._limit)
        blobs = [f"{url}/blobs/{blob.digest}" for blob in needed(json.loads(said))]
        argv = [*self.other_end, "curl", "-sSf", "--parallel", "--parallel-max", "4"]
        for blob in blobs:
            argv += ["-o", "/dev/null", blob]
        processes.run(argv, limit=self._limit)
        return time.monotonic() - begin

    def _load(self, tool: str, count: int) -> float:
        if tool == UMOCI:
            return self._unpack(self._files.layouts[count])
        words = ("load", "-q", "-i", str(self._files.archives[count]))
        return self._ours(*words) if tool == OURS else self._podman(*words)

    def _ls(self) -> float:
        root = self._base / "ours"
        self._ours("images")
        writer = LayoutWriter(self._base / "listed")
        layer = writer.add_layer(layer_tar([Node("file")]))
        with contextlib.suppress(FileNotFoundError):
            (root / "index.json").unlink()
        # Each has a config of its own, since its layers are others.
        entries = []
        for number in range(_LISTED):
            other = writer.add_layer(layer_tar([Node(f"file-{number}")]))
            entry = writer.add_image([layer, other]).to_json()
            entries.append({**entry, "annotations": {REF_NAME: f"localhost/image:{number}"}})
        shutil.copytree(writer.path / "blobs", root / "blobs", dirs_exist_ok=True)
        index = {"schemaVersion": 2, "manifests": entries}
        (root / "index.json").write_text(json.dumps(index))
        shutil.rmtree(writer.path)
        self._ours("images")
        return self._ours("images")

    def _mount(self) -> float:
        mnt = self._base / "mnt"
        mnt.mkdir(exist_ok=True)
        self._ours("pull", "-q", f"{self._host}/debian:12")
        seconds = 0.0
        # The first time modules may have to be compiled.
        for _ in range(2):
            seconds = self._ours("mount", f"{self._host}/debian:12", str(mnt))
            os.listdir(mnt)
            self._ours("unmount", str(mnt))
        return seconds

    def _memory(self) -> float:
        """The peak of the process, in MiB."""
        argv = [sys.executable, "-P", "-m", "fuseoverlay", "pull", "-q", f"{self._host}/large:1"]
        # The peak of a child counts from before its exec, when it still is a copy of us.
        small = [sys.executable, "-S", "-E", "-c", _PEAK]
        said = processes.run([*small, *argv], limit=self._limit, env=self._env)
        return int(said.split()[-1]) / 1024


def _files(base: Path) -> Files:
    debian = layer_blobs(build.ensure() / "oci-plain")[0]
    layouts, archives = {}, {}
    for count in LAYERS:
        writer = LayoutWriter(base / f"debian-{count}")
        layers = [writer.add_layer(part, "gzip") for part in divided(debian, count)]
        writer.add_image(layers, ref="1")
        layouts[count] = writer.path
        archives[count] = base / f"debian-{count}.tar"
        target = f"oci-archive:{archives[count]}:{_NAME}"
        argv = ["skopeo", "--insecure-policy", "copy", "-q", f"oci:{writer.path}:1", target]
        processes.run(argv, limit=300)
    writer = LayoutWriter(base / "large")
    data = layer_tar([Node("large", data=os.urandom(_LARGE))])
    writer.add_image([writer.add_layer(data)], ref="1")
    return Files(layouts, archives, writer.path)


def divided(plain: Path, count: int) -> Iterator[bytes]:
    """The tree in a tar archive as that many, about equally large; without hard links, whose other
    name might be in another one."""
    with tarfile.open(plain) as source:
        members = [member for member in source if not member.islnk()]
        left = sum(member.size + tarfile.BLOCKSIZE for member in members)
        for others in reversed(range(count)):
            share, made, taken = left / (others + 1), io.BytesIO(), 0
            with tarfile.open(fileobj=made, mode="w") as target:
                # Each of the others gets one at least, and the last one all that is left.
                while len(members) > others and (not (others and taken) or target.offset < share):
                    member = members.pop(0)
                    taken += 1
                    left -= member.size + tarfile.BLOCKSIZE
                    target.addfile(member, source.extractfile(member) if member.isreg() else None)
            yield made.getvalue()
