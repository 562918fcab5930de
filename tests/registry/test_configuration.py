"""registries.conf: where references lead, what is blocked, what short names mean."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from fuseoverlay.errors import FuseOverlayError, RegistryError
from fuseoverlay.oci.model import Manifest, decode_json
from fuseoverlay.oci.reference import Reference
from fuseoverlay.registry import configuration, remote
from fuseoverlay.registry.accounts import Account
from fuseoverlay.registry.configuration import AUTH_FILES, Configuration
from fuseoverlay.registry.endpoints import Endpoint, endpoints, registry_of
from fuseoverlay.registry.settings import Settings
from fuseoverlay.registry.shortnames import candidates
from tests.registry.daemon import Daemon, layer_of, layout_of
from tests.registry.hostile import HASTE, Answer, Asked, as_manifest, hostile, manifest_of

SUM = f"sha256:{'0' * 64}"


def no_warning(text: str) -> None:
    """Nothing shall be told."""
    raise AssertionError(text)


def conf(tmp_path: Path, text: str) -> Settings:
    """A home with this registries.conf, and the settings for it."""
    file = tmp_path / ".config" / "containers" / "registries.conf"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return Settings(environment={"HOME": str(tmp_path)}, patience=HASTE)


def read(tmp_path: Path, text: str) -> Configuration:
    """What is read of such a file."""
    return configuration.read(conf(tmp_path, text).environment, no_warning)


RULES = """
[[registry]]
location = "blocked.io"
blocked = true
[[registry]]
prefix = "blocked.io/but/this"
location = "other.io:5000/here"
insecure = true
[[registry]]
prefix = "*.wild.io"
insecure = true
[[registry]]
prefix = "docker.io"
location = "docker.io"
[[registry.mirror]]
location = "any.io/hub"
[[registry.mirror]]
location = "digests.io"
pull-from-mirror = "digest-only"
[[registry.mirror]]
location = "tags.io"
pull-from-mirror = "tag-only"
insecure = true
[[registry]]
location = "strict.io"
mirror-by-digest-only = true
[[registry.mirror]]
location = "digests.io"
[[registry]]
prefix = "tagged.io/a:1"
location = "moved.io/b"
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("free.io/a", ["free.io/a"]),
        ("localhost:5000/a", ["localhost:5000/a insecure"]),
        ("127.0.0.2:5000/a", ["127.0.0.2:5000/a insecure"]),
        ("[::1]:5000/a", ["[::1]:5000/a insecure"]),
        ("128.0.0.1:5000/a", ["128.0.0.1:5000/a"]),
        ("blocked.io/but/this/one:2", ["other.io:5000/here/one insecure"]),
        ("blocked.io/but/this", ["other.io:5000/here insecure"]),
        ("blocked.iota/a", ["blocked.iota/a"]),
        ("a.b.wild.io/c", ["a.b.wild.io/c insecure"]),
        ("a.wild.io:1/c", ["a.wild.io:1/c insecure"]),
        ("wild.io/c", ["wild.io/c"]),
        ("x.io/a.wild.io/c", ["x.io/a.wild.io/c"]),
        ("debian", ["any.io/hub/library/debian", "tags.io/library/debian insecure",
                    "docker.io/library/debian"]),
        (f"a/b@{SUM}", ["any.io/hub/a/b", "digests.io/a/b", "docker.io/a/b"]),
        ("strict.io/a", ["strict.io/a"]),
        (f"strict.io/a@{SUM}", ["digests.io/a", "strict.io/a"]),
        ("tagged.io/a:1", ["moved.io/b"]),
        ("tagged.io/a:2", ["tagged.io/a"]),
    ],
)  # fmt: skip
def test_where_references_lead(tmp_path: Path, text: str, expected: list[str]) -> None:
    found = endpoints(Reference.parse(text), read(tmp_path, RULES), Settings())
    assert [
        f"{place.host}/{place.repository}{' insecure' if place.insecure else ''}" for place in found
    ] == expected


