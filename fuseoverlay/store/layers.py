"""Unpacked layers, each of them once, shared by all images of one user: `places` says where.

A layer exists completely or not at all: it is made in `tmp`, verified, written to disk and
published by one rename.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, Self

from fuseoverlay.errors import StoreError
from fuseoverlay.layers import trust
from fuseoverlay.oci import metadata, names
from fuseoverlay.oci.blobs import Image, Layer, open_image
from fuseoverlay.oci.job import Job, store_error
from fuseoverlay.oci.malformed import malformed
from fuseoverlay.oci.model import Descriptor, Digest, Platform
from fuseoverlay.oci.streams import BlobReader, ForwardStream
from fuseoverlay.oci.unpack import unpack_blob, unpack_stream
from fuseoverlay.store import largest, places, sizes
from fuseoverlay.store.part import Part
from fuseoverlay.store.root import Store
from fuseoverlay.system.syscalls import DIR_FLAGS

#: The layer of an image without layers.
_EMPTY: Final = Layer(Digest.of(places.EMPTY_TAR), "", len(places.EMPTY_TAR), None)
#: Layers of so many bytes, as they are in the image, are written to disk together: a sync waits
#: also for what others have written. More would be lost if the process is killed.
_TOGETHER: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of unpacking. `done` and `total` are bytes, over all layers that were missing.

    `layer` counts from 1 to `layers`, the number of layers that were missing. `read` bytes of its
    blob are unpacked; `complete`: it is verified, too.
    """

    layer: int
    layers: int
    done: int
    total: int
    blob: Digest | None = None
    read: int = 0
    complete: bool = False


ProgressCallback = Callable[[Progress], None]


def _ignore(_line: str) -> None:
    """Drop a warning."""


def unpacked(
    store: Store,
    image: str,
    *,
    platform: str | None = None,
    progress: ProgressCallback | None = None,
    warn: Callable[[str], None] = _ignore,
) -> list[pathlib.Path]:
    """The layer directories of the image at the path `IMAGE[:REF]`; see `StoredImage.layers`."""
    with opened(store, image, platform=platform, progress=progress, warn=warn) as found:
        return found.layers()


@contextlib.contextmanager
def opened(
    store: Store,
    image: str,
    *,
    platform: str | None = None,
    progress: ProgressCallback | None = None,
    warn: Callable[[str], None] = _ignore,
) -> Iterator[StoredImage]:
    """The image at the path `IMAGE[:REF]`. No layer has been read yet, only what describes the
    image.

    Raises ImageError, DigestError, StoreError.
    """
    path, ref = names.find(image)
    wanted = Platform.parse(platform) if platform else None
    store.prepare()
    scratch = str(store.tmp) if store.is_writable() else None
    with malformed(path), open_image(path, scratch=scratch) as source:
        chosen = source.resolve(ref, wanted)
        name = os.path.abspath(path) + (f":{ref}" if ref else "")
        if wanted is None and chosen.platform is not None:
            _check_platform(image, chosen.platform, warn)
        yield StoredImage(store, source, chosen, progress, warn, name)


@contextlib.contextmanager
def stored(
    store: Store,
    manifest: Descriptor,
    name: str,
    *,
    full_name: str = "",
    check_platform: bool = True,
    progress: ProgressCallback | None = None,
    warn: Callable[[str], None] = _ignore,
) -> Iterator[StoredImage]:
    """The image in the store that has this manifest, as `opened` gives those at a path. `name` is
    for messages, `full_name` for lists. With `check_platform`, `warn` is told if it is for other
    machines."""
    where = str(store.root)
    with malformed(name), open_image(where, listed=False) as source:
        image = source.image(manifest)
        if check_platform and image.platform is not None:
            _check_platform(name, image.platform, warn)
        yield StoredImage(store, source, image, progress, warn, full_name)


