"""Mounting an image: its layers come from the store, and its changes get a place."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from fuseoverlay.commands.changes import Changes, Owner
from fuseoverlay.errors import StoreError, UsageError
from fuseoverlay.fuse.mounts import MountedImage
from fuseoverlay.layers import trust, xattrs
from fuseoverlay.oci.model import Platform
from fuseoverlay.overlay.config import MountConfig
from fuseoverlay.store import layers as stored
from fuseoverlay.store import sources
from fuseoverlay.store.layers import ProgressCallback
from fuseoverlay.store.part import Part
from fuseoverlay.store.root import Store
from fuseoverlay.store.sources import Opened, Remote
from fuseoverlay.system.syscalls import DIR_FLAGS


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be mounted: the image as it is named, for which platform, which of its layers if
    not all, and when a registry is asked for it (`sources.POLICIES`)."""

    image: str
    platform: str | None = None
    part: Part | None = None
    pull: str = "missing"


@contextlib.contextmanager
def prepared(
    store: Store,
    wanted: Wanted,
    config: MountConfig,
    *,
    keep_in: str | None,
    check: Callable[[MountConfig], None],
    progress: ProgressCallback | None,
    warn: Callable[[str], None],
) -> Iterator[tuple[MountConfig, MountedImage]]:
    """The options for the mount of an image, good while the context lasts, and what lists of mounts
    say of it. Layers that the store lacks are unpacked.

    Changes are kept in the directory `keep_in`; if that is None, they go when the context ends.
    Everything that can be checked without the image comes first, including `check`, whose argument
    has no layers yet: reading a compressed archive takes as long as unpacking it. Raises
    `ImageError`, `DigestError`, `StoreError`, `UpperError`, and what `check` raises.
    """
    sources.check(wanted.image)
    store.prepare()
    with contextlib.ExitStack() as undo:
        changes = undo.enter_context(_place(store, config, keep_in))
        claim = changes.claimed(attributes=stored.override(store)) if changes else None
        with claim or contextlib.nullcontext():
            config = changes.of(config) if changes else config
            check(config)
            remote = _remote(store, wanted)
            with _opened(store, wanted, remote, progress, warn) as found:
                if changes is not None and keep_in is not None:
                    changes.belong_to(_owner(wanted, found))
                layers = found.layers(undo)
                shown = _shown(wanted, found, keeps=changes is None or keep_in is not None)
            if changes is not None and not config.read_only:
                top = _listed_root(layers)
                changes.begin(top, keeps=_keeps_owners(top, config))
        yield _with_layers(layers, config), shown


def _opened(
    store: Store,
    wanted: Wanted,
    remote: Remote | None,
    progress: ProgressCallback | None,
    warn: Callable[[str], None],
) -> contextlib.AbstractContextManager[Opened]:
    return sources.opened(
        store, wanted.image, platform=wanted.platform, part=wanted.part, remote=remote,
        progress=progress, warn=warn,
    )  # fmt: skip


def _shown(wanted: Wanted, found: Opened, *, keeps: bool) -> MountedImage:
    return MountedImage(
        name=found.name,
        given=wanted.image,
        id=str(found.id) if found.id else None,
        part=str(wanted.part) if wanted.part else None,
        keeps=keeps,
    )


def _remote(store: Store, wanted: Wanted) -> Remote:
    """How an image comes from a registry; what that needs is imported only then."""

    def fetch(name: str) -> str:
        from fuseoverlay.commands.image import fetching

        platform = Platform.parse(wanted.platform) if wanted.platform else None
        return fetching.fetch(store, name, platform=platform, only_new=True).name

    return Remote(fetch, wanted.pull)


def to_check(
    store: Store,
    wanted: Wanted,
    config: MountConfig,
    *,
    keep_in: str,
    progress: ProgressCallback | None,
    warn: Callable[[str], None],
) -> MountConfig:
    """The same options for a check of the changes in `keep_in`; makes nothing there.

    Raises `ImageError`, `DigestError`, `StoreError`, `UpperError`.
    """
    with _opened(store, wanted, None, progress, warn) as found:
        changes = Changes(keep_in)
        changes.check(_owner(wanted, found))
        layers = found.layers()
    return _with_layers(layers, changes.of(config))


@contextlib.contextmanager
def _place(store: Store, config: MountConfig, keep_in: str | None) -> Iterator[Changes | None]:
    """Where changes go; None if `config` says where, or if the mount is read-only."""
    if config.upperdir is not None:
        if keep_in is not None:
            raise UsageError("--upper and upperdir= exclude each other", hint="leave one out")
        yield None
    elif keep_in is not None:
        changes = Changes(keep_in)
        if "ro" in config.fuse_options:
            changes.refuse_none()
        yield changes
    elif "ro" in config.fuse_options:
        yield None
    else:
        if not store.is_writable():
            raise StoreError(
                "the store cannot be written, and changes would go there",
                where=store.root,
                hint="mount with --read-only, or name a directory for them with --upper",
            )
        with store.workspace() as scratch:
            yield Changes(scratch)


def _owner(wanted: Wanted, found: Opened) -> Owner:
    name = f"{wanted.image}, {wanted.part}" if wanted.part else wanted.image
    return Owner(name, found.diff_ids)


def _with_layers(lowers: Sequence[pathlib.Path], config: MountConfig) -> MountConfig:
    permissions = config.xattr_permissions or (2 if _keeps_owners(lowers[0], config) else 0)
    return replace(
        config,
        lowerdirs=tuple(os.fsencode(layer) for layer in lowers),
        xattr_permissions=permissions,
    )


def _keeps_owners(layer: pathlib.Path, config: MountConfig) -> bool:
    """Whether the layer keeps owners in an attribute that counts."""
    root_fd = os.open(layer, DIR_FLAGS)
    try:
        counted = trust.namespaces(root_fd, asked=config.user_attributes)
        return trust.override(root_fd, counted) == xattrs.OVERRIDE_STAT
    finally:
        os.close(root_fd)


def _listed_root(lowers: Sequence[pathlib.Path]) -> pathlib.Path:
    """The topmost layer whose archive lists the root directory."""
    for lower in lowers:
        if xattrs.get(os.fsencode(lower / "."), xattrs.IMPLIED) != xattrs.IMPLIED_SELF:
            return lower
    return lowers[-1]
