"""The index of a layer: `Unpacker` compares it with the same layer on disk, whatever a test
unpacks."""

from __future__ import annotations

import hashlib
import io
import os
import random
import stat
import struct
import tarfile
from collections.abc import Sequence

import pytest

from fuseoverlay.errors import DigestError, ImageError
from fuseoverlay.oci import treetarget
from fuseoverlay.oci.job import Job
from fuseoverlay.oci.layout import Node, directory, layer_tar, symlink
from fuseoverlay.oci.model import Digest
from fuseoverlay.oci.nodes import Tree, TreesBelow
from fuseoverlay.oci.streams import BlobReader, ForwardStream
from fuseoverlay.oci.treetarget import list_blob, list_stream
from tests.oci.helpers import Unpacker, block, header, pax

MANY = 4000 if os.environ.get("FUSEOVERLAY_LONG") else 400
ROW = ["a", "b", "c", "d"]
AUFS = [".wh..wh.plnk", ".wh..wh.aufs", ".wh..wh.plnk/1.2", ".wh..wh.plnk/3.4", ".wh..wh.orph/x"]
TIMES: list[int | str] = [0, 7, "1.5", "-3.25", "99999999999"]
ATTRIBUTES = [
    {"user.a": b"1"},
    {"user.a": b"1", "trusted.overlay.opaque": b"y"},
    {"security.selinux": b"label", "trusted.mine": b"\xff"},
    {"user.fuseoverlay.implied": b"y"},
    {"nonsense": b"1"},
    {"user.long": b"x" * 70_000},
]


def index(tar: bytes, lowers: Sequence[Tree] = ()) -> Tree:
    with ForwardStream(io.BytesIO(tar), Digest.of(tar), "image") as stream:
        return list_stream(stream, Job(False), TreesBelow(lowers))


#: What lies below odd layers, and the files in it.
GROUND = [
    [Node("a/b/c", data=b"1"), Node("b/a", data=b"2"), symlink("c", "a"), Node("d", data=b"3")],
    [Node("a", data=b"1"), directory("b/c/d", 0o700), Node("c/a", hardlink="a"), Node("c/b/a")],
]
FILES = ["a/b/c", "b/a", "d", "c", "a", "c/a", "c/b/a"]


def odd_node(chance: random.Random, number: int) -> Node:
    """One that may replace, link to, or delete others."""
    name, other = (
        "/".join(chance.choices([*ROW, "."], k=chance.randrange(1, 4))) for _ in range(2)
    )
    more = {
        "uid": chance.randrange(3), "gid": chance.randrange(3), "mtime": chance.choice(TIMES),
        "xattrs": chance.choice(ATTRIBUTES) if chance.random() < 0.2 else {},
    }  # fmt: skip
    mode = chance.choice([0o4755, 0o644, 0o1777, 0])
    to = chance.choice([other, f"/{other}", "..", f"../{other}"])
    makers = [
        lambda: Node(name, mode, b"%d" % number * chance.randrange(300), **more),
        lambda: directory(name, mode, **more),
        lambda: symlink(name, to, **more),
        lambda: Node(name, hardlink=chance.choice([other, *FILES])),
        lambda: Node(f"{name}/.wh.{chance.choice(ROW)}"),
        lambda: Node(f"{name}/.wh..wh..opq"),
        lambda: Node(name, stat.S_IFCHR | mode, rdev=(1, 3), **more),
        lambda: Node(name, stat.S_IFIFO | mode, **more),
        lambda: Node(chance.choice(AUFS), data=b"aufs"),
        lambda: Node(name, hardlink=chance.choice(AUFS[2:4])),
    ]
    return chance.choices(makers, [6, 5, 3, 4, 3, 1, 1, 1, 1, 1])[0]()


def odd_layer(chance: random.Random) -> list[Node]:
    """A layer of a few odd nodes, or of many."""
    return [odd_node(chance, number) for number in range(chance.choice([2, 3, 4, 8, 20]))]


def test_odd_layers(unpacker: Unpacker) -> None:
    """Each above the layers before it, as far as those could be made."""
    done, refused, used = 0, 0, 0
    for seed in range(MANY):
        chance = random.Random(seed)
        lowers = [unpacker.nodes(*GROUND[seed % len(GROUND)])]
        for _ in range(2):
            try:
                lowers.insert(0, unpacker.nodes(*odd_layer(chance), lowers=lowers))
            except ImageError:
                refused += 1
            else:
                done += 1
                used += unpacker.used_lowers
    assert min(done, refused) > MANY // 4
    assert used > MANY // 20


def acl(*entries: tuple[int, int, int]) -> bytes:
    packed = (struct.pack("<HHI", tag, bits, number & 0xFFFFFFFF) for tag, bits, number in entries)
    return struct.pack("<I", 2) + b"".join(packed)


