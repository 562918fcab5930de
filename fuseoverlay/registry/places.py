"""Where configuration lies."""

from __future__ import annotations

import os
from collections.abc import Mapping


def home(environment: Mapping[str, str]) -> str:
    """The user's home directory."""
    return environment.get("HOME") or os.path.expanduser("~")


def config_home(environment: Mapping[str, str]) -> str:
    """The user's directory `containers` for configuration."""
    base = environment.get("XDG_CONFIG_HOME") or os.path.join(home(environment), ".config")
    return os.path.join(base, "containers")


def runtime(environment: Mapping[str, str]) -> str:
    """The user's directory `containers` for what ends with the session."""
    base = environment.get("XDG_RUNTIME_DIR")
    return os.path.join(base, "containers") if base else f"/run/containers/{os.getuid()}"


def cache_home(environment: Mapping[str, str]) -> str:
    """The user's directory `containers` for what programs note down."""
    if base := environment.get("XDG_CACHE_HOME"):
        return os.path.join(base, "containers")
    if os.getuid() == 0 and "HOME" not in environment:
        return "/var/cache/containers"
    return os.path.join(home(environment), ".cache", "containers")
