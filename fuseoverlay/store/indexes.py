"""Where the indexes of layers lie, beside the layers that may be unpacked or not.

    ROOT/index/sha256/DIFF_ID       made from the layer's own archive
    ROOT/index/chain/CHAIN_ID       the same, with what it takes from the layers below
    ROOT/index/found/KEY            what was found out about the layers of an image together

All of it is derived: what is damaged or of another version is made again, and it goes when no image
needs it.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Final

from fuseoverlay.store import places
from fuseoverlay.store.root import Store

BASE: Final = "index"
FOUND: Final = "found"


def place(store: Store, name: str) -> pathlib.Path:
    """Where the index is of which `places.places` gives the name."""
    return store.root / BASE / name


def all_of(store: Store) -> Iterator[pathlib.Path]:
    """The files of all indexes, and what was found out with them."""
    yield from sorted((store.root / BASE).glob("*/*"))


def is_ours(path: pathlib.Path) -> bool:
    """Whether we have made the file, or root has: another user's may say anything. OSError."""
    return os.stat(path).st_uid in (0, os.geteuid())


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
        os.rename(source, target)


def forget(path: pathlib.Path) -> None:
    """Remove one. OSError."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
