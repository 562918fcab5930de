"""An image as a mount: its layers from the store, and a place for changes."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from fuseoverlay import trust, xattrs
from fuseoverlay.config import MountConfig
from fuseoverlay.errors import UpperError, UsageError, describe
from fuseoverlay.oci.store import ProgressCallback, Store, default_root
from fuseoverlay.syscalls import DIR_FLAGS


def layers(
    image: str,
    *,
    platform: str | None,
    progress: ProgressCallback | None,
    warn: Callable[[str], None],
) -> list[pathlib.Path]:
    """The image's layer directories, top first, unpacked where they were missing.

    Raises `ImageError`, `DigestError`, `StoreError`.
    """
    return Store(default_root()).layers(image, platform=platform, progress=progress, warn=warn)


@contextlib.contextmanager
def changes(
    lowers: Sequence[pathlib.Path], config: MountConfig, *, keep_in: str | None
) -> Iterator[pathlib.Path | None]:
    """A directory with `diff` and `work` for the changes; None: the mount has no such.

    Changes are kept where the user said, else they go when the context ends.
    """
    if config.upperdir is not None:
        if keep_in is not None:
            raise UsageError("--upper and upperdir= exclude each other", hint="leave one out")
        yield None
    elif "ro" in config.fuse_options:
        yield None
    elif keep_in is not None:
        yield _prepared(pathlib.Path(keep_in), _listed_root(lowers), config)
    else:
        with Store(default_root()).workspace() as scratch:
            yield _prepared(scratch, _listed_root(lowers), config)


def configure(
    lowers: Sequence[pathlib.Path], upper: pathlib.Path | None, config: MountConfig
) -> MountConfig:
    """The mount of these layers with the changes in `upper`, as `changes` gave it."""
    if upper is not None:
        diff, work = os.fsencode(upper / "diff"), os.fsencode(upper / "work")
        config = replace(config, upperdir=diff, workdir=work)
    permissions = config.xattr_permissions or (2 if _keeps_owners(lowers[0], config) else 0)
    return replace(
        config,
        lowerdirs=tuple(os.fsencode(layer) for layer in lowers),
        xattr_permissions=permissions,
    )


def _keeps_owners(layer: pathlib.Path, config: MountConfig) -> bool:
    """Whether the layer keeps owners in an attribute, and that counts."""
    root_fd = os.open(layer, DIR_FLAGS)
    try:
        counted = trust.namespaces(root_fd, asked=config.user_attributes)
        return trust.override(root_fd, counted) == xattrs.OVERRIDE_STAT
    finally:
        os.close(root_fd)


def _prepared(directory: pathlib.Path, top: pathlib.Path, config: MountConfig) -> pathlib.Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "work").mkdir(exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (directory / "diff").mkdir()
            keeps = _keeps_owners(top, config)
            _copy_root(os.fsencode(top), os.fsencode(directory / "diff"), keeps=keeps)
    except OSError as exc:
        raise UpperError(
            f"changes cannot be kept here: {describe(exc)}",
            where=directory,
            hint="name a directory of yours with space left",
        ) from None
    return directory


def _listed_root(lowers: Sequence[pathlib.Path]) -> pathlib.Path:
    """The topmost layer whose archive says something about the root directory."""
    for lower in lowers:
        if xattrs.get(os.fsencode(lower / "."), xattrs.IMPLIED) != xattrs.IMPLIED_SELF:
            return lower
    return lowers[-1]


def _copy_root(source: bytes, target: bytes, *, keeps: bool) -> None:
    """Let a new upper show the image's root as it is: owner, mode, attributes, times. `keeps`:
    the attribute that keeps owners counts."""
    st = os.stat(source)
    with contextlib.suppress(PermissionError):
        os.chown(target, st.st_uid, st.st_gid)
    os.chmod(target, st.st_mode & 0o7777)
    for name in xattrs.names(source):
        if (keeps and name == xattrs.OVERRIDE_STAT) or xattrs.to_user(name) == name:
            value = xattrs.get(source, name)
            if value is not None:
                os.setxattr(target, name, value)
    os.utime(target, ns=(st.st_atime_ns, st.st_mtime_ns))
