"""Lists of tags, also on many pages, and which tags are near."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import trio

from fuseoverlay.errors import RegistryError
from fuseoverlay.oci.reference import Reference
from fuseoverlay.registry import remote
from fuseoverlay.registry.settings import Settings
from fuseoverlay.registry.tags import near
from tests.registry.daemon import Daemon, layer_of, layout_of
from tests.registry.hostile import HASTE, Answer, Asked, hostile

SETTINGS = Settings(patience=HASTE, environment={"HOME": "/nonexistent"})


async def listed(host: str, repository: str = "tags") -> list[str]:
    """The tags of a repository."""
    reference = Reference.parse(f"{host}/{repository}")
    async with remote.connect(reference, SETTINGS) as registry:
        return await registry.tags()


async def test_of_a_real_registry(daemon: Daemon, tmp_path: Path) -> None:
    layout_of(tmp_path, [layer_of("t", b"x")])
    for tag in ("12", "11", "12-slim", "latest"):
        daemon.push(tmp_path, f"tags:{tag}")
    assert sorted(await listed(daemon.host)) == ["11", "12", "12-slim", "latest"]
    with pytest.raises(RegistryError) as caught:
        await listed(daemon.host, "none")
    assert caught.value.status == 404
    async with remote.connect(Reference.parse(f"{daemon.host}/tags:13"), SETTINGS) as registry:
        error = await registry.no_such_tag("13")
    assert str(error).startswith(f"{daemon.host}/tags:13: no such tag; similar tags: ")
    assert "latest" in str(error)
    assert error.status == 404


@pytest.mark.parametrize("rel", ['rel="next"', "rel=next", 'x=y; REL="next"; z'])
async def test_on_many_pages(rel: str) -> None:
    names = [f"t{number}" for number in range(7)]

    def answer(asked: Asked) -> Answer:
        query = parse_qs(urlsplit(asked.path).query)
        start = int(query.get("from", ["0"])[0])
        page = json.dumps({"name": "tags", "tags": names[start : start + 3]}).encode()
        if start + 3 >= len(names):
            return Answer(200, page, {"Link": '</v2/tags/tags/list?from=0>; rel="prev"'})
        link = f'</x>; rel="first", </v2/tags/tags/list?from={start + 3}>; {rel}'
        return Answer(200, page, {"Link": link})

    with hostile(answer) as server:
        assert await listed(server.host) == names
        assert len(server.of("tags/list")) == 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(200, b"[]"), "not a JSON object"),
        (Answer(200, b'{"tags": [1]}'), "not a JSON array of text"),
        (Answer(200, b"<html>"), "not valid JSON"),
        (Answer(200, b'{"tags": []}', {"Link": "</x>; rel=next"}), "in a circle"),
        (Answer(200, b'{"tags": []}', {"Link": "<https://other.io/x>; rel=next"}), "another host"),
    ],
)
async def test_lists_that_are_none(answer: Answer, message: str) -> None:
    with hostile(lambda _: answer) as server:
        with pytest.raises(RegistryError, match=message):
            await listed(server.host)
        assert len(server.of("list")) + len(server.of("/x")) <= 2


async def test_a_list_without_end() -> None:
    def answer(asked: Asked) -> Answer:
        return Answer(200, b'{"tags": ["a"]}', {"Link": f"<{asked.path}x>; rel=next"})

    with hostile(answer) as server, pytest.raises(RegistryError, match="more than 1000 pages"):
        await listed(server.host)


async def test_no_tags() -> None:
    with hostile(lambda _: Answer(200, b'{"name": "tags", "tags": null}')) as server:
        assert await listed(server.host) == []
        async with remote.connect(Reference.parse(f"{server.host}/a"), SETTINGS) as registry:
            assert "it has no tags at all" in str(await registry.no_such_tag("1"))


@pytest.mark.parametrize(("status", "says"), [(403, "no such tag"), (404, "has no such image")])
async def test_near_tags_are_a_favour(status: int, says: str) -> None:
    """Where there is no list, the message is without them; where there is no image, it says so."""
    with hostile(lambda _: Answer(status)) as server:
        async with remote.connect(Reference.parse(f"{server.host}/a"), SETTINGS) as registry:
            assert str(await registry.no_such_tag("1")).endswith(f"{says}; check the name")


async def test_near_tags_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_SOON", 0.2)
    waiting = threading.Event()

    def answer(_: Asked) -> Answer:
        waiting.wait(20)
        return Answer(200, b'{"tags": ["12"]}')

    with hostile(answer) as server, trio.fail_after(10):
        async with remote.connect(Reference.parse(f"{server.host}/a"), SETTINGS) as registry:
            assert str(await registry.no_such_tag("1")).endswith("no such tag; check the name")
        waiting.set()


DEBIAN = ["10", "11", "12", "12-slim", "12.1", "12.10", "9", "bookworm", "bookworm-slim", "latest",
          f"sha256-{'0' * 64}", "stable"]  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("12.2", ["12", "12.1", "12.10"]),
        ("bookwrm", ["bookworm", "bookworm-slim"]),
        ("12-slimm", ["12-slim", "12"]),
        ("13", ["latest"]),
        ("stabel", ["stable"]),
    ],
)
def test_near(wanted: str, expected: list[str]) -> None:
    found = near(wanted, DEBIAN)
    assert set(expected) <= set(found)
    assert len(found) == 5
    assert not any(tag.startswith("sha256-") for tag in found)
