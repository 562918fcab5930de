"""The model: layers as dicts, the merged view that they must give, and a plain directory.

A layer is a dict from paths to nodes. `merged` says what an overlay of such layers shows;
it is short enough to be checked by eye against the kernel's document. `write_view` lays the
merged view out as an ordinary directory: what a program may do there, with which answers
and errnos, is what it may do in the overlay.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from tests.helpers.mounts import make_whiteout, set_overlay_xattr

NAMES = ("a", "b", "c")
#: Every path that the tests use, parents first.
PATHS = tuple("/".join(names) for depth in (1, 2, 3) for names in product(NAMES, repeat=depth))
XATTR = "user.x"
#: Times of the layers' objects, seconds: older than anything a test makes.
OLD = 1_000_000_000
#: Nanoseconds; a time before this was set, one after it is some "now".
RECENT = 1_500_000_000 * 10**9


class Mode(int):
    """A mode, printed as everybody reads it."""

    def __repr__(self) -> str:
        return oct(self)


@dataclass(frozen=True)
class File:
    """A regular file. Those of one layer with the same `twin` are one file: hard links."""

    size: int = 10
    mode: int = Mode(0o644)
    xattr: bool = False
    twin: int | None = None


@dataclass(frozen=True)
class Dir:
    """A directory; `opaque` is "", "inside" or "beside": where an OCI layer says it."""

    opaque: str = ""
    mode: int = Mode(0o755)
    xattr: bool = False


@dataclass(frozen=True)
class Symlink:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class Fifo:
    """A named pipe."""

    mode: int = Mode(0o644)


@dataclass(frozen=True)
class Whiteout:
    """Hides the name in the layers below."""


Node = File | Dir | Symlink | Fifo | Whiteout


@dataclass(frozen=True)
class Layer:
    """One layer directory; the dialect is that of its whiteouts and opaque marks."""

    dialect: str
    nodes: Mapping[str, Node]


#: path -> (number of the layer, node)
View = dict[str, tuple[int, Node]]


def complete(nodes: Mapping[str, Node]) -> dict[str, Node]:
    """The nodes with all parents, without those whose parent is no directory."""
    parents = {parent for path in nodes for parent in _parents(path)}
    full: dict[str, Node] = {}
    for path in sorted(parents | nodes.keys()):
        if all(isinstance(full.get(parent), Dir) for parent in _parents(path)):
            full[path] = nodes.get(path, Dir())
    return full


def _parents(path: str) -> Iterator[str]:
    names = path.split("/")
    for depth in range(1, len(names)):
        yield "/".join(names[:depth])


def merged(layers: Sequence[Layer]) -> View:
    """What an overlay of these layers, top first, shows."""
    view: View = {}

    def visit(prefix: str, parts: Sequence[int]) -> None:
        """Merge the directory `prefix`, to which these layers contribute."""
        for name in NAMES:
            path, dirs = prefix + name, []
            for number in parts:
                node = layers[number].nodes.get(path)
                if isinstance(node, Dir):
                    dirs.append(number)
                    view.setdefault(path, (number, node))
                    if not node.opaque:
                        continue
                elif node is None:
                    continue
                elif not dirs and not isinstance(node, Whiteout):
                    view[path] = (number, node)
                break
            if dirs:
                visit(path + "/", dirs)

    visit("", range(len(layers)))
    return view


def for_kernel(layers: Sequence[Layer]) -> list[Layer]:
    """Equivalent layers for kernel overlayfs, without whiteouts that hide nothing, which it
    would list. All in the first dialect: a directory whose names only xattr whiteouts hide
    looks empty there, but rmdir(2) says ENOTEMPTY."""
    return [
        Layer(
            "char",
            {
                path: node
                for path, node in layer.nodes.items()
                if not isinstance(node, Whiteout) or _hides(layers[number:], path)
            },
        )
        for number, layer in enumerate(layers)
    ]


def _hides(layers: Sequence[Layer], path: str) -> bool:
    """Whether the whiteout in the top layer hides anything."""
    nodes = {other: node for other, node in layers[0].nodes.items() if other != path}
    return path in merged([replace(layers[0], nodes=nodes), *layers[1:]])


def has_twins(layers: Sequence[Layer]) -> bool:
    """Whether any file has several names."""
    return any(
        isinstance(node, File) and node.twin is not None
        for layer in layers
        for node in layer.nodes.values()
    )


def write_layer(layers: Sequence[Layer], number: int, root: Path) -> None:
    """Make the layer in the empty directory `root`."""
    layer = layers[number]
    made: Made = {}
    for path, node in layer.nodes.items():
        if isinstance(node, Whiteout):
            _write_whiteout(layer, root, path)
        else:
            _write_node(layers, number, path, root / path, made)
            if isinstance(node, Dir) and node.opaque:
                _write_opaque(layer, node, root / path)
    _finish(layers, [(number, path, root / path) for path in layer.nodes])


def _write_whiteout(layer: Layer, root: Path, path: str) -> None:
    above = os.path.dirname(path)
    parent = layer.nodes.get(above)
    if layer.dialect == "char":
        make_whiteout(root / path)
    elif layer.dialect == "oci":
        (root / above / f".wh.{os.path.basename(path)}").touch()
    elif not (isinstance(parent, Dir) and parent.opaque):
        # An opaque directory has no room for the mark that xattr whiteouts need.
        (root / path).touch()
        set_overlay_xattr(root / path, "whiteout", b"y")
        set_overlay_xattr(root / above, "opaque", b"x")


def _write_opaque(layer: Layer, node: Dir, path: Path) -> None:
    if layer.dialect != "oci":
        set_overlay_xattr(path, "opaque", b"y")
    elif node.opaque == "inside":
        (path / ".wh..wh..opq").touch()
    else:
        (path.parent / f".wh.{path.name}").touch()


#: Where the file of this layer with this first name was made.
Made = dict[tuple[int, str], Path]


def _first_name(layer: Layer, path: str) -> str:
    """The name that decides what a file with several names is."""
    node = layer.nodes[path]
    if not isinstance(node, File) or node.twin is None:
        return path
    return min(
        other
        for other, its in layer.nodes.items()
        if isinstance(its, File) and its.twin == node.twin
    )


def _write_node(layers: Sequence[Layer], number: int, path: str, at: Path, made: Made) -> None:
    path = _first_name(layers[number], path)
    node = layers[number].nodes[path]
    if (number, path) in made:
        os.link(made[number, path], at)
        return
    if isinstance(node, Symlink):
        os.symlink(node.target, at)
    elif isinstance(node, Dir):
        at.mkdir()
    elif isinstance(node, Fifo):
        os.mkfifo(at)
    elif isinstance(node, File):
        made[number, path] = at
        at.write_bytes(text(f"layer {number}, {path}. ", node.size))
    if isinstance(node, File | Dir) and node.xattr:
        os.setxattr(at, XATTR, b"from layer %d" % number)
    if isinstance(node, File | Fifo):
        at.chmod(node.mode)


def text(words: str, size: int) -> bytes:
    """`size` bytes that say where they are from."""
    data = words.encode()
    return (data * (size // len(data) + 1))[:size]


def _finish(layers: Sequence[Layer], places: Sequence[tuple[int, str, Path]]) -> None:
    """Modes of directories, and a time of its own for every object; `places` name parents
    before children."""
    for number, path, at in reversed(places):
        node = layers[number].nodes[path]
        if isinstance(node, Dir):
            at.chmod(node.mode)
        if os.path.lexists(at):
            seconds = OLD + 100 * number + PATHS.index(_first_name(layers[number], path))
            os.utime(at, (seconds, seconds), follow_symlinks=False)


def write_view(layers: Sequence[Layer], root: Path, hidden: Path) -> set[int]:
    """Make the merged view in the empty directory `root`; the directories' inode numbers.

    Names of hard links that the view does not show go to `hidden`: they count all the same.
    """
    view = merged(layers)
    made: Made = {}
    places = [(number, path, root / path) for path, (number, _) in sorted(view.items())]
    shown = {(number, path) for number, path, _ in places}
    for number, layer in enumerate(layers):
        for path, node in layer.nodes.items():
            if isinstance(node, File) and node.twin is not None and (number, path) not in shown:
                places.append((number, path, hidden / f"{number}-{path.replace('/', '-')}"))
    for number, path, at in places:
        _write_node(layers, number, path, at, made)
    _finish(layers, places)
    return {os.stat(root / path).st_ino for path in view if isinstance(view[path][1], Dir)}
