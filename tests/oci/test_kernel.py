"""Stored layers under kernel overlayfs show the tree that `umoci unpack` makes of the image."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseoverlay.oci.layout import LayoutWriter, Node, directory, layer_tar, symlink
from fuseoverlay.store.layers import unpacked
from fuseoverlay.store.root import Store
from tests.helpers import tree
from tests.oci.conftest import WAYS

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")

BOTTOM = [
    directory("./", 0o755, mtime=1),
    directory("gone", mtime=2),
    Node("gone/x", mtime=3),
    directory("opaque", 0o750, uid=1, mtime=4),
    Node("opaque/low", mtime=5),
    directory("merged", 0o701, mtime=6),
    Node("merged/low", 0o4755, b"setuid", uid=3, gid=4, mtime="7.5"),
    Node("merged/deleted", mtime=8),
    directory("dir-to-file", mtime=9),
    Node("dir-to-file/x", mtime=10),
    Node("file-to-dir", data=b"file", mtime=11),
    Node("hard1", data=b"hard", mtime=12),
    Node("hard2", hardlink="hard1"),
    Node("null", stat.S_IFCHR | 0o666, rdev=(1, 3), mtime=13),
    Node("pipe", stat.S_IFIFO | 0o600, mtime=14),
    Node("ping", 0o755, b"x", mtime=15, xattrs={"security.capability": CAPABILITY}),
    Node("n" * 255, mtime=16),
    Node(b"\xff\xfe", mtime=17),
    symlink("link", "/etc/passwd", uid=5, mtime=18),
    Node("zeros", data=bytes(1 << 20), mtime="-5.25"),
]
MIDDLE = [
    directory("./", 0o711, mtime=20),
    Node(".wh.gone"),
    directory("opaque", 0o700, uid=2, mtime=21),
    Node("opaque/.wh..wh..opq"),
    Node("opaque/high", data=b"high", mtime=22),
    directory("merged", 0o702, mtime=23),
    Node("merged/.wh.deleted"),
    Node("merged/high", mtime=24),
    Node("dir-to-file", data=b"now a file", mtime=25),
    directory("file-to-dir", mtime=26),
    Node("file-to-dir/x", mtime=27),
]
TOP = [
    directory("./", 0o755, mtime=30),
    directory("gone", 0o711, mtime=31),
    Node("gone/again", data=b"again", mtime=32),
    directory("file-to-dir", mtime=33),
    Node("file-to-dir/.wh.x"),
    Node("hard2", data=b"no longer", mtime=34),
]


@pytest.fixture
def bundle(place: Path) -> Iterator[Path]:
    """A directory whose `rootfs` is what umoci unpacks from the layout `place/l`."""
    if shutil.which("umoci") is None:
        pytest.skip("missing tool: umoci")
    writer = LayoutWriter(place / "l")
    layers = [writer.add_layer(layer_tar(nodes), "gzip") for nodes in (BOTTOM, MIDDLE, TOP)]
    writer.add_image(layers, ref="x")
    subprocess.run(["umoci", "unpack", "--image", f"{place / 'l'}:x", place / "bundle"], check=True)
    yield place / "bundle/rootfs"


@pytest.mark.skipif("real" not in WAYS, reason="real owners need root")
def test_kernel_overlay_of_stored_layers(place: Path, bundle: Path) -> None:
    layers = unpacked(Store(place / "store"), f"{place / 'l'}:x")
    merged = place / "merged"
    merged.mkdir()
    option = "lowerdir=" + ":".join(map(os.fspath, layers))
    done = subprocess.run(["mount", "-t", "overlay", "-o", option, "overlay", merged])
    if done.returncode:
        pytest.skip("no kernel overlayfs here")
    try:
        differences = tree.compare(tree.record(str(bundle)), tree.record(str(merged)))
    finally:
        subprocess.run(["umount", merged], check=True)
    # Writing `hard2` anew breaks the link in umoci's one tree, but not in the layer below.
    assert [line for line in differences if "hard1" not in line] == []
