"""The contenders: how each mounts a stack of layers and unmounts it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks import processes
from benchmarks.processes import Failure
from benchmarks.trees import Stack

PROJECT = Path(__file__).resolve().parents[1]
#: The contender that the targets refer to.
REFERENCE = "fuse-overlayfs"
OURS = "fuseoverlay"
WITHOUT_NATIVE = "without-native"


@dataclass(frozen=True)
class Place:
    """The directories of one mount, below `base`; every mount gets fresh ones."""

    base: Path

    @property
    def upper(self) -> Path:
        """Takes the changes."""
        return self.base / "upper"

    @property
    def work(self) -> Path:
        """Belongs to the upper."""
        return self.base / "work"

    @property
    def empty(self) -> Path:
        """An empty lower."""
        return self.base / "empty"

    @property
    def mnt(self) -> Path:
        """The mount point."""
        return self.base / "mnt"

    def make(self) -> None:
        """Make them all."""
        for path in (self.base, self.upper, self.work, self.empty, self.mnt):
            path.mkdir()


class Contender:
    """Something that can show a stack of layers as one tree."""

    #: Whether requests can be counted, and a daemon's memory measured.
    fuse = True
    env: dict[str, str] | None = None

    def __init__(self, name: str) -> None:
        self.name = name

    def missing(self, mode: str) -> str | None:
        """Why this one cannot take part in this mode; None if it can."""
        return None

    def command(self, stack: Stack, place: Place, writable: bool, metacopy: bool) -> list[str]:
        """The command that mounts."""
        raise NotImplementedError

    def mount(
        self,
        client: Path,
        stack: Stack,
        place: Place,
        *,
        writable: bool,
        changes: bool,
        metacopy: bool,
        limit: float,
    ) -> tuple[Path, float]:
        """Mount; returns the root of the tree and the seconds until it answered.

        `changes` says whether a `writable` mount will be changed.
        """
        command = self.command(stack, place, writable, metacopy)
        argv = [str(client), "mount", str(place.mnt), *command]
        # From there relative names do: the kernel takes only one page of options.
        seconds = processes.run(argv, limit=limit, cwd=stack.lowers[0].parent, env=self.env)
        return place.mnt, float(seconds.split()[0])

    def unmount(self, client: Path, place: Place, *, limit: float) -> float:
        """Unmount as a user would; returns the seconds it took."""
        tool = ["fusermount3", "-u"] if os.geteuid() else ["umount"]
        argv = [str(client), "run", *tool, str(place.mnt)]
        seconds = float(processes.run(argv, limit=limit).split()[0])
        processes.wait_for_users_of(place.mnt, limit)
        return seconds

    def drop(self, place: Place) -> None:
        """Get rid of a mount in any state."""
        tool = ["fusermount3", "-u", "-z"] if os.geteuid() else ["umount", "-l"]
        if processes.mounted_at(place.mnt):
            with contextlib.suppress(Failure):
                processes.run([*tool, str(place.mnt)], limit=20)
            processes.wait_for_users_of(place.mnt, 2)
        processes.kill_users_of(place.mnt)


class Raw(Contender):
    """The plain directory, without any overlay; a copy of it if the workload makes changes."""

    fuse = False

    def mount(
        self,
        client: Path,
        stack: Stack,
        place: Place,
        *,
        writable: bool,
        changes: bool,
        metacopy: bool,
        limit: float,
    ) -> tuple[Path, float]:
        """Nothing is mounted."""
        if not changes:
            return stack.flat, 0.0
        processes.run(["cp", "-a", f"{stack.flat}/.", str(place.mnt)], limit=limit)
        return place.mnt, 0.0

    def unmount(self, client: Path, place: Place, *, limit: float) -> float:
        """Nothing is mounted."""
        return 0.0

    def drop(self, place: Place) -> None:
        """Nothing is mounted."""


class Kernel(Contender):
    """The kernel's overlayfs."""

    fuse = False

    def __init__(self, name: str, mode: str) -> None:
        super().__init__(name)
        self.mode = mode

    def missing(self, mode: str) -> str | None:
        """A plain user may not mount it."""
        if mode == "user":
            return "a plain user cannot mount it"
        if b"\toverlay\n" not in Path("/proc/filesystems").read_bytes():
            with contextlib.suppress(OSError):
                subprocess.run(["modprobe", "overlay"], check=False, capture_output=True)
            if b"\toverlay\n" not in Path("/proc/filesystems").read_bytes():
                return "this kernel has none"
        return None

    def command(self, stack: Stack, place: Place, writable: bool, metacopy: bool) -> list[str]:
        """mount(8)."""
        options = "lowerdir=" + ":".join(path.name for path in stack.lowers)
        if writable:
            options += f",upperdir={place.upper},workdir={place.work}"
        elif len(stack.lowers) == 1:
            # Without an upper it wants two lower directories.
            options += f":{place.empty}"
        if self.mode == "userns":
            options += ",userxattr"
        elif metacopy:
            options += ",metacopy=on"
        return ["mount", "-i", "-t", "overlay", "overlay", "-o", options, str(place.mnt)]


