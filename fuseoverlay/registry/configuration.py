"""Reads registries.conf: which registry is where, and what short names mean.

Source: containers-registries.conf(5), version 2, and containers-registries.conf.d(5). The old
version 1 is told and left out.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fuseoverlay.errors import RegistryError, describe
from fuseoverlay.registry.places import cache_home, config_home

SYSTEM: Final = "/etc/containers"
_NAME: Final = "registries.conf"
_SEARCH: Final = "unqualified-search-registries"
_HELPERS: Final = "credential-helpers"
_ALIASES: Final = "short-name-aliases.conf"
#: Bytes of a file.
_MAX_FILE: Final = 4 << 20

#: Stands for the files of containers-auth.json(5) among the credential helpers.
AUTH_FILES: Final = "containers-auth.json"

ALL, DIGEST_ONLY, TAG_ONLY = "all", "digest-only", "tag-only"


@dataclass(frozen=True, slots=True)
class Mirror:
    """Another place of what is under a prefix. `pull`: for which references it is asked."""

    location: str
    insecure: bool = False
    pull: str = ALL


@dataclass(frozen=True, slots=True)
class Rule:
    """One `[[registry]]`: what holds for references that begin with `prefix`. `location` replaces
    the prefix; "" replaces nothing."""

    prefix: str
    location: str = ""
    insecure: bool = False
    blocked: bool = False
    mirrors: tuple[Mirror, ...] = ()


@dataclass(frozen=True, slots=True)
class Configuration:
    """All files together. `rules` by prefix; `search`: registries for short names, in order, None
    if nobody says; `aliases`: short names to HOST/REPOSITORY; `helpers`: where credentials are, in
    order, `AUTH_FILES` among them."""

    rules: Mapping[str, Rule] = field(default_factory=dict)
    search: tuple[str, ...] | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    helpers: tuple[str, ...] = (AUTH_FILES,)


def read(
    environment: Mapping[str, str], warn: Callable[[str], None], system: str = SYSTEM
) -> Configuration:
    """Read all the files; RegistryError with the file's name if one is malformed."""
    rules: dict[str, Rule] = {}
    search: tuple[str, ...] | None = None
    helpers: tuple[str, ...] = (AUTH_FILES,)
    aliases: dict[str, str] = {}
    for path in _paths(environment, system):
        data = _read_toml(path)
        if "registries" in data:
            warn(f"{path}: left out, since it is in the old format; write version 2 of it")
            continue
        file = _File(path, data)
        rules |= file.rules()
        search = file.texts(_SEARCH) if _SEARCH in data else search
        helpers = file.texts(_HELPERS) if data.get(_HELPERS) else helpers
        aliases |= file.aliases()
    aliases = {name: value for name, value in aliases.items() if value}
    return Configuration(rules, search, aliases, helpers)


def _paths(environment: Mapping[str, str], system: str) -> list[str]:
    """The files, those that count more later. A user's own file replaces all of the system's."""
    own = config_home(environment)
    named = environment.get("CONTAINERS_REGISTRIES_CONF")
    mine = os.path.join(own, _NAME)
    if not named and os.path.exists(mine):
        main, directories = mine, [own]
    else:
        main, directories = named or os.path.join(system, _NAME), [system, own]
    more = [path for directory in directories for path in _dropped(f"{directory}/{_NAME}.d")]
    return [main, *more, os.path.join(cache_home(environment), _ALIASES)]


def _dropped(directory: str) -> list[str]:
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as exc:
        raise _malformed(directory, describe(exc)) from exc
    return [os.path.join(directory, name) for name in names if name.endswith(".conf")]


def _read_toml(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_FILE)
        return tomllib.loads(text.decode())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as exc:
        raise _malformed(path, describe(exc)) from exc
    except (ValueError, RecursionError) as exc:
        raise _malformed(path, f"malformed: {exc}") from exc


class _File:
    """One file's content, of which each part is checked when it is asked for."""

    def __init__(self, path: str, data: Mapping[str, Any]) -> None:
        self._path = path
        self._data = data

    def rules(self) -> dict[str, Rule]:
        found = [self._rule(table) for table in self._tables(self._data, "registry")]
        return {rule.prefix: rule for rule in found}

    def texts(self, name: str) -> tuple[str, ...]:
        value = self._data.get(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(f"{name} is no list of text")
        return tuple(item.rstrip("/") for item in value)

    def aliases(self) -> dict[str, str]:
        value = self._data.get("aliases", {})
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            raise self._wrong("aliases is no table of text")
        return dict(value)

    def _rule(self, table: Mapping[str, Any]) -> Rule:
        location = self._location(table)
        prefix = self._text(table, "prefix").rstrip("/") or location
        if not prefix or (not location and not prefix.startswith("*.")):
            raise self._wrong("a registry without a location")
        by_digest = self._flag(table, "mirror-by-digest-only")
        return Rule(
            prefix,
            location,
            self._flag(table, "insecure"),
            self._flag(table, "blocked"),
            tuple(self._mirror(item, by_digest) for item in self._tables(table, "mirror")),
        )

    def _mirror(self, table: Mapping[str, Any], by_digest: bool) -> Mirror:
        location = self._location(table)
        if not location:
            raise self._wrong("a mirror without a location")
        pull = self._text(table, "pull-from-mirror")
        if pull not in {"", ALL, DIGEST_ONLY, TAG_ONLY}:
            raise self._wrong(f"pull-from-mirror = {pull!r}")
        if pull and by_digest:
            raise self._wrong("pull-from-mirror contradicts mirror-by-digest-only")
        pull = DIGEST_ONLY if by_digest else pull or ALL
        return Mirror(location, self._flag(table, "insecure"), pull)

    def _location(self, table: Mapping[str, Any]) -> str:
        location = self._text(table, "location").rstrip("/")
        if "://" in location:
            raise self._wrong(f"the location {location!r} is a URL")
        return location

    def _tables(self, table: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
        value = table.get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self._wrong(f"{name} is no array of tables")
        return value

    def _text(self, table: Mapping[str, Any], name: str) -> str:
        value = table.get(name, "")
        if not isinstance(value, str):
            raise self._wrong(f"{name} is no text")
        return value

    def _flag(self, table: Mapping[str, Any], name: str) -> bool:
        value = table.get(name, False)
        if not isinstance(value, bool):
            raise self._wrong(f"{name} is neither true nor false")
        return value

    def _wrong(self, what: str) -> RegistryError:
        return _malformed(self._path, what)


def _malformed(path: str, what: str) -> RegistryError:
    return RegistryError(what, where=path, hint="correct it, see containers-registries.conf(5)")
