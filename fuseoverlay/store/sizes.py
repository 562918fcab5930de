"""How large the files of each layer are, together: noted when it was unpacked.

    ROOT/sizes/sha256/DIFF_ID   decimal digits

What Docker shows as the size of a layer or an image. Another count than the room on disk, which
depends on the file system and on holes. A note that is missing or damaged is no error.
"""

from __future__ import annotations

import contextlib
import os
import pathlib

from fuseoverlay.oci.model import Digest
from fuseoverlay.store.root import Store

#: No file is larger.
_LONGEST = len(str(1 << 63))


def note(store: Store, diff_id: Digest, size: int) -> None:
    """Note the size of a layer in bytes. OSError."""
    path = _path(store, diff_id)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Not in one step, and not durable: a note that is no number is as none.
    path.write_text(f"{size}\n")


def known(store: Store, diff_id: Digest) -> int | None:
    """The size of a layer in bytes; None if it was never unpacked here."""
    with contextlib.suppress(OSError):
        with open(_path(store, diff_id), "rb") as file:
            text = file.read(_LONGEST + 1)
        # The line's end shows that the note is whole.
        if text.endswith(b"\n") and text[:-1].isdigit():
            return int(text)
    return None


def noted(store: Store) -> list[str]:
    """The layers with a note, each as `ALGORITHM/HEX`."""
    return [f"{path.parent.name}/{path.name}" for path in (store.root / "sizes").glob("*/*")]


def forget(store: Store, place: str) -> None:
    """Remove the note on the layer `ALGORITHM/HEX`."""
    with contextlib.suppress(OSError):
        os.unlink(store.root / "sizes" / place)


def _path(store: Store, diff_id: Digest) -> pathlib.Path:
    return store.root / "sizes" / diff_id.algorithm / diff_id.hex