def _check_platform(image: str, platform: Platform, warn: Callable[[str], None]) -> None:
    """Warn if the image, the only one there, is for other machines."""
    host = Platform.host()
    # A 64-bit kernel runs these, too.
    also = replace(host, architecture="386", variant="") if host.architecture == "amd64" else host
    if platform.rank(host) is None and platform.rank(also) is None:
        warn(
            f"{image}: is for {platform}, and this machine is {host}: its programs may not run; "
            f"--platform {platform} says that it is meant"
        )


def override(store: Store) -> bool:
    """Whether owners and modes are only recorded in the store, in an attribute. StoreError."""
    if not store.is_writable() or store.is_full():
        # There is nothing to try it with: it is as the one who wrote here found it.
        return not (trust.is_superuser() and (store.root / places.REAL).is_dir())
    try:
        with store.workspace() as path:
            fd = os.open(path, DIR_FLAGS)
            try:
                return not metadata.can_own(fd)
            finally:
                os.close(fd)
    except OSError as exc:
        raise store_error(exc, "cannot store a layer", store.root) from exc


def check_attributes(store: Store) -> None:
    """Raise StoreError if layers cannot be kept in the store for want of attributes."""
    if override(store):
        try:
            with store.workspace() as path:
                os.setxattr(path, b"user.fuseoverlay", b"")
        except OSError as exc:
            raise store_error(exc, "cannot store layers", store.root) from exc


class LayerSource(Protocol):
    """Where the files of layers come from; `path` is for messages."""

    path: str

    def open_layer(
        self, layer: Layer, progress: Callable[[int], None] | None = None
    ) -> BlobReader: ...


