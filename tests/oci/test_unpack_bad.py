"""Layers that must not be unpacked, and layers that must do no harm."""

from __future__ import annotations

import io
import os
import random
import stat
import tarfile
from pathlib import Path

import pytest

from fuseoverlay.errors import ImageError
from fuseoverlay.oci import remembered
from fuseoverlay.oci.layout import Node, directory, layer_tar, symlink
from fuseoverlay.oci.model import Digest
from tests.helpers import tree
from tests.oci.helpers import Unpacker, is_opaque, is_whiteout, names, see
from tests.oci.test_unpack import raw_pax

MANY = 3000 if os.environ.get("FUSEOVERLAY_LONG") else 300


@pytest.mark.parametrize("name", ["../x", "a/../../x", "..", "./../x", "/../x", "/a/../../b"])
@pytest.mark.parametrize("link", [False, True])
def test_names_that_lead_out(unpacker: Unpacker, name: str, link: bool) -> None:
    node = Node("here", hardlink=name) if link else Node(name, data=b"bad")
    with pytest.raises(ImageError) as caught:
        unpacker.nodes(Node("fine"), node)
    assert name in str(caught.value)
    assert sorted(os.listdir(unpacker.base)) == ["layer1"]


@pytest.mark.parametrize("name", ["/etc/x", "//etc/x", "a/../etc/x", "etc/a/b/.././../x"])
@pytest.mark.parametrize("link", [False, True])
def test_the_root_of_the_layer_is_slash(unpacker: Unpacker, name: str, link: bool) -> None:
    if link:
        layer = unpacker.nodes(Node("etc/x", data=b"1"), Node("here", hardlink=name))
        assert os.path.samefile(layer / "here", layer / "etc/x")
    else:
        layer = unpacker.nodes(Node(name, data=b"1"))
    assert (layer / "etc/x").read_bytes() == b"1"
    assert not os.path.exists("/etc/x")


@pytest.mark.parametrize("name", ["/", "", ".", "a/..", "//./"])
def test_names_of_the_root(unpacker: Unpacker, name: str) -> None:
    layer = unpacker.nodes(directory(name, 0o711, uid=3))
    assert names(layer) == set()
    assert (see(layer, unpacker.override).mode, see(layer, unpacker.override).uid) == (0o711, 3)
    with pytest.raises(ImageError, match="root of a layer"):
        unpacker.nodes(Node(name))
    if name:
        with pytest.raises(ImageError, match="no file"):
            unpacker.nodes(Node("x", hardlink=name))


@pytest.mark.parametrize("target", ["/", "..", "victim", "{outside}", "../../../{outside}"])
@pytest.mark.parametrize("last", ["file", "dir", "opaque", "link", "deep", "whiteout"])
def test_links_are_followed_inside_only(
    unpacker: Unpacker, place: Path, target: str, last: str
) -> None:
    outside = place / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    made = {
        "file": "kept",
        "dir": "kept",
        "opaque": "",
        "link": "kept",
        "deep": "a/b/c",
    }
    nodes = {
        "file": Node("l/kept", data=b"bad"),
        "dir": directory("l/kept"),
        "opaque": Node("l/.wh..wh..opq"),
        "link": Node("l/kept", hardlink="f"),
        "deep": Node("l/a/b/c"),
        "whiteout": Node("l/.wh.kept"),
    }
    text = target.format(outside=outside)
    layer = unpacker.nodes(Node("f"), symlink("l", text), directory("victim"), nodes[last])
    inside = layer / (text.replace("../", "").lstrip("/") if text != ".." else "")
    if last in made:
        assert (inside / made[last]).exists()
        assert is_opaque(inside) == (last == "opaque")
    elif inside.exists():
        assert is_whiteout(inside / "kept")
    else:
        # Names that the layers do not have cannot be deleted.
        assert "outside" in text
        assert names(layer) == {b"f", b"l", b"victim"}
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
    """It is kept as text; a later member of that name replaces it."""
    layer = unpacker.nodes(
        symlink("l", "/etc/hostname"), Node("x", hardlink="l"), Node("x", data=b"new")
    )
    link = see(layer / "l", unpacker.override)
    assert (link.kind, link.data) == ("symlink", b"/etc/hostname")
    assert (layer / "x").read_bytes() == b"new"


def test_what_links_lead_to_changes(unpacker: Unpacker, place: Path) -> None:
    """A link changes between two members of one name: the second one follows the new target."""
    (place / "outside").mkdir()
    layer = unpacker.nodes(
        Node("a/f", data=b"1"),
        symlink("a", str(place / "outside")),
        Node("a/f", data=b"2"),
        directory("a"),
        Node("a/f", data=b"3"),
        symlink("a", "b/c"),
        symlink("b", "../.."),
        Node("a/f", data=b"4"),
        directory("b/c/d"),
        Node("c"),
        symlink("c", "/"),
        Node("a/g", data=b"5"),
    )
    assert os.listdir(place / "outside") == []
    assert (layer / str(place / "outside").lstrip("/") / "f").read_bytes() == b"2"
    assert (layer / "g").read_bytes() == b"5"
    assert see(layer / "c", unpacker.override).kind == "symlink"


