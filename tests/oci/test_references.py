"""Layers as odd as those of real builders: umoci, podman and we unpack them to the same tree.

If the results differ, the case says what each does. podman's driver is the kernel's overlay: each
layer is unpacked on its own, as here; umoci unpacks all into one tree.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fuseoverlay.oci.layout import LayoutWriter, Node, directory, layer_tar, symlink
from fuseoverlay.oci.model import OCI_INDEX, REF_NAME, Digest
from tests.clients.store import Store, missing
from tests.helpers import tree
from tests.helpers.images import ImageMount
from tests.helpers.mounts import fuse_only, root_only, scratch
from tests.oci.helpers import block, header, pax

pytestmark = [root_only, fuse_only, pytest.mark.timeout(120)]

Layer = Sequence[Node] | bytes
Member = bytes | tuple[bytes, str]

#: Attributes that only one of them notes; the root, which they do not all make alike.
_PRIVATE = (b"trusted.overlay.", b"user.fuseoverlay.")


@dataclasses.dataclass(frozen=True)
class Case:
    """Layers, bottom first, and which of the references unpack them; we do unless `refused`."""

    layers: tuple[Layer, ...]
    umoci: bool = True
    podman: bool = True
    #: What our error says.
    refused: str = ""
    #: Paths below which we have nothing.
    without: bytes = b"\0"
    #: Fields of entries in which we differ from both.
    ignore: frozenset[str] = frozenset()


def both(*layers: Layer, without: bytes = b"\0") -> Case:
    """A case that both unpack to the same tree."""
    return Case(layers, without=without)


def as_umoci(*layers: Layer, ignore: str = "") -> Case:
    """A case that umoci unpacks and podman refuses."""
    return Case(layers, podman=False, ignore=frozenset(ignore.split()))


def refused(says: str, *layers: Layer, umoci: bool = False, podman: bool = False) -> Case:
    """A case that we refuse, with what the others do."""
    return Case(layers, umoci, podman, says)


F, T, L = Node("t/f", data=b"f"), directory("t", 0o711), symlink("l", "t")
LOWER = [T, Node("t/a", data=b"a"), Node("t/b", data=b"b"), directory("u")]

NAMES = {
    "absolute": both([Node("/etc/x", data=b"1"), Node("//y", data=b"2"), directory("/d/", 0o700)]),
    "slash": both([directory("/", 0o700), Node("f")]),
    "empty": both([directory("", 0o700), Node("f")]),
    "dots": both([Node("./a/./b//c", data=b"1"), directory("./")]),
    "inner": both([Node("a/../b", data=b"1"), directory("c/.."), Node("a/d/../../e")]),
    "not through a link": both([directory("t/u"), symlink("l", "t/u"), Node("l/../x")]),
    "absolute link": both([Node("f", data=b"1"), Node("h", hardlink="/f")]),
    "inner link": both([Node("f", data=b"1"), Node("h", hardlink="a/../f")]),
    "absolute whiteout": both(LOWER, [T, Node("/t/.wh.a"), Node("/u/../t/c")]),
    # They take it for the root; it leads out of it.
    "out": refused("name leads out", [Node("../x")], umoci=True, podman=True),
    "out in the middle": refused("name leads out", [Node("a/../../x")], umoci=True, podman=True),
    "out of the root": refused("name leads out", [Node("/../x")], umoci=True, podman=True),
    "parent": refused("name leads out", [directory("..")], umoci=True, podman=True),
    "link out": refused(
        "hard link target leads out",
        [Node("f"), Node("h", hardlink="../f")],
        umoci=True,
        podman=True,
    ),
    "link to the root": refused("no file", [Node("h", hardlink="/")]),
    # podman ignores it, whatever it says.
    "file without a name": refused("root of a layer", [Node("f"), Node("")], podman=True),
}

BELOW_LINKS = {
    "file": both([T, L, Node("l/x", data=b"1")]),
    "absolute": both([T, symlink("l", "/t"), Node("l/x", data=b"1")]),
    "root": both([symlink("l", "/"), Node("l/x", data=b"1")]),
    "dots": both([T, symlink("l", "./t/."), Node("l/x")]),
    # As in a container: the root is its own parent.
    "up": both([T, symlink("l", "../../t"), Node("l/x")]),
    "parent": both([symlink("l", ".."), Node("l/x")]),
    "links": both([T, symlink("m", "t"), L, symlink("k", "m"), Node("k/x"), Node("l/y")]),
    "links on the way": both(
        [directory("m"), symlink("m/n", "/t"), T, symlink("l", "m/n"), Node("l/x")]
    ),
    "after links": both(
        [directory("t/u"), Node("t/v/y"), symlink("l", "t/u"), symlink("k", "l/../v"), Node("k/x")]
    ),
    "hard link to a link": both([T, L, Node("k", hardlink="l"), Node("k/x")]),
    "directory": both([T, L, directory("l/d", 0o701, uid=3), Node("l/d/x")]),
    "symbolic link": both([T, L, symlink("l/k", "x")]),
    "same file": both([T, L, Node("t/x", data=b"1"), Node("l/x", data=b"22")]),
    "was a directory": both([Node("d/x"), T, symlink("d", "t"), Node("d/y")]),
    "hard link": both([F, L, Node("l/h", hardlink="t/f")]),
    "hard link through": both([F, L, Node("h", hardlink="l/f")]),
    "hard link to a link through": both([T, L, symlink("t/s", "z"), Node("h", hardlink="l/s")]),
    "whiteout": both(LOWER, [T, L, Node("l/.wh.a")]),
    "opaque": both(LOWER, [T, L, Node("l/.wh..wh..opq"), Node("l/x")]),
    "whiteout before": both(LOWER, [Node("l/.wh.a"), L]),
    "whiteout below a link to a file": both(LOWER, [Node("f"), symlink("l", "f"), Node("l/.wh.a")]),
    "opaque below a file": both([Node("f/x")], [Node("f"), Node("f/.wh..wh..opq")]),
    # umoci accepts a name twice, continues in the layers below, and makes directories.
    "changed": as_umoci([T, directory("u"), L, Node("l/x"), symlink("l", "u"), Node("l/y")]),
    "missing": as_umoci([symlink("l", "t/u"), Node("l/x", data=b"1")]),
    "missing up": as_umoci([symlink("l", "../../t"), Node("l/a/x")]),
    "whiteout of a lower": as_umoci(LOWER, [L, Node("l/.wh.a")]),
    "whiteout of a lower, later": as_umoci(LOWER, [L, Node("l/.wh.a"), T]),
    "whiteout in nothing": as_umoci(LOWER, [symlink("l", "nowhere"), Node("l/.wh.a")]),
    "opaque of a lower": as_umoci(LOWER, [L, Node("l/.wh..wh..opq")], ignore="mode"),
    "whiteout of what is there": as_umoci(LOWER, [T, Node("t/a", data=b"n"), L, Node("l/.wh.a")]),
    "directory of a link's name": as_umoci([T, L, directory("l", 0o700), Node("l/x")]),
    # A layer of ours gets a copy.
    "hard link to a lower": as_umoci(LOWER, [Node("h", hardlink="/t/a")], ignore="nlink same_as"),
    # The layers below decide what is there: a link of theirs may lead elsewhere.
    "back out of nothing": refused("no/..", [T, symlink("l", "no/../t"), Node("l/x")], umoci=True),
    "back out of a file": refused("t/f/..", [F, symlink("l", "t/f/../f"), Node("l/x")]),
    "below a file": refused("t/f is no directory", [F, symlink("l", "t/f"), Node("l/x")]),
    "loop": refused("too many symbolic links", [symlink("l", "l"), Node("l/x")]),
    "loop of two": refused(
        "too many symbolic links", [symlink("l", "k/x"), symlink("k", "l"), Node("k/.wh.x")]
    ),
}

GONE, GONE_A, GONE_U, GONE_B = (
    Node(f"{place}.wh.{name}")
    for place, name in (
        ("", "t"),
        ("t/", "a"),
        ("t/", "u"),
        ("t/u/", "b"),
    )
)
OPAQUE, OPAQUE_U = Node("t/.wh..wh..opq"), Node("t/u/.wh..wh..opq")


def deleted(*nodes: Node, above: Sequence[Node] = ()) -> dict[str, Case]:
    """`nodes` in every order: the first one deletes a directory, the others delete names in it.

    podman makes directories for deletions, and then has no place for the deletion of such a one.
    """
    lower = [T, Node("t/a"), directory("t/u"), Node("t/u/b"), Node("k")]
    return {
        " ".join(str(node.name) for node in order): Case(
            (lower, [*above, *order]), podman=order[0] is nodes[0]
        )
        for order in itertools.permutations(nodes)
    }


DELETED = {
    **deleted(GONE, GONE_A, GONE_U, GONE_B),
    **deleted(GONE, OPAQUE),
    **deleted(GONE, OPAQUE, GONE_A),
    **deleted(GONE_U, GONE_B, above=[T]),
    **deleted(GONE_U, OPAQUE_U, above=[T]),
    "opaque in it": as_umoci([T, Node("t/u/b")], [GONE, OPAQUE_U]),
    "opaque in it before": as_umoci([T, Node("t/u/b")], [OPAQUE_U, GONE]),
}

#: What AUFS left in layers of old builders: files with several names are in here, too.
AUFS = {
    "links": both(
        [Node(".wh..wh.aufs"), directory(".wh..wh.orph"), directory(".wh..wh.plnk", 0o700)]
        + [Node(".wh..wh.plnk/1.2", 0o640, b"x", uid=5), directory("d")]
        # podman gives the file what the last link says.
        + [Node(name, 0o640, uid=5, hardlink=".wh..wh.plnk/1.2") for name in ("f", "d/g")],
        without=b".wh.",
    ),
    "not of the layer's root": refused(
        "neither in this layer",
        [Node("d/.wh..wh.plnk/1.2"), Node("f", hardlink=".wh..wh.plnk/1.2")],
    ),
}

END = bytes(1024)
GLOBAL = tarfile.XGLTYPE


def file(name: str, data: bytes = b"", **fields: Any) -> bytes:
    return header(name, size=len(data), **fields) + block(data)


def long(name: bytes, kind: bytes = tarfile.GNUTYPE_LONGNAME) -> bytes:
    return header("././@LongLink", kind, len(name) + 1) + block(name + b"\0")


def raw(name: str, magic: bytes, over: dict[int, bytes]) -> bytes:
    """A header block with `magic` and these bytes at the given places."""
    data = bytearray(header(name))
    for at, value in {257: magic, **over}.items():
        data[at : at + len(value)] = value
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


def signed(data: bytes) -> bytes:
    """The archive with the first header's checksum as some compute it, of signed bytes."""
    head = bytearray(data[:512])
    head[148:156] = b" " * 8
    total = sum(byte - 256 if byte > 127 else byte for byte in head)
    head[148:156] = b"%06o\0 " % total
    return bytes(head) + data[512:]


