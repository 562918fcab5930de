"""What can be looked into: an image, a stack of directories, what is mounted.

Layers that cannot be read are shown as empty, with the reason; the others are as they are.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO, Final, Protocol

from fuseoverlay.errors import FuseOverlayError, ImageError
from fuseoverlay.oci import names
from fuseoverlay.oci.blobs import Image, ImageSource, open_image
from fuseoverlay.oci.malformed import malformed
from fuseoverlay.oci.model import Platform, Step
from fuseoverlay.registry import shortnames
from fuseoverlay.store import daemon, places, podman, sources
from fuseoverlay.store.images import Images
from fuseoverlay.store.layers import ProgressCallback
from fuseoverlay.store.root import Store
from fuseoverlay.store.sources import Remote
from fuseoverlay.view.images import ImageLayers
from fuseoverlay.view.stack import Node, Stack

#: Bytes that are compared at a time.
_PIECE: Final = 1 << 20

#: Of a layer that the history does not tell of.
_NO_STEP: Final = Step()

Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Layer:
    """What is known of a layer besides its tree. `number`: from 1 at the bottom. `name`: the digest
    of the plain layer, or a directory. `digest`, `compressed`: of its blob, the size in bytes.
    `step`: the line of the history that made it. `problem`: why it cannot be read. `upper`: whether
    it takes the changes of a mount."""

    number: int
    name: str
    digest: str | None = None
    compressed: int | None = None
    step: Step = _NO_STEP
    problem: str | None = None
    upper: bool = False


class Contents(Protocol):
    """Where the content of files comes from."""

    def contents(self, number: int, rows: Sequence[int]) -> Iterator[tuple[int, IO[bytes]]]:
        """Those of regular files of the layer `number`, from 0, in the order that is quickest; each
        is good until the next one. ImageError, OSError."""


@dataclass(frozen=True, slots=True)
class View:
    """An open image, stack or mount. `layers` bottom first, as in `stack`. `key` identifies an
    image whose layers never change: what was found out about it can be kept under this name."""

    name: str
    layers: tuple[Layer, ...]
    stack: Stack
    contents: Contents
    key: str | None = None
    store: Store | None = None

    @contextlib.contextmanager
    def content(self, number: int, row: int) -> Iterator[IO[bytes]]:
        """The content of a regular file of the layer `number`, from 0. ImageError, OSError."""
        for _, file in self.contents.contents(number, [row]):
            yield file

    def same(self, one: Node, other: Node) -> bool:
        """Whether two regular files have the same content. ImageError, OSError."""
        return same_content(self, one, self, other)


def same_content(view: View, node: Node, other: View, theirs: Node) -> bool:
    """Whether a regular file has the same content as one of another view: by their digests if they
    are known, else by reading both. ImageError, OSError."""
    both = (
        (view.stack.layers[node.layer], node.row),
        (other.stack.layers[theirs.layer], theirs.row),
    )
    sizes = [layer.sizes[row] for layer, row in both]
    digests = [layer.digest(row) for layer, row in both]
    if sizes[0] != sizes[1] or None not in digests:
        return sizes[0] == sizes[1] and digests[0] == digests[1]
    if any(layer.data[row] for layer, row in both):
        # In an archive, and so full of holes that it has no digest: nobody waits for that.
        return False
    with view.content(node.layer, node.row) as a, other.content(theirs.layer, theirs.row) as b:
        return _same_bytes(a, b)


def _same_bytes(one: IO[bytes], other: IO[bytes]) -> bool:
    """Whether two files hold the same from here on. OSError, ImageError."""
    while True:
        piece = _whole(one)
        if piece != _whole(other):
            return False
        if not piece:
            return True


def _whole(file: IO[bytes]) -> bytes:
    """The next piece; a raw file may return less than it has."""
    parts, left = [], _PIECE
    while left and (data := file.read(left)):
        parts.append(data)
        left -= len(data)
    return b"".join(parts)


@contextlib.contextmanager
def image(
    store: Store,
    text: str,
    *,
    platform: str | None = None,
    remote: Remote | None = None,
    progress: ProgressCallback | None = None,
    warn: Warn,
) -> Iterator[View]:
    """The image that `text` means. What the store lacks of its indexes is made; `progress` is told
    how many layers of how many are finished. UsageError, ImageError, StoreError, and what
    `remote.fetch` raises."""
    sources.check(text)
    store.prepare()
    transport = names.transport(text)
    with contextlib.ExitStack() as stack:
        if transport == "containers-storage":
            found = podman.find(text.partition(":")[2])
            paths = [os.fsencode(path) for path in reversed(found.layers())]
            view = stack.enter_context(_directories(text, paths, None, warn, found.diff_ids))
            made = _by_layer(found.steps)
            named = (replace(layer, step=made.get(layer.number - 1, _NO_STEP))
                     for layer in view.layers)  # fmt: skip
            yield replace(view, layers=tuple(named))
            return
        if transport == "docker-daemon":
            name = text.partition(":")[2]
            text = str(stack.enter_context(daemon.archive(store, name)))
        wanted = Platform.parse(platform) if platform else None
        images = Images(store, shortnames.meanings)
        if sources.means_file(images, text):
            opened = _file(store, text, wanted)
        else:
            opened = _stored(images, text, wanted, remote, warn)
        source, chosen = stack.enter_context(opened)
        layers = ImageLayers(store, source, chosen, progress)
        yield View(text, _layers(chosen, layers.problems), layers.stack, layers, layers.key, store)


_Opened = tuple[ImageSource, Image]


@contextlib.contextmanager
def _file(store: Store, text: str, platform: Platform | None) -> Iterator[_Opened]:
    path, ref = names.find(text)
    scratch = str(store.tmp) if store.is_writable() else None
    with contextlib.ExitStack() as stack:
        with malformed(path):
            source = stack.enter_context(open_image(path, scratch=scratch))
            chosen = source.resolve(ref, platform)
        yield source, chosen


@contextlib.contextmanager
def _stored(
    images: Images, text: str, platform: Platform | None, remote: Remote | None, warn: Warn
) -> Iterator[_Opened]:
    found = sources.located(images, names.in_registry(text), platform, remote, warn)[0]
    if found.problem is not None:
        raise ImageError(found.problem, where=text, hint="get it again, or remove it")
    with contextlib.ExitStack() as stack:
        with malformed(text):
            source = stack.enter_context(open_image(str(images.store.root), listed=False))
            chosen = source.image(found.manifest)
        yield source, chosen


def _by_layer(steps: Sequence[Step]) -> dict[int, Step]:
    """The step that made each layer; the layers from 0."""
    return {step.layer: step for step in steps if step.layer is not None}


def _layers(image: Image, problems: Sequence[str | None]) -> tuple[Layer, ...]:
    made = _by_layer(image.steps)
    return tuple(
        Layer(
            number, str(layer.diff_id), str(layer.digest) if layer.digest else None, layer.size,
            made.get(number - 1, _NO_STEP), problems[number - 1],
        )
        for number, layer in enumerate(image.layers, 1)
    )  # fmt: skip


@contextlib.contextmanager
def directories(
    name: str, lowers: Sequence[bytes], upper: bytes | None, warn: Warn,
    data_only: Sequence[bytes] = (),
) -> Iterator[View]:  # fmt: skip
    """Directories as layers; `lowers` from top to bottom. LayerError, UpperError."""
    with _directories(name, [*reversed(lowers)], upper, warn, (), data_only) as view:
        yield view


@contextlib.contextmanager
def mounted(
    store: Store, name: str, lowers: Sequence[bytes], upper: bytes | None,
    image: tuple[str | None, str] | None, warn: Warn,
) -> Iterator[View]:  # fmt: skip
    """What a mount shows: its lowers, from top to bottom, and its upper. If it is of an image, of
    which the id and the name are given, its layers are called as those of the image if that can
    still be read. LayerError, UpperError."""
    known = _known(store, *image) if image is not None else {}
    with directories(name, lowers, upper, warn) as view:
        layers = tuple(
            replace(known.get(os.path.basename(layer.name), layer), number=layer.number)
            for layer in view.layers
        )
        yield replace(view, layers=layers)


def _known(store: Store, id_: str | None, name: str) -> dict[str, Layer]:
    """The layers of an image by the names of the directories that they are unpacked into."""
    with contextlib.suppress(FuseOverlayError, OSError):
        images = Images(store)
        opened = (
            _file(store, name, None)
            if name.startswith("/")
            else _stored(images, id_ or name, None, None, lambda _line: None)
        )
        with opened as (_, chosen):
            layers = _layers(chosen, [None] * len(chosen.layers))
        pairs = places.places([layer.diff_id for layer in chosen.layers])
        return {
            place.partition("/")[2]: layer
            for layer, pair in zip(layers, pairs, strict=False)
            for place in pair
        }
    return {}


@contextlib.contextmanager
def _directories(
    name: str, lowers: Sequence[bytes], upper: bytes | None, warn: Warn,
    diff_ids: Sequence[str] = (), data_only: Sequence[bytes] = (),
) -> Iterator[View]:  # fmt: skip
    """`lowers` from the bottom."""
    # Images need none of it.
    from fuseoverlay.layers.stack import LayerStack
    from fuseoverlay.view.directories import Directories

    stack = LayerStack(upper, [*reversed(lowers)], data_only, user_attributes=True)
    with stack:
        found = Directories(stack, warn)
        called = [*diff_ids] if diff_ids else [os.fsdecode(path) for path in lowers]
        if upper is not None:
            called.append(os.fsdecode(upper))
        layers = tuple(
            Layer(number, text, upper=upper is not None and number > len(lowers))
            for number, text in enumerate(called, 1)
        )
        yield View(name, layers, found.stack, found)
