"""Names of images in registries: HOST/REPOSITORY[:TAG][@DIGEST], and docker's short forms of them.

Source: the grammar and the normal form of the distribution project's package `reference`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from fuseoverlay.errors import ImageError
from fuseoverlay.oci import names
from fuseoverlay.oci.model import Digest, short

#: Docker Hub's name in references.
HUB: Final = "docker.io"
#: The tag that is meant where neither a tag nor a digest is given.
LATEST: Final = "latest"

_HUB_OLD: Final = "index.docker.io"
_OFFICIAL: Final = "library/"
#: Of `repository`, in characters.
_MAX_REPOSITORY: Final = 255
#: Of the whole text: no host, repository, tag and digest together are longer.
_MAX_TEXT: Final = 1024

_LABEL: Final = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST: Final = re.compile(
    rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::(?P<port>[0-9]{{1,5}}))?\Z"
)
_PART: Final = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY: Final = re.compile(rf"{_PART}(?:/{_PART})*\Z")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_ID: Final = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class Reference:
    """An image in a registry.

    `host` may have a port, and is "docker.io" for Docker Hub. `repository` is the path there:
    "library/debian". `tag` is None only where there is a `digest`; where both are given, the digest
    says which image is meant. ImageError for what the grammar does not allow.
    """

    host: str
    repository: str
    tag: str | None
    digest: Digest | None = None

    def __post_init__(self) -> None:
        _check_host(self.host)
        _check_repository(self.repository, self._typed())
        if self.tag is not None and not _TAG.match(self.tag):
            raise _malformed(
                str(self), f"{short(self.tag)} is not a tag",
                "a tag has at most 128 letters, digits, _ . and -, and begins with none of . -",
            )  # fmt: skip
        if self.tag is None and self.digest is None:
            raise _malformed(self.name, "neither a tag nor a digest", "write NAME:TAG")

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read `[HOST/]REPOSITORY[:TAG][@DIGEST]` as docker does; ImageError otherwise.

        "debian" is docker.io/library/debian:latest. The first part is a host only if it has a dot,
        a colon or a capital letter, or is "localhost".
        """
        if len(text) > _MAX_TEXT:
            raise _malformed(text, "too long", "correct it")
        if "://" in text:
            raise names.url_error(text)
        rest, at, after = text.partition("@")
        digest = _digest(text, after) if at else None
        name, tag = _without_tag(rest)
        if not name:
            raise _malformed(text, "no name", "write [HOST/]NAME[:TAG]")
        if _ID.match(name):
            raise _malformed(text, "64 hexadecimal digits are an id, no name", "correct it")
        host, repository = _split_host(name)
        if tag is None and digest is None:
            tag = LATEST
        return cls(host, repository, tag, digest)

    @property
    def name(self) -> str:
        """HOST/REPOSITORY."""
        return f"{self.host}/{self.repository}"

    def familiar(self) -> str:
        """The short form, as docker shows it: "debian:12"."""
        return self._familiar_name() + self._suffix()

    def with_tag(self, tag: str) -> Reference:
        """The image `tag` of the same repository."""
        return replace(self, tag=tag, digest=None)

    def with_digest(self, digest: Digest) -> Reference:
        """The image `digest` of the same repository, without a tag."""
        return replace(self, tag=None, digest=digest)

    def __str__(self) -> str:
        return self.name + self._suffix()

    def _typed(self) -> str:
        """The repository as it was probably typed."""
        rest = self.repository.removeprefix(_OFFICIAL)
        return rest if self.host == HUB and "/" not in rest else self.repository

    def _familiar_name(self) -> str:
        if self.host != HUB:
            return self.name
        rest = self.repository.removeprefix(_OFFICIAL)
        # What is left must still read as the same name.
        return self.repository if "/" in rest or not rest or _ID.match(rest) else rest

    def _suffix(self) -> str:
        tag = "" if self.tag is None else f":{self.tag}"
        return tag if self.digest is None else f"{tag}@{self.digest}"


def names_host(text: str) -> bool:
    """Whether a name says where the image is: its first part is a host."""
    first, slash, _ = text.partition("/")
    return bool(slash) and (
        "." in first or ":" in first or first == "localhost" or first.lower() != first
    )


def _split_host(name: str) -> tuple[str, str]:
    host, repository = HUB, name
    if names_host(name):
        host, _, repository = name.partition("/")
    if host == _HUB_OLD:
        host = HUB
    if host == HUB and "/" not in repository:
        repository = _OFFICIAL + repository
    return host, repository


def _without_tag(text: str) -> tuple[str, str | None]:
    """A colon before the last slash belongs to a host's port."""
    name, colon, tag = text.rpartition(":")
    return (text, None) if not colon or "/" in tag else (name, tag)


def _digest(text: str, digest: str) -> Digest:
    try:
        return Digest.parse(digest)
    except ImageError as exc:
        raise _malformed(text, exc.what, "write NAME@sha256: and 64 hexadecimal digits") from None


def _check_host(host: str) -> None:
    match = _HOST.match(host)
    if match is None or int(match["port"] or 0) > 65535:
        raise _malformed(host, "not the name of a registry", "write HOST or HOST:PORT")


def _check_repository(repository: str, typed: str) -> None:
    """`typed`: as people write it."""
    if len(repository) > _MAX_REPOSITORY:
        raise _malformed(repository, f"longer than {_MAX_REPOSITORY} characters", "correct it")
    if _REPOSITORY.match(repository):
        return
    if _REPOSITORY.match(repository.lower()):
        raise _malformed(typed, "has capital letters", f"write {typed.lower()}")
    raise _malformed(
        typed, "not the name of a repository",
        "its parts are lower case letters and digits, joined by one of . _ __ and -",
    )  # fmt: skip


def _malformed(text: str, what: str, hint: str) -> ImageError:
    return ImageError(what, where=text if len(text) <= 120 else f"{text[:120]}...", hint=hint)