def test_what_the_command_says_counts_first(tmp_path: Path) -> None:
    rules = read(tmp_path, RULES)
    reference = Reference.parse("a.wild.io/c")
    for verify in (True, False):
        (found,) = endpoints(reference, rules, Settings(verify))
        assert found.insecure is not verify


@pytest.mark.parametrize("text", ["blocked.io/a", "blocked.io/but/a", "blocked.io:5000/a"])
def test_blocked(tmp_path: Path, text: str) -> None:
    rules = read(tmp_path, RULES)
    for ask in (endpoints, registry_of):
        with pytest.raises(RegistryError, match=r"registries.conf blocks blocked.io"):
            ask(Reference.parse(text), rules, Settings())  # type: ignore[operator]


def test_pushes_go_where_the_name_says(tmp_path: Path) -> None:
    rules = read(tmp_path, RULES)
    assert registry_of(Reference.parse("debian"), rules, Settings()) == Endpoint(
        "docker.io", "library/debian"
    )


@pytest.mark.parametrize("location", ["nowhere", "nowhere/x", "x.io/UP", "x.io/..", ".", "x.io?"])
def test_locations_that_are_none(tmp_path: Path, location: str) -> None:
    rules = read(tmp_path, f'[[registry]]\nprefix = "a.io"\nlocation = "{location}"')
    with pytest.raises(RegistryError, match=r"a\.io/b:latest: registries\.conf has the location"):
        endpoints(Reference.parse("a.io/b"), rules, Settings())


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "registry = 1",
        "registry = [1]",
        "[[registry]]",
        "[[registry]]\nlocation = 1",
        '[[registry]]\nprefix = "a.io"',
        '[[registry]]\nlocation = "https://a.io"',
        '[[registry]]\nlocation = "a.io"\ninsecure = "yes"',
        '[[registry]]\nlocation = "a.io"\n[[registry.mirror]]\ninsecure = true',
        '[[registry]]\nlocation = "a.io"\n'
        '[[registry.mirror]]\nlocation = "b"\npull-from-mirror = "x"',
        '[[registry]]\nlocation = "a.io"\nmirror-by-digest-only = true\n'
        '[[registry.mirror]]\nlocation = "b"\npull-from-mirror = "all"',
        'unqualified-search-registries = "docker.io"',
        "unqualified-search-registries = [1]",
        "credential-helpers = [1]",
        "aliases = 1",
        "[aliases]\na = 1",
        "\udcff",
    ],
)
def test_malformed_files(tmp_path: Path, text: str) -> None:
    settings = conf(tmp_path, "")
    path = tmp_path / ".config" / "containers" / "registries.conf"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(RegistryError, match=f"^{path}: .*; correct it, see containers-registries"):
        configuration.read(settings.environment, no_warning)


def test_the_old_format_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    environment = conf(tmp_path, "[registries.search]\nregistries = ['x.io']").environment
    assert configuration.read(environment, told.append) == Configuration()
    assert "old format" in told[0]


def test_files_in_order(tmp_path: Path) -> None:
    """A user's file replaces the system's and its directory; else the directories add."""
    system, home = tmp_path / "etc", tmp_path / "home"
    own = home / ".config" / "containers"
    cache = home / ".cache" / "containers"
    for directory in (system, own):
        (directory / "registries.conf.d").mkdir(parents=True)
    cache.mkdir(parents=True)
    environment = {"HOME": str(home)}

    def aliases() -> dict[str, str]:
        return dict(configuration.read(environment, no_warning, str(system)).aliases)

    def put(path: Path, value: str, name: str = "a") -> None:
        path.write_text(f'[aliases]\n{name} = "{value}"\n')

    assert aliases() == {}
    put(system / "registries.conf", "system.io/a")
    assert aliases() == {"a": "system.io/a"}
    put(system / "registries.conf.d" / "2.conf", "second.io/a")
    put(system / "registries.conf.d" / "1.conf", "first.io/a")
    put(system / "registries.conf.d" / "3.off", "off.io/a")
    assert aliases() == {"a": "second.io/a"}
    put(own / "registries.conf.d" / "0.conf", "own.io/a")
    put(system / "registries.conf.d" / "b.conf", "b.io/b", "b")
    assert aliases() == {"a": "own.io/a", "b": "b.io/b"}
    put(own / "registries.conf", "mine.io/c", "c")
    assert aliases() == {"a": "own.io/a", "c": "mine.io/c"}
    put(cache / "short-name-aliases.conf", "noted.io/a")
    assert aliases() == {"a": "noted.io/a", "c": "mine.io/c"}
    put(cache / "short-name-aliases.conf", "")
    assert aliases() == {"c": "mine.io/c"}


