"""Images that are not what they should be: one line and a documented exit code, in bounded memory.

The command itself reads them, see `reader.py`. A seed decides which values and bits are changed, so
that failures can be repeated.
"""

from __future__ import annotations

import bz2
import contextlib
import copy
import gzip
import hashlib
import io
import json
import lzma
import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fuseoverlay.oci import model
from fuseoverlay.oci.layout import Node, directory, layer_tar, symlink
from fuseoverlay.oci.model import Platform
from fuseoverlay.oci.streams import zstd_module
from tests.helpers.mounts import BARE_ENV, PROJECT, scratch
from tests.oci.helpers import block, header, pax
from tests.oci.test_unpack import raw_pax

MANY = 2000 if os.environ.get("FUSEOVERLAY_LONG") else 120
#: The image was read (and the mount point is a file); is malformed; has a wrong digest.
READ, MALFORMED, DIGEST = 5, 7, 8

LAYER = layer_tar(
    [
        directory("d", xattrs={"user.a": b"b"}),
        Node("d/f", data=b"data" * 200, mtime="12.5"),
        Node("d/" + "long" * 40, data=b"x"),
        symlink("d/l", "f"),
        Node("d/h", hardlink="d/f"),
        Node("d/.wh.gone"),
    ]
)


PRESSES: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstd_module().compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
}


