"""The command line of `scripts/bench`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import largeimage, layers, plot, processes, report, runner, startup, supervise
from benchmarks.peers import OURS, PROJECT, Contender, contenders, has_native
from benchmarks.requests import Requests
from benchmarks.session import Bench
from benchmarks.trees import FULL, QUICK, Layers, Sizes
from benchmarks.workloads import WORKLOADS, Workload
from fuseoverlay.overlay.workdir import keeps_order


def parse(argv: list[str]) -> argparse.Namespace:
    """The options; a wrong command line ends the process with 2."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    add = parser.add_argument
    # fmt: off
    add("--mode", choices=("root", "userns", "user"), help="default: what you are")
    add("--workload", action="append", metavar="NAME",
        help="only this one, or all whose names begin with NAME-; repeatable")
    add("--peer", action="append", default=[], metavar="NAME=COMMAND",
        help="one more contender, run as COMMAND -o lowerdir=…,upperdir=…,workdir=… MNT, or "
             "with {lower} {upper} {work} {mnt} in COMMAND replaced; repeatable")
    add("--only", metavar="PEERS", help="only these contenders beside us, separated by commas")
    add("--containers", action="store_true",
        help="instead of the workloads: podman and buildah with fuseoverlay and fuse-overlayfs as "
             "mount programs and with kernel overlayfs: import of an image, builds of four steps, "
             "start of a container, one with dpkg, its commit; modes root and user; after a round "
             "that is not measured (not with --quick)")
    add("--images", action="store_true",
        help="instead of the workloads: pull, load, list and mount images, against podman, and "
             "skopeo with umoci; mode root")
    add("--layers", action="store_true",
        help="instead of the workloads: look into the layers of an image of 2 GB and 500,000 "
             "entries, against zcat and tar; mode root")
    add("--rounds", type=int, help="default 3 (--quick: 1)")
    add("--quick", action="store_true", help="a tenth of everything, one round")
    add("--time-limit", type=float, default=120, metavar="S", help="of each step, default 120 s")
    add("--dir", type=Path, help="where to put the layers (removed at the end), default $TMPDIR")
    add("--json", type=Path, metavar="FILE", help="write all that was measured")
    add("--plot", type=Path, metavar="FILE", help="write a picture (PNG) of the ratios")
    add("--list", action="store_true", help="list workloads and contenders, measure nothing")
    # fmt: on
    options = parser.parse_args(argv)
    own = supervise.own_mode()
    options.mode = options.mode or own
    # Root can enter the other modes, and a user a namespace; never the other way round.
    order = ("root", "user", "userns")
    if order.index(options.mode) < order.index(own):
        parser.error(f"--mode {options.mode} is not to be had from here ({own})")
    if options.containers and (options.mode == "userns" or options.workload or options.peer):
        parser.error("--containers goes with neither --mode userns, --workload nor --peer")
    for name in ("images", "layers"):
        others = {"images", "layers", "containers", "workload", "peer"} - {name}
        if getattr(options, name) and (
            options.mode != "root" or any(getattr(options, other) for other in others)
        ):
            what = "goes with --mode root alone, without --workload, --peer and others"
            parser.error(f"--{name} {what}")
    options.rounds = options.rounds or (1 if options.quick else 3)
    try:
        options.chosen = chosen_workloads(options.workload)
    except ValueError as exc:
        parser.error(str(exc))
    return options


def chosen_workloads(names: list[str] | None) -> list[Workload]:
    """The workloads of these names; `stat` stands for stat-ro-1 and so on."""
    if not names:
        return WORKLOADS
    chosen = []
    for name in names:
        found = [one for one in WORKLOADS if one.name == name]
        found = found or [one for one in WORKLOADS if one.name.startswith(f"{name}-")]
        if not found:
            raise ValueError(f"no workload {name!r}; --list names all")
        chosen += found
    return chosen


def known(options: argparse.Namespace, base: Path) -> list[Contender]:
    """All contenders, ours first."""
    if options.containers:
        # Imports the tests' store and all that it needs.
        from benchmarks.containers import DRIVERS

        return list(DRIVERS)
    if options.images:
        from benchmarks.images import TOOLS_COMPARED

        return list(TOOLS_COMPARED)
    if options.layers:
        return list(layers.TOOLS_COMPARED)
    return contenders(options.mode, base, options.peer)


def present(options: argparse.Namespace, base: Path) -> list[Contender]:
    """The contenders that can take part, ours first; those that cannot are named on stderr."""
    wanted = options.only.split(",") if options.only else None
    found = []
    for one in known(options, base):
        if wanted is not None and one.name not in (OURS, *wanted):
            continue
        why = one.missing(options.mode)
        if why is None:
            found.append(one)
        else:
            print(f"without {one.name}: {why}", file=sys.stderr)
    return found


