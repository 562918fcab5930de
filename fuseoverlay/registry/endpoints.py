"""Where a repository is asked for: a registry, or mirrors of it, as registries.conf says.

Source: containers-registries.conf(5), "Choosing a [[registry]] TOML table" and "Remapping and
mirroring registries".
"""

from __future__ import annotations

from dataclasses import dataclass

from fuseoverlay.errors import ImageError, RegistryError
from fuseoverlay.oci.reference import Reference, names_host
from fuseoverlay.registry.configuration import ALL, DIGEST_ONLY, TAG_ONLY, Configuration, Rule
from fuseoverlay.registry.loopback import is_loopback, without_port
from fuseoverlay.registry.settings import Settings


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One repository in one place.

    `host` is HOST or HOST:PORT, "docker.io" for Docker Hub. `insecure`: plain HTTP, or any
    certificate, will do. A `mirror` belongs to somebody else.
    """

    host: str
    repository: str
    insecure: bool = False
    mirror: bool = False


def endpoints(
    reference: Reference, configuration: Configuration, settings: Settings
) -> list[Endpoint]:
    """Where to pull `reference` from, in order; the registry itself is the last.

    RegistryError if the registry is blocked, or a location is none.
    """
    rule = _chosen(reference, configuration)
    if rule is None:
        return [_endpoint(reference.name, False, settings)]
    if rule.blocked:
        raise RegistryError(
            f"registries.conf blocks {rule.prefix}", where=reference,
            hint="take it from elsewhere, or have that changed",
        )  # fmt: skip
    wanted = {ALL, TAG_ONLY if reference.digest is None else DIGEST_ONLY}
    mirrors = [
        _endpoint(_replaced(reference, rule, place.location), place.insecure, settings, mirror=True)
        for place in rule.mirrors
        if place.pull in wanted
    ]
    name = _replaced(reference, rule, rule.location)
    return [*mirrors, _endpoint(name, rule.insecure, settings)]


def registry_of(reference: Reference, configuration: Configuration, settings: Settings) -> Endpoint:
    """Where to push `reference`: to the registry that it names. RegistryError if it is blocked."""
    endpoints(reference, configuration, settings)
    rule = _chosen(reference, configuration)
    return _endpoint(reference.name, rule is not None and rule.insecure, settings)


def registry_at(host: str, configuration: Configuration, settings: Settings) -> Endpoint:
    """The registry at `host` itself, and no repository in it."""
    found = registry_of(Reference(host, "any", "any"), configuration, settings)
    return Endpoint(host, "", found.insecure)


def _chosen(reference: Reference, configuration: Configuration) -> Rule | None:
    """The rule for `reference`: that with the longest prefix."""
    rules = configuration.rules.values()
    found = [rule for rule in rules if _end(str(reference), rule.prefix) is not None]
    return max(found, key=lambda rule: len(rule.prefix), default=None)


def _end(text: str, prefix: str) -> int | None:
    """Where `prefix` ends in `text`; None if it is no prefix of it."""
    if prefix.startswith("*."):
        at = text.find(prefix[1:])
        if at < 1 or "/" in text[:at]:
            return None
        end = at + len(prefix) - 1
    elif text.startswith(prefix):
        end = len(prefix)
    else:
        return None
    return end if text[end : end + 1] in {"", "/", ":", "@"} else None


def _replaced(reference: Reference, rule: Rule, location: str) -> str:
    """The name of `reference` with `location` for the prefix of `rule`."""
    if not location:
        return reference.name
    end = _end(str(reference), rule.prefix)
    text = f"{location}{str(reference)[end:]}"
    if names_host(text):
        try:
            return Reference.parse(text).name
        except ImageError:
            pass
    raise RegistryError(
        f"registries.conf has the location {location} for {rule.prefix}, which leads to {text}",
        where=reference, hint="correct it: a location is HOST[:PORT][/NAMESPACE]",
    )  # fmt: skip


def _endpoint(name: str, insecure: bool, settings: Settings, *, mirror: bool = False) -> Endpoint:
    host, _, repository = name.partition("/")
    return Endpoint(host, repository, _insecure(host, insecure, settings), mirror)


def _insecure(host: str, configured: bool, settings: Settings) -> bool:
    """Whether plain HTTP will do: what the command says counts first. This computer is trusted, as
    docker does."""
    if settings.tls_verify is not None:
        return not settings.tls_verify
    return configured or is_loopback(without_port(host))
