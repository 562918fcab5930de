"""What IMAGE means on a command line: a file, or an image of the store by its name or id."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from fuseoverlay.errors import ImageError, RegistryError, UsageError
from fuseoverlay.oci import names
from fuseoverlay.oci.model import Digest, Platform
from fuseoverlay.oci.reference import Reference
from fuseoverlay.registry import shortnames
from fuseoverlay.store import daemon, layers, podman
from fuseoverlay.store.images import Image, Images, NoImageError
from fuseoverlay.store.layers import ProgressCallback, StoredImage
from fuseoverlay.store.names import Entry
from fuseoverlay.store.part import Part
from fuseoverlay.store.root import Store

#: An id, or the beginning of one.
_ID: Final = re.compile(r"(?:sha(?:256|512):)?[0-9a-f]+\Z")

#: Gets the image that a name means into the store; its full name.
Fetch = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Remote:
    """How images come from registries. `policy`: always asks the registry, newer does, too, but
    goes on with what is there if that fails, missing only for what is not there, never."""

    fetch: Fetch
    policy: str = "missing"


#: What `Remote.policy` may be.
POLICIES: Final = ("missing", "always", "newer", "never")


def check(text: str) -> None:
    """Raise what can be said of a name before anything is done: `ImageError`, if what is meant is
    not there, unless a registry may have it."""
    if names.is_path(text) or not _may_be_stored(text):
        names.find(text)
    elif names.transport(text) == "containers-storage":
        podman.find(text.partition(":")[2])
    elif names.transport(text) == "docker-daemon":
        daemon.image_id(text.partition(":")[2])


class Opened(Protocol):
    """An image whose layers can be mounted, as `StoredImage` is one."""

    name: str

    @property
    def id(self) -> Digest | None: ...

    @property
    def diff_ids(self) -> tuple[str, ...]: ...

    def keep(self, part: Part, where: str) -> None: ...

    def layers(self, held: contextlib.ExitStack | None = None) -> list[pathlib.Path]: ...


@contextlib.contextmanager
def opened(
    store: Store,
    text: str,
    *,
    platform: str | None = None,
    remote: Remote | None = None,
    part: Part | None = None,
    progress: ProgressCallback | None = None,
    warn: Callable[[str], None],
) -> Iterator[Opened]:
    """The image that `text` means, or that part of it. No layer has been read yet, only what
    describes the image.

    Raises `UsageError` where a file and an image of the store may be meant, `ImageError`,
    `DigestError`, `StoreError`, and what `remote.fetch` raises.
    """
    check(text)
    store.prepare()
    name = names.in_registry(text)
    found: contextlib.AbstractContextManager[Opened]
    if names.transport(text) == "containers-storage":
        found = contextlib.nullcontext(_of_podman(text, platform))
    elif names.transport(text) == "docker-daemon":
        found = _of_daemon(store, text, platform, progress, warn)
    elif means_file(Images(store, shortnames.meanings), text):
        found = layers.opened(store, text, platform=platform, progress=progress, warn=warn)
    else:
        found = _stored(store, name, platform, remote, progress, warn)
    with found as image:
        if part is not None:
            image.keep(part, text)
        yield image


def _of_podman(text: str, platform: str | None) -> Opened:
    if platform is not None:
        what = "podman's store has an image for one platform"
        raise UsageError(what, hint="leave --platform out")
    return podman.find(text.partition(":")[2])


@contextlib.contextmanager
def _of_daemon(
    store: Store,
    text: str,
    platform: str | None,
    progress: ProgressCallback | None,
    warn: Callable[[str], None],
) -> Iterator[Opened]:
    """An image of the Docker daemon: what the store has of it need not be asked for."""
    name = text.partition(":")[2]
    id_ = str(daemon.image_id(name))
    if is_there(Images(store), id_):
        with _stored(store, id_, platform, None, progress, warn) as image:
            yield image
        return
    with (
        daemon.archive(store, name) as path,
        layers.opened(store, str(path), platform=platform, progress=progress, warn=warn) as image,
    ):
        yield image


def _may_be_stored(text: str) -> bool:
    """Whether it can be a name of an image in a registry, or the beginning of an id."""
    if names.transport(text):
        return True
    path, _ = names.parse_image_name(text)
    if os.path.islink(path) and not os.path.exists(path):
        return False
    try:
        Reference.parse(text)
    except ImageError:
        return _ID.match(text) is not None
    return True


def means_file(images: Images, text: str) -> bool:
    """Whether a file is meant, and not an image of the store. UsageError if it may be either."""
    if names.is_path(text) or not _may_be_stored(text):
        return True
    if names.transport(text) or not names.is_image(text):
        return False
    if is_there(images, text):
        raise UsageError(
            f"{text} is a file here, and an image of the store",
            hint=f"write ./{text} or docker://{text}",
        )
    return True


def located(
    images: Images,
    name: str,
    platform: Platform | None,
    remote: Remote | None,
    warn: Callable[[str], None],
) -> tuple[Image, Entry | None]:
    """The image in the store, which comes there if the policy asks for it; and the entry if `name`
    names it by name. ImageError, and what `remote.fetch` raises."""
    if remote is None or remote.policy == "never":
        return images.locate(name, platform)
    if remote.policy == "missing":
        try:
            return images.locate(name, platform)
        except NoImageError:
            return images.locate(remote.fetch(name), platform)
    try:
        return images.locate(remote.fetch(name), platform)
    except RegistryError as exc:
        if remote.policy == "always" or not is_there(images, name):
            raise
        warn(f"{exc}; what is here is used")
        return images.locate(name, platform)


def is_there(images: Images, text: str) -> bool:
    """Whether the store has an image that is called so."""
    try:
        images.find(text)
    except ImageError:
        return False
    return True


def _stored(
    store: Store,
    name: str,
    platform: str | None,
    remote: Remote | None,
    progress: ProgressCallback | None,
    warn: Callable[[str], None],
) -> contextlib.AbstractContextManager[StoredImage]:
    images = Images(store, shortnames.meanings)
    wanted = Platform.parse(platform) if platform else None
    found, entry = located(images, name, wanted, remote, warn)
    if found.problem is not None:
        raise ImageError(found.problem, where=name, hint="get it again, or remove it")
    return layers.stored(
        store,
        found.manifest,
        name,
        full_name=(entry.name if entry else None) or str(found.id),
        check_platform=wanted is None,
        progress=progress,
        warn=warn,
    )