def incremental() -> bytes:
    """An archive as of `tar --listed-incremental`: GNU headers with access and change times."""
    with scratch() as path:
        (path / "d").mkdir()
        (path / "d/f").write_bytes(b"1")
        (path / "d/s").symlink_to("f")
        for name in ("d/f", "d/s"):
            os.utime(path / name, (5, 6), follow_symlinks=False)
        command = ["tar", "--format=gnu", "-g", path / "snapshot", "-C", path, "-c", "d/f", "d/s"]
        return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout


def sparse(*records: str) -> bytes:
    return pax(*(f"GNU.sparse.{record}".encode() for record in records))


SPARSE = (b"GNU.sparse.map=0,1", b"GNU.sparse.size=5", b"GNU.sparse.numblocks=1")

HEADERS = {
    "no values": both(
        pax(b"path=", b"uid=", b"size=", b"mtime=") + file("a", b"1", uid=3, mtime=9) + END
    ),
    "no link": both(pax(b"linkpath=") + header("l", tarfile.SYMTYPE, linkname="t") + END),
    "twice in one": both(pax(b"uid=4", b"uid=5") + file("a") + END),
    "twice": both(
        pax(b"uid=4", b"SCHILY.xattr.user.a=1", b"path=x") + pax(b"gid=5") + file("a") + END
    ),
    "twice sparse": both(
        sparse("map=0,1", "size=5", "numblocks=1") + pax(b"uid=1") + file("a", b"1") + END
    ),
    "attributes": both(
        pax(b"SCHILY.xattr.user.a=\0\xff=\n", b"LIBARCHIVE.xattr.user.a=AAAA") + file("a") + END
    ),
    "attributes of libarchive": both(pax(b"LIBARCHIVE.xattr.user.b%20c=AP8") + file("a") + END),
    "no attributes of libarchive": both(pax(b"LIBARCHIVE.xattr.user.b=*") + file("a") + END),
    "bytes": both(pax(b"hdrcharset=BINARY", b"path=\xff\xfe") + file("a") + END),
    "long before a record": both(long(b"B") + pax(b"path=A") + file("c") + END),
    "long after a record": both(pax(b"path=A") + long(b"B") + file("c") + END),
    "long link after a record": both(
        pax(b"linkpath=A")
        + long(b"B", tarfile.GNUTYPE_LONGLINK)
        + header("l", tarfile.SYMTYPE, linkname="c")
        + END
    ),
    "long twice": both(long(b"B") + long(b"C") + file("c") + END),
    "long without a name": both(long(b"") + header("c/", tarfile.DIRTYPE, mode=0o711) + END),
    "attributes without a value": both(
        pax(b"SCHILY.xattr.user.e=", b"SCHILY.xattr.user.f=1") + file("e") + END
    ),
    "labels": both(
        pax(b"SCHILY.xattr.security.selinux=system_u:object_r:shadow_t:s0")
        + file("f")
        + pax(b"SCHILY.xattr.security.selinux=s")
        + header("d", tarfile.DIRTYPE, mode=0o755)
        + END
    ),
    "other attributes": both(
        pax(
            *(
                b"SCHILY.xattr.%s=1" % name
                for name in (b"security.SMACK64", b"security.a", b"trusted.a", b"system.nfs4_acl")
            )
        )
        + file("f")
        + END
    ),
    "not a number": refused("is no number", pax(b"uid=5.5") + file("a") + END),
    "nobody of macOS": both(file("a", uid=-2, gid=-2) + END),
    "largest id": both(pax(b"uid=4294967294", b"gid=4294967294") + file("a") + END),
    "no id": both(pax(b"uid=4294967295", b"gid=-1") + file("a") + END),
    "more than 32 bits": both(pax(b"uid=4294967301", b"gid=-4294967290") + file("a") + END),
    "more than 64 bits": refused("no user", pax(b"uid=99999999999999999999") + file("a") + END),
    "old directories": both(header("d/", tarfile.AREGTYPE, mode=0o711) + END),
    "links with a size": both(
        file("x", b"1")
        + header("l", tarfile.LNKTYPE, 1, linkname="x")
        + header("s", tarfile.SYMTYPE, 3, linkname="t")
        + file("y")
        + END
    ),
    "types in the mode": both(file("a", mode=0o100644) + file("b", mode=0o120777) + END),
    "one block of zeros": refused("zeros in the middle", file("a") + bytes(512) + file("b") + END),
    "two blocks of zeros": both(file("a") + END + file("b") + END),
    "sparse 0.0": both(
        sparse("size=5", "numblocks=1", "offset=2", "numbytes=1") + file("c", b"1") + END
    ),
    "sparse 0.1": both(
        sparse("map=0,1,5,0", "size=5", "numblocks=2", "name=n") + file("c", b"1") + END
    ),
    "sparse 1.0": both(
        sparse("major=1", "minor=0", "name=n", "realsize=9")
        + file("c", b"1\n5\n1\n".ljust(512, b"\0") + b"x")
        + file("d")
        + END
    ),
    "sparse of an unknown version": both(
        sparse("major=2", "minor=0", "name=n", "realsize=5")
        + file("c", b"x" * 600)
        + file("d")
        + END
    ),
    "sparse without a map": both(sparse("size=5") + file("c", b"x") + END),
    "sparse name before a long one": both(
        sparse("name=n", "map=0,1", "size=5", "numblocks=1") + long(b"B") + file("c", b"x") + END
    ),
    "sparse name after a long one": both(
        long(b"B") + sparse("name=n", "map=0,1", "size=5", "numblocks=1") + file("c", b"x") + END
    ),
    "sparse name and a path": both(
        pax(b"GNU.sparse.name=n", b"path=p", *SPARSE) + file("c", b"x") + END
    ),
    "times in a GNU header": both(incremental()),
    "prefix in a GNU header": both(raw("a", b"ustar  \0", {345: b"pre"}) + END),
    "no text in a GNU header": both(raw("a", b"ustar  \0", {345: b"\xc3\xa9"}) + END),
    "prefix of V7": both(raw("a", bytes(8), {345: b"pre"}) + END),
    "devices of V7": both(raw("a", bytes(8), {329: b"rubbish!rubbish!"}) + END),
    "prefix of ustar": both(raw("a", b"ustar\000", {345: b"p" * 155}) + END),
    "prefix of another ustar": both(raw("a", b"ustar\099", {345: b"pre"}) + END),
    "prefix of star": both(
        raw(
            "a",
            b"ustar\000",
            {345: b"p" * 131, 476: b"13456712345\0", 488: b"13456712345\0", 508: b"tar\0"},
        )
        + END
    ),
    "old directory by a record": both(
        pax(b"path=dd/") + header("x", tarfile.AREGTYPE, mode=0o711) + file("y") + END
    ),
    "old directory by a long name": both(
        long(b"dd/") + header("x", tarfile.AREGTYPE, mode=0o711) + file("y") + END
    ),
    "old file by a record": both(pax(b"path=f") + header("x/", tarfile.AREGTYPE) + END),
    "file with a slash": both(file("x/", b"1") + END),
    "more than 12 bits of a device": both(
        header("c", tarfile.CHRTYPE, devmajor=4096, devminor=3)
        + header("b", tarfile.BLKTYPE, devmajor=1, devminor=(1 << 20) + 5)
        + END
    ),
    "records at the end": both(file("b") + pax(b"uid=5") + END),
    "a long name at the end": both(file("b") + long(b"B") + END),
    "records at the very end": both(file("b") + pax(b"uid=5")),
    "signed sum": both(signed(file("\xe9" * 9, b"1")) + END),
    "directory of an incremental archive": refused(
        "unknown tar entry type", header("d", b"D", 3) + block(b"Yf\0") + END
    ),
    "1 MiB of records": both(pax(b"comment=" + b"x" * ((1 << 20) - 17)) + file("a") + END),
    "more than 1 MiB of records": refused(
        "too large", pax(b"comment=" + b"x" * ((1 << 20) - 16)) + file("a") + END
    ),
    "more than 1 MiB of a name": refused("too large", long(b"x" * (1 << 20)) + file("a") + END),
    "half a piece": refused("half a piece", sparse("map=0,1,3", "size=5") + file("c", b"1") + END),
    # umoci does not know global headers and podman ignores them, unlike POSIX.
    "global": dataclasses.replace(
        both(pax(b"comment=made by git", kind=GLOBAL) + file("a") + END), umoci=False
    ),
    "global deleted": dataclasses.replace(
        both(
            pax(b"uid=5", b"SCHILY.xattr.user.a=1", kind=GLOBAL)
            + pax(b"uid=", b"SCHILY.xattr.user.a=")
            + file("a", uid=4)
            + END
        ),
        umoci=False,
    ),
}

