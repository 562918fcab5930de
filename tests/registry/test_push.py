"""Blobs and manifests into a real registry, and into one that loses things."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from fuseoverlay.errors import RegistryError
from fuseoverlay.oci import model
from fuseoverlay.oci.model import Descriptor, Digest
from fuseoverlay.oci.reference import Reference
from fuseoverlay.registry import remote
from fuseoverlay.registry.accounts import Account
from fuseoverlay.registry.settings import Settings
from fuseoverlay.registry.upload import Source
from tests.registry.cutting import cutting
from tests.registry.daemon import Daemon, layer_of, layout_of
from tests.registry.hostile import HASTE, Answer, Asked, blob_of, hostile, manifest_of

SETTINGS = Settings(patience=HASTE, environment={"HOME": "/nonexistent"}, chunk=100_000)
DATA = os.urandom(350_001)


class Bytes:
    """A source of `data`, which counts what it was asked for."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.offsets: list[int] = []

    def __call__(self, offset: int) -> AsyncGenerator[bytes]:
        self.offsets.append(offset)
        return self._parts(offset)

    async def _parts(self, offset: int) -> AsyncGenerator[bytes]:
        for start in range(offset, len(self._data), 30_000):
            yield self._data[start : start + 30_000]


async def put(host: str, data: bytes, source: Source | None = None, **changes: int) -> None:
    """Upload a blob to the repository `p`."""
    settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    async with remote.connect(Reference.parse(f"{host}/p"), settings) as registry:
        await registry.upload(blob_of(data), source or Bytes(data))


async def has(host: str, data: bytes) -> bool:
    """Whether the repository `p` has the blob, whole."""
    async with remote.connect(Reference.parse(f"{host}/p"), SETTINGS) as registry:
        if not await registry.exists(Digest.of(data)):
            return False
        async with registry.blob(blob_of(data)) as parts:
            return b"".join([part async for part in parts]) == data


async def test_an_image_is_pushed_bit_for_bit(daemon: Daemon, tmp_path: Path) -> None:
    layers = [layer_of("small", b"x"), layer_of("large", os.urandom(1 << 20))]
    blobs = layout_of(tmp_path, layers)
    data = blobs.pop("manifest")
    del blobs[f"sha256:{hashlib.sha256(data).hexdigest()}"]
    reference = Reference.parse(f"{daemon.host}/pushed/image:1")
    async with remote.connect(reference, SETTINGS) as registry:
        for blob in blobs.values():
            assert not await registry.exists(Digest.of(blob))
            await registry.upload(blob_of(blob), Bytes(blob))
            assert await registry.exists(Digest.of(blob))
        assert await registry.put_manifest(data, model.OCI_MANIFEST, "1") == Digest.of(data)
        assert (await registry.manifest("1")).data == data
    argv = ["skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false"]
    argv += [f"docker://{reference}", f"oci:{tmp_path / 'back'}"]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run(argv, check=True, timeout=30, env=env)
    (found,) = json.loads((tmp_path / "back" / "index.json").read_text())["manifests"]
    assert found["digest"] == str(Digest.of(data))


@pytest.mark.parametrize("size", [0, 1, 99_999, 100_000, 100_001, 200_000])
async def test_blobs_of_all_sizes(daemon: Daemon, size: int) -> None:
    data = os.urandom(size)
    await put(daemon.host, data)
    assert await has(daemon.host, data)


async def test_a_blob_is_mounted_from_another_repository(daemon: Daemon) -> None:
    data = os.urandom(1000)
    await put(daemon.host, data)
    source = Reference.parse(f"{daemon.host}/p")
    async with remote.connect(Reference.parse(f"{daemon.host}/mounted"), SETTINGS) as registry:
        assert not await registry.exists(Digest.of(data))
        assert await registry.mount(Digest.of(data), source)
        assert await registry.exists(Digest.of(data))
        assert not await registry.mount(Digest.of(b"nothing"), source)
        assert not await registry.mount(Digest.of(data), Reference.parse("other.io/p"))