SHORT = """
unqualified-search-registries = ["one.io", "docker.io", "two.io/x/"]
[aliases]
alias = "three.io/y"
"with/slash" = "docker.io/z"
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", ["one.io/a:latest", "docker.io/library/a:latest", "two.io/x/a:latest"]),
        ("a/b:1", ["one.io/a/b:1", "docker.io/a/b:1", "two.io/x/a/b:1"]),
        (f"a@{SUM}", [f"one.io/a@{SUM}", f"docker.io/library/a@{SUM}", f"two.io/x/a@{SUM}"]),
        ("alias", ["three.io/y:latest"]),
        ("alias:1", ["three.io/y:1"]),
        (f"alias:1@{SUM}", [f"three.io/y:1@{SUM}"]),
        ("with/slash", ["docker.io/library/z:latest"]),
        ("docker.io/a", ["docker.io/library/a:latest"]),
        ("localhost/alias", ["localhost/alias:latest"]),
    ],
)
def test_short_names(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert [str(found) for found in candidates(text, read(tmp_path, SHORT))] == expected


def test_helpers(tmp_path: Path) -> None:
    assert read(tmp_path, "").helpers == (AUTH_FILES,)
    assert read(tmp_path, "credential-helpers = []").helpers == (AUTH_FILES,)
    assert read(tmp_path, 'credential-helpers = ["a", "b"]').helpers == ("a", "b")


def test_short_names_are_dockers_if_nobody_says_otherwise() -> None:
    (found,) = candidates("debian:12", Configuration())
    assert str(found) == "docker.io/library/debian:12"
    with pytest.raises(FuseOverlayError):
        candidates("A", Configuration())


async def test_a_mirror_is_asked_first_and_left_when_it_fails(
    daemon: Daemon, tmp_path: Path
) -> None:
    blobs = layout_of(tmp_path / "image", [layer_of("m", b"x")])
    daemon.push(tmp_path / "image", "moved/m:1")
    with hostile(lambda _: Answer(404)) as lacking, hostile(lambda _: Answer(503)) as broken:
        rule = f"""
        [[registry]]
        prefix = "nowhere.invalid"
        location = "{daemon.host}/moved"
        [[registry.mirror]]
        location = "{broken.host}"
        [[registry.mirror]]
        location = "{lacking.host}/x"
        """
        reference = Reference.parse("nowhere.invalid/m:1")
        async with remote.connect(reference, conf(tmp_path, rule)) as registry:
            received = await registry.manifest("1")
            assert received.data == blobs["manifest"]
            assert len(broken.of("/v2/m/manifests/1")) == HASTE.tries
            assert len(lacking.of("/v2/x/m/manifests/1")) == 1
            config = Manifest.parse(decode_json(received.data, "manifest")).config
            async with registry.blob(config) as parts:
                assert b"".join([part async for part in parts]) == blobs[str(config.digest)]
        assert not lacking.of("blobs")


async def test_a_download_goes_on_at_the_registry_when_a_mirror_gives_up(tmp_path: Path) -> None:
    data = manifest_of(x="y" * 100_000)
    descriptor = as_manifest(data)
    right = Answer(200, data, descriptor.headers)

    def cut(asked: object) -> Answer:
        return right if "manifests" in asked.path else Answer(200, data[:50_000])  # type: ignore[attr-defined]

    with hostile(cut) as mirror, hostile(lambda _: Answer(200, data)) as registry:
        rule = f"""
        [[registry]]
        location = "{registry.host}"
        [[registry.mirror]]
        location = "{mirror.host}"
        """
        reference = Reference.parse(f"{registry.host}/a")
        async with remote.connect(reference, conf(tmp_path, rule)) as connected:
            received = await connected.manifest("1")
            async with connected.blob(received.descriptor) as parts:
                assert b"".join([part async for part in parts]) == data
        assert registry.of("blobs")[0].headers["range"] == "bytes=50000-"


async def test_nothing_is_sent_to_a_blocked_registry(tmp_path: Path) -> None:
    with hostile(lambda _: Answer()) as server:
        rule = f'[[registry]]\nlocation = "{server.host}"\nblocked = true'
        with pytest.raises(RegistryError, match="blocks"):
            async with remote.connect(Reference.parse(f"{server.host}/a"), conf(tmp_path, rule)):
                pass
        assert not server.asked


async def test_a_proxy_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other hosts are asked for through it, this computer is not."""
    with hostile(lambda _: as_manifest(manifest_of())) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("https_proxy", raising=False)
        rule = '[[registry]]\nlocation = "nowhere.invalid"\ninsecure = true'
        settings = conf(tmp_path, rule)
        async with remote.connect(Reference.parse("nowhere.invalid/a"), settings) as registry:
            await registry.manifest("1")
        assert proxy.of("http://nowhere.invalid/v2/a/manifests/1")
        asked = len(proxy.asked)
        with hostile(lambda _: as_manifest(manifest_of())) as server:
            async with remote.connect(Reference.parse(f"{server.host}/a"), settings) as registry:
                await registry.manifest("1")
        assert len(proxy.asked) == asked