CASES = {
    f"{group}: {name}": case
    for group, cases in {
        "names": NAMES,
        "below links": BELOW_LINKS,
        "deleted": DELETED,
        "aufs": AUFS,
        "headers": HEADERS,
    }.items()
    for name, case in cases.items()
}


@pytest.fixture(scope="module")
def podman() -> Iterator[Store]:
    """Where podman unpacks."""
    lacking = "umoci" if shutil.which("umoci") is None else missing()
    if lacking:
        pytest.skip(f"missing tool: {lacking}")
    with scratch() as base, Store(base, "kernel") as store:
        yield store


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory of the test's own."""
    with scratch() as path:
        yield path


def as_layer(layer: Layer) -> bytes:
    return layer if isinstance(layer, bytes) else layer_tar(layer)


def comparable(shown: tree.Tree, born: int, without: bytes = b"\0") -> tree.Tree:
    """What should be the same for all: not the root, and no times set by the unpacking itself."""
    found = {
        path: entry
        for path, entry in shown.items()
        if path != b"." and not path.startswith(without)
    }
    hidden = [entry.same_as for path, entry in shown.items() if path.startswith(without)]
    first: dict[bytes, bytes] = {}
    for path, entry in found.items():
        if entry.mtime_ns >= born * 10**9:
            entry.mtime_ns = 0
        entry.xattrs = {
            name: value for name, value in entry.xattrs.items() if not name.startswith(_PRIVATE)
        }
        if entry.same_as is not None and entry.nlink is not None:
            entry.nlink -= hidden.count(entry.same_as)
            entry.same_as = first.setdefault(entry.same_as, path)
    return found


