"""Log in and out at a real registry that has users and TLS."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fuseoverlay.errors import FuseOverlayError, RegistryError
from fuseoverlay.oci.reference import Reference
from fuseoverlay.registry import authfiles, login, remote
from fuseoverlay.registry.accounts import Account
from fuseoverlay.registry.settings import Settings
from tests.registry.daemon import Daemon, layer_of, layout_of
from tests.registry.hostile import HASTE

USER = Account("me", "pass:word")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, certified: Path) -> Iterator[Daemon]:
    """A registry with one user and the image a:1."""
    if shutil.which("htpasswd") is None:
        pytest.skip("missing tool: htpasswd")
    base = tmp_path_factory.mktemp("guarded")
    argv = ["htpasswd", "-Bbn", "-C", "5", USER.user, USER.password]
    (base / "users").write_bytes(subprocess.run(argv, capture_output=True, check=True).stdout)
    auth = {"auth": {"htpasswd": {"realm": "test", "path": str(base / "users")}}}
    with Daemon(base, certificate=certified, more=auth) as running:
        layout_of(base / "image", [layer_of("x", b"x")])
        running.push(base / "image", "a:1", "--dest-creds", f"{USER.user}:{USER.password}")
        yield running


@pytest.fixture
def settings(tmp_path: Path, trusting: Path) -> Settings:
    """A home of the test's own."""
    environment = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    return Settings(True, certificates=str(trusting), environment=environment, patience=HASTE)


async def pull(guarded: Daemon, settings: Settings) -> None:
    """Get a manifest."""
    async with remote.connect(Reference.parse(f"{guarded.host}/a:1"), settings) as registry:
        await registry.manifest("1")


async def test_in_and_out(guarded: Daemon, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="access denied without a login"):
        await pull(guarded, settings)
    path = await login.login(guarded.host, USER, settings)
    assert path == str(tmp_path / "run" / "containers" / "auth.json")
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.stat(Path(path).parent).st_mode & 0o777 == 0o700
    await pull(guarded, settings)
    assert await login.logout(guarded.host, settings) == [path]
    assert os.stat(path).st_mode & 0o777 == 0o600
    with pytest.raises(RegistryError, match="access denied without a login"):
        await pull(guarded, settings)
    assert await login.logout(guarded.host, settings) == []
    assert os.listdir(Path(path).parent) == ["auth.json"]


async def test_skopeo_reads_what_login_writes(guarded: Daemon, settings: Settings) -> None:
    path = await login.login(guarded.host, USER, settings)
    argv = ["skopeo", "inspect", "--raw", "--tls-verify=false", "--authfile", path]
    subprocess.run([*argv, f"docker://{guarded.host}/a:1"], check=True, timeout=30)


async def test_we_read_what_skopeo_writes(
    guarded: Daemon, settings: Settings, tmp_path: Path
) -> None:
    path = str(tmp_path / "skopeo.json")
    argv = ["skopeo", "login", "--tls-verify=false", "--authfile", path, guarded.host]
    argv += ["-u", USER.user, "-p", USER.password]
    subprocess.run(argv, check=True, timeout=30, capture_output=True)
    named = replace(settings, auth_file=path)
    await pull(guarded, named)
    assert await login.logout(guarded.host, named) == [path]


async def test_a_wrong_password_is_not_kept(guarded: Daemon, settings: Settings) -> None:
    with pytest.raises(RegistryError, match="the credentials of user me are refused") as caught:
        await login.login(guarded.host, Account("me", "x"), settings)
    assert caught.value.status == 401
    assert not any(map(os.path.exists, authfiles.paths(settings)))


async def test_what_else_is_in_the_file_stays(guarded: Daemon, settings: Settings) -> None:
    file = Path(authfiles.paths(settings)[0])
    file.parent.mkdir(parents=True)
    before = {"auths": {"x.io": {"auth": "dTpw"}}, "HttpHeaders": {"X": "y"}}
    file.write_text(json.dumps(before))
    await login.login(guarded.host, USER, settings)
    assert os.stat(file).st_mode & 0o777 == 0o600
    assert await authfiles.account_of("x.io", "a", settings) == Account("u", "p")
    await login.logout(guarded.host, settings)
    assert json.loads(file.read_text()) == before


async def test_a_namespace(guarded: Daemon, settings: Settings) -> None:
    await login.login(f"{guarded.host}/a", USER, settings)
    assert await authfiles.account_of(guarded.host, "b", settings) is None
    await pull(guarded, settings)
    await login.logout(f"{guarded.host}/a", settings)


async def test_a_link_stays_one(guarded: Daemon, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "auth.json"
    link.symlink_to("elsewhere/real.json")
    await login.login(guarded.host, USER, replace(settings, auth_file=str(link)))
    assert link.is_symlink()
    assert os.listdir(tmp_path / "elsewhere") == ["real.json"]


async def test_a_helper_keeps_it(guarded: Daemon, settings: Settings, tmp_path: Path) -> None:
    helper = tmp_path / "docker-credential-box"
    box = tmp_path / "box"
    helper.write_text(
        f"#!/bin/sh\ncase $1 in store) cat > {box} ;; get) cat {box} ;; erase) rm {box} ;; esac\n"
    )
    helper.chmod(0o755)
    path = tmp_path / "auth.json"
    path.write_text(json.dumps({"credHelpers": {guarded.host: "box"}}))
    environment = {**settings.environment, "PATH": f"{tmp_path}:/usr/bin:/bin"}
    chosen = replace(settings, auth_file=str(path), environment=environment)
    assert await login.login(guarded.host, USER, chosen) == "docker-credential-box"
    assert USER.encoded not in path.read_text()
    assert json.loads(box.read_text())["ServerURL"] == guarded.host
    await pull(guarded, chosen)
    assert await login.logout(guarded.host, chosen) == ["docker-credential-box"]
    assert not box.exists()


async def test_a_place_that_cannot_be_written(guarded: Daemon, settings: Settings) -> None:
    named = replace(settings, auth_file="/proc/x/auth.json")
    with pytest.raises(RegistryError, match=r"/proc/x/auth.json: cannot be made"):
        await login.login(guarded.host, USER, named)


@pytest.mark.parametrize("server", ["", "..", "a b", "x.io/../y", "x.io/A"])
async def test_what_is_no_registry(settings: Settings, server: str) -> None:
    with pytest.raises(FuseOverlayError):
        await login.login(server, USER, settings)
