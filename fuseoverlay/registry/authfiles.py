"""Finds a user's credentials in the files of podman, skopeo and docker.

Source: containers-auth.json(5), docker's "config.json". The files in order; in each, the longest
namespace that the repository is in: HOST/A/B before HOST/A before HOST.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fuseoverlay.errors import ImageError, RegistryError, describe
from fuseoverlay.oci.model import decode_json
from fuseoverlay.oci.reference import HUB
from fuseoverlay.registry import helpers
from fuseoverlay.registry.accounts import Account
from fuseoverlay.registry.configuration import AUTH_FILES
from fuseoverlay.registry.places import config_home, home, runtime
from fuseoverlay.registry.settings import Settings

#: What docker calls its Hub in its files and to helpers.
_HUB_KEY: Final = "https://index.docker.io/v1/"
_HUB_HOSTS: Final = frozenset({HUB, "index.docker.io", "registry-1.docker.io"})
#: Bytes of an auth file.
_MAX_FILE: Final = 1 << 20
#: Bits of those who are not the owner.
_OTHERS: Final = stat.S_IRGRP | stat.S_IROTH


@dataclass(frozen=True, slots=True)
class AuthFile:
    """What an auth file holds. `entries`: by server or namespace; `helpers` too; `store`: the name
    of the helper for all servers, or ""."""

    path: str
    entries: Mapping[str, Mapping[str, Any]]
    helpers: Mapping[str, str]
    store: str

    def helper_of(self, host: str) -> tuple[str, str] | None:
        """The helper for one server, and what it calls that."""
        found = ((name, key) for key, name in self.helpers.items() if server_of(key) == host)
        return next(found, None)


async def account_of(
    host: str, repository: str, settings: Settings, places: Iterable[str] = (AUTH_FILES,)
) -> Account | None:
    """Who shall ask HOST for `repository`; None means nobody in particular.

    `places`: the names of helpers for all registries, and `AUTH_FILES`, in order. RegistryError if
    a file is malformed or a helper fails. Files with secrets that others may read are told to
    `settings.warn`.
    """
    if settings.account is not None:
        return settings.account
    host = server_of(host)
    for place in places:
        if place == AUTH_FILES:
            account = await _account_in_files(host, repository, settings)
        else:
            account = await helpers.get(place, host, settings.environment)
        if account is not None:
            return account
    return None


async def _account_in_files(host: str, repository: str, settings: Settings) -> Account | None:
    for path in paths(settings):
        file = read(path, settings)
        if file is not None:
            account = await _account_in(file, host, repository, settings)
            if account is not None:
                return account
    return None


def paths(settings: Settings) -> list[str]:
    """The auth files that count, in order: ours, which are podman's, too, and docker's."""
    environment = settings.environment
    if _only(settings):
        return own_paths(settings)
    docker = environment.get("DOCKER_CONFIG") or os.path.join(home(environment), ".docker")
    return [
        *own_paths(settings),
        os.path.join(docker, "config.json"),
        os.path.join(home(environment), ".dockercfg"),
    ]


def own_paths(settings: Settings) -> list[str]:
    """The auth files that `login` and `logout` change: the first one that can be written."""
    if only := _only(settings):
        return [only]
    places = (runtime(settings.environment), config_home(settings.environment))
    return [os.path.join(place, "auth.json") for place in places]


def _only(settings: Settings) -> str | None:
    return settings.auth_file or settings.environment.get("REGISTRY_AUTH_FILE")


def read(path: str, settings: Settings) -> AuthFile | None:
    """The auth file at `path`; None if there is none. RegistryError if it is malformed."""
    data = read_json(path)
    if data is None:
        return None
    # The old .dockercfg has nothing but entries.
    old = "auths" not in data and os.path.basename(path) == ".dockercfg"
    entries = _objects(data if old else data.get("auths"), path)
    named = data.get("credHelpers", {})
    store = data.get("credsStore", "")
    if not isinstance(named, dict) or not isinstance(store, str):
        raise malformed(path, "credHelpers or credsStore")
    if any(_secrets(entry) for entry in entries.values()):
        _warn_of_readers(path, settings)
    helpers = {key: name for key, name in named.items() if isinstance(name, str)}
    return AuthFile(path, entries, helpers, store)


def read_json(path: str) -> dict[str, Any] | None:
    """The JSON object in the file; None if there is no file, or one that is empty."""
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as exc:
        raise RegistryError(describe(exc), where=path, hint="make it readable for you") from exc
    except OSError as exc:
        raise RegistryError(describe(exc), where=path, hint="correct or remove it") from exc
    if not text.strip():
        return None
    try:
        data = decode_json(text, path)
    except ImageError as exc:
        raise malformed(path, "not JSON") from exc
    if not isinstance(data, dict) or len(text) > _MAX_FILE:
        raise malformed(path, "no JSON object of sensible size")
    return data


def server_of(key: str) -> str:
    """The host that a key of an auth file means: keys may be URLs, as docker once wrote them."""
    name = key.partition("://")[2] or key
    host, _, rest = name.partition("/")
    if host in _HUB_HOSTS:
        host = HUB
    return f"{host}/{rest}" if rest and "://" not in key else host


def store_key(host: str) -> str:
    """What docker calls the registry `host` to the helper for all servers."""
    return _HUB_KEY if host == HUB else host


def malformed(path: str, what: str) -> RegistryError:
    """The error for an auth file."""
    return RegistryError(f"malformed: {what}", where=path, hint="correct or remove it")


async def _account_in(
    file: AuthFile, host: str, repository: str, settings: Settings
) -> Account | None:
    # A helper is for a server; it is asked before the file's own entries.
    if (helper := file.helper_of(host)) is not None:
        account = await helpers.get(*helper, settings.environment)
        if account is not None:
            return account
    servers = {server_of(key): entry for key, entry in file.entries.items()}
    # Exact keys count before those that only mean the same server.
    servers |= file.entries
    for namespace in _namespaces(host, repository):
        account = _parsed(servers[namespace], file.path) if namespace in servers else None
        if account is not None:
            return account
    if file.store:
        return await helpers.get(file.store, store_key(host), settings.environment)
    return None


def _namespaces(host: str, repository: str) -> Iterator[str]:
    """HOST/A/B, HOST/A, HOST."""
    name = f"{host}/{repository}" if repository else host
    while True:
        yield name
        name, slash, _ = name.rpartition("/")
        if not slash:
            return


def _parsed(entry: Mapping[str, Any], path: str) -> Account | None:
    """The account of an entry; None if a helper holds it."""
    token = entry.get("identitytoken")
    if isinstance(token, str) and token:
        return Account(identity_token=token)
    token = entry.get("registrytoken")
    if isinstance(token, str) and token:
        return Account(registry_token=token)
    auth = entry.get("auth")
    if not isinstance(auth, str) or not auth:
        user, password = entry.get("username"), entry.get("password")
        if isinstance(user, str) and isinstance(password, str) and user:
            return Account(user, password)
        return None
    try:
        user, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        raise malformed(path, "an `auth` that is not base64") from None
    if not colon:
        raise malformed(path, "an `auth` without a colon")
    # Some programs have written the zero byte behind it.
    return Account(user, password.rstrip("\0"))


def _objects(value: object, path: str) -> dict[str, dict[str, Any]]:
    found = {} if value is None else value
    if not isinstance(found, dict):
        raise malformed(path, "auths")
    return {key: entry for key, entry in found.items() if isinstance(entry, dict)}


def _secrets(entry: Mapping[str, Any]) -> bool:
    return any(entry.get(name) for name in ("auth", "identitytoken", "registrytoken", "password"))


def _warn_of_readers(path: str, settings: Settings) -> None:
    mode = os.stat(path).st_mode
    if mode & _OTHERS:
        settings.warn(
            f"{path}: others can read the secrets in it (mode {stat.S_IMODE(mode):03o}); "
            f"chmod 600 {path}"
        )