def by_umoci(layout: Path, bundle: Path) -> tree.Tree | None:
    """The tree that umoci unpacks, or None if it refuses."""
    done = subprocess.run(
        ["umoci", "unpack", "--image", f"{layout}:x", bundle], capture_output=True, timeout=60
    )
    return None if done.returncode else tree.record(str(bundle / "rootfs"))


def by_podman(store: Store, layout: Path) -> tree.Tree | None:
    # `podman pull` would take the path for a name, which must be in lower case.
    image = "localhost/x:latest"
    copied = store.run(
        "skopeo", "copy", f"oci:{layout}:x", f"containers-storage:{image}", check=False
    )
    if copied.returncode:
        print(copied.stderr.decode())
        return None
    shown = store.mounted(image)
    store.podman("rmi", "--force", image)
    return shown


@pytest.mark.parametrize("name", CASES)
def test_layers(podman: Store, base: Path, name: str) -> None:
    case, born = CASES[name], int(time.time())
    writer = LayoutWriter(base / "l")
    layers = [writer.add_layer(as_layer(layer)) for layer in case.layers]
    writer.add_image(layers, ref="x")
    expected = {
        "umoci": by_umoci(base / "l", base / "bundle"),
        "podman": by_podman(podman, base / "l"),
    }
    assert {who: shown is not None for who, shown in expected.items()} == {
        "umoci": case.umoci,
        "podman": case.podman,
    }
    ours = ImageMount(base, f"{base / 'l'}:x")
    try:
        if case.refused:
            done = ours.run("mount", "--read-only", ours.image, ours.mnt)
            assert done.returncode == 7 and case.refused in done.stderr, done.stderr
            return
        ours.mount("--read-only")
        shown = comparable(tree.record(str(ours.mnt)), born)
        ours.unmount()
    finally:
        ours.drop()
    for who, other in expected.items():
        if other is not None:
            wanted = comparable(other, born, case.without)
            lines = tree.compare(wanted, shown, ignore=case.ignore)
            assert not lines, f"{who}: " + "\n".join(lines)