async def test_an_upload_goes_on_where_it_broke(daemon: Daemon) -> None:
    data = os.urandom(350_001)
    source = Bytes(data)
    # In the middle of the second piece's headers.
    with cutting(daemon.host, b"PATCH", 100_700) as proxy:
        await put(proxy.host, data, source)
        assert proxy.broken == 1
    assert await has(daemon.host, data)
    assert source.offsets == [0, 100_000, 100_000, 200_000, 300_000]


async def test_an_upload_that_broke_in_a_piece(daemon: Daemon) -> None:
    """This registry forgets all of it then."""
    data = os.urandom(350_001)
    with cutting(daemon.host, b"PATCH", 50_000, 130_000) as proxy:
        await put(proxy.host, data)
        assert proxy.broken == 2
    assert await has(daemon.host, data)


async def test_a_whole_upload_begins_again(daemon: Daemon) -> None:
    data = os.urandom(350_001)
    source = Bytes(data)
    with cutting(daemon.host, b"PUT", 50_000) as proxy:
        await put(proxy.host, data, source, chunk=1 << 20)
        assert proxy.broken == 1
    assert await has(daemon.host, data)
    assert source.offsets == [0, 0]


async def test_what_does_not_match_its_digest_is_refused(daemon: Daemon) -> None:
    for size in (1000, 200_000):
        data = os.urandom(size)
        with pytest.raises(RegistryError, match="400") as caught:
            await put(daemon.host, data, Bytes(os.urandom(size)))
        assert caught.value.status == 400
        assert not await has(daemon.host, data)


async def test_a_source_that_is_too_short(daemon: Daemon) -> None:
    for chunk in (100_000, 1 << 20):
        with pytest.raises(RegistryError, match="1 bytes of a blob are missing here"):
            await put(daemon.host, DATA, Bytes(DATA[:-1]), chunk=chunk)


async def test_a_manifest_without_its_blobs_is_refused(daemon: Daemon) -> None:
    async with remote.connect(Reference.parse(f"{daemon.host}/p"), SETTINGS) as registry:
        with pytest.raises(RegistryError) as caught:
            await registry.put_manifest(manifest_of(), model.OCI_MANIFEST, "1")
        assert caught.value.status in {400, 404}


class Uploads:
    """A registry in memory. `lose`: of the n-th piece it loses all but so many bytes; `minimum` is
    what it says that a piece must have at least."""

    def __init__(self, lose: dict[int, int] | None = None, minimum: int | None = None) -> None:
        self.got = b""
        self.lose = lose or {}
        self.minimum = minimum
        self.pieces: list[str] = []
        self.blobs: dict[str, bytes] = {}
        self.sessions = 0

    def answer(self, asked: Asked) -> Answer:
        """Answers as the spec says."""
        kind = (asked.method, "/uploads/" in asked.path)
        if kind == ("POST", True):
            self.sessions += 1
            self.got = b""
            told = {"OCI-Chunk-Min-Length": str(self.minimum)} if self.minimum else {}
            return Answer(202, headers={"Location": self._place(), **told})
        if kind == ("PATCH", True):
            return self._piece(asked)
        if kind == ("GET", True):
            return Answer(204, headers={"Location": self._place(), "Range": self._range()})
        if kind == ("PUT", True):
            (digest,) = parse_qs(urlsplit(asked.path).query)["digest"]
            self.blobs[digest] = self.got + asked.body
            return Answer(201, headers={"Location": f"/v2/p/blobs/{digest}"})
        if asked.method == "HEAD":
            return Answer(200 if asked.path.rpartition("/")[2] in self.blobs else 404)
        return Answer()

    def _place(self) -> str:
        return f"/v2/p/blobs/uploads/{self.sessions}?state={len(self.got)}"

    def _range(self) -> str:
        return f"0-{max(len(self.got) - 1, 0)}"

    def _piece(self, asked: Asked) -> Answer:
        self.pieces.append(asked.headers["content-range"])
        match = re.fullmatch(r"(\d+)-(\d+)", asked.headers["content-range"])
        assert match
        assert int(match[2]) - int(match[1]) + 1 == len(asked.body)
        if int(match[1]) != len(self.got):
            return Answer(416, headers={"Range": self._range()})
        kept = self.lose.get(len(self.pieces) - 1, len(asked.body))
        self.got += asked.body[:kept]
        return Answer(202, headers={"Location": self._place(), "Range": self._range()})


