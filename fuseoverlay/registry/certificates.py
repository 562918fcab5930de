"""TLS as certs.d has it: certificates of authorities and of clients, by host.

Source: containers-certs.d(5): in the directory of a host `*.crt` are authorities, besides the
system's; NAME.cert with NAME.key is what the client shows.
"""

from __future__ import annotations

import functools
import os
import ssl
from collections.abc import Mapping
from typing import Final

from fuseoverlay.errors import RegistryError, describe
from fuseoverlay.registry.places import config_home
from fuseoverlay.registry.settings import Settings

_SYSTEM: Final = ("/etc/containers/certs.d", "/etc/docker/certs.d")


def context(host: str, settings: Settings, *, insecure: bool) -> ssl.SSLContext:
    """The TLS settings for `host` (HOST or HOST:PORT), RegistryError if a file is unusable.

    The first directory that exists counts. `insecure`: any certificate will do.
    """
    directory = _directory(host, settings)
    if directory is None:
        return _usual(insecure)
    made = _new(insecure)
    _add(made, directory)
    return made


@functools.cache
def _usual(insecure: bool) -> ssl.SSLContext:
    """One for all hosts without files of their own: to read the system's authorities takes some 20
    ms."""
    return _new(insecure)


def _new(insecure: bool) -> ssl.SSLContext:
    if not insecure:
        return ssl.create_default_context()
    # Without the authorities, which nobody asks.
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    return made


def _directory(host: str, settings: Settings) -> str | None:
    if settings.certificates is not None:
        return settings.certificates
    candidates = (os.path.join(base, host) for base in _bases(settings.environment))
    return next((path for path in candidates if os.path.isdir(path)), None)


def _bases(environment: Mapping[str, str]) -> tuple[str, ...]:
    return (os.path.join(config_home(environment), "certs.d"), *_SYSTEM)


def _add(made: ssl.SSLContext, directory: str) -> None:
    path = directory
    try:
        for name in sorted(os.listdir(directory)):
            path = os.path.join(directory, name)
            if name.endswith(".crt"):
                made.load_verify_locations(path)
            elif name.endswith(".cert"):
                # With a password nobody is asked for one on the terminal.
                made.load_cert_chain(path, f"{path.removesuffix('.cert')}.key", password="")
    except ssl.SSLError as exc:
        what = f"not a usable certificate or key: {exc.reason or exc}"
        raise RegistryError(what, where=path, hint="correct or remove it") from exc
    except OSError as exc:
        what = f"cannot read it or its key: {describe(exc)}"
        raise RegistryError(what, where=path, hint="correct or remove it") from exc
