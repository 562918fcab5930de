"""Whiteouts of every dialect, made by hand as they come with layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.helpers.mounts import make_whiteout, set_overlay_xattr


def oci_whiteout(path: Path) -> None:
    """A `.wh.NAME` beside the name."""
    (path.parent / f".wh.{path.name}").touch()


def xattr_whiteout(path: Path) -> None:
    """An empty file with the attribute, in a directory that is marked for such whiteouts."""
    path.touch()
    set_overlay_xattr(path, "whiteout", b"y")
    set_overlay_xattr(path.parent, "opaque", b"x")


WHITEOUTS: dict[str, Callable[[Path], None]] = {
    "char": make_whiteout,
    "xattr": xattr_whiteout,
    "oci": oci_whiteout,
}
