"""The layers of an image: their indexes, made where the store lacks them, and their files.

Layers are indexed side by side, in processes: reading headers is work for the interpreter. A layer
that takes something from those below it, by a hard link into them, waits for them.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Final

from fuseoverlay.errors import FuseOverlayError, ImageError
from fuseoverlay.layers import xattrs
from fuseoverlay.oci.blobs import Image, ImageSource, Layer
from fuseoverlay.oci.job import Job, store_error
from fuseoverlay.oci.malformed import malformed
from fuseoverlay.oci.model import Digest, chain_ids
from fuseoverlay.oci.nodes import Directory, Lowers, Node, Tree
from fuseoverlay.oci.treetarget import list_blob
from fuseoverlay.store import indexes, largest, places
from fuseoverlay.store.indexes import BadIndexError
from fuseoverlay.store.layers import Progress, ProgressCallback
from fuseoverlay.store.root import Store
from fuseoverlay.system import forks
from fuseoverlay.view import layerindex
from fuseoverlay.view.archived import archived
from fuseoverlay.view.building import Listed, built, nothing
from fuseoverlay.view.layerindex import Entry, LayerIndex
from fuseoverlay.view.stack import Path, Stack

#: Bytes of blobs for which it is worth starting processes.
_WORTH: Final = 4 << 20


class ImageLayers:
    """The layers of an image, bottom first, indexed. `problems`: why each cannot be read, or
    None."""

    def __init__(
        self,
        store: Store,
        source: ImageSource,
        image: Image,
        progress: ProgressCallback | None = None,
    ) -> None:
        """Makes the indexes that are missing. StoreError."""
        self._maker = _Maker(source, image.layers)
        self.problems: list[str | None] = [None] * len(image.layers)
        diff_ids = [layer.diff_id for layer in image.layers]
        found = self._indexes(store, diff_ids, progress or (lambda _progress: None))
        self.stack = Stack(found or [nothing()])
        whole = diff_ids and not any(self.problems)
        #: Identifies the layers together; None if one of them cannot be read.
        self.key = chain_ids(diff_ids)[-1].hex if whole else None

    def contents(self, number: int, rows: Sequence[int]) -> Iterator[tuple[int, IO[bytes]]]:
        """The contents of regular files of a layer, in the order of its archive; each is good until
        the next one. They have their digests, or reading their ends raises DigestError.
        ImageError."""
        index = self.stack.layers[number]
        copied = [row for row in rows if not index.data[row] and index.copied(row) is not None]
        for row in copied:
            # The archive has only a link to a file of the layers below.
            node = self.stack.up_to(number).node(index.copied(row) or ())
            if node is None or not self.stack.layers[node.layer].is_file(node.row):
                raise ImageError("its content is missing", where=b"/".join(index.path(row)))
            for _, file in self.contents(node.layer, [node.row]):
                yield row, file
        own = [row for row in rows if index.data[row]]
        empty = [row for row in rows if not index.data[row] and row not in copied]
        yield from ((row, io.BytesIO()) for row in empty)
        if own:
            yield from archived(self._maker.source, self._maker.layers[number], index, own)

    def _indexes(
        self, store: Store, diff_ids: Sequence[Digest], progress: ProgressCallback
    ) -> list[LayerIndex]:
        pairs = places.places(diff_ids) if diff_ids else []
        self._candidates = [[indexes.place(store, name) for name in pair] for pair in pairs]
        found = [_loaded(paths) for paths in self._candidates]
        missing = [at for at, index in enumerate(found) if index is None]
        if not missing:
            return [index for index in found if index is not None]
        try:
            keeps = store.is_writable() and not store.is_full()
            with _workspace(store, keeps=keeps) as work:
                made = self._make(missing, found, work, progress)
                if keeps:
                    indexes.publish(
                        store,
                        {
                            self._candidates[number][lowers]: path
                            for number, (path, lowers) in made.items()
                        },
                    )
        except OSError as exc:
            raise store_error(exc, "cannot index a layer", store.root) from exc
        return [index or nothing() for index in found]

    def _make(
        self, missing: Sequence[int], found: list[LayerIndex | None], work: pathlib.Path,
        progress: ProgressCallback,
    ) -> dict[int, tuple[pathlib.Path, bool]]:  # fmt: skip
        """Make the indexes of these layers, fill them into `found`, and return where those are that
        can be kept, and whether each needs the layers below."""
        made = {}
        waiting = []
        tell = self._telling(missing, progress)
        for number, failed in self._maker.side_by_side(missing, work):
            if isinstance(failed, _NeedsLowersError):
                waiting.append(number)
                continue
            tell(number)
            if failed is not None:
                self.problems[number] = str(failed)
            else:
                made[number] = self._made(number, work, found, lowers=False)
        for number in sorted(waiting):
            below = Stack([index or nothing() for index in found[:number]])
            try:
                self._maker.make(number, work, _Below(below))
            except ImageError as exc:
                self.problems[number] = str(exc)
            else:
                one = self._made(number, work, found, lowers=True)
                # What it took from layers that cannot be read is wrong once they can.
                if not any(self.problems[:number]):
                    made[number] = one
            tell(number)
        return made

    def _telling(
        self, missing: Sequence[int], progress: ProgressCallback
    ) -> Callable[[int], None]:  # fmt: skip
        """What to call when a layer is finished."""
        sizes = {number: self._maker.layers[number].size for number in missing}
        left = dict(sizes)

        def tell(number: int) -> None:
            del left[number]
            count, total = len(sizes) - len(left), sum(sizes.values())
            progress(Progress(count, len(sizes), total - sum(left.values()), total))

        return tell

    def _made(
        self, number: int, work: pathlib.Path, found: list[LayerIndex | None], *, lowers: bool
    ) -> tuple[pathlib.Path, bool]:
        """Take over an index that was made in `work`; `lowers`: it needs the layers below."""
        path = work / str(number)
        found[number] = LayerIndex.load(path, str(self._candidates[number][lowers]))
        return path, lowers


def _loaded(paths: Sequence[pathlib.Path]) -> LayerIndex | None:
    """The first index that is there and good."""
    for path in paths:
        with contextlib.suppress(OSError, BadIndexError):
            return LayerIndex.load(path)
    return None


@contextlib.contextmanager
def _workspace(store: Store, *, keeps: bool) -> Iterator[pathlib.Path]:
    """A directory for new indexes; those that the store cannot keep live only now."""
    if keeps:
        with store.workspace() as work:
            yield work
    else:
        with tempfile.TemporaryDirectory(prefix="fuseoverlay-") as name:
            yield pathlib.Path(name)


class _NeedsLowersError(FuseOverlayError):
    """The layer takes something from those below it, or asks whether they have something."""

    def __init__(self) -> None:
        super().__init__("the layers below are needed")

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()


class _Unknown:
    """Layers below that nobody knows yet."""

    def find(self, path: Path) -> Entry | None:
        raise _NeedsLowersError


class _Below:
    """The layers below, by their indexes."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def find(self, path: Path) -> Entry | None:
        node = self._stack.node(path) if self._stack.layers else None
        return None if node is None else self._stack.entry(node)


