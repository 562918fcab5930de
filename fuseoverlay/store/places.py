"""Where unpacked layers lie, and whether they are in use.

    ROOT/layers/sha256/DIFF_ID            unpacked with real owners, modes and devices
    ROOT/layers/chain/CHAIN_ID            the same, with data of the layers below in it
    ROOT/layers-override/...              the same two, owners and modes only recorded
    ROOT/sizes/sha256-DIFF_ID, chain-CHAIN_ID
                                          a symbolic link to the number of bytes in its files

Whoever uses a layer holds a shared flock(2) on its directory, in a descriptor that lives as long as
the use: a mount's daemon inherits it. Who removes one has an exclusive lock, and moves it away
before anything in it goes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Final

from fuseoverlay.oci.model import Digest, chain_ids
from fuseoverlay.store.root import Store
from fuseoverlay.system.syscalls import DIR_FLAGS

REAL: Final = "layers"
OVERRIDE: Final = "layers-override"
#: An empty tar archive: what an image without layers shows.
EMPTY_TAR: Final = bytes(1024)


def plain_place(diff_id: Digest) -> str:
    """Where the layer is below `layers` or `layers-override`, if only its own archive made it."""
    return f"{diff_id.algorithm}/{diff_id.hex}"


def chain_place(chain: Digest) -> str:
    """The same if it holds data of the layers below; `chain`: its ChainID."""
    return f"chain/{chain.hex}"


def places(diff_ids: Sequence[Digest]) -> list[tuple[str, str]]:
    """The two possible places of each layer of an image, bottom first."""
    found = diff_ids or [Digest.of(EMPTY_TAR)]
    return [
        (plain_place(diff_id), chain_place(chain))
        for diff_id, chain in zip(found, chain_ids(found), strict=True)
    ]


def note_size(store: Store, place: str, size: int) -> None:
    """Note how many bytes the files of a layer hold; `place` as from `places`. A link is made and
    read in one call each, and is never half there. OSError."""
    path = _size_path(store, place)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.symlink(str(size), path)


def forget_size(store: Store, place: str) -> None:
    """Drop the note. OSError."""
    _size_path(store, place).unlink(missing_ok=True)


def noted_size(store: Store, place: str) -> int | None:
    """How many bytes the files of a layer hold; None if that was never noted."""
    try:
        text = os.readlink(_size_path(store, place))
    except OSError:
        return None
    return int(text) if text.isascii() and text.isdigit() else None


def noted(store: Store) -> list[str]:
    """The places for which a size is noted."""
    try:
        names = os.listdir(store.root / "sizes")
    except FileNotFoundError:
        return []
    return [name.replace("-", "/", 1) for name in names]


def _size_path(store: Store, place: str) -> pathlib.Path:
    return store.root / "sizes" / place.replace("/", "-", 1)


def unpacked(store: Store) -> list[pathlib.Path]:
    """The directories of all unpacked layers."""
    found: list[pathlib.Path] = []
    for base in (REAL, OVERRIDE):
        found += sorted((store.root / base).glob("*/*"))
    return found


def hold(path: pathlib.Path) -> int | None:
    """A descriptor that keeps the layer from being removed; None if it is not there. OSError."""
    return _lock(path, fcntl.LOCK_SH)


@contextlib.contextmanager
def taken(path: pathlib.Path) -> Iterator[bool]:
    """Whether nobody uses the layer, nor can begin to in this context. OSError."""
    try:
        fd = _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fd = None
    try:
        yield fd is not None
    finally:
        if fd is not None:
            os.close(fd)


def is_used(path: pathlib.Path) -> bool:
    """Whether the layer is there and somebody uses it. Inside `Store.locked`: it takes a lock."""
    with taken(path) as free:
        return not free and path.is_dir()


def _lock(path: pathlib.Path, operation: int) -> int | None:
    """The locked directory at `path`; None if it is not there any more."""
    try:
        fd = os.open(path, DIR_FLAGS)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, operation)
        if os.path.samestat(os.fstat(fd), os.stat(path)):
            return fd
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None
