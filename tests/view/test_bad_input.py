"""Layers and names that nobody wants: what can be shown is shown."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import stat
import subprocess
import tarfile
from decimal import Decimal
from pathlib import Path

import pytest

from fuseoverlay.oci.layout import LayoutWriter, Node, directory, layer_tar, symlink
from fuseoverlay.store import indexes
from fuseoverlay.store.root import Store
from fuseoverlay.view import layerindex, opened
from tests.commands.conftest import Cli
from tests.helpers.mounts import command, daemon_env, needs_root_ids
from tests.oci.helpers import block, header, pax
from tests.view.conftest import Painter

HOSTILE = [b"new\nline", b"\x1b[2Jclear", b"\xff\xfe", "\u202efdp.exe".encode(), b"tab\there"]
LAYERS = [[Node("a", data=b"1" * 10), Node("d/x")], [Node("b", data=b"2")], [Node(".wh.d")]]


def _ignore(_line: str) -> None:
    pass


def test_names(cli: Cli, paint: Painter) -> None:
    """No name from an image reaches the terminal as it is."""
    nodes = [Node(name, data=b"x") for name in HOSTILE] + [symlink("l", b"to\n\x1b[0m")]
    image = paint(
        "names", nodes, [Node(b".wh." + name) for name in HOSTILE], steps=["RUN \x1b[5m", ""]
    )
    for argv in (
        ["layers", image], ["tree", "--layer", "2", image], ["ls", "-l", "--layer", "1", image],
        ["find", image, "*"], ["diff", image, "--layers", "1", "2"],
        *(["which", "-a", image, name] for name in HOSTILE),
    ):  # fmt: skip
        done = cli.run(*map(os.fsdecode, argv))
        text = done.stdout + done.stderr
        assert done.returncode in (0, 1), text
        bad = {char for char in text if not char.isprintable() and char != "\n"}
        assert not bad, (argv, bad)
    assert len(cli.said("ls", "--layer", "1", image).splitlines()) == len(HOSTILE) + 1
    rows = map(json.loads, cli.said("ls", "--json", "--layer", "1", image).splitlines())
    paths = {os.fsencode(row["path"]) for row in rows}
    assert paths == {b"/" + name for name in [*HOSTILE, b"l"]}
    for name in HOSTILE:
        assert cli.said("cat", "--layer", "1", image, os.fsdecode(name)) == "x"


def test_ten_thousand_levels(cli: Cli, tmp_path: Path) -> None:
    """No recursion, and no path longer than the system takes. An archive cannot name such a path,
    but directories can be so deep."""
    root = tmp_path / "deep"
    root.mkdir()
    fd = os.open(root, os.O_RDONLY)
    for _ in range(10_000):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    try:
        stack = f"lowerdir={root}"
        # What has to be printed grows with the square of the depth.
        assert cli.said("tree", "-L", "3", "-o", stack).splitlines()[-1] == "3 directories, 0 files"
        assert cli.run("find", "-o", stack, "x*").returncode == 1
        assert cli.said("layers", "--format", "{{.Added}}", "-o", stack) == "10000\n"
        assert cli.run("which", "-o", stack, "d/" * 10_000).returncode == 0
        cli.said("cp", "-o", stack, "/", tmp_path / "copy")
        find = ["find", tmp_path / "copy", "-printf", "x"]
        assert len(subprocess.run(find, capture_output=True, timeout=60).stdout) == 10_001
    finally:
        subprocess.run(["rm", "-rf", root, tmp_path / "copy"], check=True, timeout=60)


def _holds(blob: Path, data: bytes) -> bool:
    """Whether it is a layer with this as the content of a file."""
    packed = blob.read_bytes()
    return packed.startswith(b"\x1f\x8b") and gzip.decompress(packed)[512:514] == data + b"\0"


def test_a_layer_that_cannot_be_read(cli: Cli, paint: Painter) -> None:
    """The others are shown, and what is wrong with it is said."""
    image = paint("damaged", *LAYERS)
    layout = Path(image.rpartition(":")[0])
    (second,) = (path for path in layout.glob("blobs/sha256/*") if _holds(path, b"2"))
    whole = second.read_bytes()
    damages: list[bytes | None] = [None, whole[:-5], bytes(len(whole)), b"x" + whole[1:]]
    for damaged in damages:
        if damaged is None:
            second.unlink()
        else:
            second.write_bytes(damaged)
        done = cli.run("layers", "--format", "{{.Entries}} {{.Problem}}", image)
        assert done.returncode == 0, done.stderr
        first, other, third = done.stdout.splitlines()
        assert (first, third) == ("3 ", "1 ") and other.startswith("0 ") and len(other) > 20
        assert done.stderr.count("layer 2 cannot be read") == 1
        shown = cli.said("layers", image).splitlines()[2]
        assert shown.endswith("(cannot be read)")
        for argv in (["tree", image], ["find", image, "*"], ["which", image, "a"]):
            assert "layer 2 cannot be read" in cli.run(*argv).stderr
        # An incomplete copy is no success, and what cannot be read may differ.
        target = cli.base / "copy"
        assert cli.run("cp", image, "/", target).returncode == 7 and (target / "a").exists()
        shutil.rmtree(target)
        assert cli.run("diff", image, image).returncode == 7
        assert cli.said("ls", image) == "a\n"
        assert cli.said("cat", image, "a") == "1" * 10
    second.write_bytes(whole)
    assert cli.said("ls", image).split() == ["a", "b"]


@pytest.fixture
def one(cli: Cli, paint: Painter) -> Kept:
    """An image whose indexes are in the store."""
    return Kept(cli, paint("one", *LAYERS))


class Kept:
    """An image, what commands say of it, and what is kept for that: three indexes, and what was
    found out."""

    def __init__(self, cli: Cli, image: str) -> None:
        self._cli, self.image = cli, image
        self.said = self._said()
        self.files = {path: path.read_bytes() for path in cli.root.glob("index/*/*")}
        assert len(self.files) == 4

    def _said(self) -> list[str]:
        argvs = ["tree"], ["layers"], ["efficiency", "--json"]
        return [self._cli.said(*argv, self.image) for argv in argvs]

    def check(self, path: Path) -> None:
        """That they say the same, and `path` is whole again."""
        assert self._said() == self.said
        assert path.read_bytes() == self.files[path]


def test_a_damaged_index_is_made_again(one: Kept) -> None:
    for path, data in one.files.items():
        for damaged in (
            b"", data[:10], data[: len(data) // 2], b"fuseoverlay layer index 0\n" + data[26:],
            data[:-8], data + b"x", data.replace(b'"repeated"', b'"r"').replace(b"{", b"[", 1),
        ):  # fmt: skip
            path.write_bytes(damaged)
            one.check(path)


def test_no_bit_of_an_index_goes_unnoticed(one: Kept) -> None:
    """Each byte of each file, one bit of it at a time, and some with commands."""
    flips = 0
    for path, data in one.files.items():
        for at in range(len(data)):
            damaged = bytearray(data)
            damaged[at] ^= 1 << at % 8
            flips += 1
            with pytest.raises(indexes.BadIndexError), memoryview(damaged) as view:
                indexes.unsealed(view, data[: data.index(b"\n") + 1])
            if not at % 500:
                path.write_bytes(damaged)
                one.check(path)
    assert flips > 2000


@pytest.mark.parametrize(
    "header", [b"[" * 100_000, b"[]", b"{}", b'{"order": "little"}', b'{"places": 1}', b"\xff", b""]
)
def test_headers_that_nobody_wrote(one: Kept, header: bytes) -> None:
    """With a good checksum."""
    for path, data in one.files.items():
        magic = data[: data.index(b"\n") + 1]
        length = b"" if b"found" in magic else b"%12d\n" % len(header)
        path.write_bytes(indexes.sealed(magic, [length, header, b"\n"]))
        one.check(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("effects", []), ("effects", [[1, 2, 3, 4]] * 3), ("effects", [["1", 0, 0, 0, 0]] * 3),
        ("effects", None), ("causes", [1]), ("causes", [["no how", 1, 1, 1, {}]]), ("dive", {}),
        ("dive", {"efficiency": "x", "sizes": [1, 1, 1], "wasted": 0}),
        ("dive", {"efficiency": 1, "sizes": [1], "wasted": 0}), ("wastes", 10**12), ("wastes", -1),
        ("length", 5), ("length", 10**30), ("repeated", "1"), ("repeated", 1.5),
    ],
)  # fmt: skip
def test_findings_that_nobody_found(one: Kept, key: str, value: object) -> None:
    """With a good checksum."""
    (path,) = (path for path in one.files if path.parent.name == "found")
    magic, _, head, *lines = one.files[path].splitlines(keepends=True)
    changed = json.dumps({**json.loads(head), key: value}).encode() + b"\n"
    path.write_bytes(indexes.sealed(magic, [changed, *lines]))
    one.check(path)


@pytest.mark.parametrize("what", ["directory", "full directory", "fifo", "link", "dangling link"])
def test_anything_in_place_of_an_index(one: Kept, what: str) -> None:
    """It makes room."""
    for path, data in one.files.items():
        path.unlink()
        other = path.with_name("other")
        match what:
            case "directory":
                path.mkdir()
            case "full directory":
                (path / "a/b").mkdir(parents=True)
                (path / "a/c").write_text("x")
            case "fifo":
                os.mkfifo(path)
            case "link":
                other.write_bytes(data)
                path.symlink_to(other)
            case _:
                path.symlink_to("nothing")
        one.check(path)
        other.unlink(missing_ok=True)
        assert path.is_file() and not path.is_symlink()


@needs_root_ids
def test_what_another_user_says(cli: Cli, one: Kept) -> None:
    """It is not believed, whoever has the store."""
    for path, data in one.files.items():
        if path.parent.name == "found":
            magic, _, *lines = data.splitlines(keepends=True)
            path.write_bytes(indexes.sealed(magic, [b"".join(lines).replace(b"1", b"2")]))
        os.chown(path, 12345, 12345)
        one.check(path)
        assert path.stat().st_uid == 0


def test_an_index_goes_that_is_no_file(cli: Cli, one: Kept) -> None:
    for path in one.files:
        path.unlink()
        (path / "inner").mkdir(parents=True)
    shutil.rmtree(Path(one.image.rpartition(":")[0]))
    cli.said("image", "prune", "-f")
    assert not any(path.exists() for path in one.files)


def test_many_files_share_large_attributes(cli: Cli, paint: Painter) -> None:
    """A global header gives each file the same; some have one more. Each value is there once."""
    value, count = b"v" * 60_000, 500
    every = pax(b"SCHILY.xattr.user.k=" + value, kind=tarfile.XGLTYPE)
    plain = b"".join(header(f"x{at}") for at in range(count))
    more = b"".join(
        pax(b"SCHILY.xattr.user.%d=1" % at) + header(f"y{at}") for at in range(count)
    )  # fmt: skip
    image = paint("shared", every + plain + more + bytes(1024))
    cli.said("ls", image)
    (path,) = cli.root.glob("index/sha256/*")
    assert len(value) < path.stat().st_size < 4 * len(value) + 400 * count
    layer = layerindex.LayerIndex.load(path)
    for at in range(count):
        x, y = layer.find((b"x%d" % at,)), layer.find((b"y%d" % at,))
        assert x and y and layer.xattrs(x) == {b"user.k": value}
        assert layer.xattrs(y) == {b"user.k": value, b"user.%d" % at: b"1"}
    assert layer.xattrs(0) == {}


def test_more_bytes_than_64_bits_say(cli: Cli, paint: Painter) -> None:
    """Sparse files that no disk holds."""
    size, count = 1 << 60, 20
    body = block(b"1\n0\n5\n") + block(b"first")
    found = b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.realsize=%d" % size
    files = [pax(*found) + header(f"h{at:02}", size=len(body)) + body for at in range(count)]
    image = paint("huge", b"".join(files) + bytes(1024), [Node("h00", data=b"x"), Node(".wh.h01")])
    assert cli.said("layers", "--format", "{{.Size}}", image).split()[0] == "23.1EB"
    said = json.loads(cli.said("efficiency", "--json", image))
    assert (said["size"], said["saveable"]) == (count * size + 1, 2 * size)
    assert said["dive"]["wastedBytes"] == 2 * size + 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("17179869184.123456789", "2514-05-30 01:53"), ("-1.5", "1969-12-31 23:59"),
        ("9223372036854775806.5", "9223372036854775806"),
    ],
)  # fmt: skip
def test_times_of_any_year(cli: Cli, paint: Painter, text: str, shown: str) -> None:
    """All that 64 bits of seconds can say, to the nanosecond."""
    image = paint("times", [Node("f", mtime=text), directory("d", mtime=text)])
    rows = [json.loads(row) for row in cli.said("ls", "--json", image).splitlines()]
    assert [row["mtime"] for row in rows] == [int(Decimal(text) * 10**9)] * 2
    assert all(shown in line for line in cli.said("ls", "-l", image).splitlines())


def test_duplicates(cli: Cli, paint: Painter) -> None:
    """The last one counts, as it does unpacked."""
    image = paint("twice", [Node("a", data=b"1"), Node("b"), Node("a", data=b"22"), directory("b")])
    assert cli.said("cat", image, "a") == "22"
    assert cli.said("ls", "-l", image, "b") == ""


def test_a_whiteout_device_is_refused(cli: Cli, paint: Painter) -> None:
    """As when it is unpacked: an overlay would take it for a deletion."""
    image = paint("device", [Node("a")], layer_tar([Node("n", stat.S_IFCHR | 0o600)]))
    done = cli.run("layers", image)
    assert "character device 0:0" in done.stderr and done.returncode == 0


def test_a_large_hole(cli: Cli, paint: Painter) -> None:
    """A sparse file of 2 GiB from some bytes: nobody waits for its zeros, and it has no digest."""
    size = 2 << 30
    records = b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.realsize=%d" % size
    body = block(b"1\n0\n5\n") + block(b"first")
    tar = pax(*records) + header("hole", size=len(body)) + body + bytes(1024)
    image = paint("sparse", tar)
    (row,) = map(json.loads, cli.said("ls", "--json", image).splitlines())
    assert row["size"] == size and "sha256" not in row
    with opened.image(Store(cli.root), image, warn=_ignore) as view:
        node = view.stack.node((b"hole",))
        assert node is not None
        with view.content(node.layer, node.row) as file:
            assert file.read(8) == b"first\0\0\0"


def test_an_image_without_layers(cli: Cli) -> None:
    writer = LayoutWriter(cli.base / "empty")
    writer.add_image([])
    assert cli.said("ls", writer.path) == ""
    assert cli.said("layers", "-H=false", writer.path).splitlines()[1:] == []
    cli.refused(2, "has no layer 1; there are none", "ls", "--layer", "1", writer.path)
    cli.refused(7, "no layer has /", "which", "--all", writer.path, "/")
    assert cli.said("efficiency", writer.path).startswith(f"{writer.path}: nothing to save of 0B")
    assert cli.run("find", writer.path, "*").returncode == 1


def test_a_store_that_cannot_be_written(cli: Cli, paint: Painter) -> None:
    """The indexes live as long as the command."""
    image = paint("one", *LAYERS)
    expected = cli.said("layers", image)
    shutil.rmtree(cli.root / "index")
    if os.geteuid() == 0:
        os.chown(cli.root, 12345, 12345)
    else:
        os.chmod(cli.root, 0o500)
    try:
        assert cli.said("layers", image) == expected
        assert not (cli.root / "index").exists()
    finally:
        if os.geteuid() == 0:
            os.chown(cli.root, 0, 0)
        else:
            os.chmod(cli.root, 0o700)


def test_nobody_reads(cli: Cli, paint: Painter) -> None:
    """`| head` ends it silently."""
    image = paint("many", [Node(f"{at:05}") for at in range(20_000)])
    cli.said("layers", image)
    line = " ".join(map(str, command("ls", image)))
    env = daemon_env(FUSEOVERLAY_ROOT=str(cli.root))
    done = subprocess.run(
        ["bash", "-c", f"{line} | head -1"], env=env, capture_output=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == (b"00000\n", b"")


def test_columns_of_an_index() -> None:
    """What a file has too little of is noticed when it is loaded, not when it is used."""
    with pytest.raises(indexes.BadIndexError):
        layerindex.LayerIndex(b"")