class _Maker:
    """Makes indexes of layers in files."""

    def __init__(self, source: ImageSource, layers: Sequence[Layer]) -> None:
        self.source = source
        self.layers = layers

    def make(self, number: int, work: pathlib.Path, below: Lowers) -> None:
        """Make the index of one layer, in a file of its number. ImageError, DigestError, OSError;
        what `below` raises."""
        layer = self.layers[number]
        where = f"{self.source.path}: layer {layer.digest or layer.diff_id}"
        job = Job(override=False, where=where, limit=largest.limit(layer.size))
        with malformed(where), self.source.open_layer(layer) as blob:
            tree = list_blob(blob, layer.diff_id, job, below)
        (work / str(number)).write_bytes(built(_Source(tree), tree.size))

    def side_by_side(
        self, numbers: Sequence[int], work: pathlib.Path
    ) -> Iterator[tuple[int, Exception | None]]:
        """Make the indexes of these layers as far as they need no other; each with its error, as
        they are finished. StoreError, OSError."""
        count = min(len(os.sched_getaffinity(0)), len(numbers))
        if count < 2 or sum(self.layers[number].size for number in numbers) < _WORTH:
            for number in numbers:
                yield number, self.tried(number, work)
            return
        # The largest first: the last one to end keeps nobody waiting for long.
        order = sorted(numbers, key=lambda number: -self.layers[number].size)
        yield from forks.each(count, order, lambda number: self.tried(number, work))

    def tried(self, number: int, work: pathlib.Path) -> Exception | None:
        """Make one; the error if the layer is to blame."""
        try:
            self.make(number, work, _Unknown())
        except (ImageError, _NeedsLowersError) as exc:
            return exc
        return None


class _Source:
    """Lists a layer that was read from its archive."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._dirs: dict[Path, Directory] = {(): tree.root}

    def root(self) -> Listed:
        return _listed(b"", self._tree.root)

    def children(self, path: Path) -> Iterable[Listed]:
        directory = self._dirs.pop(path)
        for name, node in directory.children.items():
            if isinstance(node, Directory):
                self._dirs[(*path, name)] = node
            yield _listed(name, node, link=name in (directory.links or ()))


def _listed(name: bytes, node: Node, *, link: bool = False) -> Listed:
    if node.is_whiteout:
        return Listed(name, 0, layerindex.HIDES)
    flags = layerindex.LINK if link else 0
    if isinstance(node, Directory):
        flags |= layerindex.OPAQUE if node.opaque else 0
        flags |= layerindex.IMPLIED if node.implied == xattrs.IMPLIED_SELF else 0
    elif node.pieces is not None:
        flags |= layerindex.SPARSE
    return Listed(
        name, node.mode, flags, node.uid, node.gid, node.size, node.mtime, node.rdev, node.link,
        node.digest, node.offset + 1, node.xattrs, node.ino if node.nlink > 1 else None,
        node.copied,
    )  # fmt: skip