OWNER, GROUP, OTHER = (1, 6, -1), (4, 4, -1), (32, 0, -1)
VALUES = {
    "plain": acl(OWNER, GROUP, OTHER),
    "ids": acl((1, 7, 5), (4, 5, 6), (32, 1, 7)),
    "named": acl(OWNER, (2, 7, 1000), GROUP, (8, 1, 10), (16, 2, -1), OTHER),
    "mask": acl(OWNER, GROUP, (16, 1, -1), OTHER),
    "no mask": acl(OWNER, (2, 7, 1000), GROUP, OTHER),
    "two masks": acl(OWNER, GROUP, (16, 1, -1), (16, 1, -1), OTHER),
    "order": acl(GROUP, OWNER, OTHER),
    "missing": acl(OWNER, OTHER),
    "twice": acl(OWNER, OWNER, GROUP, OTHER),
    "nobody": acl(OWNER, (2, 7, -1), GROUP, (16, 2, -1), OTHER),
    "bits": acl((1, 8, -1), GROUP, OTHER),
    "tag": acl(OWNER, GROUP, OTHER, (64, 1, -1)),
    "no entries": acl(),
    "version": b"\x01" + acl(OWNER, GROUP, OTHER)[1:],
    "half": acl(OWNER, GROUP, OTHER) + b"\0",
    "short": b"\x02",
    "empty": b"",
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_acls(unpacker: Unpacker, value: bytes) -> None:
    """What the kernel makes of each, and of the mode."""
    both = {f"system.posix_acl_{kind}": value for kind in ("access", "default")}
    layer = unpacker.nodes(
        Node("file", 0o4751, b"x", xattrs=both),
        directory("dir", 0o1751, xattrs=both),
        symlink("link", "file", xattrs=both),
        Node("pipe", stat.S_IFIFO | 0o751, xattrs=both),
    )
    assert set(unpacker.trees[layer].root.children) == {b"file", b"dir", b"link", b"pipe"}


ODD_ATTRIBUTES = {
    "user.": b"x",
    "user.empty": b"",
    "trusted.": b"x",
    "trusted.t": b"x",
    "security.": b"x",
    "security.s": b"x",
    "system.other": b"x",
    "other.x": b"x",
    "user." + "x" * 250: b"fits",
    "user." + "y" * 251: b"does not",
}


def test_attributes_that_cannot_be_set(unpacker: Unpacker) -> None:
    unpacker.nodes(
        Node("file", data=b"x", xattrs=ODD_ATTRIBUTES),
        directory("dir", xattrs=ODD_ATTRIBUTES),
        symlink("link", "file", xattrs=ODD_ATTRIBUTES),
        Node("pipe", stat.S_IFIFO | 0o751, xattrs=ODD_ATTRIBUTES),
    )


@pytest.mark.parametrize("revision", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [3, 12, 20, 24])
@pytest.mark.parametrize("root", [0, 5, 0xFFFFFFFF])
def test_capabilities(unpacker: Unpacker, revision: int, size: int, root: int) -> None:
    value = struct.pack("<IIIIII", revision << 24 | 1, 0x2000, 0, 0, 0, root)[:size]
    unpacker.nodes(Node("f", 0o755, b"x", xattrs={"security.capability": value}))


def test_content() -> None:
    """Digests of the logical content, and where it lies in the archive."""
    data = random.Random(1).randbytes(300_000)
    sparse = [b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.name=s"]
    body = b"2\n5\n1\n700000\n3\n".ljust(512, b"\0") + b"xabc"
    tar = (
        header("f", size=len(data), mode=0o644)
        + block(data)
        + pax(*sparse, b"GNU.sparse.realsize=800000")
        + header("x", size=len(body))
        + block(body)
        + header("empty")
        + bytes(1024)
    )
    tree = index(tar)
    f, s, empty = (tree.find((name,)) for name in (b"f", b"s", b"empty"))
    assert f and s and empty
    assert (f.digest, tar[f.offset : f.offset + f.size]) == (hashlib.sha256(data).digest(), data)
    whole = bytearray(800_000)
    at = s.offset
    for offset, length in s.pieces or ():
        whole[offset : offset + length] = tar[at : at + length]
        at += length
    assert s.pieces == ((5, 1), (700_000, 3))
    assert (bytes(whole[5:6]), bytes(whole[700_000:700_003])) == (b"x", b"abc")
    assert (s.size, s.digest) == (800_000, hashlib.sha256(whole).digest())
    assert (empty.digest, f.pieces) == (hashlib.sha256().digest(), None)
    assert tree.size == len(data) + 800_000


@pytest.mark.parametrize("size", [5 << 30, 1 << 59])
def test_many_holes(size: int) -> None:
    """Nobody waits for a digest of zeros; what comes after is found."""
    records = [b"GNU.sparse.map=0,1,%d,1" % (size - 1), b"GNU.sparse.size=%d" % size]
    tar = pax(*records) + header("f", size=2) + block(b"xy") + header("g") + bytes(1024)
    tree = index(tar)
    f, g = tree.find((b"f",)), tree.find((b"g",))
    assert f and g
    assert (f.digest, f.size, tar[f.offset : f.offset + 2]) == (None, size, b"xy")
    with pytest.raises(ImageError, match="the archive ends in the middle"):
        index(tar[: f.offset + 1])


def test_holes_of_many_files() -> None:
    """Together, too, they are bounded."""
    size = 300 << 20
    tar = b"".join(
        pax(b"GNU.sparse.map=0,1", b"GNU.sparse.size=%d" % size)
        + header(name, size=1)
        + block(b"x")
        for name in "abcdef"
    )
    tree = index(tar + header("g") + bytes(1024))
    digests = [node.digest for _, node in sorted(tree.root.children.items())]
    expected = hashlib.sha256(b"x" + bytes(size - 1)).digest()
    assert digests == [expected] * 3 + [None] * 3 + [hashlib.sha256().digest()]


@pytest.mark.parametrize(
    "tar",
    [
        layer_tar([Node(f"f{number}") for number in range(300)]),
        layer_tar([Node("a"), *(Node(f"f{number}", hardlink="a") for number in range(300))]),
        layer_tar([symlink(f"l{number}", "x" * 4000) for number in range(30)]),
        layer_tar([Node(f"f{n}", xattrs={"user.a": b"%d" % n * 9000}) for n in range(20)]),
        pax(
            b"GNU.sparse.map=" + b",".join(b"%d,1" % n for n in range(1000)),
            b"GNU.sparse.size=1000",
        )
        + header("s", size=1000)
        + block(b"x" * 1000),
    ],
    ids=["files", "names", "links", "attributes", "pieces"],
)
def test_memory_has_a_bound(monkeypatch: pytest.MonkeyPatch, tar: bytes) -> None:
    index(tar)
    monkeypatch.setattr(treetarget, "_ROOM", 100_000)
    with pytest.raises(ImageError, match="layer: too many files"):
        index(tar)


def test_attributes_of_all_files() -> None:
    """Those of a global header are kept once."""
    shared = pax(b"SCHILY.xattr.user.a=" + b"x" * 60_000, kind=tarfile.XGLTYPE)
    tree = index(shared + b"".join(header(f"f{n}") for n in range(100)) + bytes(1024))
    assert len(tree.root.children) == 100
    assert len({id(node.xattrs) for node in tree.root.children.values()}) == 1


def test_walk() -> None:
    tree = index(
        layer_tar(
            [Node("b/z/f"), Node("b-/x"), Node("b/a"), Node("a", hardlink="b/a"), Node("\xe9")]
        )
    )
    seen = [(path, [name for name, _ in children]) for path, _, children in tree.walk()]
    assert seen == [
        ((), [b"a", b"b", b"b-", "\xe9".encode()]),
        ((b"b",), [b"a", b"z"]),
        ((b"b", b"z"), [b"f"]),
        ((b"b-",), [b"x"]),
    ]


def test_a_file_from_below() -> None:
    lower = index(layer_tar([Node("d/f", 0o4711, b"data", uid=5, xattrs={"user.k": b"v"})]))
    tree = index(layer_tar([Node("x", hardlink="d/f"), Node("y", hardlink="d/f")]), [lower])
    x, f = tree.find((b"x",)), lower.find((b"d", b"f"))
    assert x and f
    assert tree.used_lowers
    assert x is tree.find((b"y",))
    assert (x.copied, x.offset, x.nlink) == ((b"d", b"f"), -1, 2)
    for field in ("mode", "uid", "gid", "size", "mtime", "digest", "xattrs"):
        assert getattr(x, field) == getattr(f, field), field


def test_digests_are_verified() -> None:
    tar = layer_tar([Node("f", data=b"x" * 2000)])

    def read(data: bytes, digest: bytes, plain: bytes) -> Tree:
        blob = BlobReader(io.BytesIO(data), len(data), Digest.of(digest), "image")
        return list_blob(blob, Digest.of(plain), Job(False, where="image"))

    assert read(tar, tar, tar).find((b"f",))
    with pytest.raises(DigestError, match="the unpacked layer"):
        read(tar, tar, b"other")
    with pytest.raises(DigestError, match="fetch it again"):
        read(tar[:600], tar, tar)