def test_links_in_the_place_of_directories_that_are_open(unpacker: Unpacker, place: Path) -> None:
    """Directories stay open for the next member, unless they were replaced."""
    (place / "outside").mkdir()
    nodes = [Node("d/e/f/g")]
    for name in ("d/e/f", "d/e", "d"):
        nodes += [symlink(name, str(place / "outside")), Node(f"{name}/x"), Node(".wh.y")]
        nodes += [Node(f"{name}/h", hardlink="first"), Node(f"{name}/.wh..wh..opq")]
    layer = unpacker.nodes(Node("first"), *nodes)
    assert os.listdir(place / "outside") == []
    assert (layer / str(place / "outside").lstrip("/") / "x").exists()


def random_layer(chance: random.Random, outside: Path) -> list[Node]:
    """A layer whose members replace one another, with links to everywhere."""
    words = ["a", "b", "c", "d", ".", ".wh.a"]
    nodes = []
    for number in range(chance.randrange(4, 30)):
        name = "/".join(chance.choices(words[:5], k=chance.randrange(1, 4)))
        other = "/".join(chance.choices(["..", *words[:5]], k=chance.randrange(1, 4)))
        there = chance.choice([other, f"/{other}", str(outside), f"{outside}/kept", "..", "/"])
        nodes.append(
            chance.choice(
                [
                    Node(name, data=b"%d" % number),
                    directory(name),
                    symlink(name, there),
                    symlink(name, there),
                    Node(name, hardlink=other.replace("..", "a")),
                    Node(f"{name}/.wh.{chance.choice('abcd')}"),
                    Node(f"{name}/.wh..wh..opq"),
                ]
            )
        )
    return nodes


def test_random_layers_stay_inside(unpacker: Unpacker, place: Path) -> None:
    outside = place / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    before = tree.digest(str(outside))
    done = 0
    for seed in range(MANY):
        try:
            unpacker.nodes(*random_layer(random.Random(seed), outside))
            done += 1
        except ImageError:
            pass
        assert tree.digest(str(outside)) == before, f"seed {seed}"
        made = {"outside", *(f"layer{number + 1}" for number in range(seed + 1))}
        assert set(os.listdir(place)) == made, f"seed {seed}"
    assert MANY // 10 < done < MANY


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ([symlink("l", "l"), Node("l/x")], "too many symbolic links"),
        ([symlink("a", "b/c"), symlink("b", "a"), Node("b/x")], "too many symbolic links"),
        ([symlink("l", "l"), Node("x", hardlink="l/x")], "too many symbolic links"),
        ([symlink("l", "no/../x"), Node("l/x")], r"no/\.\."),
        ([Node("f"), symlink("l", "f/../x"), Node("l/x")], r"f/\.\."),
        ([Node("f"), symlink("l", "f"), Node("l/x")], "f is no directory"),
        ([symlink("l", ".wh.x"), Node("l/y")], "leads to a whiteout"),
        ([symlink("l", ".wh..wh.plnk"), Node("l/y")], "leads to a whiteout"),
        ([symlink("l", "x/" * 2000), Node("l/" + "y/" * 1000)], "too long"),
        (
            [symlink(f"l{n}", f"l{n + 1}/" + "x/" * 2000) for n in range(30)] + [Node("l0/y")],
            "too long",
        ),
        ([symlink("l", "n" * 256), Node("l/x")], "File name too long"),
    ],
    ids=range(11),
)
def test_links_that_lead_nowhere(unpacker: Unpacker, nodes: list[Node], says: str) -> None:
    with pytest.raises(ImageError, match=says):
        unpacker.nodes(*nodes)


def test_as_many_links_as_the_kernel_follows(unpacker: Unpacker) -> None:
    links = [symlink(f"l{n}", f"l{n + 1}") for n in range(40)]
    layer = unpacker.nodes(directory("l40"), *links, Node("l0/x"))
    assert names(layer / "l40") == {b"x"}
    with pytest.raises(ImageError, match="too many symbolic links"):
        unpacker.nodes(directory("l40"), *links, symlink("more", "l0"), Node("more/x"))


def test_a_hard_link_to_a_directory_below(unpacker: Unpacker) -> None:
    lower = unpacker.nodes(directory("d"))
    with pytest.raises(ImageError, match="neither in this layer nor"):
        unpacker.nodes(Node("x", hardlink="d"), lowers=[lower])


@pytest.mark.parametrize("parent", [Node("p"), Node("p", hardlink="later")])
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


@pytest.mark.parametrize("rdev", [(4096, 0), (0, 1 << 20)])
def test_devices_beyond_32_bits(unpacker: Unpacker, rdev: tuple[int, int]) -> None:
    """As Go passes them to mknod(2): bits that Linux does not have are cut off."""
    layer = unpacker.nodes(Node("x", stat.S_IFBLK, rdev=rdev))
    assert see(layer / "x", unpacker.override).rdev == 0
    with pytest.raises(ImageError, match="0:0"):
        unpacker.nodes(Node("x", stat.S_IFCHR, rdev=rdev))