def show_list(options: argparse.Namespace) -> None:
    """Print the workloads or steps, and the contenders."""
    does = {one.name: one.what for one in WORKLOADS}
    if options.containers:
        from benchmarks.containers import STEPS

        does = {step.name: step.what for step in STEPS}
    elif options.images:
        from benchmarks import images

        does = dict(images.STEPS)
    elif options.layers:
        does = dict(layers.STEPS)
    for name, what in does.items():
        print(f"{name:20} {what}")
    print()
    for contender in known(options, Path(tempfile.gettempdir())):
        print(f"{contender.name:20} {contender.missing(options.mode) or 'present'}")


def about(options: argparse.Namespace, base: Path, found: list[Contender]) -> dict[str, Any]:
    """Everything that the numbers depend on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": _output(
            "git", "-c", "safe.directory=*", "-C", str(PROJECT), "describe", "--always", "--dirty"
        ),
        "extension": "built" if has_native() else "not built",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "machine": f"{len(os.sched_getaffinity(0))} CPUs, {memory} GiB",
        "filesystem": _filesystem(base),
        "fuse-overlayfs": _version("fuse-overlayfs"),
        "unionfs-fuse": _version("unionfs-fuse"),
        "mode": options.mode,
        "rounds": options.rounds,
        "sizes": "quick" if options.quick else "full",
        "contenders": [one.name for one in found],
    }


def _filesystem(base: Path) -> str:
    """The type of the filesystem, and what a copy-up waits for there."""
    fd = os.open(base, os.O_RDONLY)
    try:
        waits = "data" if keeps_order(fd) else "fsync"
    finally:
        os.close(fd)
    return f"{_output('stat', '-f', '-c', '%T', str(base))}, a copy-up waits for {waits}"


def _output(*command: str) -> str:
    with contextlib.suppress(OSError):
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()
    return ""


def _version(package: str) -> str:
    return _output("dpkg-query", "-W", "-f", "${Version}", package)


@contextlib.contextmanager
def reflink_bench(bench: Bench) -> Iterator[Bench]:
    """`bench` on a btrfs image; needs root."""
    image, mnt = bench.scratch.parent / "btrfs.img", bench.scratch.parent / "btrfs"
    with _mounted(["mkfs.btrfs", "-q"], image, mnt, 4 * bench.sizes.big_mib + 512):
        (mnt / "run").mkdir()
        layers = Layers(mnt, bench.sizes)
        yield dataclasses.replace(bench, scratch=mnt / "run", layers=layers)


@contextlib.contextmanager
def in_memory(base: Path) -> Iterator[Path]:
    """A directory of an ext4 with a journal on a disk in memory; needs root. There nobody waits for
    a real disk, nor for what others wrote. And without a journal ext4 does not give the inodes of
    removed files away again for some seconds, but searches for others, file by file."""
    memory = base / "memory"
    memory.mkdir()
    processes.run(["mount", "-t", "tmpfs", "none", str(memory)], limit=60)
    try:
        argv = ["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"]
        with _mounted(argv, memory / "ext4.img", base / "disk", 8 << 10):
            yield base / "disk"
    finally:
        subprocess.run(["umount", "-l", str(memory)], check=False)


@contextlib.contextmanager
def _mounted(argv: list[str], image: Path, mnt: Path, mib: int) -> Iterator[None]:
    """A file system of this size that the command makes in `image`, at the new directory `mnt`."""
    mnt.mkdir()
    with image.open("wb") as stream:
        stream.truncate(mib << 20)
    processes.run([*argv, str(image)], limit=60)
    processes.run(["mount", "-o", "loop", str(image), str(mnt)], limit=60)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(mnt)], check=False)


def able(options: argparse.Namespace) -> tuple[list[Workload], list[Workload]]:
    """The workloads that can be run here: those on the usual filesystem, and those on one with
    reflinks."""
    lacking = {"fio": not shutil.which("fio"), "git": not shutil.which("git")}
    for name in (one.name for one in options.chosen if lacking.get(one.name)):
        print(f"without {name}: the program is not installed", file=sys.stderr)
    usual = [one for one in options.chosen if not one.reflink and not lacking.get(one.name)]
    reflink = [one for one in options.chosen if one.reflink]
    if reflink and (options.mode != "root" or not shutil.which("mkfs.btrfs")):
        print("without a filesystem with reflinks: needs root and mkfs.btrfs", file=sys.stderr)
        reflink = []
    return usual, reflink


def sizes_of(options: argparse.Namespace) -> Sizes:
    """The sizes that the options ask for."""
    return QUICK if options.quick else FULL


def bench_below(options: argparse.Namespace, base: Path) -> Bench:
    """What all sessions share, below the working directory."""
    sizes = sizes_of(options)
    for name in ("layers", "run"):
        (base / name).mkdir()
    return Bench(
        mode=options.mode,
        client=processes.build_client(base),
        scratch=base / "run",
        layers=Layers(base / "layers", sizes),
        sizes=sizes,
        requests=Requests(),
        limit=options.time_limit,
    )


def run_workloads(
    options: argparse.Namespace,
    base: Path,
    found: list[Contender],
    told: dict[str, Any],
    outcome: runner.Outcome,
) -> None:
    """Run the workloads on mounts of the layers."""
    bench = bench_below(options, base)
    usual, reflink = able(options)
    runner.run(bench, usual, found, options.rounds, outcome)
    if reflink:
        with reflink_bench(bench) as other:
            runner.run(other, reflink, found, options.rounds, outcome)
    if any(one.mounting for one in usual):
        told["until a mount answers"] = startup.measure(found[0])


def run_containers(
    options: argparse.Namespace,
    base: Path,
    found: list[Contender],
    told: dict[str, Any],
    outcome: runner.Outcome,
) -> None:
    """Run the steps with podman and buildah."""
    from benchmarks import containers

    told["podman"], told["buildah"] = _version("podman"), _version("buildah")
    containers.run(
        base,
        [one for one in found if isinstance(one, containers.Driver)],
        options.rounds,
        limit=options.time_limit,
        warm=not options.quick,
        outcome=outcome,
    )


def run_images(
    options: argparse.Namespace,
    base: Path,
    found: list[Contender],
    told: dict[str, Any],
    outcome: runner.Outcome,
) -> None:
    """Run the steps with images."""
    from benchmarks import images

    told |= {package: _version(package) for package in ("podman", "skopeo", "umoci")}
    with contextlib.ExitStack() as undo:
        if options.mode == "root":
            base = undo.enter_context(in_memory(base))
            told["filesystem"] = "ext4 in memory"
        images.run(base, found, options.rounds, limit=options.time_limit, outcome=outcome)


def run_layers(
    options: argparse.Namespace,
    base: Path,
    found: list[Contender],
    told: dict[str, Any],
    outcome: runner.Outcome,
) -> None:
    """Run the steps that look into layers."""
    told["filesystem"] = "ext4 in memory"
    with in_memory(base) as memory:
        shape = largeimage.QUICK if options.quick else largeimage.FULL
        layers.run(memory, shape, found, options.rounds, limit=options.time_limit, outcome=outcome)


def work(options: argparse.Namespace, base: Path) -> int:
    """Measure and report; after an interruption, report what was measured before it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.umask(0o022)
    found = present(options, base)
    told = about(options, base, found)
    outcome, code = runner.Outcome(), 0
    run = run_workloads
    if options.containers:
        run = run_containers
    elif options.images:
        run = run_images
    elif options.layers:
        run = run_layers
    try:
        run(options, base, found, told, outcome)
    except KeyboardInterrupt:
        print("\ninterrupted; so far:", file=sys.stderr)
        code = 130
    finally:
        if outcome.results or outcome.failures:
            text = json.dumps(report.as_json(outcome, sizes_of(options), told), indent=1)
            (base / supervise.REPORT).write_text(text + "\n")
    return code


def publish(options: argparse.Namespace, text: str) -> None:
    """Print the tables; write JSON and picture into the files that were asked for."""
    told = json.loads(text)
    print(report.as_text(told))
    if options.json:
        options.json.write_text(text)
    if options.plot and told["measures"]:
        plot.draw(told, options.plot)


def main() -> int:
    """Supervise; in the child, measure."""
    argv = sys.argv[1:]
    options = parse(argv)
    if options.list:
        # The reader of the list may close the pipe early.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        show_list(options)
        return 0
    base = os.environ.get(supervise.VARIABLE)
    try:
        if options.containers:
            from benchmarks import containers

            # Made here, since only root can, and the measuring process may not be root.
            containers.files()
        if options.images:
            from benchmarks import images

            images.check()
        if base:
            return work(options, Path(base))
    except processes.Failure as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    code, text = supervise.supervise(options.mode, options.dir, argv)
    if text is not None:
        publish(options, text)
    return code


if __name__ == "__main__":
    sys.exit(main())
