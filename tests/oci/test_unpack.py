"""What a layer becomes, with real owners and with noted ones."""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest

from fuseoverlay.errors import ImageError
from fuseoverlay.layers import whiteout, xattrs
from fuseoverlay.layers.whiteout import Dialect
from fuseoverlay.oci.layout import Node, directory, layer_tar, symlink
from tests.oci.helpers import (
    Unpacker,
    header,
    implied,
    is_opaque,
    is_whiteout,
    names,
    pax,
    permutations,
    see,
)

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


def test_plain_files(unpacker: Unpacker) -> None:
    layer = unpacker.nodes(
        directory("./", 0o711, uid=7, gid=8, mtime=11),
        directory("etc/", 0o750, uid=1, gid=2, mtime=12),
        Node("./etc/passwd", 0o640, b"root", uid=3, gid=4, mtime=13),
        Node("su", 0o4755, b"#!", mtime=14),
        Node("empty", 0o000, b""),
    )
    look = [see(layer / name, unpacker.override) for name in (".", "etc", "etc/passwd", "su")]
    assert [(item.kind, item.mode, item.owner, item.mtime // 10**9) for item in look] == [
        ("dir", 0o711, (7, 8), 11),
        ("dir", 0o750, (1, 2), 12),
        ("file", 0o640, (3, 4), 13),
        ("file", 0o4755, (0, 0), 14),
    ]
    assert look[2].data == b"root"
    assert see(layer / "empty", unpacker.override).mode == 0
    assert implied(layer) is None
    assert implied(layer / "etc") is None


def test_special_files(unpacker: Unpacker) -> None:
    layer = unpacker.nodes(
        Node("null", stat.S_IFCHR | 0o666, rdev=(1, 3), uid=5, mtime=2),
        Node("sda", stat.S_IFBLK | 0o660, rdev=(8, 300), gid=6),
        Node("pipe", stat.S_IFIFO | 0o644),
        symlink("own", "/etc/passwd", mtime=3),
        symlink("given", b"../\xff", uid=9, gid=9, mtime=4),
    )
    look = {name: see(layer / name, unpacker.override) for name in os.listdir(layer)}
    assert {name: (item.kind, item.owner, item.rdev) for name, item in look.items()} == {
        "null": ("char", (5, 0), os.makedev(1, 3)),
        "sda": ("block", (0, 6), os.makedev(8, 300)),
        "pipe": ("fifo", (0, 0), 0),
        "own": ("symlink", (0, 0), 0),
        "given": ("symlink", (9, 9), 0),
    }
    assert look["null"].mode == 0o666
    assert (look["own"].data, look["given"].data) == (b"/etc/passwd", b"../\xff")
    assert [look[name].mtime for name in ("null", "own", "given")] == [
        2 * 10**9,
        3 * 10**9,
        4 * 10**9,
    ]
    for name in ("own", "given"):
        assert os.path.islink(layer / name) == (not unpacker.override)


def test_hard_links(unpacker: Unpacker) -> None:
    layer = unpacker.nodes(
        Node("a", 0o600, b"1"),
        Node("d/b", hardlink="./a"),
        symlink("s", "a"),
        Node("t", hardlink="s"),
        Node("a", hardlink="a"),
    )
    assert os.stat(layer / "a").st_nlink == 2
    assert os.path.samefile(layer / "a", layer / "d/b")
    assert os.lstat(layer / "t").st_ino == os.lstat(layer / "s").st_ino


def test_a_hard_link_before_its_target(unpacker: Unpacker) -> None:
    layer = unpacker.nodes(Node("b", hardlink="a"), Node("c", hardlink="b"), Node("a", 0o600, b"1"))
    assert os.lstat(layer / "a").st_nlink == 3
    assert not unpacker.used_lowers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.5", 1_500_000_000),
        ("-1.5", -1_500_000_000),
        ("-0.25", -250_000_000),
        ("1700000000.123456789", 1_700_000_000_123_456_789),
        ("1.1234567899", 1_123_456_789),
        ("-86400", -86_400 * 10**9),
    ],
)
def test_times(unpacker: Unpacker, text: str, expected: int) -> None:
    layer = unpacker.nodes(
        Node("f", mtime=text),
        directory("d", mtime=text),
        symlink("l", "x", mtime=text),
        Node("d/later", mtime=5),
        Node("d/.wh.gone"),
    )
    assert {os.lstat(layer / name).st_mtime_ns for name in "fdl"} == {expected}


