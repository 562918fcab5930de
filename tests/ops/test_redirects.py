"""Redirects that lead to other redirects in the layers below.

Random ones are compared with the kernel in `tests/stateful/test_redirects.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers.mounts import IMPL, MODE, Space, fuse_only, set_overlay_xattr
from tests.helpers.tree import compare, record

pytestmark = pytest.mark.skipif(
    IMPL == "kernel" and MODE != "root",
    reason="in a user namespace the kernel follows no redirects",
)

#: Layers from top to bottom, each path -> redirect (None: a plain directory) or, if the path ends
#: in ".txt", the file's content. Then what must be found at a path.
Layers = tuple[dict[str, str | None], ...]
CHAINS: dict[str, tuple[Layers, str]] = {
    "relative, then absolute": (
        ({"a/empty/x": "dir"}, {"a/empty/dir": "/a/dir"}, {"a/dir/f.txt": None}),
        "a/empty/x/f.txt",
    ),
    "relative in an absolute one's way": (
        ({"a/z": "y"}, {"a/y": "/p/q"}, {"p/q/f.txt": None}),
        "a/z/f.txt",
    ),
    "two on one way": (
        ({"z": "/a", "z/e2": "empty"}, {"a/empty": "/p/q"}, {"p/q/f.txt": None}),
        "z/e2/f.txt",
    ),
    "two in one layer": (
        ({"x": "/a/b"}, {"a": "c", "a/b": "d"}, {"c/d/f.txt": None}),
        "x/f.txt",
    ),
    "four": (
        (
            {"a/four": "three"},
            {"a/three": "/b/two"},
            {"b/two": "one"},
            {"b/one": "/c/start"},
            {"c/start/f.txt": None},
        ),
        "a/four/f.txt",
    ),
    "back to the parent's own directories": (
        ({"p": "/q"}, {"q/e": "/a/x"}, {"a/x": "y"}, {"a/y/f.txt": None, "q/y/wrong.txt": None}),
        "p/e/f.txt",
    ),
    "out of an opaque directory": (
        ({"x": "/a/b"}, {"a": "opaque", "a/b": "/p"}, {"p/f.txt": None}),
        "x/f.txt",
    ),
}


def make(layer: Path, objects: dict[str, str | None]) -> None:
    """Directories with redirects, and files."""
    for path, redirect in objects.items():
        if path.endswith(".txt"):
            (layer / path).parent.mkdir(parents=True, exist_ok=True)
            (layer / path).write_text(path)
            continue
        (layer / path).mkdir(parents=True, exist_ok=True)
        if redirect == "opaque":
            set_overlay_xattr(layer / path, "opaque", b"y")
        elif redirect is not None:
            set_overlay_xattr(layer / path, "redirect", os.fsencode(redirect))


@pytest.mark.parametrize("writable", [False, True], ids=["lower", "upper"])
@pytest.mark.parametrize("chain", CHAINS)
def test_chain(space: Space, chain: str, writable: bool) -> None:
    """Follow the chain, also with the first layer as the upper."""
    layers, path = CHAINS[chain]
    space.features = ("redirect_dir=on",) if writable else ("redirect_dir=follow",)
    while len(space.lowers) < len(layers) - writable:
        space.add_lower()
    for layer, objects in zip((*[space.upper] * writable, *space.lowers), layers, strict=True):
        make(layer, objects)
    with space.mounted(read_only=not writable, settle=False) as mnt:
        assert os.listdir((mnt / path).parent) == ["f.txt"]
        assert (mnt / path).read_text() == next(name for name in layers[-1] if "f.txt" in name)


@fuse_only  # in a user namespace the kernel has no metacopy
def test_data_at_the_end_of_a_chain(space: Space) -> None:
    """The same chains lead to the data of metacopy files."""
    space.features = ("metacopy=on", "redirect_dir=on")
    layers = [space.lower, *(space.add_lower() for _ in range(3))]
    for layer, path, redirect in zip(
        layers, ("a/z", "a/y", "p/q"), ("y", "/p/q", "/r/s"), strict=False
    ):
        (layer / path).parent.mkdir()
        (layer / path).write_bytes(b"\0" * 4)
        set_overlay_xattr(layer / path, "metacopy", b"")
        set_overlay_xattr(layer / path, "redirect", os.fsencode(redirect))
    (layers[3] / "r").mkdir()
    (layers[3] / "r" / "s").write_bytes(b"data")
    with space.mounted(read_only=True) as mnt:
        assert (mnt / "a/z").read_bytes() == b"data"


RENAMES = (
    ("a/dir", "a/empty/dir"),
    ("a/empty/dir", "a/empty/other"),
    ("a/empty", "moved"),
    ("moved/other", "other"),
    ("other", "a/dir"),
)


def test_renames_on_top_of_renames(space: Space) -> None:
    """Each rename happens in a mount of its own, on top of all earlier ones."""
    plain = space.base / "plain"
    for root in (space.lower, plain):
        (root / "a/dir/sub").mkdir(parents=True)
        (root / "a/empty").mkdir()
        (root / "a/dir/f").write_text("f")
        (root / "a/dir/sub/g").write_text("g")
    space.features = ("redirect_dir=on",)
    for turn, (old, new) in enumerate(RENAMES):
        with space.mounted() as mnt:
            for root in (mnt, plain):
                os.rename(root / old, root / new)
                (root / new / f"turn {turn}").write_text(new)
            lines = compare(record(str(plain)), record(str(mnt)), ignore={"mtime_ns", "size"})
            assert not lines, f"after {old} -> {new}:\n" + "\n".join(lines)
        space.stack()
