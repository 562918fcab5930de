"""Where a repository is asked for: a registry or a mirror of it."""

from __future__ import annotations

from dataclasses import dataclass

from fuseoverlay.oci.reference import Reference
from fuseoverlay.registry.loopback import is_loopback, without_port
from fuseoverlay.registry.settings import Settings


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One repository in one place.

    `host` is HOST or HOST:PORT, "docker.io" for Docker Hub. `insecure`: plain HTTP, or any
    certificate, will do. A `mirror` may lack what the registry has.
    """

    host: str
    repository: str
    insecure: bool = False
    mirror: bool = False


def endpoints(reference: Reference, settings: Settings) -> list[Endpoint]:
    """Where to ask for `reference`, in order; the registry itself is the last."""
    return [Endpoint(reference.host, reference.repository, _insecure(reference.host, settings))]


def registry_at(host: str, settings: Settings) -> Endpoint:
    """The registry at `host` itself, and no repository in it."""
    return Endpoint(host, "", _insecure(host, settings))


def _insecure(host: str, settings: Settings, configured: bool = False) -> bool:
    """Whether plain HTTP will do: what the command says counts first. This computer is trusted, as
    docker does."""
    if settings.tls_verify is not None:
        return not settings.tls_verify
    return configured or is_loopback(without_port(host))
