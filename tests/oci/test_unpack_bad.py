"""Layers that must not be unpacked, and that must not hurt."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from fuseoverlay.errors import ImageError
from fuseoverlay.oci.layout import Node, directory, layer_tar, symlink
from tests.oci.helpers import Unpacker, names, see
from tests.oci.test_unpack import raw_pax


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "a/..", "..", "/etc/x", "//x", "./../x", "a/../b"]
)
@pytest.mark.parametrize("link", [False, True])
def test_names_that_lead_out(unpacker: Unpacker, name: str, link: bool) -> None:
    node = Node("here", hardlink=name) if link else Node(name, data=b"bad")
    with pytest.raises(ImageError) as caught:
        unpacker.nodes(Node("fine"), node)
    assert name in str(caught.value)
    assert not os.path.exists("/etc/x")
    assert sorted(os.listdir(unpacker.base)) == ["layer1"]


def test_the_name_slash(unpacker: Unpacker) -> None:
    with pytest.raises(ImageError, match="absolute or empty"):
        unpacker.nodes(directory("/"))


@pytest.mark.parametrize("target", ["/", "..", "victim", "{outside}"])
@pytest.mark.parametrize("last", ["file", "dir", "opaque", "link", "deep"])
def test_no_link_is_followed(unpacker: Unpacker, place: Path, target: str, last: str) -> None:
    outside = place / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    nodes = {
        "file": Node("l/kept", data=b"bad"),
        "dir": directory("l/kept"),
        "opaque": Node("l/.wh..wh..opq"),
        "link": Node("l/kept", hardlink="f"),
        "deep": Node("l/a/b/c"),
    }
    with pytest.raises(ImageError, match="l is no directory in this layer"):
        unpacker.nodes(
            Node("f"),
            symlink("l", target.format(outside=outside)),
            directory("victim"),
            nodes[last],
        )
    assert os.listdir(outside) == ["kept"]
    assert (outside / "kept").read_text() == "kept"


def test_whiteouts_below_what_replaced_their_directory(unpacker: Unpacker, place: Path) -> None:
    """`umoci repack` writes them; the replacement hides all that they could delete."""
    (place / "outside").mkdir()
    (place / "outside/kept").write_text("kept")
    layer = unpacker.nodes(
        symlink("l", "../outside"), Node("l/.wh.kept"), Node("f"), Node("f/a/b/.wh.c")
    )
    assert names(layer) == {b"l", b"f"}
    assert (place / "outside/kept").read_text() == "kept"


def test_a_hard_link_through_a_symlink(unpacker: Unpacker, place: Path) -> None:
    (place / "outside").mkdir()
    (place / "outside/secret").write_text("secret")
    with pytest.raises(ImageError, match="neither in this layer"):
        unpacker.nodes(symlink("l", "../outside"), Node("x", hardlink="l/secret"))


def test_a_hard_link_to_a_symlink_that_leads_out_is_a_link(unpacker: Unpacker) -> None:
    """Kept as text, and writing to the name afterwards replaces it."""
    layer = unpacker.nodes(
        symlink("l", "/etc/hostname"), Node("x", hardlink="l"), Node("x", data=b"new")
    )
    link = see(layer / "l", unpacker.override)
    assert (link.kind, link.data) == ("symlink", b"/etc/hostname")
    assert (layer / "x").read_bytes() == b"new"


@pytest.mark.parametrize("parent", [Node("p"), Node("p", hardlink="later"), symlink("p", ".")])
def test_a_parent_that_is_no_directory(unpacker: Unpacker, parent: Node) -> None:
    with pytest.raises(ImageError, match="p is no directory"):
        unpacker.nodes(parent, Node("p/x"))


@pytest.mark.parametrize(
    "nodes",
    [
        [directory("d"), Node("x", hardlink="d")],
        [Node("x", hardlink="d"), directory("d")],
        [Node("x", hardlink=".")],
        [Node("x", hardlink="nowhere")],
        [Node("x", hardlink="no/where")],
        [Node(".wh.a"), Node("x", hardlink=".wh.a")],
        [Node("d/f"), Node("d", hardlink="d/f")],
        [Node(".", hardlink="f")],
    ],
)
def test_bad_hard_links(unpacker: Unpacker, nodes: list[Node]) -> None:
    with pytest.raises(ImageError):
        unpacker.nodes(*nodes)


@pytest.mark.parametrize("node", [Node("."), symlink("./", "/"), Node(".", stat.S_IFIFO)])
def test_a_root_that_is_no_directory(unpacker: Unpacker, node: Node) -> None:
    with pytest.raises(ImageError, match="root"):
        unpacker.nodes(node)


def test_device_of_a_whiteout(unpacker: Unpacker) -> None:
    with pytest.raises(ImageError, match=r"dev/zero.*0:0"):
        unpacker.nodes(Node("dev/zero", stat.S_IFCHR | 0o666, rdev=(0, 0)))


@pytest.mark.parametrize("rdev", [(4096, 0), (0, 1 << 20), (1 << 20, 1)])
def test_impossible_devices(unpacker: Unpacker, rdev: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="no device number"):
        unpacker.nodes(Node("x", stat.S_IFBLK, rdev=rdev))


def test_unknown_type(unpacker: Unpacker) -> None:
    info = tarfile.TarInfo("odd")
    info.type = b"Z"
    with pytest.raises(ImageError, match=r"odd.*unknown tar entry type"):
        unpacker.tar(info.tobuf() + bytes(1024))


@pytest.mark.parametrize("field", [b"uid", b"gid"])
@pytest.mark.parametrize("value", [b"-1", b"4294967295", b"99999999999999999999"])
def test_impossible_owners(unpacker: Unpacker, field: bytes, value: bytes) -> None:
    with pytest.raises(ImageError, match="no user or group number"):
        unpacker.tar(raw_pax([field + b"=" + value]))


@pytest.mark.parametrize(
    "records",
    [
        [b"path=a\0b"],
        [b"path=" + b"x/" * 2048 + b"y"],
        [b"path=" + b"x" * 256],
        [b"size=-5"],
        [b"SCHILY.xattr.=x"],
        [b"SCHILY.xattr.a\0b=x"],
        [b"LIBARCHIVE.xattr.user.a=*"],
        [b"GNU.sparse.map=5,1,0,1", b"GNU.sparse.size=10"],
        [b"GNU.sparse.map=0,100", b"GNU.sparse.size=10"],
        [b"GNU.sparse.map=x"],
        [b"GNU.sparse.major=1", b"GNU.sparse.minor=0"],
    ],
)
def test_bad_headers(unpacker: Unpacker, records: list[bytes]) -> None:
    with pytest.raises(ImageError):
        unpacker.tar(raw_pax(records))


def test_a_header_that_claims_gigabytes(unpacker: Unpacker) -> None:
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
        info = tarfile.TarInfo("big")
        info.type, info.size = kind, 1 << 40
        with pytest.raises(ImageError, match="too large"):
            unpacker.tar(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


def test_a_damaged_header_is_not_the_end(unpacker: Unpacker) -> None:
    tar = bytearray(layer_tar([Node("a", data=b"x"), Node("b"), Node("c")]))
    tar[1024 + 3] ^= 0xFF
    with pytest.raises(ImageError, match="damaged header"):
        unpacker.tar(bytes(tar))


def test_cut_archives(unpacker: Unpacker) -> None:
    tar = layer_tar([Node("a", data=b"x" * 2000)])
    for cut in (100, 511, 512, 600, 512 + 1999):
        with pytest.raises(ImageError):
            unpacker.tar(tar[:cut])


def test_cut_in_skipped_data(unpacker: Unpacker) -> None:
    tar = layer_tar([Node(".wh.a", data=b"x" * 2000)])
    with pytest.raises(ImageError):
        unpacker.tar(tar[:1000])


def test_no_end_marker_is_fine(unpacker: Unpacker) -> None:
    tar = layer_tar([Node("a", data=b"x" * 512)])
    layer = unpacker.tar(tar[:1024])
    assert (layer / "a").read_bytes() == b"x" * 512


def test_an_empty_symlink(unpacker: Unpacker) -> None:
    with pytest.raises(ImageError, match="symbolic link"):
        unpacker.nodes(symlink("l", ""))


def test_a_file_that_no_filesystem_holds(unpacker: Unpacker) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("f")
        info.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 62)}
        archive.addfile(info)
    with pytest.raises(ImageError, match="f"):
        unpacker.tar(buffer.getvalue())
