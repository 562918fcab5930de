"""Manifests and blobs from a real registry, and what is refused of false ones."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from fuseoverlay.errors import DigestError, RegistryError
from fuseoverlay.oci import model
from fuseoverlay.oci.model import Descriptor, Digest, Manifest
from fuseoverlay.oci.reference import Reference
from fuseoverlay.registry import remote
from fuseoverlay.registry.manifests import Received
from fuseoverlay.registry.settings import Settings
from tests.registry.daemon import Daemon, layer_of, layout_of
from tests.registry.hostile import HASTE, Answer, Asked, as_manifest, hostile, manifest_of

SETTINGS = Settings(patience=HASTE, environment={"HOME": "/nonexistent"})
NOTHING = "0" * 64


async def blob(host: str, descriptor: Descriptor, offset: int = 0) -> bytes:
    """Download a blob of the repository `a`."""
    reference = Reference.parse(f"{host}/a")
    async with (
        remote.connect(reference, SETTINGS) as registry,
        registry.blob(descriptor, offset) as parts,
    ):
        return b"".join([part async for part in parts])


async def manifest(host: str, what: Digest | str = "1") -> Received:
    """Fetch a manifest of the repository `a`."""
    async with remote.connect(Reference.parse(f"{host}/a"), SETTINGS) as registry:
        return await registry.manifest(what)


async def test_an_image_comes_bit_for_bit(daemon: Daemon, tmp_path: Path) -> None:
    layers = [layer_of("small", b"x"), layer_of("large", os.urandom(3 << 20))]
    blobs = layout_of(tmp_path, layers)
    daemon.push(tmp_path, "a:1")
    received = await manifest(daemon.host)
    assert received.data == blobs["manifest"]
    assert received.media_type == model.OCI_MANIFEST
    assert received.digest == Digest.of(received.data)
    assert await manifest(daemon.host, received.digest) == received
    parsed = Manifest.parse(model.decode_json(received.data, "manifest"))
    assert len(parsed.layers) == 2
    for descriptor in (parsed.config, *parsed.layers):
        whole = blobs[str(descriptor.digest)]
        assert await blob(daemon.host, descriptor) == whole
        for offset in (1, len(whole) - 1, len(whole)):
            assert await blob(daemon.host, descriptor, offset) == whole[offset:]


async def test_what_a_registry_says_of_a_manifest(daemon: Daemon, tmp_path: Path) -> None:
    blobs = layout_of(tmp_path, [layer_of("head", b"x")])
    daemon.push(tmp_path, "head:1")
    reference = Reference.parse(f"{daemon.host}/head:1")
    async with remote.connect(reference, SETTINGS) as registry:
        found = await registry.head("1")
        assert found == (await registry.manifest("1")).descriptor
        assert found.size == len(blobs["manifest"])
        assert await registry.head("2") is None
        assert await registry.head(Digest("sha256", NOTHING)) is None


async def test_dockers_formats_come_as_they_are(daemon: Daemon, tmp_path: Path) -> None:
    layout_of(tmp_path, [layer_of("docker", b"x")])
    daemon.push(tmp_path, "docker:1", "--format", "v2s2")
    async with remote.connect(Reference.parse(f"{daemon.host}/docker:1"), SETTINGS) as registry:
        assert (await registry.manifest("1")).media_type == model.DOCKER_MANIFEST


@pytest.mark.parametrize("what", ["9", Digest("sha256", NOTHING)])
async def test_no_such_manifest(daemon: Daemon, what: Digest | str) -> None:
    with pytest.raises(RegistryError) as caught:
        await manifest(daemon.host, what)
    assert caught.value.status == 404
    at = "@" if isinstance(what, Digest) else ":"
    assert str(caught.value).startswith(f"{daemon.host}/a{at}{what}: not found (404, ")


async def test_no_such_blob(daemon: Daemon) -> None:
    with pytest.raises(RegistryError) as caught:
        await blob(daemon.host, Descriptor(model.OCI_LAYER, Digest("sha256", NOTHING), 5))
    assert caught.value.status == 404


async def test_a_sha512_digest_is_checked_as_such() -> None:
    data = manifest_of()
    digest = Digest("sha512", hashlib.sha512(data).hexdigest())
    told = {"Content-Type": model.OCI_MANIFEST, "Docker-Content-Digest": str(digest)}
    with hostile(lambda _: Answer(200, data, told)) as server:
        assert (await manifest(server.host)).digest == digest
        assert (await manifest(server.host, digest)).digest == digest


async def test_a_manifest_may_name_its_type_in_one_place_only() -> None:
    data = manifest_of()
    plain = manifest_of(mediaType=None)
    answers = [
        Answer(200, data),
        Answer(200, plain, {"Content-Type": f"{model.OCI_MANIFEST}; charset=utf-8"}),
    ]
    with hostile(lambda _: answers[0]) as server:
        while answers:
            assert (await manifest(server.host)).media_type == model.OCI_MANIFEST
            answers.pop(0)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(200, manifest_of(), {"Content-Type": model.DOCKER_MANIFEST}), "sent as"),
        (Answer(200, manifest_of(), {"Content-Type": model.OCI_INDEX}), "sent as"),
        (Answer(200, manifest_of(), {"Content-Type": "text/html"}), "sent as"),
        (as_manifest(manifest_of(mediaType=None), "text/html"), "unknown media type"),
        (as_manifest(manifest_of(mediaType=7)), "sent as"),
        (as_manifest(manifest_of(manifests=[])), "both an index and a manifest"),
        (as_manifest(manifest_of(mediaType=model.OCI_INDEX), model.OCI_INDEX), "both an index"),
        (as_manifest(b"[]"), "not a JSON object"),
        (as_manifest(b"<html>"), "not valid JSON"),
        (as_manifest(manifest_of(), Content_Encoding="gzip"), "compressed"),
        (as_manifest(manifest_of(x="y" * (4 << 20))), "more than 4194304 bytes"),
        (
            as_manifest(
                manifest_of(mediaType=None),
                "application/vnd.docker.distribution.manifest.v1+prettyjws",
            ),
            "schema 1",
        ),
    ],
)
async def test_false_manifests(answer: Answer, message: str) -> None:
    with hostile(lambda _: answer) as server:
        with pytest.raises(RegistryError, match=message):
            await manifest(server.host)
        assert len(server.of("manifests")) == 1


@pytest.mark.parametrize("what", ["1", Digest("sha256", NOTHING)])
async def test_a_manifest_with_another_digest(what: Digest | str) -> None:
    answer = as_manifest(manifest_of(), Docker_Content_Digest=f"sha256:{NOTHING}")
    other = pytest.raises(DigestError, match=f"it should be sha256:{NOTHING}")
    with hostile(lambda _: answer) as server, other:
        await manifest(server.host, what)


async def test_a_manifest_of_4_mib() -> None:
    data = manifest_of(x="")
    data = manifest_of(x="y" * ((4 << 20) - len(data)))
    assert len(data) == 4 << 20
    with hostile(lambda _: as_manifest(data)) as server:
        assert (await manifest(server.host)).data == data


async def test_nobody_is_there() -> None:
    with hostile(lambda _: Answer()) as server:
        host = server.host
    with pytest.raises(RegistryError, match=f"{host}/: no connection|{host}/v2/: no connection"):
        await manifest(host)


async def test_no_such_host() -> None:
    hint = "; correct the name, or see whether there is a network"
    with pytest.raises(RegistryError, match=f"no such host.*{hint}"):
        await manifest("no-such-host.invalid")


async def test_no_such_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@no-such-proxy.invalid:3128/")
    with pytest.raises(RegistryError, match="correct HTTPS_PROXY") as caught:
        await manifest("registry.invalid")
    assert "the proxy no-such-proxy.invalid:3128: no such host" in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_a_web_server_is_no_registry() -> None:
    page = Answer(404, b"<html>", {"content-type": "text/html; charset=utf-8"})
    with hostile(lambda _: page) as server, pytest.raises(RegistryError) as caught:
        await manifest(server.host)
    assert "no registry answers there, but a web server" in str(caught.value)


async def test_the_accepted_types_are_named() -> None:
    with hostile(lambda _: as_manifest(manifest_of())) as server:
        await manifest(server.host)
        (asked,) = server.of("manifests")
    assert set(asked.headers["accept"].split(", ")) == model.INDEX_TYPES | model.MANIFEST_TYPES
    assert asked.headers["user-agent"].startswith("fuseoverlay/")


async def test_a_message_of_the_registry_is_shown() -> None:
    def answer(_: Asked) -> Answer:
        text = b'{"errors": [{"code": "DENIED", "message": "closed\\u001b[2J on\\nSundays"}]}'
        return Answer(403, text)

    with hostile(answer) as server:
        with pytest.raises(RegistryError) as caught:
            await manifest(server.host)
        assert len(server.of("manifests")) == 1
    assert "access denied (403, closed\\x1b[2J on Sundays)" in str(caught.value)