def test_absurd_times_do_not_hurt(unpacker: Unpacker) -> None:
    unpacker.nodes(Node("f", mtime="9" * 5000), Node("g", mtime="-" + "9" * 30))
    with pytest.raises(ImageError, match="not a time"):
        unpacker.nodes(Node("f", mtime="nan"))


def test_names(unpacker: Unpacker) -> None:
    wanted = {b"\xff\xfe", b"n" * 255, "ä".encode(), b"with\nnewline", b" ", b"..."}
    layer = unpacker.nodes(*(Node(name, data=b"x") for name in wanted))
    assert names(layer) == wanted
    deep = b"/".join([b"d" * 200] * 15)
    layer = unpacker.nodes(Node(deep + b"/f"))
    assert os.lstat(os.fsencode(layer) + b"/" + b"d" * 200)


def test_gnu_long_names(unpacker: Unpacker) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo("d" * 150 + "/" + "f" * 200)
        archive.addfile(info)
        info = tarfile.TarInfo("l")
        info.type, info.linkname = tarfile.SYMTYPE, "t" * 3000
        archive.addfile(info)
    layer = unpacker.tar(buffer.getvalue())
    assert see(layer / "l", unpacker.override).data == b"t" * 3000
    assert (layer / ("d" * 150) / ("f" * 200)).is_file()


def test_very_deep(unpacker: Unpacker) -> None:
    """As deep as a path can name; then a file of the same name replaces it all."""
    deep = Node("a/" * 2000 + "f", data=b"x")
    assert names(unpacker.nodes(deep)) == {b"a"}
    layer = unpacker.nodes(deep, Node("a", data=b"file"))
    assert (layer / "a").read_bytes() == b"file"


def test_xattrs(unpacker: Unpacker) -> None:
    binary = b"\x00\xff=\n\x80"
    layer = unpacker.nodes(
        Node("f", xattrs={"user.text": b"t", "user.bin": binary}),
        directory("d", xattrs={"user.dir": b"d"}),
    )
    assert os.getxattr(layer / "f", "user.bin") == binary
    assert os.getxattr(layer / "f", "user.text") == b"t"
    assert os.getxattr(layer / "d", "user.dir") == b"d"
    assert not unpacker.warnings


def raw_pax(records: list[bytes], name: bytes = b"f") -> bytes:
    """An archive with one file whose PAX records are these bytes, as Go's writer makes it."""
    return pax(*records) + header(name.decode("latin-1")) + bytes(1024)


def test_xattrs_of_go(unpacker: Unpacker) -> None:
    """Only libarchive uses its own form, and it writes Go's beside it."""
    layer = unpacker.tar(
        raw_pax(
            [
                b"SCHILY.xattr.user.a=\x00\xffraw",
                b"LIBARCHIVE.xattr.user.b%20c=AP8",
                b"LIBARCHIVE.xattr.user.a=AAAA",
                b"path=\xfename",
            ]
        )
    )
    path = os.fsencode(layer) + b"/\xfename"
    assert os.getxattr(path, "user.a") == b"\x00\xffraw"
    assert "user.b c" not in os.listxattr(path)


