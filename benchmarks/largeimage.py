"""The image of `scripts/bench --layers`: many layers with parts of the same packages, always the
same."""

from __future__ import annotations

import concurrent.futures
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fuseoverlay.oci.layout import LayerHandle, LayoutWriter, Node, directory, layer_tar, symlink

#: The names of the two images, the second of which has another top layer.
REF: Final = "1"
OTHER: Final = "2"
#: As most tools compress.
_LEVEL: Final = 6
#: Names in a directory.
_NAMES: Final = 30
_LINK: Final = 9
_MTIME: Final = 1_700_000_000
_WORDS: Final = (b"alpha", b"beta", b"gamma", b"delta", b"lorem", b"ipsum")


@dataclass(frozen=True)
class Shape:
    """How large the image is; `entries` are those of all layers, `mean` is the mean size of a
    file."""

    layers: int
    entries: int
    mean: int = 3800


FULL: Final = Shape(60, 500_000)
QUICK: Final = Shape(60, 50_000)


def write(path: Path, shape: Shape) -> None:
    """Write a layout with both images, layers side by side, each at once in memory."""
    writer = LayoutWriter(path)
    count = len(os.sched_getaffinity(0))
    with concurrent.futures.ProcessPoolExecutor(count) as executor:
        tasks = [executor.submit(_written, path, shape, n) for n in range(shape.layers + 1)]
        *layers, other = (task.result() for task in tasks)
    writer.add_image(layers, ref=REF)
    writer.add_image([*layers[:-1], other], ref=OTHER)


def _written(path: Path, shape: Shape, number: int) -> LayerHandle:
    return LayoutWriter(path).add_layer(layer_tar(layer(shape, number)), "gzip", level=_LEVEL)


def package(number: int) -> str:
    """The directory below /usr/lib of the layer of this number; its first `part` no other has."""
    return f"pkg{number:02}"


def only_in(number: int) -> str:
    """A name that the layer of this number alone has."""
    return f"only-in-{number}.txt"


def layer(shape: Shape, number: int) -> Iterator[Node]:
    """The entries of a layer; the number `shape.layers` is that of another one for the top.

    Most are in the layer's own package, which the others have parts of. The first directory is
    there in no other layer.
    """
    random_ = random.Random(number)
    text = _text(random_)
    own = min(number, shape.layers - 1)
    yield Node(f"usr/share/{only_in(number)}", data=text[:100], mtime=_MTIME)
    left = shape.entries // shape.layers - 1
    part = 0
    while left > 0:
        of = own if not part or random_.random() < 0.8 else random_.randrange(shape.layers)
        nodes = list(_directory(random_, text, f"usr/lib/{package(of)}", part, shape.mean))[:left]
        yield from nodes
        left -= len(nodes)
        part += 1


def _directory(
    random_: random.Random, text: bytes, above: str, part: int, mean: int
) -> Iterator[Node]:
    """A directory of files, with a link, and what deletes one name of the layers below, if they
    have it."""
    base = f"{above}/part{part:03}"
    gone = random_.randrange(_NAMES)
    yield directory(base, mtime=_MTIME)
    for number in range(_NAMES):
        name = f"file{number}.py"
        if number == _LINK:
            yield symlink(f"{base}/{name}", "file0.py", mtime=_MTIME)
        elif number == gone and part:
            yield Node(f"{base}/.wh.{name}", mtime=_MTIME)
        else:
            yield Node(f"{base}/{name}", data=_content(random_, text, mean), mtime=_MTIME)


def _content(random_: random.Random, text: bytes, mean: int) -> bytes:
    size = min(int(random_.expovariate(1 / mean)), len(text) // 2)
    begin = random_.randrange(len(text) - size)
    return text[begin : begin + size]


def _text(random_: random.Random) -> bytes:
    """Text that compresses to a fifth."""
    return b" ".join(
        random_.choice((*_WORDS, b"%d" % random_.getrandbits(40))) for _ in range(50_000)
    )