async def test_pieces_as_they_should_be() -> None:
    uploads = Uploads()
    with hostile(uploads.answer) as server:
        await put(server.host, DATA)
    assert uploads.blobs == {str(Digest.of(DATA)): DATA}
    assert uploads.pieces == ["0-99999", "100000-199999", "200000-299999", "300000-350000"]


async def test_pieces_are_as_large_as_the_registry_wants() -> None:
    uploads = Uploads(minimum=170_000)
    with hostile(uploads.answer) as server:
        await put(server.host, DATA)
    assert uploads.blobs == {str(Digest.of(DATA)): DATA}
    assert uploads.pieces == ["0-169999", "170000-339999", "340000-350000"]


async def test_what_the_registry_loses_is_sent_again() -> None:
    uploads = Uploads({0: 60_000, 1: 0, 3: 99_999})
    with hostile(uploads.answer) as server:
        await put(server.host, DATA)
    assert uploads.blobs == {str(Digest.of(DATA)): DATA}
    assert uploads.pieces[:3] == ["0-99999", "60000-159999", "60000-159999"]
    assert uploads.sessions == 1


async def test_an_upload_that_is_forgotten_begins_again() -> None:
    uploads = Uploads()

    def answer(asked: Asked) -> Answer:
        if asked.method == "PATCH" and len(uploads.pieces) == 2 and uploads.sessions == 1:
            return Answer(503)
        if asked.method == "GET" and "/uploads/" in asked.path:
            return Answer(404)
        return uploads.answer(asked)

    with hostile(answer) as server:
        await put(server.host, DATA)
    assert uploads.sessions == 2
    assert uploads.blobs == {str(Digest.of(DATA)): DATA}


async def test_an_upload_that_is_forgotten_again_and_again() -> None:
    uploads = Uploads()

    def answer(asked: Asked) -> Answer:
        if asked.method == "PATCH" and uploads.got:
            return Answer(503)
        if asked.method == "GET" and "/uploads/" in asked.path:
            return Answer(404)
        return uploads.answer(asked)

    with hostile(answer) as server, pytest.raises(RegistryError, match="503"):
        await put(server.host, DATA)
    assert uploads.sessions == HASTE.tries


async def test_a_blob_of_which_only_the_answer_was_lost() -> None:
    uploads = Uploads()

    def answer(asked: Asked) -> Answer:
        found = uploads.answer(asked)
        return Answer(504) if asked.method == "PUT" else found

    with hostile(answer) as server:
        await put(server.host, DATA)
        assert len([asked for asked in server.asked if asked.method == "PUT"]) == 1
    assert uploads.blobs == {str(Digest.of(DATA)): DATA}


@pytest.mark.parametrize("lost", [Answer(416), Answer(503), Answer(202)], ids=str)
async def test_tries_are_bounded(lost: Answer) -> None:
    """A registry that keeps nothing."""
    uploads = Uploads()

    def answer(asked: Asked) -> Answer:
        if asked.method != "PATCH":
            return uploads.answer(asked)
        uploads.pieces.append("")
        return replace(lost, headers={"Location": "/v2/p/blobs/uploads/1", "Range": "0-0"})

    with hostile(answer) as server, pytest.raises(RegistryError):
        await put(server.host, DATA)
    assert len(uploads.pieces) == HASTE.tries


async def test_a_registry_that_has_more_than_was_sent() -> None:
    told = {"Location": "/v2/p/blobs/uploads/1", "Range": "0-999999"}
    more = pytest.raises(RegistryError, match="has 1000000 bytes of a blob of 350001")
    with hostile(lambda _: Answer(202, headers=told)) as server, more:
        await put(server.host, DATA)


@pytest.mark.parametrize("size", [10, 200_000])
async def test_no_location(size: int) -> None:
    without = pytest.raises(RegistryError, match="answers without a Location")
    with hostile(lambda _: Answer(202)) as server, without:
        await put(server.host, DATA[:size])