def test_records_without_a_value(unpacker: Unpacker) -> None:
    """They cancel records of a global header; then the fields of the header itself count."""
    shared = [b"uid=5", b"gid=6", b"mtime=7", b"path=all", b"SCHILY.xattr.user.a=1"]
    empty = [record.partition(b"=")[0] + b"=" for record in shared]
    layer = unpacker.tar(
        pax(*shared, kind=tarfile.XGLTYPE)
        + header("one", mtime=1)
        + pax(*empty)
        + header("two", uid=2, mtime=2)
        + pax(b"path=three", b"SCHILY.xattr.user.a=3")
        + header("x", mtime=3)
        + pax(b"uid=", b"path=", b"SCHILY.xattr.user.a=", kind=tarfile.XGLTYPE)
        + pax(b"SCHILY.xattr.user.b=")
        + header("four", uid=4, mtime=4)
        + header("five", uid=5, mtime=5)
        + bytes(1024)
    )
    found = {}
    for name in sorted(names(layer)):
        path = os.fsencode(layer) + b"/" + name
        look = see(path, unpacker.override)
        given = {key for key in os.listxattr(path) if not key.startswith(("user.co", "security."))}
        found[name] = (look.owner, look.mtime // 10**9, given)
    assert found == {
        b"all": ((5, 6), 7, {"user.a"}),
        b"two": ((2, 0), 2, set()),
        b"three": ((5, 6), 7, {"user.a"}),
        b"four": ((4, 6), 7, set()),
        b"five": ((5, 6), 7, set()),
    }


def test_a_sparse_file_whose_size_is_a_record(unpacker: Unpacker) -> None:
    """As tar writes sparse files that are too large for a header's field."""
    data = b"1\n5\n1\n".ljust(512, b"\0") + b"x"
    sparse = [b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.name=n"]
    sizes = [b"GNU.sparse.realsize=9", b"size=%d" % len(data)]
    for order in (sizes, sizes[::-1]):
        layer = unpacker.tar(
            pax(*sparse, *order)
            + header("f", size=len(data))
            + data.ljust(1024, b"\0")
            + header("after")
            + bytes(1024)
        )
        assert names(layer) == {b"n", b"after"}
        assert (layer / "n").read_bytes() == bytes(5) + b"x" + bytes(3)


def test_acls(unpacker: Unpacker) -> None:
    """If an ACL is left out, the mode grants nobody more than the ACL."""
    entries = ((1, 6, -1), (2, 6, 1001), (4, 0, -1), (16, 6, -1), (32, 4, -1))
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, bits, number & 0xFFFFFFFF) for tag, bits, number in entries
    )
    name = "system.posix_acl_access"
    layer = unpacker.nodes(Node("f", 0o664, b"x", xattrs={name: acl}))
    if unpacker.override:
        assert name not in os.listxattr(layer / "f")
        assert see(layer / "f", unpacker.override).mode == 0o604
    else:
        assert os.getxattr(layer / "f", name) == acl


def test_capabilities(unpacker: Unpacker) -> None:
    layer = unpacker.nodes(
        Node("ping", 0o755, b"x", uid=1, xattrs={"security.capability": CAPABILITY}),
        Node("pong", 0o755, b"x", xattrs={"security.capability": CAPABILITY}),
    )
    if unpacker.override and os.geteuid() != 0:
        assert len(unpacker.warnings) == 1
        assert "security.capability" in unpacker.warnings[0]
        assert "ping and 1 more" in unpacker.warnings[0]
    else:
        assert os.getxattr(layer / "ping", "security.capability") == CAPABILITY


@pytest.mark.parametrize(
    "name",
    [
        "trusted.overlay.opaque",
        "user.overlay.whiteout",
        "user.fuseoverlayfs.opaque",
        "user.containers.override_stat",
        "user.fuseoverlay.implied",
    ],
)
def test_reserved_xattrs_are_dropped(unpacker: Unpacker, name: str) -> None:
    layer = unpacker.nodes(
        directory("."),
        Node("f", 0o600, uid=3, xattrs={name: b"y", "user.ok": b"1"}),
        directory("d", xattrs={name: b"y"}),
    )
    assert len(unpacker.warnings) == 1
    assert name in unpacker.warnings[0]
    for path in (layer / "f", layer / "d"):
        if name != "user.containers.override_stat" or not unpacker.override:
            assert name not in os.listxattr(path)
    assert see(layer / "f", unpacker.override).uid == 3
    assert os.getxattr(layer / "f", "user.ok") == b"1"


def test_reserved_xattrs_of_files_that_aufs_linked(unpacker: Unpacker) -> None:
    kept = {"user.ok": b"1"}
    reserved = {"user.overlay.redirect": b"/x", "user.containers.override_stat": b"0:0:0644:file"}
    layer = unpacker.nodes(
        Node(".wh..wh.plnk/1.2", 0o640, b"x", uid=3, xattrs=kept | reserved),
        Node("a", hardlink=".wh..wh.plnk/1.2"),
    )
    found = set(os.listxattr(layer / "a"))
    assert found >= {"user.ok"}
    assert not found & (reserved.keys() - {"user.containers.override_stat"})
    assert len(unpacker.warnings) == 2
    look = see(layer / "a", unpacker.override)
    assert (look.mode, look.uid) == (0o640, 3)
    assert unpacker.override or "user.containers.override_stat" not in found


