"""The workloads. Each is a function that takes a `Session`, for a stack of layers."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.session import Session
from benchmarks.trees import NAMES_POWERS

#: How often a warm phase is repeated within a mount, and after how many seconds it stops.
WARM = 5
WARM_SECONDS = 2.0


@dataclass(frozen=True)
class Workload:
    """In each round `body` runs once per contender, on a fresh mount of `stack`."""

    name: str
    what: str
    stack: str
    body: Callable[[Session], None]
    writable: bool = True
    #: The body changes the tree.
    changes: bool = True
    #: Mount with metacopy=on where the contender knows it.
    metacopy: bool = False
    #: Run it on a filesystem that can share data between files.
    reflink: bool = False
    #: Only contenders that have a daemon.
    fuse_only: bool = False
    #: Record how long mounting and unmounting took.
    mounting: bool = False


def _cold_and_warm(session: Session, command: str, *args: object) -> None:
    session.measure("cold", command, *args)
    _warm(session, command, *args)


def _warm(session: Session, command: str, *args: object) -> None:
    spent = 0.0
    for _ in range(WARM):
        spent += session.measure("warm", command, *args)
        if spent > WARM_SECONDS:
            break


def stat_walk(session: Session) -> None:
    """List every directory, stat every entry."""
    _cold_and_warm(session, "statwalk", session.mnt)


def read_all(session: Session) -> None:
    """Read every file.

    After a read from a FUSE mount that is not read-only the kernel asks once more for the file's
    attributes, because the access time may have changed. The phase `second` measures that.
    """
    session.measure("cold", "readall", session.mnt)
    session.measure("second", "readall", session.mnt)
    _warm(session, "readall", session.mnt)


def list_all(session: Session) -> None:
    """`ls -lR`, which also asks for attributes."""
    _cold_and_warm(session, "run", "ls", "-lR", session.mnt)


def look_up(session: Session) -> None:
    """stat every file by its path, in random order, without a listing first."""
    session.measure("cold", "statlist", session.layers.names("files"))


def look_up_absent(session: Session) -> None:
    """stat absent names, each several times."""
    names = session.layers.names("absent")
    session.measure("cold", "absent", names, session.sizes.absent_look_ups)


def read_parallel(session: Session) -> None:
    """Four clients share the files and read them all."""
    _cold_and_warm(session, "readparallel", session.mnt, 4)


def append(session: Session) -> None:
    """Append a line to many lower files."""
    session.measure("", "append", session.layers.names("some"))


def remove_all(session: Session) -> None:
    """`rm -rf` of everything."""
    session.measure("", "run", "sh", "-c", 'rm -rf "$0"/*', session.mnt)


def read_big(session: Session) -> None:
    """Read a big lower file from beginning to end."""
    _cold_and_warm(session, "seqread", session.mnt / "big")


def write_big(session: Session) -> None:
    """Write a new big file and fsync it."""
    session.measure("", "seqwrite", session.mnt / "new", session.sizes.big_mib)


def first_byte(session: Session) -> None:
    """Write one byte into a big lower file."""
    session.measure("", "firstbyte", session.mnt / "big")


def first_byte_by_size(session: Session) -> None:
    """Write one byte into a small and into a big lower file."""
    session.run("ls", "-l", str(session.mnt))
    session.measure("1 MiB", "firstbyte", session.mnt / "small")
    session.measure("big", "firstbyte", session.mnt / "big")


def change_mode(session: Session) -> None:
    """Change the mode of a big lower file."""
    session.measure("", "chmod", session.mnt / "big")


def untar(session: Session) -> None:
    """Unpack a tar of the tree."""
    session.measure("", "run", "tar", "-C", session.mnt, "-xf", session.layers.tarball())


def create(session: Session) -> None:
    """Make small files, then append to one of them."""
    directory = session.mnt / "new"
    session.run("mkdir", str(directory))
    session.measure("files", "create", directory, session.sizes.created)
    session.measure("writes", "smallwrites", directory / "0", session.sizes.small_writes)


def change_names(session: Session) -> None:
    """Make and remove files in directories with few, many and very many names."""
    for power in NAMES_POWERS:
        directory = session.mnt / f"{power}"
        # The first change copies the directory up and reads it.
        session.run("touch", str(directory / "first"))
        session.run("stat", str(directory))
        session.measure(f"10^{power}", "names", directory, session.sizes.name_changes)


def git_status(session: Session) -> None:
    """`git status` of a checkout."""
    _cold_and_warm(session, "run", "git", "-C", session.mnt / "lib", "status", "--porcelain")


def compile_all(session: Session) -> None:
    """Compile a Python library with all CPUs."""
    command = [sys.executable, "-m", "compileall", "-q", "-f", "-j", "0", session.mnt / "lib"]
    session.measure("", "run", "env", "-u", "PYTHONDONTWRITEBYTECODE", *command)


def random_io(session: Session) -> None:
    """Reads of 4 KiB from a lower file, writes of 4 KiB to a new one, with fsync at the end."""
    size = session.sizes.random_mib
    common = ("--bs=4k", "--invalidate=0", "--randrepeat=1", f"--io_size={size}m")
    whole = f"--size={session.sizes.big_mib}m"
    session.fio("read", *common, whole, "--rw=randread", f"--filename={session.mnt / 'big'}")
    new = session.mnt / "random"
    session.run("cp", str(session.layers.part()), str(new))
    whole = f"--size={size}m"
    session.fio("write", *common, whole, "--rw=randwrite", "--end_fsync=1", f"--filename={new}")


def mounting(session: Session) -> None:
    """Mount, ask once, unmount."""
    session.run("ls", str(session.mnt))


def known_inodes(session: Session) -> None:
    """The daemon's memory for inodes that the kernel knows."""
    # By then the process that started the daemon is gone.
    time.sleep(1)
    before = session.memory()
    session.measure("walk", "statwalk", session.mnt)
    after = session.memory()
    for key in after:
        per = (after[key] - before[key]) * 100_000 / session.sizes.known_inodes
        session.value(f"{key} per 100,000", per, "MiB")
    session.value("rss at start", before["rss"], "MiB")


