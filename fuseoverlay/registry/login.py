"""Log in to a registry, and out: credentials are tried, and kept in an auth file or by a helper.

Source: containers-auth.json(5), as `podman login` and `podman logout` use it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, Final

import trio

from fuseoverlay.errors import RegistryError, describe
from fuseoverlay.oci.reference import Reference
from fuseoverlay.registry import authfiles, helpers
from fuseoverlay.registry.accounts import Account
from fuseoverlay.registry.authfiles import AuthFile
from fuseoverlay.registry.configuration import read
from fuseoverlay.registry.endpoints import registry_at
from fuseoverlay.registry.session import Call, Session
from fuseoverlay.registry.settings import Settings

_OK: Final = frozenset({200})

#: Changes the content of an auth file in place; whether there was anything to change.
_Edit = Callable[[dict[str, Any]], bool]


async def login(server: str, account: Account, settings: Settings | None = None) -> str:
    """Try `account` at `server`, and keep it; the name of the file or helper that holds it now.

    `server` is HOST[:PORT], or HOST/NAMESPACE for an account that is for a part of a registry.
    RegistryError with `status` 401 if the registry refuses the account; then nothing is kept.
    """
    chosen = settings or Settings()
    key = _key(server)
    await _try(key.partition("/")[0], account, chosen)
    path = _writable(chosen)
    file = await trio.to_thread.run_sync(authfiles.read, path, chosen)
    helper = _helper(file, key)
    if helper is not None:
        await helpers.store(*helper, account, chosen.environment)
        return f"docker-credential-{helper[0]}"
    await trio.to_thread.run_sync(_change, path, _keeping(key, account))
    return path


async def logout(server: str, settings: Settings | None = None) -> list[str]:
    """Forget the account for `server`; the files and helpers that held it, of those that are ours
    to change."""
    chosen = settings or Settings()
    key = _key(server)
    changed = []
    for path in authfiles.own_paths(chosen):
        file = await trio.to_thread.run_sync(authfiles.read, path, chosen)
        helper = _helper(file, key)
        if helper is not None and await helpers.erase(*helper, chosen.environment):
            changed.append(f"docker-credential-{helper[0]}")
        if file is not None and await trio.to_thread.run_sync(_change, path, _forgetting(key)):
            changed.append(path)
    return changed


def _key(server: str) -> str:
    """HOST or HOST/NAMESPACE, checked."""
    key = authfiles.server_of(server)
    host, _, namespace = key.partition("/")
    Reference(host, namespace or "any", "any")
    return key


async def _try(host: str, account: Account, settings: Settings) -> None:
    async def find() -> Account:
        return account

    configuration = read(settings.environment, settings.warn)
    endpoint = registry_at(host, configuration, settings)
    async with Session(endpoint, settings, find) as session:
        await session.reply(Call("GET", "", _OK))


def _helper(file: AuthFile | None, key: str) -> tuple[str, str] | None:
    """The helper that keeps the account for `key`, and what it calls that."""
    if file is None or "/" in key:
        return None
    if (found := file.helper_of(key)) is not None:
        return found
    return (file.store, authfiles.store_key(key)) if file.store else None


def _writable(settings: Settings) -> str:
    """The first of our auth files whose directory is there or can be made."""
    paths = authfiles.own_paths(settings)
    for path in paths[:-1]:
        with contextlib.suppress(OSError):
            _make_directory(path)
            return path
    try:
        _make_directory(paths[-1])
    except OSError as exc:
        hint = "name another file with REGISTRY_AUTH_FILE"
        raise RegistryError(f"cannot be made: {describe(exc)}", where=paths[-1], hint=hint) from exc
    return paths[-1]


def _make_directory(path: str) -> None:
    os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)


def _keeping(key: str, account: Account) -> _Edit:
    """Put `account` into the content of an auth file."""
    entry = {"auth": account.encoded} if account.user else {}
    if account.identity_token:
        entry["identitytoken"] = account.identity_token

    def edit(content: dict[str, Any]) -> bool:
        content["auths"] = {**(content.get("auths") or {}), key: entry}
        return True

    return edit


def _forgetting(key: str) -> _Edit:
    """Take the account out; whether there was one."""

    def edit(content: dict[str, Any]) -> bool:
        entries = content.get("auths") or {}
        kept = {name: entry for name, entry in entries.items() if not _same(name, key)}
        content["auths"] = kept
        return len(kept) < len(entries)

    return edit


def _same(name: str, key: str) -> bool:
    return name == key or ("/" not in key and authfiles.server_of(name) == key)


def _change(path: str, edit: _Edit) -> bool:
    """Edit the JSON in the file, as one step also for others; `edit` says whether to write it."""
    # A link stays one.
    path = os.path.realpath(path)
    try:
        with _locked(os.path.dirname(path)):
            content = authfiles.read_json(path) or {}
            changed = edit(content)
            if changed:
                _replace(path, json.dumps(content, indent="\t").encode())
    except OSError as exc:
        hint = "make room, or name another file with REGISTRY_AUTH_FILE"
        raise RegistryError(f"cannot be written: {describe(exc)}", where=path, hint=hint) from exc
    return changed


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _replace(path: str, data: bytes) -> None:
    """Nobody ever sees half a file; nobody else may read it."""
    fd, made = tempfile.mkstemp(prefix=".auth-", dir=os.path.dirname(path))
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(made, path)
    except BaseException:
        os.unlink(made)
        raise