@pytest.mark.parametrize("kind", ["gnu", "0.0", "0.1", "1.0"])
def test_sparse(unpacker: Unpacker, place: Path, kind: str) -> None:
    source = place / "sparse"
    with source.open("wb") as file:
        file.write(b"head")
        file.seek(3 << 20)
        file.write(b"middle")
        file.truncate(8 << 20)
    form = ["--format=gnu"] if kind == "gnu" else ["--format=pax", f"--sparse-version={kind}"]
    archive = place / "sparse.tar"
    after = place / "after"
    after.write_bytes(b"after")
    subprocess.run(
        ["tar", "-C", place, "--sparse", *form, "-cf", archive, "sparse", "after"], check=True
    )
    layer = unpacker.tar(archive.read_bytes())
    assert (layer / "sparse").read_bytes() == source.read_bytes()
    assert os.stat(layer / "sparse").st_blocks * 512 < 1 << 20
    assert (layer / "after").read_bytes() == b"after"


def test_zeros_become_holes(unpacker: Unpacker) -> None:
    data = b"x" + bytes(4 << 20) + b"y" + bytes(100)
    layer = unpacker.nodes(Node("f", data=data))
    assert (layer / "f").read_bytes() == data
    assert os.stat(layer / "f").st_blocks * 512 < 2 << 20


# whiteouts


def test_whiteouts(unpacker: Unpacker) -> None:
    layer = unpacker.nodes(
        directory("."), directory("d"), Node("d/.wh.file"), Node(".wh.gone"), Node(".wh..dot")
    )
    assert is_whiteout(layer / "d/file")
    assert is_whiteout(layer / "gone")
    assert is_whiteout(layer / ".dot")
    assert not is_opaque(layer / "d")


def test_a_whiteout_needs_no_file_type(unpacker: Unpacker) -> None:
    """Only the name counts: AUFS made hard links, others make directories."""
    layer = unpacker.nodes(
        Node(".wh.a", hardlink=".wh..wh.aufs"), directory(".wh.b"), symlink(".wh.c", "/")
    )
    assert all(is_whiteout(layer / name) for name in "abc")


def test_whiteout_and_own_content(unpacker: Unpacker) -> None:
    for order in permutations([Node(".wh.a"), directory("a", 0o700), Node("a/x", data=b"own")]):
        layer = unpacker.nodes(*order)
        assert is_opaque(layer / "a")
        assert names(layer / "a") >= {b"x"}
        assert see(layer / "a", unpacker.override).mode == 0o700
        assert not is_whiteout(layer / "a")


def test_whiteout_and_unlisted_directory(unpacker: Unpacker) -> None:
    """Nothing below is shown, so its metadata does not count either."""
    for order in permutations([Node(".wh.a"), Node("a/x")]):
        layer = unpacker.nodes(*order)
        assert is_opaque(layer / "a")
        assert implied(layer / "a") is None


def test_own_name_beats_its_whiteout(unpacker: Unpacker) -> None:
    for order in permutations([Node(".wh.a"), Node("a", data=b"own")]):
        layer = unpacker.nodes(*order)
        assert (layer / "a").read_bytes() == b"own"


def test_opaque_root_and_directory(unpacker: Unpacker) -> None:
    for order in permutations([Node(".wh..wh..opq"), Node("d/.wh..wh..opq"), Node("d/x")]):
        layer = unpacker.nodes(*order)
        assert is_opaque(layer)
        assert is_opaque(layer / "d")
        assert (layer / "d/x").exists()


def test_whiteout_in_opaque_is_not_made(unpacker: Unpacker) -> None:
    layer = unpacker.nodes(Node("d/.wh.x"), Node("d/.wh..wh..opq"))
    assert names(layer / "d") <= {b".wh..wh..opq"}


def test_aufs_housekeeping(unpacker: Unpacker) -> None:
    layer = unpacker.nodes(
        Node(".wh..wh.aufs"), directory(".wh..wh.plnk"), Node(".wh..wh.plnk/1.2"), Node("f")
    )
    assert names(layer) == {b"f"}
    assert len(unpacker.warnings) == 1


def test_whiteout_of_the_probe_name(unpacker: Unpacker) -> None:
    layer = unpacker.nodes(Node(".fuseoverlay-probe", data=b"mine"), Node(".wh.x"))
    assert (layer / ".fuseoverlay-probe").read_bytes() == b"mine"


def test_whiteout_of_a_long_name(unpacker: Unpacker) -> None:
    layer = unpacker.nodes(Node(".wh." + "n" * 255))
    assert is_whiteout(layer / ("n" * 255))


