"""Images from a store into a real registry, and back."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseoverlay.errors import DigestError, ImageError
from fuseoverlay.oci import model
from fuseoverlay.oci.model import Descriptor, Digest, Platform
from fuseoverlay.oci.reference import Reference
from fuseoverlay.registry.settings import Settings
from fuseoverlay.store.images import Images
from fuseoverlay.store.pull import pull
from fuseoverlay.store.push import Departure, Pushed, push
from fuseoverlay.store.root import Store
from tests.registry.daemon import Daemon
from tests.registry.hostile import HASTE, Answer, Asked, hostile
from tests.store.pictures import HOST, OTHER, Painter

SETTINGS = Settings(patience=HASTE, environment={"HOME": "/nonexistent"}, chunk=100_000)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("registry")) as running:
        yield running


class Log:
    """What a push reports, in the end, of each blob."""

    def __init__(self) -> None:
        self.last: dict[Digest, Departure] = {}

    def __call__(self, departure: Departure) -> None:
        self.last[departure.blob.digest] = departure


async def put(
    images: Images, text: str, to: str, platform: Platform | None = None, log: Log | None = None
) -> Pushed:
    return await push(
        images, text, Reference.parse(to), platform=platform, settings=SETTINGS,
        progress=log or Log(),
    )  # fmt: skip


def raw(name: str) -> bytes:
    """The manifest or index in the registry."""
    argv = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}"]
    return subprocess.run(argv, check=True, capture_output=True, timeout=60).stdout


async def test_there_and_back(images: Images, paint: Painter, daemon: Daemon, place: Path) -> None:
    """An index, with an index in it, docker's media types and an attestation; all bit for bit."""
    first = paint.manifest("a", "b")
    inner = paint.index(first)
    theirs = paint.manifest("s", platform=OTHER)
    layer = paint.layer("large" * 50_000, None)
    plain = paint.manifest(layers=[layer], annotations={"x": "y"})
    top = paint.name(paint.index(inner, theirs, plain), f"{daemon.host}/team/x:1")
    log = Log()
    done = await put(images, f"{daemon.host}/team/x:1", f"{daemon.host}/team/x:1", log=log)
    assert done.descriptor.digest == top.digest
    there = dict(images.content.blobs())
    documents = {item.digest for item in (first, inner, theirs, plain, top)}
    assert set(log.last) == set(there) - documents
    assert done.sent == sum(size for digest, size in there.items() if digest not in documents)
    assert raw(f"{daemon.host}/team/x:1") == images.content.path(top.digest).read_bytes()
    other = Store(place / "other")
    pulled = await pull(
        other, Reference.parse(f"{daemon.host}/team/x:1"), all_platforms=True, settings=SETTINGS
    )
    assert pulled.descriptor.digest == top.digest
    assert dict(Images(other).content.blobs()) == there


async def test_skopeo_copies_it(
    images: Images, paint: Painter, daemon: Daemon, place: Path
) -> None:
    """With all blobs as they are here."""
    manifests = paint.manifest("a", "b"), paint.manifest("s", platform=OTHER)
    paint.name(paint.index(*manifests), "x")
    await put(images, "x", f"{daemon.host}/skopeo:1")
    argv = ["skopeo", "--insecure-policy", "copy", "-q", "--all", "--src-tls-verify=false"]
    argv += [f"docker://{daemon.host}/skopeo:1", f"oci:{place}/copy:x"]
    subprocess.run(argv, check=True, timeout=60)
    copied = {path.name for path in (place / "copy/blobs").glob("*/*")}
    assert copied == {digest.hex for digest, _ in images.content.blobs()}


async def test_what_is_there_is_not_sent(images: Images, paint: Painter, daemon: Daemon) -> None:
    manifest = paint.name(paint.manifest("one", "two"), f"{daemon.host}/there:1")
    first, second = Log(), Log()
    done = await put(images, f"{daemon.host}/there:1", f"{daemon.host}/there:1", log=first)
    assert done.sent > 0
    assert all(step.there and step.done == step.blob.size for step in first.last.values())
    done = await put(images, str(manifest.digest), f"{daemon.host}/there:2", log=second)
    assert done.sent == 0
    assert all(step.there and not step.done for step in second.last.values())
    assert len(second.last) == 3


async def test_blobs_of_another_repository(images: Images, paint: Painter, daemon: Daemon) -> None:
    """The registry takes them from there, if they are there."""
    name = f"{daemon.host}/from/here:1"
    paint.name(paint.manifest("mounted"), name)
    await put(images, name, name)
    log = Log()
    done = await put(images, name, f"{daemon.host}/to/there:1", log=log)
    assert done.sent == 0
    assert {step.source for step in log.last.values()} == {"from/here"}
    # A name alone does not say that it was ever pushed.
    other = f"{daemon.host}/never/pushed:1"
    paint.name(paint.manifest("more"), other)
    done = await put(images, other, f"{daemon.host}/to/there:2", log=log)
    assert done.sent > 0
    assert raw(f"{daemon.host}/to/there:2")


async def test_one_platform(images: Images, paint: Painter, daemon: Daemon) -> None:
    ours, missing = paint.manifest("p"), paint.manifest("q", platform=OTHER)
    name = f"{daemon.host}/platforms:1"
    paint.name(paint.index(ours, missing), name)
    images.content.path(missing.digest).unlink()
    with pytest.raises(ImageError, match="not all platforms"):
        await put(images, name, name)
    done = await put(images, name, name, HOST)
    assert done.descriptor.digest == ours.digest
    assert model.OCI_MANIFEST in raw(name).decode()


async def test_by_digest(images: Images, paint: Painter, daemon: Daemon) -> None:
    manifest = paint.manifest("by digest")
    paint.name(manifest, "x")
    to = f"{daemon.host}/digest@"
    with pytest.raises(ImageError, match="leave the digest out"):
        await put(images, "x", f"{to}{Digest.of(b'')}")
    await put(images, "x", f"{to}{manifest.digest}")
    assert json.loads(raw(f"{to}{manifest.digest}"))["layers"]


async def test_sha512(images: Images, paint: Painter) -> None:
    """What is named by it goes by this name."""
    manifest = paint.manifest("a")
    data = images.content.path(manifest.digest).read_bytes()
    hasher = Digest("sha512", "0" * 128).hasher()
    hasher.update(data)
    digest = Digest("sha512", hasher.hexdigest())
    images.content.add(data, digest)
    top = paint.index(Descriptor(manifest.media_type, digest, len(data), {}, HOST))
    paint.name(top, "x")
    puts: list[str] = []

    def answer(asked: Asked) -> Answer:
        if asked.method == "PUT" and "/manifests/" in asked.path:
            puts.append(asked.path.rpartition("/")[2])
            return Answer(201)
        return Answer(200)

    with hostile(answer) as server:
        await put(images, "x", f"{server.host}/x:1")
    assert puts == [str(digest), "1"]


@pytest.mark.parametrize("damage", ["cut", "wrong"])
async def test_a_damaged_blob(images: Images, paint: Painter, daemon: Daemon, damage: str) -> None:
    """Nothing gets the tag."""
    name = f"{daemon.host}/damaged/{damage}:1"
    paint.name(paint.manifest(f"damaged {damage}"), name)
    layer = images.resolve(name).layers[0]
    path = images.content.path(layer.digest)
    path.write_bytes(path.read_bytes()[:-1] if damage == "cut" else bytes(layer.size))
    with pytest.raises(DigestError):
        await put(images, name, name)
    with pytest.raises(subprocess.CalledProcessError):
        raw(name)