class Overlay(Contender):
    """A program that takes overlay options: `COMMAND -o lowerdir=… MNT`."""

    def __init__(self, name: str, program: list[str], env: dict[str, str] | None = None) -> None:
        super().__init__(name)
        self.program = program
        self.env = {**os.environ, **env} if env else None
        self.knows_metacopy = False

    def missing(self, mode: str) -> str | None:
        """The program has to be there."""
        return None if shutil.which(self.program[0]) else f"{self.program[0]}: not found"

    def command(self, stack: Stack, place: Place, writable: bool, metacopy: bool) -> list[str]:
        """The program, or the template of words with {lower} {upper} {work} {mnt}."""
        lower = ":".join(str(path) for path in stack.lowers)
        if any("{mnt}" in word for word in self.program):
            places = {"upper": place.upper, "work": place.work, "mnt": place.mnt}
            return [word.format(lower=lower, **places) for word in self.program]
        options = f"lowerdir={lower}"
        if writable:
            options += f",upperdir={place.upper},workdir={place.work}"
        if metacopy and self.knows_metacopy:
            options += ",metacopy=on"
        return [*self.program, "-o", options, str(place.mnt)]


class WithoutNative(Overlay):
    """This checkout without its extension."""

    def missing(self, mode: str) -> str | None:
        """If the extension is not built, this contender would be the same as ours."""
        return None if has_native() else "the extension is not built"


class Unionfs(Overlay):
    """unionfs-fuse, which does not know the others' whiteouts and shows them as files."""

    def command(self, stack: Stack, place: Place, writable: bool, metacopy: bool) -> list[str]:
        """Its own syntax."""
        branches = [f"{place.upper}=RW"] if writable else []
        branches += [f"{path}=RO" for path in stack.lowers]
        return [*self.program, "-o", "cow", ":".join(branches), str(place.mnt)]


def has_native() -> bool:
    """Whether this checkout has its extension."""
    return importlib.util.find_spec("fuseoverlay.native._native") is not None


def ours(kind: type[Overlay], name: str, base: Path, **env: str) -> Overlay:
    """This checkout. Its compiled Python code is kept, below `base`, as in an installation,
    whatever the caller's environment says."""
    compiled = {"PYTHONPYCACHEPREFIX": str(base / "pycache"), "PYTHONDONTWRITEBYTECODE": ""}
    environment = {"PYTHONPATH": str(PROJECT), **compiled, **env}
    contender = kind(name, [sys.executable, "-m", "fuseoverlay", "mount"], environment)
    contender.knows_metacopy = True
    return contender


def contenders(mode: str, base: Path, more: list[str]) -> list[Contender]:
    """All contenders, ours first; `more` are NAME=COMMAND."""
    found: list[Contender] = [
        ours(Overlay, OURS, base),
        ours(WithoutNative, WITHOUT_NATIVE, base, FUSEOVERLAY_NATIVE="0"),
        Overlay(REFERENCE, ["fuse-overlayfs"]),
        Unionfs("unionfs-fuse", ["unionfs"]),
        Kernel("kernel", mode),
        Raw("raw"),
    ]
    for text in more:
        name, _, command = text.partition("=")
        found.insert(-2, Overlay(name, shlex.split(command)))
    return found