class _Batch:
    """Layers that are unpacked, written to disk together, and then published. Those that are
    finished when an exception comes are published, too."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._stack = contextlib.ExitStack()
        self._work: pathlib.Path | None = None
        self._count = self._size = 0
        #: Where each is to go, and where it is.
        self._made: dict[pathlib.Path, pathlib.Path] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        with self._stack:
            self._publish()

    def new(self) -> pathlib.Path:
        """A new empty directory, to unpack a layer into."""
        if self._work is None:
            self._work = self._stack.enter_context(self._store.workspace())
        self._count += 1
        target = self._work / str(self._count)
        target.mkdir(mode=0o700)
        return target

    def add(self, target: pathlib.Path, place: pathlib.Path, size: int) -> pathlib.Path:
        """A layer of `size` bytes is finished; returns `place`, where it goes."""
        self._made[place] = target
        self._size += size
        if self._size >= _TOGETHER:
            self._publish()
        return place

    def holds(self, paths: Sequence[pathlib.Path]) -> pathlib.Path | None:
        """The first of these places for which there is a layer that is not published yet."""
        return next((path for path in paths if path in self._made), None)

    def where(self, place: pathlib.Path) -> pathlib.Path:
        """Where the layer is now that belongs to `place`."""
        return self._made.get(place, place)

    def _publish(self) -> None:
        if self._made:
            self._store.sync()
            for place, target in self._made.items():
                self._store.publish(target, place)
        self._made.clear()
        self._size = 0


class StoredImage:
    """One image, and the unpacking of its layers into the store."""

    def __init__(
        self,
        store: Store,
        source: LayerSource,
        image: Image,
        progress: ProgressCallback | None,
        warn: Callable[[str], None],
        name: str = "",
    ) -> None:
        """`name`: what it is called in lists, a full name or an absolute path."""
        self.name = name
        self._store = store
        self._source = source
        self._image = image
        self._progress = progress
        self._warn = warn
        self._override = override(store)
        self._base = store.root / (places.OVERRIDE if self._override else places.REAL)
        self._alone = False
        self._done = self._total = self._number = self._count = 0

    def keep(self, part: Part, where: str) -> None:
        """Be only this part of the image from now on. ImageError, which calls it `where`."""
        place = part.place(self._image, where)
        self._image = replace(self._image, layers=self._image.layers[: place + 1])
        self._alone = part.alone

    @property
    def id(self) -> Digest | None:
        """The digest of its config, if that is known."""
        return self._image.id

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """The digests of its plain layers, bottom first."""
        return tuple(str(layer.diff_id) for layer in self._image.layers[self._shown()])

    def _shown(self) -> slice:
        """Which of the layers are shown. A layer may need those below to be unpacked."""
        return slice(-1, None) if self._alone else slice(None)

    def layers(self, held: contextlib.ExitStack | None = None) -> list[pathlib.Path]:
        """The layer directories, top first. Unpacks what is missing.

        None of them is removed before `held` ends. No directory comes twice, and there is at least
        one. Raises ImageError, DigestError, StoreError; layers finished by then stay.
        """
        with contextlib.ExitStack() as locks, self._store_errors():
            found = self._directories(locks)
            if held is not None:
                held.enter_context(locks.pop_all())
        # If a layer comes twice, only the upper one is kept: what the lower one holds or hides is
        # held or hidden by the upper already, whatever lies between.
        return list(dict.fromkeys(reversed(found[self._shown()])))

    def _directories(self, locks: contextlib.ExitStack) -> list[pathlib.Path]:
        """All layers, bottom first, held from now on."""
        pairs = places.places([layer.diff_id for layer in self._image.layers])
        candidates = [[self._base / place for place in pair] for pair in pairs]
        layers = self._image.layers or [_EMPTY]
        held = [self._hold(paths, locks) for paths in candidates]
        missing = [layer for layer, path in zip(layers, held, strict=True) if path is None]
        self._count = len(missing)
        self._total = sum(layer.size for layer in missing)
        found: list[pathlib.Path] = []
        with _Batch(self._store) as batch:
            for layer, path, paths in zip(layers, held, candidates, strict=True):
                place = path or batch.holds(paths) or self._hold(paths, locks)
                found.append(place or self._unpack(layer, paths, found, batch))
        # Somebody may have removed a layer before it is held.
        if all(held[at] or self._hold([path], locks) for at, path in enumerate(found)):
            return found
        return self._directories(locks)

    def _hold(
        self, paths: Sequence[pathlib.Path], locks: contextlib.ExitStack
    ) -> pathlib.Path | None:
        """The first of the directories that is there, kept there from now on."""
        for path in paths:
            fd = places.hold(path)
            if fd is not None:
                locks.callback(os.close, fd)
                return path
        return None

    def _unpack(
        self,
        layer: Layer,
        paths: Sequence[pathlib.Path],
        below: Sequence[pathlib.Path],
        batch: _Batch,
    ) -> pathlib.Path:
        """Unpack a layer; returns where it will be."""
        job = Job(
            override=self._override,
            lowers=[batch.where(path) for path in reversed(below)],
            warn=self._warn,
            where=f"{self._source.path}: layer {layer.digest or layer.diff_id}",
            place=str(self._store.root),
            limit=largest.limit(layer.size),
        )
        target = batch.new()
        if layer is _EMPTY:
            stream = ForwardStream(io.BytesIO(places.EMPTY_TAR), layer.diff_id, "empty layer")
            unpack_stream(stream, str(target), job)
            return batch.add(target, paths[0], layer.size)
        self._number += 1
        before = self._done
        self._tell(layer, before)
        with self._source.open_layer(layer, lambda count: self._tell(layer, before, count)) as blob:
            unpacked = unpack_blob(blob, layer.diff_id, str(target), job)
        sizes.note(self._store, layer.diff_id, unpacked.size)
        place = batch.add(target, paths[unpacked.used_lowers], layer.size)
        self._tell(layer, before, complete=True)
        return place

    @contextlib.contextmanager
    def _store_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise self._store_error(exc) from exc

    def _store_error(self, exc: OSError) -> StoreError:
        return store_error(exc, "cannot store a layer", self._store.root)

    def _tell(self, layer: Layer, before: int, count: int = 0, *, complete: bool = False) -> None:
        """`before`: what was done when the layer was begun."""
        self._done += count
        if self._progress is not None:
            read = self._done - before
            self._progress(
                Progress(
                    layer=self._number, layers=self._count, done=self._done, total=self._total,
                    blob=layer.digest, read=read, complete=complete,
                )
            )  # fmt: skip
