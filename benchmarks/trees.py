"""The layers for the benchmarks: deterministic, below one directory, each made when first used.

A `Stack` is a list of lower directories and a plain directory that equals their merged view, which
is what the contender `raw` works on.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

MIB = 1 << 20
LAYERS = 40
#: Powers of ten: how many names the directories of the stack `names` have.
NAMES_POWERS = (2, 4, 6)


@dataclass(frozen=True)
class Stack:
    """Lower directories from top to bottom, and the same as one plain directory."""

    lowers: tuple[Path, ...]
    flat: Path


@dataclass(frozen=True)
class Sizes:
    """How much there is to do; `QUICK` is for a first look and for tests."""

    files: int = 12_000
    absent_names: int = 5_000
    absent_look_ups: int = 20_000
    appended: int = 2_000
    created: int = 1_000
    small_writes: int = 1_000
    big_mib: int = 512
    random_mib: int = 64
    known_inodes: int = 100_000
    most_names: int = 1_000_000
    name_changes: int = 1_000


FULL = Sizes()
QUICK = Sizes(
    files=1_200,
    absent_names=500,
    absent_look_ups=2_000,
    appended=200,
    created=100,
    small_writes=100,
    big_mib=32,
    random_mib=4,
    known_inodes=10_000,
    most_names=10_000,
    name_changes=100,
)


class Tree:
    """The plan of a tree like a root filesystem: paths, sizes and layers.

    Some 17 files per directory; directories up to six deep; files of 0.5 to 20 kB, a few up to 100
    kB; one symbolic link for every 20 files.
    """

    def __init__(self, files: int) -> None:
        dice = random.Random(20)
        self.directories = self._directories(dice, max(4, files // 17))
        self.files: dict[str, int] = {}
        self.links: dict[str, str] = {}
        #: Which of the 40 layers have a part in each directory: between 1 and 30.
        self.homes = {
            name: dice.sample(range(LAYERS), dice.choice((1, 2, 4, 8, 16, 30)))
            for name in self.directories
        }
        for number in range(files):
            parent = dice.choice(self.directories)
            size = min(100_000, max(200, int(dice.lognormvariate(8.2, 1.1))))
            self.files[f"{parent}/lib{number:05}.so"] = size
            if number % 20 == 0:
                self.links[f"{parent}/lib{number:05}"] = f"lib{number:05}.so"

    @staticmethod
    def _directories(dice: random.Random, count: int) -> list[str]:
        names = ["etc", "usr", "var", "opt"]
        while len(names) < count:
            parent = dice.choice(names)
            if parent.count("/") < 5:
                names.append(f"{parent}/d{len(names):03}")
        return names


class Layers:
    """All stacks, below `base`."""

    def __init__(self, base: Path, sizes: Sizes) -> None:
        self.base, self.sizes = base, sizes
        self._made: dict[str, Stack] = {}

    @cached_property
    def tree(self) -> Tree:
        """What the stacks `tree1` and `tree40` show."""
        return Tree(self.sizes.files)

    def stack(self, name: str) -> Stack:
        """The stack of this name: tree1, tree40, big, empty, python, many or names."""
        if name not in self._made:
            makers: dict[str, Callable[[], Stack]] = {
                "tree1": self._tree1,
                "tree40": self._tree40,
                "big": lambda: self._single("big", self._fill_big),
                "empty": lambda: self._single("empty", lambda path: None),
                "python": lambda: self._single("python", _fill_python),
                "many": lambda: self._single("many", self._fill_many),
                "names": lambda: self._single("names", self._fill_names),
            }
            self._made[name] = makers[name]()
            # No data that was just written may go to the disk while something is measured.
            subprocess.run(["sync", "-f", str(self.base)], check=True)
        return self._made[name]

    def _single(self, name: str, fill: Callable[[Path], None]) -> Stack:
        path = self.base / name
        path.mkdir()
        fill(path)
        return Stack((path,), path)

    def _tree1(self) -> Stack:
        return self._single("tree1", self._fill_tree)

    def _fill_tree(self, path: Path) -> None:
        for name in self.tree.directories:
            os.makedirs(path / name, exist_ok=True)
        for number, (name, size) in enumerate(self.tree.files.items()):
            _write(path / name, number, size)
        for name, target in self.tree.links.items():
            os.symlink(target, path / name)

    def _tree40(self) -> Stack:
        """The same tree over 40 layers, with files that upper layers replace or delete."""
        flat = self.stack("tree1").flat
        # Short names: the options of a kernel mount must fit a page.
        lowers = tuple(self.base / "tree40" / f"{number}" for number in range(LAYERS))
        for path in lowers:
            path.mkdir(parents=True)
        dice = random.Random(40)
        for name in self.tree.directories:
            for home in self.tree.homes[name]:
                os.makedirs(lowers[home] / name, exist_ok=True)
        for number, (name, size) in enumerate(self.tree.files.items()):
            homes = self.tree.homes[os.path.dirname(name)]
            home = dice.choice(homes)
            _write(lowers[home] / name, number, size)
            link = name.removesuffix(".so")
            if link in self.tree.links:
                os.symlink(self.tree.links[link], lowers[home] / link)
            below = [other for other in homes if other > home]
            if below and number % 16 == 0:
                _write(lowers[dice.choice(below)] / name, -1, 1000)
            if below and number % 50 == 0:
                _write(lowers[below[0]] / f"{name}.old", -1, 1000)
                os.mknod(lowers[home] / f"{name}.old", stat.S_IFCHR, os.makedev(0, 0))
        return Stack(lowers, flat)

    def _fill_big(self, path: Path) -> None:
        _fill_file(path / "big", self.sizes.big_mib)
        _fill_file(path / "small", 1)

    def _fill_many(self, path: Path) -> None:
        for number in range(self.sizes.known_inodes):
            if number % 1000 == 0:
                parent = path / f"{number // 1000}"
                parent.mkdir()
            os.close(os.open(parent / f"{number}", os.O_CREAT | os.O_WRONLY, 0o644))

    def _fill_names(self, path: Path) -> None:
        """Directories with many names of few files: ext4 allows a file some 65,000 names."""
        for power in NAMES_POWERS:
            parent = path / f"{power}"
            parent.mkdir()
            for number in range(min(10**power, self.sizes.most_names)):
                if number % 50_000 == 0:
                    first = parent / f"name{number}"
                    first.touch()
                else:
                    os.link(first, parent / f"name{number}")

    def tarball(self) -> Path:
        """The tree as a tar file."""
        path = self.base / "tree.tar"
        if not path.exists():
            flat = self.stack("tree1").flat
            subprocess.run(["tar", "-C", str(flat), "-cf", str(path), "."], check=True)
        return path

    def part(self) -> Path:
        """A file for random writes."""
        path = self.base / "random"
        if not path.exists():
            _fill_file(path, self.sizes.random_mib)
        return path

    def names(self, kind: str) -> Path:
        """A file with one path per line: all `files`, `absent` ones, or `some` to append to."""
        path = self.base / f"names-{kind}"
        if not path.exists():
            path.write_text("".join(f"{name}\n" for name in self._names(kind)))
        return path

    def _names(self, kind: str) -> list[str]:
        files = list(self.tree.files)
        random.Random(5).shuffle(files)
        if kind == "files":
            return files
        if kind == "some":
            return files[: self.sizes.appended]
        parents = self.tree.directories
        count = self.sizes.absent_names
        return [f"{parents[number % len(parents)]}/no{number}" for number in range(count)]


def _write(path: Path, number: int, size: int) -> None:
    line = b"%d: what a file of a root filesystem holds\n" % number
    path.write_bytes((line * (size // len(line) + 1))[:size])


def _fill_file(path: Path, mib: int) -> None:
    block = random.Random(mib).randbytes(MIB)
    with path.open("wb") as stream:
        for _ in range(mib):
            stream.write(block)


def _fill_python(path: Path) -> None:
    """Python's standard library as a git checkout: some 1,500 files that every machine has."""
    source, skip = sysconfig.get_path("stdlib"), ("__pycache__", "site-packages", "test*", "*.so")
    tree = path / "lib"
    skipped = shutil.ignore_patterns(*skip, "dist-packages", "config-*", "idlelib", "lib2to3")
    shutil.copytree(source, tree, ignore=skipped, symlinks=True)
    for command in (
        ["init", "-q"],
        # An overlay shows other change times and inode numbers than the layer has.
        ["config", "core.checkStat", "minimal"],
        ["config", "core.trustctime", "false"],
        ["add", "-A"],
        ["-c", "user.name=b", "-c", "user.email=b", "commit", "-q", "-m", "all"],
    ):
        subprocess.run(["git", "-C", str(tree), *command], check=True, stdin=subprocess.DEVNULL)
