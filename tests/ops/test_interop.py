"""fuseoverlay and kernel overlayfs side by side: same answers, same tree, same upper.

A random walk of operations runs on both, on equal layers; then each reads the other's upper.
Operations that differ by choice are left out (see `DIFFERENCES`).
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuseoverlay.system.syscalls import AT_FDCWD, RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2
from tests.helpers.mounts import (
    IMPL,
    MODE,
    Space,
    is_opaque,
    is_whiteout,
    make_whiteout,
    scratch,
    set_overlay_xattr,
)
from tests.helpers.tree import Tree, compare, record

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(MODE == "user", reason="a plain user cannot mount kernel overlayfs"),
    pytest.mark.skipif(IMPL == "kernel", reason="mounts both"),
]

STEPS = 400
#: The number of walks; the long run has more.
SEEDS = range(200 if os.environ.get("FUSEOVERLAY_LONG") else 6)
TURNS = range(1000, 1040 if os.environ.get("FUSEOVERLAY_LONG") else 1003)
NAMES = ("a", "b", "c", "d", "e")
#: Not compared, since the two run at different times.
CLOCK = {"mtime_ns"}


def _layers(space: Space) -> None:
    """Three lowers in which each name is a different kind of object."""
    middle, bottom = space.add_lower(), space.add_lower()
    for layer, text in ((bottom, b"bottom"), (middle, b"middle")):
        for name in NAMES[:3]:
            (layer / name / "a" / "b").mkdir(parents=True)
            (layer / name / "a" / "c").write_bytes(text)
            (layer / name / f"only-{text.decode()}").write_bytes(text)
        (layer / "d").write_bytes(text)
        os.symlink("d", layer / "e")
    shutil.rmtree(middle / "b" / "a")
    make_whiteout(middle / "b" / "a")
    set_overlay_xattr(middle / "c", "opaque", b"y")
    (space.lower / "a").mkdir()
    (space.lower / "a" / "b").write_bytes(b"top")
    make_whiteout(space.lower / "e")
    os.setxattr(space.lower / "a" / "b", "user.x", b"y")


Step = tuple[str, Callable[[Path], object]]


def _write(path: Path, data: bytes, flags: int) -> None:
    # Not blocking: it may be a fifo.
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | flags, 0o644)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _rename(old: Path, new: Path, flags: int) -> None:
    renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)


def _remove(path: Path) -> None:
    if stat.S_ISDIR(os.lstat(path).st_mode):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _walk(seed: int) -> Iterator[Step]:
    """The steps, as (description, what to do in a mount)."""
    rng = random.Random(seed)

    def some_path() -> str:
        return "/".join(rng.choices(NAMES, k=rng.choice((1, 1, 2, 2, 3))))

    for index in range(STEPS):
        one, two = some_path(), some_path()
        data, mode = b"%d" % index, rng.choice((0o700, 0o755))
        choices: list[Step] = [
            (f"create {one}", lambda mnt, one=one, data=data: _write(
                mnt / one, data, os.O_CREAT | os.O_EXCL)),
            (f"write {one}", lambda mnt, one=one, data=data: _write(mnt / one, data, 0)),
            (f"append {one}", lambda mnt, one=one, data=data: _write(
                mnt / one, data, os.O_APPEND | os.O_CREAT)),
            (f"replace {one}", lambda mnt, one=one, data=data: _write(
                mnt / one, data, os.O_TRUNC)),
            (f"truncate {one}", lambda mnt, one=one: os.truncate(mnt / one, 2)),
            (f"mkdir {one}", lambda mnt, one=one: os.mkdir(mnt / one)),
            (f"mkdir {two}", lambda mnt, two=two: os.mkdir(mnt / two)),
            (f"symlink {one}", lambda mnt, one=one: os.symlink("a", mnt / one)),
            (f"mkfifo {one}", lambda mnt, one=one: os.mkfifo(mnt / one)),
            (f"unlink {one}", lambda mnt, one=one: os.unlink(mnt / one)),
            (f"rmdir {one}", lambda mnt, one=one: os.rmdir(mnt / one)),
            (f"remove {one}", lambda mnt, one=one: _remove(mnt / one)),
            (f"rename {one} {two}", lambda mnt, one=one, two=two: os.rename(
                mnt / one, mnt / two)),
            (f"rename {two} {one}", lambda mnt, one=one, two=two: os.rename(
                mnt / two, mnt / one)),
            (f"noreplace {one} {two}", lambda mnt, one=one, two=two: _rename(
                mnt / one, mnt / two, RENAME_NOREPLACE)),
            (f"exchange {one} {two}", lambda mnt, one=one, two=two: _rename(
                mnt / one, mnt / two, RENAME_EXCHANGE)),
            (f"chmod {one}", lambda mnt, one=one, mode=mode: os.chmod(
                mnt / one, mode)),
            (f"setxattr {one}", lambda mnt, one=one, data=data: os.setxattr(
                mnt / one, "user.x", data)),
            (f"removexattr {one}", lambda mnt, one=one: os.removexattr(mnt / one, "user.x")),
            (f"listdir {one}", lambda mnt, one=one: sorted(os.listdir(mnt / one))),
            (f"read {one}", lambda mnt, one=one: _read(mnt / one)),
        ]  # fmt: skip
        if MODE == "root":  # hard links of lower files need file handles in the kernel
            choices.append(
                (f"link {one} {two}", lambda mnt, one=one, two=two: os.link(
                    mnt / one, mnt / two, follow_symlinks=False))
            )  # fmt: skip
        yield rng.choice(choices)


def _read(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(fd, 1000)
    finally:
        os.close(fd)


def _result(step: Callable[[Path], object], mnt: Path) -> object:
    """What a program gets: the result or the errno."""
    try:
        return step(mnt)
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, exc.errno)


def _upper(space: Space) -> dict[str, tuple]:
    """The upper as both must leave it: objects, whiteouts and opaque marks, no private bookkeeping.

    Opaque marks over nothing are left out: the kernel sometimes makes one.
    """
    found: dict[str, tuple] = {}
    for path in sorted(space.upper.rglob("*")):
        name = str(path.relative_to(space.upper))
        st = os.lstat(path)
        if is_whiteout(path):
            found[name] = ("whiteout",)
        elif stat.S_ISDIR(st.st_mode):
            opaque = is_opaque(path) and _directory_below(space, name)
            found[name] = ("dir", stat.S_IMODE(st.st_mode), opaque)
        elif stat.S_ISLNK(st.st_mode):
            found[name] = ("link", os.readlink(path))
        elif stat.S_ISREG(st.st_mode):
            found[name] = ("file", stat.S_IMODE(st.st_mode), path.read_bytes())
        else:
            found[name] = (stat.S_IFMT(st.st_mode),)
    return found


def _directory_below(space: Space, name: str) -> bool:
    """Whether the topmost lower that has the name has a directory there."""
    for lower in space.lowers:
        if os.path.lexists(lower / name):
            return stat.S_ISDIR(os.lstat(lower / name).st_mode)
    return False


def _mount_each(spaces: list[Space]) -> tuple[Path, Path]:
    return spaces[0].mount(impl="fuse"), spaces[1].mount(impl="kernel")


@pytest.fixture
def pair() -> Iterator[list[Space]]:
    """Two spaces with equal layers: the first for fuseoverlay, the second for the kernel."""
    with scratch() as base:
        spaces = []
        for name in ("fuse", "kernel"):
            (base / name).mkdir()
            space = Space(base / name)
            _layers(space)
            spaces.append(space)
        try:
            yield spaces
        finally:
            for space in spaces:
                space.drop()


#: Sets of features, each with the kernel as the reference. In a user namespace the
#: kernel has none of them.
FEATURES = {
    "plain": (),
    "redirect": ("redirect_dir=on",),
    "all": ("redirect_dir=on", "metacopy=on", "index=on"),
}
features = pytest.mark.parametrize("features", FEATURES if MODE == "root" else ["plain"])


def _enable(spaces: list[Space], features: str) -> None:
    for space in spaces:
        space.features = FEATURES[features]


@features
@pytest.mark.parametrize("seed", SEEDS)
def test_same_answers_same_tree_same_upper(pair: list[Space], seed: int, features: str) -> None:
    ours, theirs = pair
    _enable(pair, features)
    mnt, reference = _mount_each(pair)
    before = ours.evidence()
    assert compare(record(str(reference)), record(str(mnt)), ignore=CLOCK) == []
    done: list[str] = []
    for what, step in _walk(seed):
        expected, got = _result(step, reference), _result(step, mnt)
        done.append(f"{what}: {expected}")
        assert got == expected, "\n".join([*done[-15:], f"fuseoverlay: {got}"])
    tree: Tree = record(str(mnt))
    assert compare(record(str(reference)), tree, ignore=CLOCK) == []
    ours.unmount()
    theirs.unmount()
    ours.check_lowers(before)
    assert _upper(ours) == _upper(theirs)
    # Crosswise: the kernel reads our upper, we read the kernel's.
    ours.mount(impl="kernel")
    assert compare(tree, record(str(ours.mnt))) == []
    theirs.mount(impl="fuse")
    assert compare(record(str(ours.mnt)), record(str(theirs.mnt)), ignore=CLOCK) == []


@features
@pytest.mark.parametrize("seed", TURNS)
def test_taking_turns_on_one_upper(pair: list[Space], seed: int, features: str) -> None:
    """Kernel, we, kernel, we ... on the same upper; beside it the kernel alone."""
    ours, theirs = pair
    _enable(pair, features)
    theirs.mount(impl="kernel")
    steps = list(_walk(seed))
    for turn in range(4):
        impl = "kernel" if turn % 2 else "fuse"
        ours.mount(impl=impl)
        done: list[str] = []
        for what, step in steps[turn * 100 : turn * 100 + 100]:
            expected, got = _result(step, theirs.mnt), _result(step, ours.mnt)
            done.append(f"{what}: {expected}")
            assert got == expected, "\n".join([impl, *done[-15:], f"got: {got}"])
        trees = record(str(theirs.mnt)), record(str(ours.mnt))
        assert compare(*trees, ignore=CLOCK) == []
        ours.unmount()