# archives of images

TAR = layer_tar([directory("d", 0o750), Node("d/f", data=bytes(1 << 20) + b"end")])


def saved(
    *, layer: str = "l.tar", config: str = "", tags: object = ("localhost/x:latest",)
) -> dict[str, Member]:
    """The members of a `docker save` archive."""
    digest = str(Digest.of(TAR))
    text = json.dumps(
        {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [digest]}}
    ).encode()
    config = config or f"{Digest.of(text).hex}.json"
    manifest = [{"Config": config, "RepoTags": tags, "Layers": [layer]}]
    return {config: text, layer: TAR, "manifest.json": json.dumps(manifest).encode()}


def twice(key: str) -> dict[str, Member]:
    """A config that has `key` twice, the first with a wrong value."""
    members = saved()
    config = next(name for name in members if name.endswith(".json"))
    text = members.pop(config)
    assert isinstance(text, bytes) and f'"{key}"'.encode() in text
    text = text.replace(b"{", b'{"%s": {"type": "odd", "diff_ids": ["x"]}, ' % key.encode(), 1)
    name = f"{Digest.of(text).hex}.json"
    manifest = members["manifest.json"]
    assert isinstance(manifest, bytes)
    return {
        **members,
        name: text,
        "manifest.json": manifest.replace(config.encode(), name.encode()),
    }


