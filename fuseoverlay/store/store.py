"""The store of unpacked layers, shared by all images of one user.

    ROOT/layers/sha256/DIFF_ID            unpacked with real owners, modes and devices
    ROOT/layers/chain/CHAIN_ID            the same, with data of the layers below in it
    ROOT/layers-override/...              the same two, owners and modes only recorded
    ROOT/tmp/NAME/                        one layer being unpacked, locked by its maker

A layer exists completely or not at all: it is made in `tmp`, verified, written to disk and
published by one rename. What a killed process left in `tmp` is removed at the next use.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import pathlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from fuseoverlay.errors import StoreError
from fuseoverlay.oci import metadata, names
from fuseoverlay.oci.blobs import Image, ImageSource, Layer, open_image
from fuseoverlay.oci.job import Job, store_error
from fuseoverlay.oci.malformed import malformed
from fuseoverlay.oci.model import Digest, Platform
from fuseoverlay.oci.streams import ForwardStream
from fuseoverlay.oci.unpack import unpack_blob, unpack_stream
from fuseoverlay.system import syscalls
from fuseoverlay.system.removal import remove_tree
from fuseoverlay.system.syscalls import DIR_FLAGS

#: An empty tar archive: what an image without layers shows.
_EMPTY_TAR: Final = bytes(1024)
_UNPACKED: Final = "layer"


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of unpacking. `done` and `total` are bytes, over all layers that were missing.

    `layer` counts from 1 to `layers`, the number of layers that were missing.
    """

    layer: int
    layers: int
    done: int
    total: int


ProgressCallback = Callable[[Progress], None]


def default_root() -> pathlib.Path:
    """`$XDG_DATA_HOME/fuseoverlay`, else `~/.local/share/fuseoverlay`."""
    data = os.environ.get("XDG_DATA_HOME", "")
    # The specification says to ignore a relative path.
    base = pathlib.Path(data) if data.startswith("/") else pathlib.Path.home() / ".local/share"
    return base / "fuseoverlay"


def _ignore(_line: str) -> None:
    """Drop a warning."""


class Store:
    """A directory of unpacked layers, created when first needed."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = pathlib.Path(root)
        self._tmp = self.root / "tmp"

    def layers(
        self,
        image: str,
        *,
        platform: str | None = None,
        progress: ProgressCallback | None = None,
        warn: Callable[[str], None] = _ignore,
    ) -> list[pathlib.Path]:
        """The layer directories of `IMAGE[:REF]`; see `StoredImage.layers`."""
        with self.opened(image, platform=platform, progress=progress, warn=warn) as found:
            return found.layers()

    @contextlib.contextmanager
    def opened(
        self,
        image: str,
        *,
        platform: str | None = None,
        progress: ProgressCallback | None = None,
        warn: Callable[[str], None] = _ignore,
    ) -> Iterator[StoredImage]:
        """The image `IMAGE[:REF]`. No layer has been read yet, only what describes the image.

        Raises ImageError, DigestError, StoreError.
        """
        path, ref = names.find(image)
        wanted = Platform.parse(platform) if platform else None
        self.prepare()
        with malformed(path), open_image(path, scratch=str(self._tmp)) as source:
            chosen = source.resolve(ref, wanted)
            if wanted is None and chosen.platform is not None:
                _check_platform(image, chosen.platform, warn)
            yield StoredImage(self, source, chosen, progress, warn)

    def prepare(self) -> None:
        """Create the store if there is none. Raises StoreError."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._tmp.mkdir(mode=0o700, exist_ok=True)
            self._sweep()
        except OSError as exc:
            raise store_error(exc, "the layer store cannot be used", self.root) from exc

    def _sweep(self) -> None:
        """Remove what ended processes have left; a living one holds a lock."""
        for name in os.listdir(self._tmp):
            # Another process may be sweeping, too.
            with contextlib.suppress(OSError):
                fd = os.open(self._tmp / name, DIR_FLAGS)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._remove(name)
                finally:
                    os.close(fd)

    def _remove(self, name: str) -> None:
        tmp_fd = os.open(self._tmp, DIR_FLAGS)
        try:
            remove_tree(tmp_fd, os.fsencode(name))
        finally:
            os.close(tmp_fd)

    @contextlib.contextmanager
    def workspace(self) -> Iterator[pathlib.Path]:
        """A new locked directory in `tmp`, removed with all its content at the end."""
        path, fd = self._new_workspace()
        try:
            yield path
        finally:
            try:
                self._remove(path.name)
            finally:
                os.close(fd)

    def _new_workspace(self) -> tuple[pathlib.Path, int]:
        while True:
            path = self._tmp / secrets.token_hex(8)
            path.mkdir(mode=0o700)
            # Until it is locked, another process may sweep it away as left over.
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(path, DIR_FLAGS)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX)
                    os.stat(path)
                except BaseException:
                    os.close(fd)
                    raise
                return path, fd

    def publish(self, made: pathlib.Path, target: pathlib.Path) -> None:
        """Move a finished directory to its place; leave it if another process was faster."""
        fd = os.open(made, DIR_FLAGS)
        try:
            syscalls.syncfs(fd)
        finally:
            os.close(fd)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        source, goal = os.fsencode(made), os.fsencode(target)
        try:
            syscalls.renameat2(
                syscalls.AT_FDCWD, source, syscalls.AT_FDCWD, goal, syscalls.RENAME_NOREPLACE
            )
        except OSError as exc:
            if exc.errno == errno.EEXIST:
                return
            if exc.errno != errno.EINVAL:
                raise
            # A filesystem without RENAME_NOREPLACE. A plain rename does not replace a directory
            # with content.
            try:
                os.rename(source, goal)
            except OSError as plain:
                if plain.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise

    def override(self) -> bool:
        """Whether owners and modes are only recorded here, in an attribute. Raises StoreError."""
        try:
            with self.workspace() as path:
                fd = os.open(path, DIR_FLAGS)
                try:
                    return not metadata.can_own(fd)
                finally:
                    os.close(fd)
        except OSError as exc:
            raise store_error(exc, "cannot store a layer", self.root) from exc


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


