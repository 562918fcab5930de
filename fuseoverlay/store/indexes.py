"""Where the indexes of layers lie, beside the layers that may be unpacked or not.

    ROOT/index/sha256/DIFF_ID       made from the layer's own archive
    ROOT/index/chain/CHAIN_ID       the same, with what it takes from the layers below
    ROOT/index/found/KEY            what was found out about the layers of an image together

All of it is derived: what is damaged or of another version is made again, and it goes when no image
needs it. Each file begins with a line that says what it is, and one with the CRC-32 of the rest.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pathlib
import stat
import zlib
from collections.abc import Iterator, Sequence
from typing import Final

from fuseoverlay.store import places
from fuseoverlay.store.root import Store
from fuseoverlay.system.removal import remove_tree
from fuseoverlay.system.syscalls import DIR_FLAGS

BASE: Final = "index"
FOUND: Final = "found"
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: Bytes of a checksum: eight digits and the end of the line.
SUM: Final = 9


class BadIndexError(Exception):
    """A file that is no index of this version, or is damaged, or another user's."""


def place(store: Store, name: str) -> pathlib.Path:
    """Where the index is of which `places.places` gives the name."""
    return store.root / BASE / name


def all_of(store: Store) -> Iterator[pathlib.Path]:
    """The files of all indexes, and what was found out with them."""
    yield from sorted((store.root / BASE).glob("*/*"))


def mapped(path: str | os.PathLike[str]) -> mmap.mmap:
    """The content of a file that we have made, or root: another user's may say anything. OSError,
    BadIndexError."""
    fd = os.open(path, _READ)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            raise BadIndexError("no file, or empty")
        if status.st_uid not in (0, os.geteuid()):
            raise BadIndexError("another user's")
        return mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(fd)


def sealed(magic: bytes, pieces: Sequence[bytes]) -> bytes:
    """The content of a file of `pieces`, after the line `magic` and the checksum."""
    found = 0
    for piece in pieces:
        found = zlib.crc32(piece, found)
    return b"".join((magic, b"%08x\n" % found, *pieces))


def unsealed(view: memoryview, magic: bytes) -> int:
    """Where the pieces begin in a file that is whole and begins with `magic`. BadIndexError."""
    begin = len(magic) + SUM
    if bytes(view[: len(magic)]) != magic:
        raise BadIndexError("of another version")
    with view[begin:] as rest:
        if bytes(view[len(magic) : begin]) != b"%08x\n" % zlib.crc32(rest):
            raise BadIndexError("damaged")
    return begin


def beside(layer: pathlib.Path) -> pathlib.Path | None:
    """Where the index of an unpacked layer is; None if the directory can be none of a store."""
    if layer.parent.parent.name not in (places.REAL, places.OVERRIDE):
        return None
    return layer.parents[2] / BASE / layer.parent.name / layer.name


def layer_of(path: pathlib.Path) -> str:
    """The place below `layers` of the layer that it is about, the topmost of several."""
    kind = "chain" if path.parent.name == FOUND else path.parent.name
    return f"{kind}/{path.name}"


def publish(store: Store, made: dict[pathlib.Path, pathlib.Path]) -> None:
    """Move files to their places, `made` saying where each is now. OSError."""
    if not made:
        return
    store.sync()
    for target, source in made.items():
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            os.rename(source, target)
        except IsADirectoryError:
            forget(target)
            os.rename(source, target)


def size(path: pathlib.Path) -> int:
    """Its size in bytes; 0 if it has gone. OSError."""
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def forget(path: pathlib.Path) -> None:
    """Remove one, or whatever is in its place. OSError."""
    fd = os.open(path.parent, DIR_FLAGS)
    try:
        with contextlib.suppress(FileNotFoundError):
            remove_tree(fd, os.fsencode(path.name))
    finally:
        os.close(fd)