@pytest.mark.parametrize("dialect", list(Dialect))
def test_every_dialect_of_whiteouts(
    unpacker: Unpacker, monkeypatch: pytest.MonkeyPatch, dialect: Dialect
) -> None:
    """If character devices cannot be made; hard links are found despite each dialect."""
    monkeypatch.setattr(whiteout, "probe", lambda fd, namespace: dialect)
    bottom = unpacker.nodes(Node("d/a"), Node("d/b", data=b"b"), Node("d/" + "n" * 255))
    layer = unpacker.nodes(Node("d/.wh.a"), Node("d/.wh." + "n" * 255), Node("e/.wh..wh..opq"))
    assert is_whiteout(layer / "d/a")
    assert is_whiteout(layer / "d" / ("n" * 255))
    assert not is_opaque(layer / "d")
    assert is_opaque(layer / "e")
    top = unpacker.nodes(Node("x", hardlink="d/b"), lowers=[layer, bottom])
    assert (top / "x").read_bytes() == b"b"
    with pytest.raises(ImageError, match="neither in this layer"):
        unpacker.nodes(Node("x", hardlink="d/a"), lowers=[layer, bottom])


def test_opaque_without_attributes(unpacker: Unpacker, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object, name: bytes, *_: object, **__: object) -> None:
        if name.endswith(b"opaque"):
            raise OSError(errno.EOPNOTSUPP, "no")
        setxattr(path, name, *_, **__)  # type: ignore[arg-type]

    setxattr = os.setxattr
    monkeypatch.setattr(os, "setxattr", refuse)
    layer = unpacker.nodes(directory("d", mtime=5), Node("d/.wh..wh..opq"), Node("d/x"))
    assert is_opaque(layer / "d")
    assert see(layer / "d", unpacker.override).mtime == 5 * 10**9


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh..", "d/.wh...", "d/.wh."])
def test_bad_whiteouts(unpacker: Unpacker, name: str) -> None:
    with pytest.raises(ImageError, match="whiteout") as caught:
        unpacker.nodes(directory("d"), Node(name))
    assert name in str(caught.value)


def test_whiteout_as_directory(unpacker: Unpacker) -> None:
    with pytest.raises(ImageError, match="whiteout"):
        unpacker.nodes(Node(".wh.d/file"))


# the same name twice


def test_last_one_wins(unpacker: Unpacker) -> None:
    layer = unpacker.nodes(
        Node("f", 0o600, b"old and long"),
        Node("other", hardlink="f"),
        Node("f", 0o644, b"new"),
        Node("was-dir/x/y"),
        Node("was-dir/.wh.z"),
        Node("was-dir", data=b"file"),
        Node("was-file"),
        directory("was-file", 0o711),
        symlink("was-link", "/etc"),
        Node("was-link", data=b"no link"),
        Node("was-pipe", stat.S_IFIFO | 0o600),
        symlink("was-pipe", "target"),
    )
    override = unpacker.override
    assert see(layer / "f", override).data == b"new"
    assert see(layer / "other", override).data == b"old and long"
    assert see(layer / "was-dir", override).data == b"file"
    assert see(layer / "was-file", override).mode == 0o711
    assert see(layer / "was-link", override).data == b"no link"
    assert see(layer / "was-pipe", override).data == b"target"


def test_directory_twice_keeps_its_children(unpacker: Unpacker) -> None:
    layer = unpacker.nodes(
        directory("d", 0o755, mtime=1), Node("d/x"), directory("d", 0o700, uid=4, mtime=2)
    )
    look = see(layer / "d", unpacker.override)
    assert (look.mode, look.uid, look.mtime) == (0o700, 4, 2 * 10**9)
    assert names(layer / "d") == {b"x"}


def test_pending_link_that_is_replaced(unpacker: Unpacker) -> None:
    layer = unpacker.nodes(
        Node("a", hardlink="nowhere"),
        Node("a", data=b"file"),
        Node("d/b", hardlink="nowhere"),
        Node("d", data=b"file too"),
    )
    assert (layer / "a").read_bytes() == b"file"
    assert (layer / "d").read_bytes() == b"file too"


# directories that are not listed


