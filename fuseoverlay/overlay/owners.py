"""The overlay: a dataclass of the owners of its state, put together and taken apart here.

Operations are plain functions in other modules whose first argument is an `Overlay`.
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

# Descriptors for everything that is not a layer, a directory or file data.
_RESERVE: Final = 64
_MOST: Final = 16384


@dataclass(slots=True)
class Overlay:
    """One overlay. Each field owns its part of the state; nothing else keeps any."""

    config: MountConfig
    stack: LayerStack
    prepared: Prepared
    inodes: InodeTable
    #: None: nothing can change.
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
    """Open every owner; leaving closes them in reverse. `wait` is for threads. Raises
    `FuseOverlayError`."""
    with contextlib.ExitStack() as owners:
        # Each layer takes a descriptor already.
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
    """Refuse an upper or a work directory that `opened` would refuse whatever the lowers are.

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
    """All directories, through mounts of our own where we may have them."""
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
    """How owners are stored and shown. `UsageError`, `UpperError`: they cannot be so."""
    upper = stack.upper
    if upper is not None and config.xattr_permissions:
        use_override(upper, config.xattr_permissions, note=not config.read_only)
    override = upper.override if upper is not None else None
    # An ACL would change the real mode, which means nothing where an attribute keeps them.
    acls = not config.noacl and all(layer.override is None for layer in stack.all())
    for layer in stack.all():
        layer.hides_acls = not acls and layer.may_have_acls()
    identity = Identity(override, config.uids, config.gids, acls=acls)
    refuse_uncovered(identity, stack)
    return identity


def _without_attributes(config: MountConfig, upper: bytes) -> MountConfig:
    """What can be had on a filesystem that keeps no attributes of ours, as in the kernel, with a
    warning."""
    log.warning(
        "%s: the filesystem of upperdir does not keep the overlay's extended attributes: copied "
        "files may lose theirs, ACLs too, and their inode numbers in the next mount; "
        "redirect_dir=on, metacopy=on and index=on have no effect",
        printable(upper),
    )
    redirects = "follow" if config.redirect_dir == "on" else config.redirect_dir
    return replace(config, redirect_dir=redirects, metacopy=False, index=False)


def refuse_uncovered(identity: Identity, stack: LayerStack) -> None:
    """`UsageError` where a mapping does not cover the owner of a layer's root directory: most of
    the layer would belong to nobody.

    A new upper may belong to whom the mount shall show: podman makes it so, and gives its root
    to that user once more through the mount.
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
    """`roots` are all directories of the mount, as `roots_of` gives them. `LayerError`.

    A lower inside the upper or the work directory would change with that, and is refused as by the
    kernel; so is one inside another lower, on the same filesystem."""
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
    """Keep upper and work directory out of lowers that they are inside of: they would be seen
    twice, and change there without the kernel's knowing. By their own paths they do not show; by
    others, of bind mounts, nobody gets into them."""
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
    """The path of a directory from the layer on; None: it is not inside of it."""
    found = os.path.relpath(path, os.path.realpath(layer.path))
    return None if found == b"." or found.split(b"/", 1)[0] == b".." else found


def _key_in(layer: Layer, path: bytes) -> tuple[int, int] | None:
    """`stat_key` of a directory of the layer; None: there is none at the path."""
    try:
        fd = syscalls.open_beneath(layer.root_fd, path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return stat_key(os.fstat(fd))
    finally:
        os.close(fd)


def roots_of(stack: LayerStack, workdir: WorkDir | None) -> dict[tuple[int, int], bytes]:
    """All directories of the mount, by `layers.stat_key`, with their paths."""
    roots = {stat_key(os.fstat(layer.root_fd)): layer.path for layer in stack.all()}
    if workdir is not None:
        roots[workdir.key] = workdir.path
    return roots


def _descriptor_budget(layers: int) -> int:
    """Descriptors to share out, of those that the limit allows."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        soft = _MOST
    return max(32, min(soft, _MOST + layers) - layers - _RESERVE)
