"""What is said of an image is what a mount of it shows, entry by entry."""

from __future__ import annotations

import hashlib
import json
import os
import random
import stat
from pathlib import Path

import pytest

from fuseoverlay.oci.layout import Node, directory, layer_tar, symlink
from fuseoverlay.store.root import Store
from fuseoverlay.view import finding, opened
from fuseoverlay.view.opened import View
from fuseoverlay.view.stack import Stack
from tests.commands.conftest import Cli
from tests.helpers import tree
from tests.helpers.mounts import MODE, fuse_only
from tests.view.conftest import Painter
from tests.view.odd import ODD

pytestmark = fuse_only

RANDOM = 60 if os.environ.get("FUSEOVERLAY_LONG") else 12
#: Modes in which a mount shows all owners, attributes and devices.
WHOLE = MODE == "root"
IGNORED = frozenset[str]() if WHOLE else frozenset({"uid", "gid", "xattrs"})


@pytest.mark.parametrize("name", ODD)
def test_odd_layers(cli: Cli, paint: Painter, name: str) -> None:
    check(cli, paint("image", *ODD[name]), len(ODD[name]))


@pytest.mark.parametrize("seed", range(RANDOM))
def test_random_layers(cli: Cli, paint: Painter, seed: int) -> None:
    chance = random.Random(seed)
    layers = [layer_tar(_nodes(chance)) for _ in range(4)]
    check(cli, paint("image", *layers), len(layers))


def _nodes(chance: random.Random) -> list[Node]:
    """A few entries, of few names. Nothing is below a file of its own layer."""
    found: dict[str, Node] = {}
    for _ in range(chance.randrange(1, 12)):
        path = "/".join(chance.choices("abc", k=chance.randrange(1, 4)))
        above = ["/".join(path.split("/")[:end]) for end in range(1, path.count("/") + 1)]
        if any(one in found and not stat.S_ISDIR(found[one].mode) for one in above):
            continue
        parent, _, name = path.rpartition("/")
        prefix = f"{parent}/" if parent else ""
        match chance.randrange(7):
            case 0 | 1:
                found[path] = Node(path, chance.choice([0o644, 0o755]), bytes(chance.randrange(3)))
            case 2:
                found[path] = directory(path, chance.choice([0o755, 0o700]))
            case 3:
                found[path] = symlink(path, chance.choice("abc"))
            case 4 | 5:
                found[f"{prefix}.wh.{name}"] = Node(f"{prefix}.wh.{name}")
            case 6:
                found[f"{prefix}.wh..wh..opq"] = Node(f"{prefix}.wh..wh..opq")
    kept = [path for path, node in found.items() if not stat.S_ISDIR(node.mode)]
    # What became a file has nothing below it any more.
    return [
        node for path, node in found.items()
        if not any(path.startswith(f"{one}/") for one in kept)
    ]  # fmt: skip


def check(cli: Cli, image: str, layers: int) -> None:
    """The image as of each layer, and what the command line prints of it."""
    store = Store(cli.root)
    with opened.image(store, image, warn=_refuse) as view:
        assert not any(layer.problem for layer in view.layers)
        for count in range(1, layers + 1):
            expected = mounted(cli, image, "--layer", str(count))
            found = recorded(view, view.stack.up_to(count))
            assert not tree.compare(expected, found, ignore=IGNORED), (image, count)
        _check_found(view.stack)
    printed = [json.loads(line) for line in cli.said("tree", "--json", image).splitlines()]
    paths = {os.fsencode(item["path"]).strip(b"/") or b"." for item in printed}
    assert paths == expected.keys()


def _check_found(stack: Stack) -> None:
    """Of all names in all layers, those are said to show that are in the merged tree."""
    shown = set()
    for node in stack.walk(stack.root):
        shown |= {(one.layer, one.row) for one in node.dirs} or {(node.layer, node.row)}
    hits = finding.find(stack, "*", range(len(stack.layers)), lambda _layer, _row: True)
    said = {
        (hit.node.layer, hit.node.row) for hit in hits if hit.hidden is None and not hit.whiteout
    }
    assert said == {(layer, row) for layer, row in shown if row}


def _refuse(line: str) -> None:
    raise AssertionError(line)


def mounted(cli: Cli, image: str, *words: str) -> tree.Tree:
    """What a mount shows."""
    cli.said("mount", "--read-only", *words, image, cli.mnt)
    try:
        return tree.record(str(cli.mnt))
    finally:
        cli.said("unmount", cli.mnt)


def recorded(view: View, stack: Stack) -> tree.Tree:
    """The same from the indexes, contents read from the archives."""
    found: tree.Tree = {}
    for node in stack.walk(stack.root):
        entry = stack.entry(node)
        made = tree.Entry(
            tree._KINDS[stat.S_IFMT(entry.mode)], entry.uid, entry.gid, stat.S_IMODE(entry.mode),
            entry.mtime, xattrs=dict(entry.xattrs),
        )  # fmt: skip
        if not node.is_dir:
            made.nlink, made.size = entry.nlink, entry.size
        if stat.S_ISLNK(entry.mode):
            made.target = entry.link
        if stat.S_ISREG(entry.mode):
            with view.content(node.layer, node.row) as file:
                made.digest = hashlib.sha256(b"".join(iter(lambda: file.read(99), b""))).hexdigest()
            assert entry.digest is None or entry.digest.hex() == made.digest
        found[b"/".join(node.path) or b"."] = made
    _note_links(stack, found)
    return found


def _note_links(stack: Stack, found: tree.Tree) -> None:
    """Which names are of one file, as `tree.record` notes it: in the order of the paths."""
    first: dict[tuple[int, int], bytes] = {}
    for path in sorted(found):
        node = stack.node(tuple(path.split(b"/")) if path != b"." else ())
        assert node is not None
        if not node.is_dir and (found[path].nlink or 0) > 1:
            layer = stack.layers[node.layer]
            key = node.layer, layer.ino[node.row]
            found[path].same_as = first.setdefault(key, path)


def test_a_real_image(cli: Cli, image: Path) -> None:
    """Debian, as real tools made it."""
    name = f"{image / 'oci'}:latest"
    expected = mounted(cli, name)
    with opened.image(Store(cli.root), name, warn=_refuse) as view:
        found = {
            b"/".join(node.path) or b".": view.stack.entry(node)
            for node in view.stack.walk(view.stack.root)
        }
    assert found.keys() == expected.keys() and len(found) > 3000
    for path, entry in found.items():
        seen = expected[path]
        assert stat.S_IMODE(entry.mode) == seen.mode and entry.mtime == seen.mtime_ns, path
        assert seen.target is None or entry.link == seen.target, path
        assert seen.digest is None or (entry.digest or b"").hex() == seen.digest, path
        assert not WHOLE or (entry.uid, entry.gid, entry.xattrs) == (
            seen.uid,
            seen.gid,
            seen.xattrs,
        )