def test_unknown_type(unpacker: Unpacker) -> None:
    info = tarfile.TarInfo("odd")
    info.type = b"Z"
    with pytest.raises(ImageError, match=r"odd.*unknown tar entry type"):
        unpacker.tar(info.tobuf() + bytes(1024))


@pytest.mark.parametrize("field", [b"uid", b"gid"])
@pytest.mark.parametrize("value", [b"-99999999999999999999", b"99999999999999999999"])
def test_impossible_owners(unpacker: Unpacker, field: bytes, value: bytes) -> None:
    with pytest.raises(ImageError, match="no user or group number"):
        unpacker.tar(raw_pax([field + b"=" + value]))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"-2", 0xFFFFFFFE),
        (b"4294967294", 0xFFFFFFFE),
        # It stays root's, since no user has that id.
        (b"-1", 0),
        (b"4294967295", 0),
        (b"4294967301", 5),
        (b"+7", 7),
    ],
)
def test_owners_beyond_32_bits(unpacker: Unpacker, value: bytes, expected: int) -> None:
    """As Go passes them to chown(2)."""
    layer = unpacker.tar(raw_pax([b"uid=" + value, b"gid=" + value]))
    assert see(layer / "f", unpacker.override).owner == (expected, expected)


@pytest.mark.parametrize("field", [b"uid", b"gid", b"size"])
@pytest.mark.parametrize("value", [b"x", b" 5", b"5_0", b"5.5", b"0x5", "\u0665".encode()])
def test_numbers_that_are_none(unpacker: Unpacker, field: bytes, value: bytes) -> None:
    with pytest.raises(ImageError, match="is no number"):
        unpacker.tar(raw_pax([field + b"=" + value]))


def test_one_block_of_zeros_in_the_middle(unpacker: Unpacker) -> None:
    """Data after the end does not count; but only two blocks of zeros are an end."""
    tar = layer_tar([Node("a"), Node("b")])
    with pytest.raises(ImageError, match="zeros in the middle"):
        unpacker.tar(tar[:512] + bytes(512) + tar[512:])
    assert names(unpacker.tar(tar[:512] + bytes(1024) + tar[512:])) == {b"a"}


@pytest.mark.parametrize(
    "records",
    [
        [b"path=a\0b"],
        [b"path=" + b"x/" * 2048 + b"y"],
        [b"path=" + b"x" * 256],
        [b"size=-5"],
        [b"SCHILY.xattr.=x"],
        [b"SCHILY.xattr.a\0b=x"],
        [b"GNU.sparse.map=0,1,3", b"GNU.sparse.size=5"],
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


@pytest.mark.parametrize(
    "nodes",
    [
        [directory(f"d{number}") for number in range(400)],
        [Node("a/" * 1000 + "f")],
        [Node("h", hardlink="a/" * 1000 + "f"), Node("g", hardlink="b/" * 1000 + "f")],
        [Node(f"d{number}/.wh.a") for number in range(400)],
        [Node(f"d{number}/.wh..wh..opq") for number in range(400)],
        [Node(f".wh.{number}") for number in range(400)],
    ],
    ids=range(6),
)
def test_what_is_remembered_has_a_bound(
    unpacker: Unpacker, monkeypatch: pytest.MonkeyPatch, nodes: list[Node]
) -> None:
    monkeypatch.setattr(remembered, "_ROOM", 100_000)
    with pytest.raises(ImageError, match="in one layer"):
        unpacker.nodes(*nodes)


DEEP = "/".join(["d"] * 300)


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param(
            [directory(DEEP), symlink("s", DEEP), *(Node(f"s/f{n}") for n in range(30))],
            id="below a link",
        ),
        pytest.param([Node(f"{DEEP}/.wh.{n}") for n in range(30)], id="deletions"),
        pytest.param(
            [
                *(directory(f"d{n}") for n in range(300)),
                *(node for n in range(900) for node in (directory("x"), Node("x"))),
            ],
            id="replaced",
        ),
    ],
)
def test_no_time(unpacker: Unpacker, monkeypatch: pytest.MonkeyPatch, nodes: list[Node]) -> None:
    """The cost of resolving a path is limited, since a few bytes of a member can cause it again."""
    unpacker.nodes(*nodes)
    monkeypatch.setattr(remembered, "_STEPS", 1_000_000)
    with pytest.raises(ImageError, match="too many paths of one layer"):
        unpacker.nodes(*nodes)


@pytest.mark.parametrize("seconds", [-(1 << 40), -62_135_596_800, -9_300_000_000])
def test_time_before_times(unpacker: Unpacker, seconds: int) -> None:
    """Go's zero time, which means no time, and times as long ago."""
    layer = unpacker.nodes(Node("f", mtime=seconds), directory("d", mtime=seconds))
    assert [(layer / name).stat().st_mtime for name in ("f", "d")] == [0, 0]


def test_no_memory(unpacker: Unpacker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever takes the memory, it is an error of the image."""

    def exhausted(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(remembered.Remembered, "path", exhausted)
    plain = layer_tar([directory("d")])
    with pytest.raises(ImageError, match="not enough memory"):
        unpacker.blob(plain, Digest.of(plain))


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
