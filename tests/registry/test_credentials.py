"""Which account is found, in which file, and by which helper."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from fuseoverlay.errors import RegistryError
from fuseoverlay.registry import authfiles, helpers
from fuseoverlay.registry.accounts import Account
from fuseoverlay.registry.authfiles import account_of
from fuseoverlay.registry.challenges import Challenge, challenges
from fuseoverlay.registry.configuration import AUTH_FILES
from fuseoverlay.registry.settings import Settings

HUB = "https://index.docker.io/v1/"
#: A keychain: one file for each server, named by its hexadecimal form.
HELPER = """\
#!/bin/sh
read -r server
case $1:$server in
  get:slow.io) sleep 60 ;;
  get:broken.io) echo oh no; exit 1 ;;
  get:odd.io) echo '{"Username": 3}' ;;
  get:token.io) echo '{"ServerURL": "x", "Username": "<token>", "Secret": "it"}' ;;
  get:kept.io | get:https://index.docker.io/v1/)
    echo "{\\"ServerURL\\": \\"x\\", \\"Username\\": \\"u\\", \\"Secret\\": \\"$server\\"}" ;;
  *) echo credentials not found in native keychain; exit 1 ;;
esac
"""


def entry(user: str, password: str = "p") -> dict[str, str]:
    """An entry of an auth file."""
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Everything in `tmp_path`, with a helper `test` in the PATH."""
    (tmp_path / "bin").mkdir()
    helper = tmp_path / "bin" / "docker-credential-test"
    helper.write_text(HELPER)
    helper.chmod(0o755)
    environment = {
        "HOME": str(tmp_path / "home"),
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
    }
    return Settings(environment=environment)