def lower() -> dict[str, Member]:
    """A manifest with field names in another case."""
    members = saved()
    text = members["manifest.json"]
    assert isinstance(text, bytes)
    text = text.replace(b"Config", b"config").replace(b"Layers", b"LAYERS")
    return {**members, "manifest.json": text.replace(b"RepoTags", b"repotags")}


def archive(members: dict[str, Member]) -> bytes:
    """An archive; values that are not content are a type and a link's target."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as target:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, tuple):
                info.type, info.linkname = data
                target.addfile(info)
            else:
                info.size = len(data)
                target.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def compressed(kind: str, data: bytes) -> bytes:
    done = subprocess.run([kind, "-c"], input=data, capture_output=True, check=True, timeout=60)
    return done.stdout


def with_holes(*options: str) -> bytes:
    """As `tar --sparse` packs an image that was unpacked."""
    with scratch() as path:
        for name, data in saved().items():
            assert isinstance(data, bytes)
            (path / name).write_bytes(data)
        subprocess.run(["fallocate", "--dig-holes", path / "l.tar"], check=True)
        packed = subprocess.run(
            ["tar", "--sparse", *options, "-C", path, "-c", "."], capture_output=True, check=True
        ).stdout
        assert len(packed) < len(TAR)
        return packed


ODD = {"fifo": (tarfile.FIFOTYPE, ""), "char": (tarfile.CHRTYPE, ""), "odd": (b"Z", "")}

#: Archives that podman and we read.
ARCHIVES: dict[str, Callable[[], bytes]] = {
    "xz": lambda: compressed("xz", archive(saved())),
    "bzip2": lambda: compressed("bzip2", archive(saved())),
    "streams of xz": lambda: (
        compressed("xz", archive(saved())[:9999])
        + compressed("xz", archive(saved())[9999:])
        + bytes(8)
    ),
    "streams of bzip2": lambda: (
        compressed("bzip2", archive(saved())[:9999]) + compressed("bzip2", archive(saved())[9999:])
    ),
    "layer xz": lambda: archive({**saved(), "l.tar": compressed("xz", TAR)}),
    "layer bzip2": lambda: archive({**saved(), "l.tar": compressed("bzip2", TAR)}),
    "layer in compressed archive": lambda: compressed(
        "xz", archive({**saved(), "l.tar": compressed("bzip2", TAR)})
    ),
    "absolute layer": lambda: archive(saved(layer="/l.tar")),
    "absolute config": lambda: archive(saved(config="/c.json")),
    "inner dots": lambda: archive({**saved(layer="a/../l.tar"), "./l.tar": TAR}),
    "dots": lambda: archive({f"./{name}": data for name, data in saved().items()}),
    "no tags": lambda: archive(saved(tags=None)),
    "things beside": lambda: archive({**saved(), **ODD}),
    "a key twice": lambda: archive(twice("rootfs")),
    "keys in lower case": lambda: archive(lower()),
    "without padding": lambda: archive(saved()).rstrip(b"\0"),
    "manifest first": lambda: archive(dict(reversed(saved().items()))),
    "holes": lambda: with_holes("--format=gnu"),
    "holes 0.0": lambda: with_holes("--format=posix", "--sparse-version=0.0"),
    "holes 0.1": lambda: with_holes("--format=posix", "--sparse-version=0.1"),
    "holes 1.0": lambda: with_holes("--format=posix", "--sparse-version=1.0"),
}
#: Archives that neither reads, with our message.
BAD_ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "tags": (lambda: archive(saved(tags="x:latest")), "RepoTags: not a JSON array of text"),
    "cut xz": (lambda: compressed("xz", archive(saved()))[:-40], "cut short"),
    "cut bzip2": (lambda: compressed("bzip2", archive(saved()))[:-40], "cut short"),
    "rubbish after xz": (lambda: compressed("xz", archive(saved())) + b"rubbish" * 9, "damaged"),
    "rubbish after bzip2": (lambda: compressed("bzip2", archive(saved())) + b"rubbish", "damaged"),
}


def loaded_by_podman(store: Store, file: Path) -> tree.Tree | None:
    done = store.run("podman", "load", "--quiet", "--input", file, check=False)
    if done.returncode:
        return None
    image = done.stdout.decode().strip().removeprefix("Loaded image: ")
    shown = store.mounted(image)
    store.podman("rmi", "--force", image)
    return shown


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives(podman: Store, base: Path, name: str) -> None:
    born = int(time.time())
    (base / "image").write_bytes(ARCHIVES[name]())
    expected = loaded_by_podman(podman, base / "image")
    assert expected is not None
    ours = ImageMount(base, str(base / "image"))
    try:
        ours.mount("--read-only")
        shown = tree.record(str(ours.mnt))
        ours.unmount()
    finally:
        ours.drop()
    lines = tree.compare(comparable(expected, born), comparable(shown, born))
    assert not lines, "\n".join(lines)
    assert shown[b"d/f"].size == (1 << 20) + 3


def test_an_odd_platform_in_an_index(podman: Store, base: Path) -> None:
    """It fits no machine and does no harm."""
    writer = LayoutWriter(base / "l")
    entry = writer.add_image([writer.add_layer(TAR)]).to_json()
    odd = {**entry, "platform": {"os": "linux", "architecture": "we\x1b ird"}}
    inner = writer.add_json(OCI_INDEX, {"schemaVersion": 2, "manifests": [odd, entry]}).to_json()
    listed = {"schemaVersion": 2, "manifests": [{**inner, "annotations": {REF_NAME: "x"}}]}
    (base / "l/index.json").write_text(json.dumps(listed))
    assert by_podman(podman, base / "l") is not None
    ours = ImageMount(base, f"{base / 'l'}:x")
    try:
        ours.mount("--read-only")
        assert (ours.mnt / "d/f").exists()
        ours.unmount()
    finally:
        ours.drop()
    done = ours.run("mount", "--platform", "mips", ours.image, ours.mnt)
    assert done.returncode == 7 and "\x1b" not in done.stderr and "ird" in done.stderr


@pytest.mark.parametrize("name", BAD_ARCHIVES)
def test_bad_archives(podman: Store, base: Path, name: str) -> None:
    make, says = BAD_ARCHIVES[name]
    (base / "image").write_bytes(make())
    assert loaded_by_podman(podman, base / "image") is None
    ours = ImageMount(base, str(base / "image"))
    done = ours.run("mount", "--read-only", ours.image, ours.mnt)
    assert done.returncode == 7 and says in done.stderr, done.stderr
