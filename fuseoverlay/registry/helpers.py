"""Credential helpers: programs named docker-credential-NAME, which keep secrets in a keychain.

Source: docker-credential-helpers' protocol: `get` reads a server's name and writes {"ServerURL",
"Username", "Secret"}, `store` reads the latter, `erase` a name; the user `<token>` means that the
secret is an identity token. RegistryError if a helper is missing, fails, or takes too long.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from typing import Final

import trio

from fuseoverlay.errors import ImageError, RegistryError, describe, printable
from fuseoverlay.oci.model import decode_json, expect_fields
from fuseoverlay.registry.accounts import Account

#: A keychain may ask its user something.
_SECONDS: Final = 60.0
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_NONE: Final = b"credentials not found"
_TOKEN_USER: Final = "<token>"  # noqa: S105  # a name


async def get(
    name: str, server: str, environment: Mapping[str, str], seconds: float = _SECONDS
) -> Account | None:
    """What the helper `name` keeps for `server`; None if that is nothing. It has `seconds`."""
    output = await _asked(name, "get", server, environment, seconds)
    return None if output is None else _parsed(_program(name), output)


async def store(name: str, server: str, account: Account, environment: Mapping[str, str]) -> None:
    """Have the helper `name` keep `account` for `server`."""
    told = {"ServerURL": server, "Username": account.user, "Secret": account.password}
    if account.identity_token:
        told |= {"Username": _TOKEN_USER, "Secret": account.identity_token}
    await _asked(name, "store", json.dumps(told), environment, _SECONDS)


async def erase(name: str, server: str, environment: Mapping[str, str]) -> bool:
    """Have the helper `name` forget `server`; whether it knew it."""
    return await _asked(name, "erase", server, environment, _SECONDS) is not None


def _program(name: str) -> str:
    if not _NAME.match(name):
        raise RegistryError(f"{name!r} is no credential helper", hint="correct the auth file")
    return f"docker-credential-{name}"


async def _asked(
    name: str, verb: str, text: str, environment: Mapping[str, str], seconds: float
) -> bytes | None:
    """What the helper writes when it reads `text`; None if it does not know the server."""
    program = _program(name)
    done = await _run(program, verb, text, environment, seconds)
    if not done.returncode:
        return done.stdout
    said = (done.stdout + done.stderr).strip()
    if _NONE in said:
        return None
    raise _failed(program, f"{verb} fails: {printable(said[:200]) or done.returncode}")


async def _run(
    program: str, verb: str, text: str, environment: Mapping[str, str], seconds: float
) -> subprocess.CompletedProcess[bytes]:
    try:
        with trio.fail_after(seconds):
            return await trio.run_process(
                [program, verb],
                stdin=text.encode(),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=dict(environment),
            )
    except trio.TooSlowError as exc:
        raise _failed(program, f"no answer within {seconds:g} s") from exc
    except OSError as exc:
        raise _failed(program, f"cannot be run: {describe(exc)}") from exc


def _parsed(program: str, output: bytes) -> Account:
    try:
        data = expect_fields(decode_json(output, program), program)
    except ImageError as exc:
        # Without the output: there may be a secret in it.
        raise _failed(program, "does not answer in JSON") from exc
    user, secret = data.get("Username", ""), data.get("Secret")
    if not isinstance(user, str) or not isinstance(secret, str):
        raise _failed(program, "answers without a secret")
    return Account(identity_token=secret) if user == _TOKEN_USER else Account(user, secret)


def _failed(program: str, what: str) -> RegistryError:
    return RegistryError(what, where=program, hint="repair it, or remove it from the auth file")