def _on_trees(
    name: str, what: str, body: Callable[[Session], None], **more: bool
) -> list[Workload]:
    """The same on one layer and on forty."""
    return [
        Workload(f"{name}-{count}", f"{what}, {count} layer{'s' * (count > 1)}", f"tree{count}",
                 body, **more)
        for count in (1, 40)
    ]  # fmt: skip


def _read_only_too(name: str, what: str, body: Callable[[Session], None]) -> list[Workload]:
    read_only = _on_trees(f"{name}-ro", f"{what}, read-only", body, writable=False, changes=False)
    return read_only + _on_trees(f"{name}-rw", what, body, changes=False)


WORKLOADS = [
    *_read_only_too("stat", "stat walk", stat_walk),
    *_read_only_too("read", "read every file", read_all),
    *_on_trees("ls", "ls -lR", list_all, changes=False),
    *_on_trees("lookup", "stat of every file by its path, no listing", look_up, changes=False),
    *_on_trees("absent", "look-ups of absent names", look_up_absent, changes=False),
    *_on_trees("clients4", "four clients share the files to read", read_parallel, changes=False),
    Workload("seqread", "read a file of 512 MiB", "big", read_big, changes=False),
    Workload("seqwrite", "write a file of 512 MiB, fsync", "empty", write_big),
    Workload("untar", "untar 12,000 files", "empty", untar),
    *_on_trees("append", "append to 2,000 lower files", append),
    Workload("firstbyte", "first byte into a lower file of 512 MiB", "big", first_byte),
    Workload("firstbyte-reflink", "the same on btrfs, by size", "big", first_byte_by_size,
             reflink=True),
    Workload("chmod", "chmod of a lower file of 512 MiB", "big", change_mode),
    Workload("chmod-metacopy", "the same with metacopy=on", "big", change_mode, metacopy=True),
    *_on_trees("rm", "rm -rf of everything", remove_all),
    Workload("create", "create 1,000 files of 100 bytes; 1,000 small writes", "empty", create),
    Workload("names", "1,000 files made and removed again, by names in the directory", "names",
             change_names),
    Workload("git", "git status of Python's library", "python", git_status),
    Workload("compileall", "compile Python's library in parallel", "python", compile_all),
    Workload("fio", "random reads and writes of 4 KiB, 64 MiB", "big", random_io),
    *_on_trees("mount", "mount and unmount", mounting, changes=False, mounting=True),
    Workload("memory", "the daemon's memory per 100,000 known inodes", "many", known_inodes,
             writable=False, changes=False, fuse_only=True),
]  # fmt: skip
