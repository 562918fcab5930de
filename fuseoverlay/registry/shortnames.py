"""What a short name, one without a host, may mean.

Source: containers-registries.conf(5), "Short-Name Aliasing".
"""

from __future__ import annotations

import os
import re
from typing import Final

from fuseoverlay.errors import RegistryError
from fuseoverlay.oci.reference import HUB, Reference, names_host
from fuseoverlay.registry.configuration import Configuration, read

#: The name, and the tag and digest behind it. There is no port, since there is no host.
_PARTS: Final = re.compile(r"([^:@]*)(.*)", re.DOTALL)


def meanings(text: str) -> list[Reference]:
    """`candidates` by the files of the configuration, which are read only for a short name. What
    is wrong with them is no matter here: a pull says it. ImageError if the name is malformed."""
    if names_host(text):
        return []
    try:
        return candidates(text, read(os.environ, lambda line: None))
    except RegistryError:
        return []


def candidates(text: str, configuration: Configuration) -> list[Reference]:
    """What `text` may mean, the likeliest first; ImageError if it is malformed.

    A full name means itself, an alias what it stands for. Other short names are looked for in the
    unqualified-search-registries, in order; without any such setting they are docker's.
    """
    plain = Reference.parse(text)
    if names_host(text):
        return [plain]
    match = _PARTS.match(text)
    name, rest = (match[1], match[2]) if match else (text, "")
    if (alias := configuration.aliases.get(name)) is not None:
        return [Reference.parse(f"{alias}{rest}")]
    found = [Reference.parse(f"{host}/{text}") for host in configuration.search or (HUB,)]
    return list(dict.fromkeys(found))
