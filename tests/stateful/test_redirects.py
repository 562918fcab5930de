"""Random layers full of redirects, as fuseoverlay and as kernel overlayfs show them.

Layers are only read, so one mount of each has many areas: directories of the root with a tree
each, whose redirects lead to other places of the same tree. What a program sees of an area must be
the same in both, errno included. Named cases are in `tests/ops/test_redirects.py`.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from pathlib import Path

import pytest

from tests.helpers.mounts import IMPL, Space, make_whiteout, root_only, scratch, set_overlay_xattr

pytestmark = [
    root_only,  # in a user namespace the kernel follows no redirects
    pytest.mark.skipif(IMPL == "kernel", reason="mounts both"),
]

AREAS = 60
NAMES = ("a", "b", "c")
SEEDS = range(200 if os.environ.get("FUSEOVERLAY_LONG") else 6)
#: More often than not what is there is a directory, and leads elsewhere.
KINDS = ("dir",) * 10 + ("file", "whiteout")


def _paths(random: random.Random) -> list[str]:
    depth = random.choice((1, 2, 2, 3))
    return ["/".join(random.choices(NAMES, k=depth)) for _ in range(random.randint(2, 7))]


def _redirect(random: random.Random, area: str) -> bytes:
    if random.random() < 0.5:
        return random.choice(NAMES).encode()
    names = random.choices(NAMES, k=random.choice((1, 1, 2, 2, 3)))
    return os.fsencode("/".join(["", area, *names]))


def fill(random: random.Random, layer: Path, area: str) -> None:
    """One area of one layer."""
    (layer / area).mkdir()
    for path in _paths(random):
        parent = layer / area
        for name in path.split("/")[:-1]:
            parent = parent / name
            if not os.path.lexists(parent):
                _make_dir(random, parent, area)
            if not parent.is_dir():
                break
        target = layer / area / path
        if not parent.is_dir() or os.path.lexists(target):
            continue
        kind = random.choice(KINDS)
        if kind == "dir":
            _make_dir(random, target, area)
        elif kind == "file":
            _make_file(random, target, area)
        else:
            make_whiteout(target)


def _make_dir(random: random.Random, path: Path, area: str) -> None:
    path.mkdir()
    mark = random.random()
    if mark < 0.5:
        set_overlay_xattr(path, "redirect", _redirect(random, area))
    elif mark < 0.6:
        set_overlay_xattr(path, "opaque", b"y")


def _make_file(random: random.Random, path: Path, area: str) -> None:
    path.write_text(f"{path}\n")
    if random.random() < 0.5:
        set_overlay_xattr(path, "metacopy", b"")
        if random.random() < 0.7:
            set_overlay_xattr(path, "redirect", _redirect(random, area))


def content(path: Path) -> object:
    """What is read of a file. The kernel looks only now for data that no data-only layer has, and
    has other errors for it."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return "EIO"


def view(root: Path, path: str = "") -> dict[str, object]:
    """What is seen of a tree: types, contents, errors. The kernel lists some whiteouts, and some
    names that only give errors not: what counts is what is found when looked up."""
    found: dict[str, object] = {}
    for name in sorted({*os.listdir(root / path), *(NAMES if path else ())}):
        inner = os.path.join(path, name)
        try:
            kind = stat.S_IFMT(os.lstat(root / inner).st_mode)
        except OSError as exc:
            if exc.errno != errno.ENOENT:
                found[inner] = errno.errorcode[exc.errno or 0]
            continue
        found[inner] = content(root / inner) if kind == stat.S_IFREG else kind
        if kind == stat.S_IFDIR:
            found.update(view(root, inner))
    return found


def without(found: dict[str, object], paths: set[str]) -> dict[str, object]:
    """All but these paths and what is below them."""
    return {
        path: what
        for path, what in found.items()
        if not any(path == other or path.startswith(other + "/") for other in paths)
    }


def check(space: Space, *, read_only: bool) -> None:
    """Mount the same with both and compare area by area. Of several directories redirected to
    one the kernel shows only the first that is looked up, ESTALE in place of the others."""
    space.features = ("metacopy=on", "redirect_dir=on")
    views = {}
    for impl in ("kernel", "fuse"):
        space.mount(impl=impl, read_only=read_only)
        views[impl] = {area: view(space.mnt, area) for area in sorted(os.listdir(space.mnt))}
        space.unmount()
    wrong = []
    for area, kernel in views["kernel"].items():
        stale = {path for path, what in kernel.items() if what == "ESTALE"}
        one, two = without(kernel, stale), without(views["fuse"][area], stale)
        wrong += [
            f"{path}: kernel {one.get(path)!r}, here {two.get(path)!r}"
            for path in sorted(one.keys() | two.keys())
            if one.get(path) != two.get(path)
        ]
    assert not wrong, "\n".join(wrong)
    assert views["kernel"].keys() == views["fuse"].keys()


def walk(number: int) -> None:
    """The same layers for the same seed."""
    chance = random.Random(number)
    with scratch() as base:
        space = Space(base, chance.choice((3, 4, 5)))
        read_only = chance.random() < 0.5
        layers = [*space.lowers, *(() if read_only else (space.upper,))]
        if not read_only and chance.random() < 0.5:
            space.data_only.append(base / "data")
            space.data_only[0].mkdir()
            layers.append(space.data_only[0])
        try:
            for layer in layers:
                for area in range(AREAS):
                    fill(chance, layer, f"area{area}")
                # Every directory has something of its own in every layer.
                for path in [path for path in layer.rglob("*") if path.is_dir()]:
                    (path / f"in {layer.name}").write_text(str(path.relative_to(layer)))
            check(space, read_only=read_only)
        finally:
            space.drop()


@pytest.mark.parametrize("number", SEEDS)
def test_redirects_are_the_kernels(number: int) -> None:
    walk(number)