class StoredImage:
    """One image, and the unpacking of its layers into the store."""

    def __init__(
        self,
        store: Store,
        source: ImageSource,
        image: Image,
        progress: ProgressCallback | None,
        warn: Callable[[str], None],
    ) -> None:
        self._store = store
        self._source = source
        self._image = image
        self._progress = progress
        self._warn = warn
        self._override = store.override()
        self._base = store.root / ("layers-override" if self._override else "layers")
        self._done = self._total = self._number = self._count = 0

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """The digests of its plain layers, bottom first."""
        return tuple(str(layer.diff_id) for layer in self._image.layers)

    def layers(self) -> list[pathlib.Path]:
        """The layer directories, top first. Unpacks what is missing.

        No directory comes twice, and there is at least one. Raises ImageError, DigestError,
        StoreError; layers finished by then stay.
        """
        # If a layer comes twice, only the upper one is kept: what the lower one holds or hides is
        # held or hidden by the upper already, whatever lies between.
        return list(dict.fromkeys(reversed(self._directories())))

    def _directories(self) -> list[pathlib.Path]:
        chains = _chain_ids(self._image.layers)
        missing = [
            layer
            for layer, chain in zip(self._image.layers, chains, strict=True)
            if self._find(layer.diff_id, chain) is None
        ]
        self._count = len(missing)
        self._total = sum(layer.size for layer in missing)
        found: list[pathlib.Path] = []
        for layer, chain in zip(self._image.layers, chains, strict=True):
            found.append(self._find(layer.diff_id, chain) or self._unpack(layer, chain, found))
        return found or [self._empty()]

    def _find(self, diff_id: Digest, chain: str) -> pathlib.Path | None:
        for path in (self._plain_path(diff_id), self._chain_path(chain)):
            if path.is_dir():
                return path
        return None

    def _plain_path(self, diff_id: Digest) -> pathlib.Path:
        return self._base / diff_id.algorithm / diff_id.hex

    def _chain_path(self, chain: str) -> pathlib.Path:
        return self._base / "chain" / chain

    def _unpack(self, layer: Layer, chain: str, below: list[pathlib.Path]) -> pathlib.Path:
        self._number += 1
        self._tell(0)
        job = Job(
            override=self._override,
            lowers=list(reversed(below)),
            warn=self._warn,
            where=f"{self._source.path}: layer {layer.digest or layer.diff_id}",
            place=str(self._store.root),
        )
        with self._making() as target, self._source.open_layer(layer, self._tell) as blob:
            used_lowers = unpack_blob(blob, layer.diff_id, str(target), job)
            place = self._chain_path(chain) if used_lowers else self._plain_path(layer.diff_id)
            self._store.publish(target, place)
        return place

    def _empty(self) -> pathlib.Path:
        diff_id = Digest.of(_EMPTY_TAR)
        place = self._plain_path(diff_id)
        if not place.is_dir():
            with self._making() as target:
                job = Job(override=self._override, place=str(self._store.root))
                stream = ForwardStream(io.BytesIO(_EMPTY_TAR), diff_id, "empty layer")
                unpack_stream(stream, str(target), job)
                self._store.publish(target, place)
        return place

    @contextlib.contextmanager
    def _making(self) -> Iterator[pathlib.Path]:
        """A new empty directory to unpack into, inside a workspace."""
        with self._store_errors(), self._store.workspace() as work:
            target = work / _UNPACKED
            target.mkdir(mode=0o700)
            yield target

    @contextlib.contextmanager
    def _store_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise self._store_error(exc) from exc

    def _store_error(self, exc: OSError) -> StoreError:
        return store_error(exc, "cannot store a layer", self._store.root)

    def _tell(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(Progress(self._number, self._count, self._done, self._total))


def _chain_ids(layers: tuple[Layer, ...]) -> list[str]:
    """The ChainID, in hex, of each layer with all below it; image-spec config.md."""
    chains: list[str] = []
    chain = ""
    for layer in layers:
        chain = str(Digest.of(f"{chain} {layer.diff_id}".encode()) if chain else layer.diff_id)
        chains.append(chain.partition(":")[2])
    return chains
