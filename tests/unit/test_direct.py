"""Listings that the extension and the overlay fill together."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseoverlay import native
from fuseoverlay.config import check, parse
from fuseoverlay.direct import Direct
from fuseoverlay.inodes import ROOT
from fuseoverlay.overlay import opened

pytestmark = pytest.mark.skipif(bool(native.absence()), reason="needs the extension")

# struct fuse_direntplus: fuse_entry_out, which begins with the node id, then fuse_dirent.
_NODE = struct.Struct("=Q")
_DIRENT = struct.Struct("=QQII")
_ENTRY_OUT = 128


def _entries(reply: bytes) -> Iterator[tuple[bytes, int]]:
    """(name, node id) of each entry."""
    at = 0
    while at < len(reply):
        (node,) = _NODE.unpack_from(reply, at)
        _, _, length, _ = _DIRENT.unpack_from(reply, at + _ENTRY_OUT)
        start = at + _ENTRY_OUT + _DIRENT.size
        yield reply[start : start + length], node
        at = start + (length + 7) // 8 * 8


def test_descriptors_that_are_closed_meanwhile(tmp_path: Path) -> None:
    """To find the data of a metacopy takes other directories, which with few descriptors close
    the one that the files around it are found by, and take its number: the next file must not be
    looked for in there."""
    top, bottom = tmp_path / "top", tmp_path / "bottom"
    top.mkdir()
    (bottom / "elsewhere").mkdir(parents=True)
    names = [f"{number}" for number in range(40)]
    for number, name in enumerate(names):
        (top / name).touch()
        (bottom / "elsewhere" / name).touch()
        if number % 2:
            os.setxattr(top / name, "user.overlay.metacopy", b"")
            os.setxattr(top / name, "user.overlay.redirect", b"/elsewhere/" + name.encode())
    options = f"ro,metacopy=on,lowerdir={top}:{bottom}"
    with opened(check(parse(os.fsencode(options)))) as ov:
        ov.stack.limit = 1
        native.prepare(ov.inodes.entries, ov.stack.descriptors, read_listed=True, acls=False)
        direct = Direct(ov, 1, lambda ino, count: None, acls=False)
        reply = direct.readdirplus(ROOT, 0, 0, 0, struct.pack("=QQI", 0, 0, 1 << 16))
        listed = {os.fsdecode(name): node for name, node in _entries(reply)}
    expected = {name: (top / name).stat().st_ino for name in names}
    assert {name: listed[name] for name in names} == expected