def write(path: str, content: Any) -> None:
    """An auth file that only we can read."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    file.chmod(0o600)


async def test_the_first_file_counts(settings: Settings) -> None:
    paths = authfiles.paths(settings)
    assert [Path(path).name for path in paths] == [
        *("auth.json", "auth.json", "config.json", ".dockercfg")
    ]
    assert await account_of("x.io", "a", settings) is None
    for number in (3, 2, 1, 0):
        one = {"x.io": entry(f"u{number}")}
        write(paths[number], one if number == 3 else {"auths": one})
        assert await account_of("x.io", "a", settings) == Account(f"u{number}", "p")
    write(paths[0], {"auths": {"y.io": entry("other")}})
    assert await account_of("x.io", "a", settings) == Account("u1", "p")


async def test_a_file_that_is_named_is_the_only_one(settings: Settings, tmp_path: Path) -> None:
    write(authfiles.paths(settings)[0], {"auths": {"x.io": entry("usual")}})
    named = str(tmp_path / "named.json")
    environment = {**settings.environment, "REGISTRY_AUTH_FILE": named}
    chosen = Settings(environment=environment)
    assert await account_of("x.io", "a", chosen) is None
    write(named, {"auths": {"x.io": entry("named")}})
    assert await account_of("x.io", "a", chosen) == Account("named", "p")
    by_option = Settings(environment=settings.environment, auth_file=named)
    assert await account_of("x.io", "a", by_option) == Account("named", "p")
    by_name = Settings(environment=environment, account=Account("told", "q"))
    assert await account_of("x.io", "a", by_name) == Account("told", "q")


async def test_the_longest_namespace_counts(settings: Settings) -> None:
    names = ["x.io", "x.io/a", "x.io/a/b", "x.io:443/a/b", "x.io/a/bc"]
    write(authfiles.paths(settings)[0], {"auths": {name: entry(name) for name in names}})
    for repository, name in [("a/b", "x.io/a/b"), ("a/b/c", "x.io/a/b"), ("a/x", "x.io/a"),
                             ("b/a", "x.io"), ("a", "x.io/a"), ("ab", "x.io")]:  # fmt: skip
        found = await account_of("x.io", repository, settings)
        assert found is not None
        assert found.user == name


@pytest.mark.parametrize("key", [HUB, "index.docker.io", "docker.io", "https://docker.io"])
async def test_docker_hub_has_many_names(settings: Settings, key: str) -> None:
    write(authfiles.paths(settings)[2], {"auths": {key: entry("me")}})
    assert await account_of("docker.io", "library/debian", settings) == Account("me", "p")
    assert await account_of("quay.io", "library/debian", settings) is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"identitytoken": "t", **entry("u")}, Account(identity_token="t")),
        ({"registrytoken": "t"}, Account(registry_token="t")),
        ({"username": "u", "password": "p"}, Account("u", "p")),
        (entry("u", "a:b\0"), Account("u", "a:b")),
        (entry("ü", "ö"), Account("ü", "ö")),
        ({}, None),
    ],
)
async def test_entries(settings: Settings, content: Any, expected: Account | None) -> None:
    write(authfiles.paths(settings)[0], {"auths": {"x.io": content}})
    assert await account_of("x.io", "a", settings) == expected


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"auths": []}',
        '{"auths": {"x.io": {"auth": "?"}}}',
        '{"auths": {"x.io": {"auth": "dQ=="}}}',
        '{"credHelpers": []}',
        '{"credsStore": 7}',
        "{" + " " * (1 << 20) + "}",
    ],
)
async def test_malformed_files(settings: Settings, content: str) -> None:
    path = authfiles.paths(settings)[0]
    write(path, content)
    with pytest.raises(RegistryError, match=f"{path}: malformed"):
        await account_of("x.io", "a", settings)


async def test_files_that_others_can_read_are_told(settings: Settings) -> None:
    path = authfiles.paths(settings)[0]
    told: list[str] = []
    chosen = Settings(environment=settings.environment, warn=told.append)
    for content in ({"auths": {"x.io": entry("u")}}, {"auths": {"x.io": {}}}):
        write(path, content)
        await account_of("x.io", "a", chosen)
        assert not told
        Path(path).chmod(0o644)
        await account_of("x.io", "a", chosen)
        wanted = bool(content["auths"]["x.io"])
        assert told == ([f"{path}: others can read the secrets in it (mode 644); chmod 600 {path}"]
                        if wanted else [])  # fmt: skip
        told.clear()


async def test_helpers(settings: Settings) -> None:
    path = authfiles.paths(settings)[2]
    write(path, {"credHelpers": {"kept.io": "test", "token.io": "test", "none.io": "test"},
                 "auths": {"none.io": entry("file")}})  # fmt: skip
    assert await account_of("kept.io", "a", settings) == Account("u", "kept.io")
    assert await account_of("token.io", "a", settings) == Account(identity_token="it")
    assert await account_of("none.io", "a", settings) == Account("file", "p")
    write(path, {"credsStore": "test", "auths": {"kept.io": {}, HUB: {}}})
    assert await account_of("kept.io", "a", settings) == Account("u", "kept.io")
    assert await account_of("docker.io", "library/a", settings) == Account("u", HUB)
    assert await account_of("none.io", "a", settings) is None


async def test_helpers_for_all_registries(settings: Settings) -> None:
    write(authfiles.paths(settings)[0], {"auths": {"kept.io": entry("file"), "x.io": entry("x")}})
    before, after = ("test", AUTH_FILES), (AUTH_FILES, "test")
    assert await account_of("kept.io", "a", settings, before) == Account("u", "kept.io")
    assert await account_of("kept.io", "a", settings, after) == Account("file", "p")
    assert await account_of("x.io", "a", settings, before) == Account("x", "p")
    assert await account_of("token.io", "a", settings, after) == Account(identity_token="it")
    assert await account_of("x.io", "a", settings, ("test",)) is None


@pytest.mark.parametrize(
    ("name", "server", "message"),
    [
        ("test", "broken.io", "docker-credential-test: get fails: oh no"),
        ("test", "odd.io", "docker-credential-test: answers without a secret"),
        ("test", "slow.io", "docker-credential-test: no answer within 0.1 s"),
        ("missing", "x.io", "docker-credential-missing: cannot be run: No such file or directory"),
        ("../test", "x.io", "no credential helper"),
    ],
)
async def test_helpers_that_fail(settings: Settings, name: str, server: str, message: str) -> None:
    with pytest.raises(RegistryError, match=message):
        await helpers.get(name, server, settings.environment, 0.1 if server == "slow.io" else 30)


def test_an_account_hides_its_secrets() -> None:
    account = Account("me", "hidden-1", "hidden-2", "hidden-3")
    assert "hidden" not in repr(account)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Bearer realm="https://x/t",service="s",scope="a:b:pull,push c:d:e"',
         [Challenge("bearer", {"realm": "https://x/t", "service": "s",
                               "scope": "a:b:pull,push c:d:e"})]),
        ('BASIC Realm=plain', [Challenge("basic", {"realm": "plain"})]),
        (r'Basic realm="a \"b\" \\", Bearer realm="c"',
         [Challenge("basic", {"realm": 'a "b" \\'}), Challenge("bearer", {"realm": "c"})]),
        ("Negotiate, Basic realm = x",
         [Challenge("negotiate"), Challenge("basic", {"realm": "x"})]),
        ('Bearer realm="unfinished', [Challenge("bearer")]),
        ('realm="without a scheme"', []),
        ("", []),
        (",,, ,", []),
        ("é", []),
    ],
)  # fmt: skip
def test_challenges(header: str, expected: list[Challenge]) -> None:
    assert challenges([header]) == expected