async def test_uploads_elsewhere_get_no_secret() -> None:
    uploads = Uploads()

    def there(asked: Asked) -> Answer:
        if asked.headers.get("authorization") != "Bearer secret":
            return Answer(401, headers={"WWW-Authenticate": 'Bearer realm="x"'})
        found = uploads.answer(asked)
        return replace(found, headers={**found.headers, "Location": f"{other.url}/uploads/1"})

    with hostile(uploads.answer) as other, hostile(there) as server:
        account = Account(registry_token="secret")
        reference = Reference.parse(f"{server.host}/p")
        async with remote.connect(reference, replace(SETTINGS, account=account)) as registry:
            await registry.upload(blob_of(DATA), Bytes(DATA))
        assert other.asked
        assert not any("authorization" in asked.headers for asked in other.asked)
    assert uploads.blobs == {str(Digest.of(DATA)): DATA}


async def test_a_manifest_that_the_registry_changes() -> None:
    told = {"Docker-Content-Digest": f"sha256:{'0' * 64}"}
    with hostile(lambda _: Answer(201, headers=told)) as server:
        async with remote.connect(Reference.parse(f"{server.host}/p"), SETTINGS) as registry:
            with pytest.raises(RegistryError, match="keeps the manifest"):
                await registry.put_manifest(manifest_of(), model.OCI_MANIFEST, "1")


# Referrers


def signature(subject: bytes, number: int) -> bytes:
    """A manifest that refers to another."""
    descriptor = Descriptor(model.OCI_MANIFEST, Digest.of(subject), len(subject))
    return manifest_of(
        subject=descriptor.to_json(),
        artifactType=f"application/x-{number % 2}",
        annotations={"number": str(number)},
    )


async def test_referrers_of_a_registry_that_knows_none(daemon: Daemon, tmp_path: Path) -> None:
    """The list is kept under a tag."""
    blobs = layout_of(tmp_path, [layer_of("r", b"x")])
    subject = blobs["manifest"]
    daemon.push(tmp_path, "p:subject")
    config = b"{}"
    digest = Digest.of(subject)
    await put(daemon.host, config)
    async with remote.connect(Reference.parse(f"{daemon.host}/p"), SETTINGS) as registry:
        assert await registry.referrers(digest) == []
        signatures = []
        for number in range(3):
            data = json.loads(signature(subject, number))
            data["config"] = blob_of(config, model.OCI_CONFIG).to_json()
            signatures.append(json.dumps(data).encode())
        for data in [*signatures, signatures[0]]:
            assert await registry.put_manifest(data, model.OCI_MANIFEST) == Digest.of(data)
        found = await registry.referrers(digest)
        assert [item.descriptor.digest for item in found] == [*map(Digest.of, signatures)]
        assert found[1].descriptor.annotations == {"number": "1"}
        assert found[1].artifact_type == "application/x-1"
        (only,) = await registry.referrers(digest, "application/x-1")
        assert only == found[1]
        assert f"sha256-{digest.hex}" in await registry.tags()


def referring(server_filters: bool) -> tuple[Digest, list[bytes], object]:
    """A registry that can list referrers, on two pages; perhaps it filters."""
    subject = manifest_of()
    signatures = [signature(subject, number) for number in range(4)]
    entries = [
        Descriptor(model.OCI_MANIFEST, Digest.of(data), len(data)).to_json()
        | {"artifactType": f"application/x-{number % 2}"}
        for number, data in enumerate(signatures)
    ]

    def answer(asked: Asked) -> Answer:
        query = parse_qs(urlsplit(asked.path).query)
        wanted = query.get("artifactType", [None])[0]
        told = {"Content-Type": model.OCI_INDEX}
        if wanted and server_filters:
            chosen = [entry for entry in entries if entry["artifactType"] == wanted]
            told["OCI-Filters-Applied"] = "artifactType"
        elif "page" in query:
            chosen = entries[3:]
        else:
            chosen = entries[:3]
            told["Link"] = "<?page=2>; rel=next"
        index = {"schemaVersion": 2, "mediaType": model.OCI_INDEX, "manifests": chosen}
        return Answer(200, json.dumps(index).encode(), told)

    return Digest.of(subject), signatures, answer