async def test_a_client_certificate_is_shown(tmp_path: Path, certified: Path) -> None:
    """A real registry that lets nobody in without one."""
    argv = "openssl x509 -in made.pem -out client.cert"
    subprocess.run(argv.split(), cwd=certified.parent, check=True, timeout=30)
    for name in ("ca.crt", "me.cert", "me.key"):
        (tmp_path / "certs").mkdir(exist_ok=True)
        (tmp_path / "certs" / name).write_bytes(certified.read_bytes())
    base = tmp_path / "registry"
    base.mkdir()
    more = {"clientcas": [str(certified.parent / "cert.pem")]}
    with Daemon(base, certificate=certified, tls=more) as daemon:
        reference = Reference.parse(f"{daemon.host}/a")
        shown = Settings(True, certificates=str(tmp_path / "certs"), patience=HASTE)
        async with remote.connect(reference, shown) as registry:
            assert await registry.head("1") is None
        (tmp_path / "certs" / "me.cert").unlink()
        async with remote.connect(reference, shown) as registry:
            with pytest.raises(RegistryError):
                await registry.head("1")


async def test_the_account_of_the_command_is_not_for_mirrors(tmp_path: Path) -> None:
    """It is for the registry that was named."""

    def asking(asked: Asked) -> Answer:
        if "authorization" not in asked.headers:
            return Answer(401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        return as_manifest(manifest_of())

    with hostile(asking) as mirror, hostile(asking) as registry:
        rule = f"""
        [[registry]]
        location = "{registry.host}"
        [[registry.mirror]]
        location = "{mirror.host}"
        """
        settings = replace(conf(tmp_path, rule), account=Account("me", "secret"))
        async with remote.connect(Reference.parse(f"{registry.host}/a"), settings) as connected:
            await connected.manifest("1")
        assert mirror.of("manifests")
        assert not any("authorization" in asked.headers for asked in mirror.asked)
        assert registry.of("manifests")[-1].headers["authorization"].startswith("Basic ")