def test_implied_directories(unpacker: Unpacker) -> None:
    layer = unpacker.nodes(Node("usr/bin/x"), directory("usr", 0o700))
    assert implied(layer) == xattrs.IMPLIED_SELF
    assert implied(layer / "usr") is None
    assert implied(layer / "usr/bin") == xattrs.IMPLIED_SELF
    assert see(layer / "usr", unpacker.override).mode == 0o700
    look = see(layer / "usr/bin", unpacker.override)
    assert (look.kind, look.mode, look.owner) == ("dir", 0o755, (0, 0))


def test_listed_root_with_implied_directories(unpacker: Unpacker) -> None:
    layer = unpacker.nodes(directory("./", 0o700), Node("usr/x"))
    assert implied(layer) not in (None, xattrs.IMPLIED_SELF)
    assert implied(layer / "usr") == xattrs.IMPLIED_SELF


def test_empty_archives(unpacker: Unpacker) -> None:
    for tar in (b"", bytes(1024), bytes(512), bytes(10240)):
        layer = unpacker.tar(tar)
        assert names(layer) == set()
        assert implied(layer) == xattrs.IMPLIED_SELF


# layers below


def test_link_to_a_lower_file(unpacker: Unpacker) -> None:
    lower = unpacker.nodes(
        Node("d/a", 0o4711, b"data", uid=5, gid=6, mtime="7.5", xattrs={"user.k": b"v"}),
        symlink("d/l", "/nowhere", uid=1),
        Node("d/null", stat.S_IFCHR | 0o600, rdev=(1, 3)),
    )
    layer = unpacker.nodes(
        Node("x/b", hardlink="d/a"),
        Node("c", hardlink="d/a"),
        Node("l", hardlink="d/l"),
        Node("null", hardlink="d/null"),
        lowers=[lower],
    )
    assert unpacker.used_lowers
    assert see(layer / "c", unpacker.override) == see(lower / "d/a", unpacker.override)
    assert os.getxattr(layer / "c", "user.k") == b"v"
    assert os.path.samefile(layer / "c", layer / "x/b")
    assert not os.path.samefile(layer / "c", lower / "d/a")
    assert see(layer / "l", unpacker.override) == see(lower / "d/l", unpacker.override)
    assert see(layer / "null", unpacker.override).kind == "char"


def test_link_to_the_same_name_below(unpacker: Unpacker) -> None:
    lower = unpacker.nodes(Node("a", data=b"low"))
    layer = unpacker.nodes(Node("a", hardlink="a"), lowers=[lower])
    assert (layer / "a").read_bytes() == b"low"


def test_the_topmost_lower_counts(unpacker: Unpacker) -> None:
    bottom = unpacker.nodes(Node("d/a", data=b"bottom"), Node("e/a", data=b"bottom"))
    middle = unpacker.nodes(Node("d/a", data=b"middle"))
    layer = unpacker.nodes(
        Node("x", hardlink="d/a"), Node("y", hardlink="e/a"), lowers=[middle, bottom]
    )
    assert (layer / "x").read_bytes() == b"middle"
    assert (layer / "y").read_bytes() == b"bottom"


@pytest.mark.parametrize(
    "hiding",
    [
        [Node("d/.wh.a")],
        [Node(".wh.d")],
        [Node("d/.wh..wh..opq")],
        [Node(".wh..wh..opq")],
        [Node("d", data=b"file")],
        [symlink("d", "e")],
        [directory("d/a")],
    ],
)
def test_what_is_hidden_below_is_not_found(unpacker: Unpacker, hiding: list[Node]) -> None:
    bottom = unpacker.nodes(Node("d/a", data=b"bottom"), Node("e/a", data=b"wrong"))
    middle = unpacker.nodes(*hiding)
    with pytest.raises(ImageError, match="neither in this layer nor"):
        unpacker.nodes(Node("x", hardlink="d/a"), lowers=[middle, bottom])


def test_a_directory_where_a_lower_has_a_link(unpacker: Unpacker) -> None:
    lower = unpacker.nodes(symlink("bin", "usr/bin"), directory("usr/bin"))
    layer = unpacker.nodes(Node("bin/x"), lowers=[lower])
    assert stat.S_ISDIR(os.lstat(layer / "bin").st_mode)
    assert not unpacker.used_lowers


def test_layers_are_what_was_written(unpacker: Unpacker) -> None:
    """The helper's archives hold what they should: GNU tar agrees."""
    listing = subprocess.run(
        ["tar", "-tf", "-"], input=layer_tar([directory("d"), Node("d/x")]), capture_output=True
    )
    assert listing.stdout.split() == [b"d/", b"d/x"]
