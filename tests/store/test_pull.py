"""Images come from registries bit for bit, and go on where they were interrupted."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from fuseoverlay.errors import DigestError, ImageError, RegistryError, StoreError
from fuseoverlay.oci import model
from fuseoverlay.oci.layout import Node, layer_tar
from fuseoverlay.oci.model import Descriptor, Digest, Manifest
from fuseoverlay.oci.reference import Reference
from fuseoverlay.registry.settings import Settings
from fuseoverlay.store import places
from fuseoverlay.store import pull as pulling
from fuseoverlay.store.garbage import prune
from fuseoverlay.store.images import Images
from fuseoverlay.store.layers import stored
from fuseoverlay.store.pull import Arrival, Pulled, pull
from fuseoverlay.store.unpacking import Unpacking
from tests.registry.daemon import Daemon
from tests.registry.hostile import HASTE, Answer, Asked, Hostile, as_manifest, hostile, ranged
from tests.store.pictures import HOST, OTHER, Painter

SETTINGS = Settings(patience=HASTE, environment={"HOME": "/nonexistent"})


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A real registry."""
    with Daemon(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def source(place: Path) -> Painter:
    return Painter(place / "source")


def blobs(root: Path) -> dict[str, bytes]:
    """The blobs of a layout, with their content."""
    return {path.name: path.read_bytes() for path in root.glob("blobs/*/*")}


async def pulled(images: Images, host: str, name: str = "a:1", **more: Any) -> Pulled:
    with trio.fail_after(60):
        return await pull(
            images.store, Reference.parse(f"{host}/{name}"), settings=SETTINGS, **more
        )


class Registry:
    """A registry made of a layout, which counts and can be made to fail. `break_blob` is asked
    about each blob: the answer, or None for the right one."""

    def __init__(self, source: Painter) -> None:
        self.source = source
        self.break_blob: Callable[[str, Asked, bytes], Answer | None] = lambda *_: None
        self.tags: dict[str, Descriptor] = {}

    def answer(self, asked: Asked) -> Answer:
        kind, what = asked.path.split("/")[-2:]
        if asked.path == "/v2/":
            return Answer()
        if kind == "manifests":
            found = self.tags.get(what)
            digest = found.digest if found else Digest.parse(what)
            data = self.file(digest).read_bytes()
            return as_manifest(data, json.loads(data)["mediaType"])
        data = self.file(Digest.parse(what)).read_bytes()
        return self.break_blob(what, asked, data) or ranged(data, asked)

    def file(self, digest: Digest) -> Path:
        return self.source.writer.path / "blobs" / digest.algorithm / digest.hex


@pytest.fixture
def registry(source: Painter) -> Registry:
    return Registry(source)


@pytest.fixture
def server(registry: Registry) -> Iterator[Hostile]:
    with hostile(registry.answer) as running:
        yield running


def asked_blobs(server: Hostile) -> list[str]:
    """The digests of the blobs asked for."""
    return [asked.path.rpartition("/")[2] for asked in server.of("/blobs/")]


async def test_a_real_registry(daemon: Daemon, source: Painter, images: Images) -> None:
    """The whole index has its digest, though one platform is here."""
    other = source.manifest("s", platform=OTHER)
    index = source.name(source.index(other, source.manifest("a", "b", "c")), "x")
    daemon.push(source.writer.path, "whole:1")
    found = await pulled(images, daemon.host, "whole:1")
    assert found.descriptor.digest == index.digest
    assert found.name == f"{daemon.host}/whole:1"
    (image,) = images.all()
    assert image.digests == (index.digest,)
    assert image.repo_digests == (f"{daemon.host}/whole@{index.digest}",)
    assert image.platform == HOST
    assert not images.content.has(other)
    assert found.received == sum(blob.size for blob in image.blobs[1:])
    assert len(places.unpacked(images.store)) == 3
    again = await pulled(images, daemon.host, "whole:1")
    assert again.received == 0
    assert again.replaced is None
    whole = await pulled(images, daemon.host, "whole:1", all_platforms=True)
    assert {found.digest for found in whole.manifests} == {other.digest, image.manifest.digest}
    assert blobs(images.store.root) == blobs(source.writer.path)
    assert os.listdir(images.store.tmp) == []
    assert not prune(images).freed


@pytest.mark.parametrize("format_", ["oci", "v2s2"])
async def test_formats(daemon: Daemon, source: Painter, images: Images, format_: str) -> None:
    source.name(source.manifest("a", format_), "x")
    daemon.push(source.writer.path, f"format:{format_}", "--format", format_)
    await pulled(images, daemon.host, f"format:{format_}")
    (image,) = images.all()
    with stored(images.store, image.manifest, "x") as found:
        assert (found.layers()[0] / format_).exists()


async def test_by_digest(daemon: Daemon, source: Painter, images: Images) -> None:
    manifest = source.name(source.manifest("digest"), "x")
    daemon.push(source.writer.path, "digest:1")
    found = await pulled(images, daemon.host, f"digest:1@{manifest.digest}")
    assert found.name == f"{daemon.host}/digest@{manifest.digest}"
    # By its digest it is found, but as in Docker that is no name that keeps it.
    assert images.resolve(found.name).names == ()
    assert images.all()[0].dangling


async def test_a_tag_that_moves(images: Images, registry: Registry, server: Hostile) -> None:
    """Shared layers are not asked for again; the old image dangles."""
    layers = [registry.source.layer(text) for text in ("base", "one", "two")]
    old = registry.tags["1"] = registry.source.manifest(layers=layers[:2])
    await pulled(images, server.host)
    server.asked.clear()
    registry.tags["1"] = registry.source.manifest(layers=[layers[0], layers[2]])
    found = await pulled(images, server.host)
    assert found.replaced == old.digest
    assert sorted(image.dangling for image in images.all()) == [False, True]
    (config, layer) = asked_blobs(server)
    assert {config, layer} == {
        str(images.resolve(found.name).id), str(layers[2].descriptor.digest)
    }  # fmt: skip


async def test_platforms(images: Images, registry: Registry, server: Hostile) -> None:
    source = registry.source
    inner = source.index(source.manifest("s", platform=OTHER))
    registry.tags["1"] = source.index(source.manifest("a"), inner)
    found = await pulled(images, server.host, platform=OTHER)
    assert images.resolve(found.name).platform == OTHER
    missing = model.Platform("linux", "riscv64")
    with pytest.raises(ImageError, match=f"no image for linux/riscv64; there are: .*{OTHER}"):
        await pulled(images, server.host, platform=missing)


@pytest.mark.parametrize("right", [True, False])
async def test_data_in_the_manifest(
    images: Images, registry: Registry, server: Hostile, right: bool
) -> None:
    """It need not be asked for, if it is what the digest says."""
    plain = registry.source.manifest("a")
    manifest = json.loads(registry.file(plain.digest).read_bytes())
    config = registry.file(Digest.parse(manifest["config"]["digest"])).read_bytes()
    data = config if right else config[::-1]
    manifest["config"]["data"] = base64.b64encode(data).decode()
    registry.tags["1"] = registry.source.writer.add_json(model.OCI_MANIFEST, manifest)
    found = await pulled(images, server.host)
    assert len(server.of(manifest["config"]["digest"])) == (not right)
    assert images.content.read(images.resolve(found.name).config) == config
    assert found.descriptor.digest == registry.tags["1"].digest


async def test_platforms_that_only_configs_tell(
    images: Images, registry: Registry, server: Hostile
) -> None:
    source = registry.source
    plain = [
        Descriptor(found.media_type, found.digest, found.size)
        for found in (source.manifest("s", platform=OTHER), source.manifest("a"))
    ]
    registry.tags["1"] = source.index(*plain)
    await pulled(images, server.host)
    (image,) = images.all()
    assert image.platform == HOST
    assert not images.content.has(plain[0])


async def test_attestations_come_with_all_platforms(
    images: Images, registry: Registry, server: Hostile
) -> None:
    source = registry.source
    config = source.writer.add_json(model.OCI_CONFIG, {"rootfs": {"type": "layers"}})
    proof = source.writer.add_json("application/vnd.in-toto+json", {"a": 1})
    data = {"config": config.to_json(), "layers": [proof.to_json()]}
    made = source.writer.add_json(model.OCI_MANIFEST, {"mediaType": model.OCI_MANIFEST, **data})
    about = {"vnd.docker.reference.type": "attestation-manifest"}
    attested = Descriptor(made.media_type, made.digest, made.size, about)
    registry.tags["1"] = source.index(attested, source.manifest("a"))
    await pulled(images, server.host)
    assert not images.content.has(made)
    await pulled(images, server.host, all_platforms=True)
    assert blobs(images.store.root) == blobs(source.writer.path)


async def test_all_of_an_image_that_is_not_for_this_machine(
    images: Images, registry: Registry, server: Hostile
) -> None:
    registry.tags["1"] = registry.source.index(registry.source.manifest("s", platform=OTHER))
    found = await pulled(images, server.host, all_platforms=True)
    assert images.resolve(found.name).platform == OTHER
    assert places.unpacked(images.store) == []


def large(source: Painter, megabytes: int = 3) -> Descriptor:
    """A manifest with a layer of random data."""
    tar = layer_tar([Node("large", data=os.urandom(megabytes << 20))])
    return source.manifest(layers=[source.layer("base"), source.writer.add_layer(tar, "gzip")])


def largest(registry: Registry, manifest: Descriptor) -> Descriptor:
    data = registry.file(manifest.digest).read_bytes()
    return max(Manifest.parse(json.loads(data)).layers, key=lambda blob: blob.size)


async def test_a_broken_pull_goes_on(images: Images, registry: Registry, server: Hostile) -> None:
    manifest = registry.tags["1"] = large(registry.source)
    layer = largest(registry, manifest)
    cut = layer.size - 5000

    def gone(what: str, asked: Asked, data: bytes) -> Answer | None:
        if what != str(layer.digest):
            return None
        return Answer(404) if asked.start else Answer(200, data, cut=cut)

    registry.break_blob = gone
    with pytest.raises(RegistryError):
        await pulled(images, server.host)
    ((digest, there),) = images.content.partials()
    assert digest == layer.digest
    assert 0 < there <= cut
    assert images.all() == []
    assert not images.content.has(manifest)
    registry.break_blob = lambda *_: None
    server.asked.clear()
    steps: list[Arrival | Unpacking] = []
    found = await pulled(images, server.host, progress=steps.append)
    assert found.received >= layer.size - there
    assert [asked.start for asked in server.of(str(layer.digest))] == [there]
    arrivals = [step for step in steps if isinstance(step, Arrival) and not step.queued]
    assert {step.before for step in arrivals if step.blob.digest == layer.digest} == {there}
    assert len(places.unpacked(images.store)) == 2
    assert images.resolve(found.name)


async def test_an_interrupted_pull_goes_on(
    images: Images, registry: Registry, server: Hostile
) -> None:
    """As after Ctrl-C: all tasks end, also the thread that unpacks."""
    manifest = registry.tags["1"] = large(registry.source)
    layer = largest(registry, manifest)
    registry.break_blob = lambda what, asked, data: (
        Answer(200, data, cut=2 << 20, stalls=True)
        if what == str(layer.digest) and not asked.start
        else None
    )
    threads = threading.active_count()
    with trio.CancelScope() as scope:

        def stop(step: Arrival) -> None:
            if step.blob.digest == layer.digest and step.done > 1 << 20:
                scope.cancel()

        await pulled(images, server.host, progress=stop)
    assert scope.cancelled_caught
    # Another blob may be on its way, too.
    there = dict(images.content.partials())[layer.digest]
    assert there > 1 << 20
    assert os.listdir(images.store.tmp) == []
    assert threading.active_count() <= threads + 8
    server.asked.clear()
    await pulled(images, server.host)
    assert [asked.start for asked in server.of(str(layer.digest))] == [there]
    assert images.content.read(layer) == registry.file(layer.digest).read_bytes()


async def test_what_was_there_may_be_wrong(
    images: Images, registry: Registry, server: Hostile
) -> None:
    manifest = registry.tags["1"] = large(registry.source, 1)
    layer = largest(registry, manifest)
    images.content.partial_path(layer.digest).write_bytes(b"wrong" * 1000)
    found = await pulled(images, server.host)
    assert images.content.read(layer) == registry.file(layer.digest).read_bytes()
    assert [asked.start for asked in server.of(str(layer.digest))] == [5000, 0]
    assert len(places.unpacked(images.store)) == 2
    assert images.resolve(found.name)


@pytest.mark.parametrize("unpack", [True, False])
async def test_wrong_bytes(
    images: Images, registry: Registry, server: Hostile, unpack: bool
) -> None:
    manifest = registry.tags["1"] = large(registry.source, 1)
    layer = largest(registry, manifest)
    registry.break_blob = lambda what, asked, data: (
        ranged(data[:-9] + b"corrupted", asked) if what == str(layer.digest) else None
    )
    with pytest.raises(DigestError, match=str(layer.digest)):
        await pulled(images, server.host, unpack=unpack)
    # What was on its way beside it may stay, for the next pull.
    assert layer.digest not in dict(images.content.partials())
    assert images.all() == []
    assert len(places.unpacked(images.store)) <= 1


async def test_a_wrong_layer(images: Images, registry: Registry, server: Hostile) -> None:
    """The blob is what the manifest says, and not what the config says."""
    source = registry.source
    one, two = source.layer("a"), source.layer("b")
    registry.tags["1"] = source.manifest(layers=[type(one)(one.descriptor, two.diff_id)])
    with pytest.raises(DigestError, match="image config says"):
        await pulled(images, server.host)
    assert images.all() == []
    assert places.unpacked(images.store) == []


@pytest.mark.parametrize("size", [1, 99999])
async def test_a_manifest_of_a_wrong_size(
    images: Images, registry: Registry, server: Hostile, size: int
) -> None:
    found = registry.source.manifest("a")
    wrong = Descriptor(found.media_type, found.digest, size, {}, HOST)
    registry.tags["1"] = registry.source.index(wrong)
    with pytest.raises(DigestError, match="the index says"):
        await pulled(images, server.host)


async def test_two_at_once(images: Images, registry: Registry, server: Hostile) -> None:
    """No blob is asked for twice."""
    registry.tags["1"] = large(registry.source)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(pulled, images, server.host)
    assert len(asked_blobs(server)) == len(set(asked_blobs(server))) == 3
    assert os.listdir(images.store.tmp) == []
    assert images.all()[0].problem is None


async def test_pruning_takes_nothing_of_a_pull(
    images: Images, registry: Registry, server: Hostile
) -> None:
    registry.tags["1"] = large(registry.source)
    freed: list[int] = []

    def clean(_: Arrival) -> None:
        freed.append(prune(images).freed)

    found = await pulled(images, server.host, progress=clean, unpack=False)
    assert len(freed) > 3
    assert set(freed) == {0}
    assert images.resolve(found.name)
    assert blobs(images.store.root) == blobs(registry.source.writer.path)


async def test_few_at_a_time(images: Images, registry: Registry, server: Hostile) -> None:
    texts = [f"layer{number}" for number in range(20)]
    registry.tags["1"] = registry.source.manifest(*texts)
    running = 0
    most = 0
    lock = threading.Lock()
    full = threading.Event()

    def count(_what: str, _asked: Asked, _data: bytes) -> Answer | None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            if running == pulling._PARALLEL:
                full.set()
        full.wait(5)
        with lock:
            running -= 1
        return None

    registry.break_blob = count
    await pulled(images, server.host)
    assert most == pulling._PARALLEL
    assert len(places.unpacked(images.store)) == 20


async def test_asked_for_in_the_order_of_unpacking(
    images: Images, registry: Registry, server: Hostile
) -> None:
    layers = [registry.source.layer(str(number)) for number in range(20)]
    registry.tags["1"] = registry.source.manifest(layers=layers)
    found = await pulled(images, server.host)
    image = images.resolve(found.name)
    assert image.config is not None
    asked = [one.path.rpartition("/")[2] for one in server.asked if "/blobs/" in one.path]
    for place, blob in enumerate([image.config, *image.layers]):
        assert asked.index(str(blob.digest)) > place - pulling._PARALLEL


async def test_a_store_without_attributes_is_told_first(
    images: Images, registry: Registry, server: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(95, os.strerror(95))

    registry.tags["1"] = registry.source.manifest("a")
    monkeypatch.setattr(os, "setxattr", refuse)
    monkeypatch.setattr("fuseoverlay.store.layers.override", lambda store: True)
    with pytest.raises(StoreError, match="extended attributes"):
        await pulled(images, server.host)
    assert not server.asked


async def test_unpacked_as_from_a_file(images: Images, registry: Registry, server: Hostile) -> None:
    """Large layers, which arrive in many parts, come out whole."""
    manifest = registry.tags["1"] = large(registry.source, 8)
    await pulled(images, server.host)
    with stored(images.store, manifest, "x") as found:
        top, base = found.layers()
    assert (base / "base").read_bytes() == b"base" * 50
    assert (top / "large").stat().st_size == 8 << 20
    before = {path: inode(path) for path in places.unpacked(images.store)}
    await pulled(images, server.host)
    assert {path: inode(path) for path in places.unpacked(images.store)} == before
    assert hashlib.sha256((top / "large").read_bytes()).digest()


def inode(path: Path) -> int:
    return path.stat().st_ino


CHILD = """
import sys, trio
from fuseoverlay.oci.reference import Reference
from fuseoverlay.registry.settings import Settings
from fuseoverlay.store.pull import pull
from fuseoverlay.store.root import Store
trio.run(lambda: pull(
    Store(sys.argv[1]), Reference.parse(sys.argv[2]),
    settings=Settings(environment={"HOME": "/nonexistent"}),
    # In one piece: reports come from threads, too.
    progress=lambda step: print(f"{step.done}\\n", end="", flush=True),
))
"""


async def test_a_killed_pull_goes_on(images: Images, registry: Registry, server: Hostile) -> None:
    manifest = registry.tags["1"] = large(registry.source)
    layer = largest(registry, manifest)
    registry.break_blob = lambda what, asked, data: (
        Answer(200, data, cut=2 << 20, stalls=True)
        if what == str(layer.digest) and not asked.start
        else None
    )
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, images.store.root, f"{server.host}/a:1"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) > 1 << 20:
            break
    # It protects what it has as long as it lives.
    assert not prune(images).freed
    child.kill()
    child.communicate()
    there = dict(images.content.partials())[layer.digest]
    assert there > 1 << 20
    complete = blobs(images.store.root)
    server.asked.clear()
    found = await pulled(images, server.host)
    assert [asked.start for asked in server.of(str(layer.digest))] == [there]
    assert not {digest.partition(":")[2] for digest in asked_blobs(server)} & complete.keys()
    assert images.resolve(found.name).problem is None
    assert os.listdir(images.store.tmp) == []
    assert not prune(images).freed
