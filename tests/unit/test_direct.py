"""Listings that the extension and the overlay fill together, and look-ups of what they know."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseoverlay.fuse.direct import Direct, hand_over
from fuseoverlay.native import extension
from fuseoverlay.overlay.config import check
from fuseoverlay.overlay.inodetable import ROOT
from fuseoverlay.overlay.mountoptions import parse
from fuseoverlay.overlay.owners import opened

pytestmark = pytest.mark.skipif(bool(extension.absence()), reason="needs the extension")

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
    """Finding the data of a metacopy opens other directories. If descriptors are scarce, that
    closes the listed directory's, and another directory gets its number; the next file must not be
    looked up there."""
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
        hand_over(ov, read_listed=True, acls=False)
        direct = Direct(ov, lambda ino, count: None, acls=False)
        reply = direct.readdirplus(ROOT, 0, 0, 0, struct.pack("=QQI", 0, 0, 1 << 16))
        listed = {os.fsdecode(name): node for name, node in _entries(reply)}
    expected = {name: (top / name).stat().st_ino for name in names}
    assert {name: listed[name] for name in names} == expected


def test_looking_up_makes_no_inode(tmp_path: Path) -> None:
    """A plain lower file stays a listed one, however often it is looked up; one with several names
    becomes an inode."""
    (tmp_path / "plain").write_bytes(b"data")
    (tmp_path / "linked").touch()
    os.link(tmp_path / "linked", tmp_path / "other")
    with opened(check(parse(os.fsencode(f"ro,lowerdir={tmp_path}")))) as ov:
        hand_over(ov, read_listed=True, acls=False)
        direct = Direct(ov, lambda ino, count: None, acls=False)
        for name in ("plain", "linked"):
            first, second = (direct.lookup(ROOT, 0, 0, 0, name.encode() + b"\0") for _ in range(2))
            assert first == second
            assert len(first) == _ENTRY_OUT
            ino = (tmp_path / name).stat().st_ino
            assert _NODE.unpack_from(first) == (ino,)
            known = ov.inodes.entries[ino]
            assert isinstance(known, tuple) == (name == "plain")
            assert (known[3] if isinstance(known, tuple) else known.nlookup) == 2