@pytest.mark.parametrize("filters", [True, False])
async def test_referrers_of_a_registry_that_knows_them(filters: bool) -> None:
    digest, signatures, answer = referring(filters)
    with hostile(answer) as server:  # type: ignore[arg-type]
        async with remote.connect(Reference.parse(f"{server.host}/p"), SETTINGS) as registry:
            found = [item.descriptor.digest for item in await registry.referrers(digest)]
            assert found == [*map(Digest.of, signatures)]
            some = await registry.referrers(digest, "application/x-0")
            assert [item.descriptor.digest for item in some] == found[::2]
        assert not server.of("/manifests/")


async def test_no_list_where_the_registry_takes_notice() -> None:
    def answer(asked: Asked) -> Answer:
        return Answer(201, headers={"OCI-Subject": "yes"}) if asked.method == "PUT" else Answer()

    with hostile(answer) as server:
        async with remote.connect(Reference.parse(f"{server.host}/p"), SETTINGS) as registry:
            await registry.put_manifest(signature(b"{}", 1), model.OCI_MANIFEST)
        assert len(server.of("/p/")) == 1


@pytest.mark.parametrize("body", [b"[]", b'{"manifests": 1}', b'{"manifests": [1]}',
                                  b'{"manifests": [{}]}', b"<html>"])  # fmt: skip
async def test_lists_of_referrers_that_are_none(body: bytes) -> None:
    answer = Answer(200, body, {"Content-Type": model.OCI_INDEX})
    with hostile(lambda _: answer) as server:
        async with remote.connect(Reference.parse(f"{server.host}/p"), SETTINGS) as registry:
            with pytest.raises(RegistryError):
                await registry.referrers(Digest.of(b""))


async def test_a_page_for_people_is_no_list() -> None:
    def answer(asked: Asked) -> Answer:
        if "referrers" in asked.path:
            return Answer(200, b"<html>Please log in", {"Content-Type": "text/html"})
        return Answer(404)

    with hostile(answer) as server:
        async with remote.connect(Reference.parse(f"{server.host}/p"), SETTINGS) as registry:
            assert await registry.referrers(Digest.of(b"")) == []


async def test_what_uploads_elsewhere_ask_for_is_not_answered() -> None:
    """Another host cannot have our credentials sent to whom it likes."""
    account = Account("me", "secret")

    def asking(_: Asked) -> Answer:
        challenge = f'Bearer realm="{thief.url}/token", Basic realm="x"'
        return Answer(401, headers={"WWW-Authenticate": challenge})

    def there(_: Asked) -> Answer:
        return Answer(202, headers={"Location": f"{other.url}/uploads/1"})

    with hostile(lambda _: Answer(200)) as thief, hostile(asking) as other:
        with hostile(there) as server:
            reference = Reference.parse(f"{server.host}/p")
            for size in (10, 200_000):
                async with remote.connect(reference, replace(SETTINGS, account=account)) as to:
                    with pytest.raises(RegistryError) as caught:
                        await to.upload(blob_of(DATA[:size]), Bytes(DATA[:size]))
                    assert caught.value.status == 401
        assert other.asked
        assert not any("authorization" in asked.headers for asked in other.asked)
        assert not thief.asked


async def test_the_query_of_a_location_stays_as_it_is() -> None:
    uploads = Uploads()
    query = "?_state=a%2Fb+c/d%3d==&sig=%c3%a4~&x"

    def answer(asked: Asked) -> Answer:
        found = uploads.answer(asked)
        told = dict(found.headers)
        if "Location" in told:
            told["Location"] = told["Location"].partition("?")[0] + query
        return replace(found, headers=told)

    with hostile(answer) as server:
        for size in (10, 200_000):
            await put(server.host, DATA[:size])
        sent = [asked.path for asked in server.asked if asked.method in {"PUT", "PATCH"}]
    assert len(sent) == 4
    assert all(query in path for path in sent)
