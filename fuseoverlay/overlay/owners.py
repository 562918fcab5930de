"""The overlay: a dataclass of the objects that own its state, opened and closed here.

Operations are plain functions in other modules; their first argument is an `Overlay`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import trio

from fuseoverlay.errors import LayerError, UsageError, os_error, printable
from fuseoverlay.layers import ownmount
from fuseoverlay.layers.layer import Layer
from fuseoverlay.layers.objects import stat_key
from fuseoverlay.layers.roots import enclosing
from fuseoverlay.layers.stack import LayerStack
from fuseoverlay.overlay.claim import check_staging, claim
from fuseoverlay.overlay.config import MountConfig
from fuseoverlay.overlay.filedata import FileData
from fuseoverlay.overlay.identity import Identity, use_override
from fuseoverlay.overlay.inodetable import InodeTable
from fuseoverlay.overlay.prepared import Prepared
from fuseoverlay.overlay.workdir import WorkDir
from fuseoverlay.system import descriptors, limits, syscalls
from fuseoverlay.system.clones import Clones
from fuseoverlay.system.threads import Threads, Wait

log = logging.getLogger("fuseoverlay")

# Descriptors for everything but layers, directories and file data.
_RESERVE: Final = 64
_MOST: Final = 16384


@dataclass(slots=True)
class Overlay:
    """One overlay. Each field owns its part of the state; there is no other state."""

    config: MountConfig
    stack: LayerStack
    prepared: Prepared
    inodes: InodeTable
    #: None on a read-only overlay.
    workdir: WorkDir | None
    data: FileData
    identity: Identity
    threads: Threads

    def writable(self) -> WorkDir:
        """The work directory; EROFS on a read-only overlay."""
        if self.workdir is None:
            raise os_error(errno.EROFS)
        return self.workdir


@contextlib.contextmanager
def opened(config: MountConfig, wait: Wait = trio.lowlevel.wait_readable) -> Iterator[Overlay]:
    """Open every owner; leaving the block closes them in reverse order. `wait` is for `Threads`.
    Raises `FuseOverlayError`."""
    with contextlib.ExitStack() as owners:
        # First of all, since opening each layer already takes a descriptor.
        for warning in limits.lift():
            log.warning("%s", warning)
        stack, workdir = _layers(config, owners)
        refuse_overlaps(stack, roots_of(stack, workdir))
        keep_apart(stack, workdir)
        identity = _identity(config, stack)
        if workdir is not None and not workdir.has_attributes:
            config = _without_attributes(config, workdir.upper.path)
        budget = _descriptor_budget(len(stack.all()))
        stack.limit = budget // 2
        upper = stack.upper
        real_status = upper is None or not identity.translates(upper)
        prepared = Prepared()
        data = owners.enter_context(
            FileData(stack, prepared, budget // 4, real_status=real_status, private=config.private)
        )
        inodes = owners.enter_context(_inode_table(stack, prepared, budget // 8))
        owners.enter_context(descriptors.shed_by(data.shrink, stack.shrink))
        yield Overlay(
            config=config,
            stack=stack,
            prepared=prepared,
            inodes=inodes,
            workdir=workdir,
            data=data,
            identity=identity,
            threads=Threads(wait),
        )


def _inode_table(stack: LayerStack, prepared: Prepared, most_held: int) -> InodeTable:
    return InodeTable(
        prepared,
        [os.fstat(layer.root_fd).st_dev for layer in stack.all()],
        stack.upper.root if stack.upper is not None else None,
        tuple(layer.root for layer in stack.lowers),
        most_held=most_held,
    )


def check_upper(config: MountConfig) -> None:
    """Refuse an upper or a work directory that `opened` would refuse no matter what the lowers are.

    Raises `UpperError`.
    """
    if config.upperdir is None:
        return
    with LayerStack(config.upperdir, ()) as stack, Clones() as clones:
        if stack.upper is not None and config.workdir is not None and not config.read_only:
            work_fd = claim(config.workdir, stack.upper, clones)
            try:
                check_staging(work_fd, config.workdir, stack.upper)
            finally:
                os.close(work_fd)


def _layers(config: MountConfig, owners: contextlib.ExitStack) -> tuple[LayerStack, WorkDir | None]:
    """Open all layers and the work directory, through mounts of our own if we may make them."""
    stack = owners.enter_context(
        LayerStack(
            config.upperdir,
            config.lowerdirs,
            config.data_only,
            as_stored=bool(config.uids.ranges or config.gids.ranges),
            user_attributes=config.user_attributes,
        )
    )
    stack.follow_redirects = config.redirect_dir != "nofollow"
    stack.lasting = config.private
    if stack.upper is not None:
        stack.upper.access_times = config.access_times
    workdir = None
    with Clones() as clones:
        for layer in stack.below:
            ownmount.enter(layer, clones, submounts=config.submounts)
        if stack.upper is not None and config.workdir is not None and not config.read_only:
            workdir = owners.enter_context(
                WorkDir(
                    config.workdir,
                    stack.upper,
                    clones,
                    dialect=config.whiteout,
                    userxattr=config.userxattr,
                    volatile=config.volatile,
                    index=config.index,
                )
            )
        elif stack.upper is not None:
            ownmount.enter(stack.upper, clones)
    return stack, workdir


def _identity(config: MountConfig, stack: LayerStack) -> Identity:
    """How owners are stored and shown. Raises `UsageError`, `UpperError` if that is impossible."""
    upper = stack.upper
    if upper is not None and config.xattr_permissions:
        use_override(upper, config.xattr_permissions, note=not config.read_only)
    override = upper.override if upper is not None else None
    # An ACL would change the real mode, which is meaningless if an attribute holds the mode.
    acls = not config.noacl and all(layer.override is None for layer in stack.all())
    for layer in stack.all():
        layer.hides_acls = not acls and layer.may_have_acls()
    identity = Identity(override, config.uids, config.gids, acls=acls)
    refuse_uncovered(identity, stack)
    return identity


def _without_attributes(config: MountConfig, upper: bytes) -> MountConfig:
    """The configuration possible on an upper filesystem that does not keep the overlay's extended
    attributes; warns, and falls back as the kernel does."""
    log.warning(
        "%s: the filesystem of upperdir does not keep the overlay's extended attributes: copied "
        "files may lose theirs, ACLs too, and their inode numbers in the next mount; "
        "redirect_dir=on, metacopy=on and index=on have no effect",
        printable(upper),
    )
    redirects = "follow" if config.redirect_dir == "on" else config.redirect_dir
    return replace(config, redirect_dir=redirects, metacopy=False, index=False)


def refuse_uncovered(identity: Identity, stack: LayerStack) -> None:
    """Raise `UsageError` if a mapping does not cover the owner of a layer's root directory: most of
    the layer would belong to nobody.

    A new upper may belong to the id that the mount shows: podman creates it so, then sets the owner
    of its root once more through the mount.
    """
    for layer in stack.all():
        st = os.fstat(layer.root_fd)
        root = identity.stored(layer, syscalls.fd_path(layer.root_fd), st, follow=True)
        for option, ids, number, kind in (
            ("uidmapping", identity.uids, root.uid, "user"),
            ("gidmapping", identity.gids, root.gid, "group"),
        ):
            fresh = layer is stack.upper and ids.shows(number)
            if not fresh and ids.squash is None and not ids.covers(number):
                raise UsageError(
                    f"{option}= does not cover {kind} {number}, which this directory belongs to",
                    where=layer.path,
                    hint="map the ids that the layers have to those that users shall see",
                )


def refuse_overlaps(stack: LayerStack, roots: dict[tuple[int, int], bytes]) -> None:
    """Raise `LayerError` if layers overlap. `roots`: all directories of the mount, from `roots_of`.

    A lower inside the upper or the work directory would change with it; the kernel refuses it too.
    A lower inside another lower is refused if both are on the same filesystem."""
    lowers = _keys_of_lowers(stack)
    changing = {key: path for key, path in roots.items() if key not in lowers}
    for layer in stack.below:
        around = enclosing(layer.path, changing) or enclosing(layer.path, roots, crossing=False)
        if around is not None:
            raise LayerError(
                f"is inside {os.fsdecode(around)}, which belongs to the same mount",
                where=layer.path,
                hint="use directories beside each other",
            )


def keep_apart(stack: LayerStack, workdir: WorkDir | None) -> None:
    """Hide the upper and the work directory in lowers that contain them: they would be shown twice,
    and change there without the kernel's knowledge. At their own paths they are invisible; at other
    paths, through bind mounts, they cannot be entered."""
    stack.read = _keys_of_lowers(stack)
    own = {}
    if stack.upper is not None:
        own[stack.upper.path] = stat_key(os.fstat(stack.upper.root_fd))
    if workdir is not None:
        own[workdir.path] = workdir.key
    stack.written = frozenset(own.values())
    for path, key in own.items():
        for layer in stack.below:
            inside = _path_in(layer, os.path.realpath(path))
            if inside is not None and key == _key_in(layer, inside):
                above, name = os.path.split(inside)
                layer.hidden.setdefault(above, set()).add(name)


def _keys_of_lowers(stack: LayerStack) -> frozenset[tuple[int, int]]:
    return frozenset(stat_key(os.fstat(layer.root_fd)) for layer in stack.below)


def _path_in(layer: Layer, path: bytes) -> bytes | None:
    """The path of a directory relative to the layer's root; None: it is not inside the layer."""
    found = os.path.relpath(path, os.path.realpath(layer.path))
    return None if found == b"." or found.split(b"/", 1)[0] == b".." else found


def _key_in(layer: Layer, path: bytes) -> tuple[int, int] | None:
    """The `stat_key` of the layer's directory at the path; None: there is none."""
    try:
        fd = syscalls.open_beneath(layer.root_fd, path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return stat_key(os.fstat(fd))
    finally:
        os.close(fd)


def roots_of(stack: LayerStack, workdir: WorkDir | None) -> dict[tuple[int, int], bytes]:
    """The paths of all directories of the mount, by `stat_key`."""
    roots = {stat_key(os.fstat(layer.root_fd)): layer.path for layer in stack.all()}
    if workdir is not None:
        roots[workdir.key] = workdir.path
    return roots


def _descriptor_budget(layers: int) -> int:
    """How many descriptors there are to distribute, by the limit on open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        soft = _MOST
    return max(32, min(soft, _MOST + layers) - layers - _RESERVE)