class Reader:
    """Runs the command on one image after the other."""

    def __init__(self, place: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.oci.reader"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
            env={**BARE_ENV, "XDG_DATA_HOME": str(place / "data"), "PATH": os.defpath},
        )

    def read(self, image: Path) -> tuple[int, str]:
        """Exit code and message, which is one line with the image's name."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{image}\n")
        self._process.stdin.flush()
        code, said = json.loads(self._process.stdout.readline())
        assert code in (READ, MALFORMED, DIGEST), f"exit code {code}: {said[-2000:]}"
        *warnings, line, rest = said.split("\n")
        assert all(text.startswith("fuseoverlay: warning: ") for text in warnings), said
        assert rest == "" and line.startswith("fuseoverlay: error: "), said
        assert code == READ or str(image) in line, line
        return code, line

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(30) == 0


@contextlib.contextmanager
def started() -> Iterator[Reader]:
    with scratch() as base:
        running = Reader(base)
        yield running
        running.close()


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    """A reader whose store may hold any of the right layers."""
    with started() as running:
        yield running


@pytest.fixture
def fresh_reader() -> Iterator[Reader]:
    """A reader that has not unpacked anything."""
    with started() as running:
        yield running


# images, made by hand: a writer that is right would not make them


def packed(value: object) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def described(media_type: str, data: bytes, **more: object) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(data), "size": len(data), **more}


def config_of(plain: bytes) -> dict[str, Any]:
    platform = model.platform_json(Platform.host())
    return {**platform, "rootfs": {"type": "layers", "diff_ids": [digest(plain)]}}


def manifest_of(config: bytes, layer: bytes) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": model.OCI_MANIFEST,
        "config": described(model.OCI_CONFIG, config),
        "layers": [described(model.OCI_LAYER, layer)],
    }


def index_of(manifest: bytes, media_type: str = model.OCI_MANIFEST) -> dict[str, Any]:
    more = {
        "platform": {"os": "linux", "architecture": "amd64", "variant": "v1"},
        "annotations": {model.REF_NAME: "x"},
    }
    return {
        "schemaVersion": 2,
        "mediaType": model.OCI_INDEX,
        "manifests": [described(media_type, manifest, **more)],
    }


Change = Callable[[str, dict[str, Any]], object]


def unchanged(_name: str, document: dict[str, Any]) -> object:
    return document


def layout(path: Path, change: Change = unchanged, *, layer: bytes, plain: bytes) -> Path:
    """A layout of one image whose documents were passed through `change`; all digests are right."""
    blobs = path / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    config = packed(change("config", config_of(plain)))
    manifest = packed(change("manifest", manifest_of(config, layer)))
    for data in (config, manifest, layer):
        (blobs / digest(data).partition(":")[2]).write_bytes(data)
    (path / "index.json").write_bytes(packed(change("index", index_of(manifest))))
    return path


def archive(path: Path, change: Change = unchanged) -> bytearray:
    """A `docker save` archive, and its bytes."""
    config = packed(change("config", config_of(LAYER)))
    name = f"{digest(config).partition(':')[2]}.json"
    saved = {"Config": name, "RepoTags": ["a:b"], "Layers": ["l/layer.tar"]}
    with tarfile.open(path, "w") as target:
        for member, data in (
            (name, config),
            ("l/layer.tar", LAYER),
            ("manifest.json", packed(change("saved", {"images": [saved]}))),
        ):
            if member == "manifest.json" and data.startswith(b'{"images": '):
                data = data.removeprefix(b'{"images": ')[:-1]
            info = tarfile.TarInfo(member)
            info.size = len(data)
            target.addfile(info, io.BytesIO(data))
    return bytearray(path.read_bytes())


# values of every type in every place


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


VALUES: list[Any] = [
    *(None, True, 0, -1, 5, 10**30, 10**4000, 1.5, float("nan"), float("inf")),
    *("", "x", "\ud800", "a\nb\x1b[2J", "../../x", "/", "x" * 5000, "\0"),
    *([], [[]], ["x"], ["\udfff"], [None], {}, {"a": []}, nested(400)),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values in a document."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def replaced(document: Any, path: tuple[Any, ...], value: object) -> Any:
    document = copy.deepcopy(document)
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return document


@pytest.mark.parametrize("name", ["index", "manifest", "config", "saved"])
def test_values_of_every_type(reader: Reader, place: Path, name: str) -> None:
    documents: dict[str, Any] = {}

    def keep(which: str, document: dict[str, Any]) -> object:
        documents[which] = document
        return document

    def make(path: Path, change: Change) -> Path:
        if name == "saved":
            archive(path, change)
            return path
        return layout(path, change, layer=LAYER, plain=LAYER)

    assert reader.read(make(place / "right", keep))[0] == READ
    codes = set()
    for path in places(documents[name]):
        for value in VALUES:

            def change(which: str, document: dict[str, Any], at: Any = (path, value)) -> object:
                return replaced(document, *at) if which == name else document

            try:
                codes.add(reader.read(make(place / "image", change))[0])
            except AssertionError as exc:
                raise AssertionError(f"{path} = {str(value)[:80]!r}: {exc}") from exc
    assert MALFORMED in codes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"manifests": [], "manifests": 5}', "not a JSON array"),
        (b'{"manifests": NaN}', "NaN"),
        (b'{"manifests": [' + b"1" * 5000 + b"]}", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b'{"a":' * 100_000, "JSON"),
        (b"[" + b"[]," * (5 << 20) + b"0]", "too many values"),
        (b'"' + b"x" * (17 << 20) + b'"', "larger than"),
        (b'{"mediaType": []}', "media type that is a list"),
        (b"\xff\xfe", "JSON"),
    ],
    ids=range(9),
)
def test_absurd_json(reader: Reader, place: Path, text: bytes, says: str) -> None:
    def change(which: str, document: dict[str, Any]) -> object:
        return text if which == "index" else document

    code, line = reader.read(layout(place / "image", change, layer=LAYER, plain=LAYER))
    assert code == MALFORMED and says in line


@pytest.mark.parametrize("tags", ["5", '"x"', "{}", "[5]"])
def test_names_of_the_wrong_type(reader: Reader, place: Path, tags: str) -> None:
    def change(which: str, document: dict[str, Any]) -> object:
        text = json.dumps(document)
        return text.replace('["a:b"]', tags).encode()

    archive(place / "image.tar", change)
    code, line = reader.read(place / "image.tar")
    assert code == MALFORMED and "RepoTags: not a JSON array of text" in line


def test_indexes_that_name_one_another(reader: Reader, place: Path) -> None:
    """Seven levels, each naming the next a thousand times."""
    path = layout(place / "image", layer=LAYER, plain=LAYER)
    inner = packed({"manifests": []})
    for _ in range(7):
        (path / "blobs/sha256" / digest(inner).partition(":")[2]).write_bytes(inner)
        entry = described(model.OCI_INDEX, inner)
        inner = packed({"mediaType": model.OCI_INDEX, "manifests": [entry] * 1000})
    (path / "index.json").write_bytes(inner)
    code, line = reader.read(path)
    assert code == MALFORMED and "no image in the index" in line


def test_indexes_without_end(reader: Reader, place: Path) -> None:
    path = layout(place / "image", layer=LAYER, plain=LAYER)
    entries = []
    for number in range(5):
        inner = packed({"manifests": [], "padding": str(number) * (10 << 20)})
        (path / "blobs/sha256" / digest(inner).partition(":")[2]).write_bytes(inner)
        entries.append(described(model.OCI_INDEX, inner))
    (path / "index.json").write_bytes(packed({"manifests": entries}))
    code, line = reader.read(path)
    assert code == MALFORMED and "without end" in line


# bits


def flipped(tar: bytes, seed: int) -> bytes:
    """`tar` with some bytes of a header changed, mostly with a corrected checksum."""
    chance = random.Random(seed)
    data = bytearray(tar)
    headers = [at for at in range(0, len(data) - 512, 512) if data[at + 257 : at + 262] == b"ustar"]
    at = chance.choice(headers)
    for _ in range(chance.randint(1, 3)):
        # The first part of a header holds sizes, types and numbers.
        byte = chance.choice([0, 0x20, 0x2D, 0x31, 0x80, 0xFF, chance.randrange(256)])
        data[at + chance.randrange(345)] = byte
    if chance.random() < 0.8:
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    if chance.random() < 0.1:
        del data[chance.randrange(len(data)) :]
    return bytes(data)


def test_flipped_bits_in_a_layer(reader: Reader, place: Path) -> None:
    codes = set()
    for seed in range(MANY):
        tar = flipped(LAYER, seed)
        codes.add(reader.read(layout(place / f"image{seed}", layer=tar, plain=tar))[0])
    assert codes == {READ, MALFORMED}


def test_flipped_bits_in_an_archive(fresh_reader: Reader, place: Path) -> None:
    tar = archive(place / "right.tar")
    codes = set()
    for seed in range(MANY):
        image = place / f"image{seed}.tar"
        image.write_bytes(flipped(tar, seed))
        codes.add(fresh_reader.read(image)[0])
    assert codes >= {READ, MALFORMED}


@pytest.mark.parametrize("compression", PRESSES)
def test_flipped_bits_in_a_compressed_layer(
    fresh_reader: Reader, place: Path, compression: str
) -> None:
    """The digest of the stored blob is right, as an attacker would make it."""
    right = PRESSES[compression](LAYER)
    codes = set()
    for seed in range(MANY // 5):
        chance = random.Random(seed)
        data = bytearray(right)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        if chance.random() < 0.2:
            del data[chance.randrange(len(data)) :]
        image = layout(place / f"image{seed}", layer=bytes(data), plain=LAYER)
        codes.add(fresh_reader.read(image)[0])
    assert MALFORMED in codes


# headers that take memory, or never end


def claiming(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("big")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def chained(kind: bytes, count: int) -> bytes:
    body = b"9 a=bcde\n" if kind in (tarfile.XHDTYPE, tarfile.XGLTYPE) else b"name\0"
    return (claiming(kind, len(body)) + body.ljust(512, b"\0")) * count


def records(kind: bytes, body: bytes) -> bytes:
    """About 1 MB that a header declares to be PAX records, and an entry."""
    file = tarfile.TarInfo("f").tobuf(tarfile.USTAR_FORMAT)
    return claiming(kind, len(body)) + body + bytes(-len(body) % 512) + file


def many_globals(size: int) -> bytes:
    """Global headers before entries, each with a name of its own and this many bytes."""
    return b"".join(
        pax(b"SCHILY.xattr.user.%06d=" % number + b"v" * size, kind=tarfile.XGLTYPE)
        + tarfile.TarInfo(f"f{number}").tobuf()
        for number in range(200)
    )


def directories(count: int, *records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """Directories with records of their own, or with the same ones."""
    own = pax(*records, kind=kind)
    made = [header(f"d{number}", tarfile.DIRTYPE, mode=0o755) for number in range(count)]
    return own + b"".join(made) if kind == tarfile.XGLTYPE else own + own.join(made)


def attributes(count: int) -> bytes:
    """A directory with this many attributes of 60,000 bytes, all different."""
    return b"".join(
        pax(*(b"SCHILY.xattr.user.%d=%060000d" % (name, number * 16 + name) for name in range(16)))
        + header(f"d{number}", tarfile.DIRTYPE, mode=0o755)
        for number in range(count)
    )


def deep_deletions(count: int) -> bytes:
    """Deletions in directories that are not there, each with a long path."""
    return b"".join(
        header("././@LongLink", tarfile.GNUTYPE_LONGNAME, len(name) + 1)
        + block(name + b"\0")
        + header("x")
        for name in (b"%d/" % number + b"a/" * 900 + b".wh.a" for number in range(count))
    )


def backwards() -> bytes:
    """A member whose size leads back to its beginning."""
    info = tarfile.TarInfo("f")
    info.size = -512 - 512
    return info.tobuf(tarfile.GNU_FORMAT)


LARGE = b"SCHILY.xattr.user.a=" + b"x" * 1_000_000
MANY_DIGITS = b"9" * 999_000
HEADERS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a pax header of 3 GiB": (lambda: claiming(tarfile.XHDTYPE, 3 << 30), "too large"),
    "a global header of 3 GiB": (lambda: claiming(tarfile.XGLTYPE, 3 << 30), "too large"),
    "a long name of 3 GiB": (lambda: claiming(tarfile.GNUTYPE_LONGNAME, 3 << 30), "too large"),
    "long names": (lambda: chained(tarfile.GNUTYPE_LONGNAME, 1500), "headers for one entry"),
    "long links": (lambda: chained(tarfile.GNUTYPE_LONGLINK, 1500), "headers for one entry"),
    "pax headers": (lambda: chained(tarfile.XHDTYPE, 1500), "headers for one entry"),
    "global headers": (lambda: chained(tarfile.XGLTYPE, 1500), "headers for one entry"),
    "global headers that pile up": (lambda: many_globals(1000), "global headers"),
    "attributes that pile up": (lambda: many_globals(1), "global headers"),
    "a large attribute for all": (
        lambda: directories(6000, LARGE, kind=tarfile.XGLTYPE),
        "global headers",
    ),
    "a large attribute for each": (lambda: directories(300, LARGE), ""),
    "many records for all": (
        lambda: directories(
            2000, *(b"%x=1" % number for number in range(85_000)), kind=tarfile.XGLTYPE
        ),
        "",
    ),
    "deletions in deep directories": (lambda: deep_deletions(5), ""),
    "backwards": (backwards, ""),
    "records without a value": (
        lambda: records(tarfile.XHDTYPE, b"2 " * 500_000 + b"="),
        "PAX record",
    ),
    "records within each other": (
        lambda: records(tarfile.XHDTYPE, b"3 3" * 330_000 + b"=\n"),
        "PAX record",
    ),
    "global records within each other": (
        lambda: records(tarfile.XGLTYPE, b"3\n3 " * 250_000 + b"=\n"),
        "PAX record",
    ),
    "a record as long as can be": (
        lambda: records(tarfile.XHDTYPE, b"%s a=b\n" % MANY_DIGITS),
        "PAX record",
    ),
    "a value of digits": (lambda: raw_pax([b"a=" + MANY_DIGITS]), ""),
    "a record without length": (lambda: records(tarfile.XHDTYPE, b"0 a=b\n"), "PAX record"),
    "a sparse file of 2^100 bytes": (
        lambda: raw_pax([b"GNU.sparse.map=0,0", b"GNU.sparse.size=%d" % (1 << 100)]),
        "",
    ),
    "a sparse map of 250,000": (
        lambda: raw_pax([b"GNU.sparse.size=9", b"GNU.sparse.map=" + b"0,0," * 249_999 + b"0,0"]),
        "",
    ),
    "attributes without end": (
        lambda: raw_pax([b"SCHILY.xattr.user.%06d=" % number for number in range(30_000)]),
        "",
    ),
}


@pytest.mark.parametrize("what", HEADERS)
@pytest.mark.parametrize("where", ["layer", "archive", "compressed"])
def test_headers_without_bounds(reader: Reader, place: Path, what: str, where: str) -> None:
    make, says = HEADERS[what]
    tar = make()
    tar += bytes(4096)
    if where == "layer":
        code, line = reader.read(layout(place / "image", layer=tar, plain=tar))
    else:
        (place / "image").write_bytes(gzip.compress(tar, 1) if where == "compressed" else tar)
        code, line = reader.read(place / "image")
    assert says in line
    assert code == MALFORMED or not says


def test_different_attributes_without_end(reader: Reader, place: Path) -> None:
    """Attributes of directories are set at the end, and kept in memory until then."""
    tar = attributes(80) + bytes(1024)
    code, line = reader.read(layout(place / "image", layer=tar, plain=tar))
    assert code == MALFORMED and "too large attributes" in line


def test_a_member_without_end_of_names(reader: Reader, place: Path) -> None:
    """What is kept in memory of an archive is bounded too."""
    with gzip.open(place / "image", "wb", 1) as target:
        for number in range(140_000):
            target.write(tarfile.TarInfo(f"{number:0100d}").tobuf())
    code, line = reader.read(place / "image")
    assert code == MALFORMED and "too many members" in line


def test_warnings_stay_few(reader: Reader, place: Path) -> None:
    """There is one line for each kind of warning, and a layer cannot add kinds."""
    node = Node("f\n\x1b[2J", xattrs={f"user.overlay.{number}": b"x" for number in range(500)})
    tar = layer_tar([node])
    image = layout(place / "image", layer=tar, plain=tar)
    assert reader.read(image)[0] == READ
