"""What to mount and how: the frozen `MountConfig`.

`mountoptions` reads one from the list of `-o`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from fuseoverlay.errors import UsageError
from fuseoverlay.layers import idmap
from fuseoverlay.layers.idmap import IdMap
from fuseoverlay.layers.whiteout import Dialect
from fuseoverlay.system import syscalls

#: Nobody else changes the layers, so the kernel may keep what it knows: a year.
FOREVER: Final = 365 * 86400.0
#: Of a name that lists of mounts show, characters: two of them have to go into the one page that
#: mount(2) and fusermount3 take, and leave room for others.
LONGEST_NAME: Final = 1500


@dataclass(frozen=True, slots=True)
class MountConfig:
    """One mount, as asked for. Paths are bytes; lowers run from top to bottom."""

    lowerdirs: tuple[bytes, ...]
    upperdir: bytes | None = None
    workdir: bytes | None = None
    #: How long the kernel may keep entries and attributes, seconds.
    timeout: float = FOREVER
    #: Dialect for new whiteouts; None: the best that the upper filesystem takes.
    whiteout: Dialect | None = None
    #: Whether directories that are in a lower may be renamed; `nofollow`: existing
    #: redirects are refused too.
    redirect_dir: str = "follow"
    #: Copy up metadata first and data when it changes.
    metacopy: bool = False
    #: Keep the names of a lower file together when it is copied up.
    index: bool = True
    #: Lowers that only hold data for metacopy files.
    data_only: tuple[bytes, ...] = ()
    #: Wait for the disk where a program asks for it, and before a copy replaces a file.
    fsync: bool = True
    #: Never wait for the disk, and refuse the next mount of this upper.
    volatile: bool = False
    #: Small files ahead of their reader, on mounts without an upper: `auto` where that pays.
    readahead: str = "auto"
    #: Write `user.overlay.*` even where `trusted.overlay.*` could be written, and read it.
    userxattr: bool = False
    #: Show 1 as the link count of every directory, instead of counting.
    static_nlink: bool = False
    #: No POSIX ACLs: EOPNOTSUPP, and those in the layers have no say.
    noacl: bool = False
    #: No extended attributes: EOPNOTSUPP, and so no ACLs. Those in the layers are kept.
    noxattrs: bool = False
    #: Show what is mounted below the lowers, as it is when the mount begins.
    submounts: bool = False
    #: The most that one WRITE may bring, bytes; None: as much as libfuse takes.
    max_write: int | None = None
    #: Labels for the kernel's SELinux, `context="..."` and the like.
    contexts: tuple[str, ...] = ()
    #: Log every request with its answer, in the foreground.
    debug: bool = False
    #: Where the log goes besides the caller's stderr: see `daemonlog`.
    log: bytes | None = None
    #: Keep owner, mode and type in an attribute: 1 in one that takes root, 2 in one that does
    #: not, 0: nowhere but where they belong (see `overridestat`).
    xattr_permissions: int = 0
    #: How owners are shown.
    uids: IdMap = idmap.NOTHING
    gids: IdMap = idmap.NOTHING
    #: MOUNT_ATTR_* of mount_setattr(2): whose access times reading moves, as on any mount, were
    #: it one that can be written.
    atime: int = syscalls.MOUNT_ATTR_RELATIME
    #: Options for mount(2) and libfuse.
    fuse_options: tuple[str, ...] = ()
    #: Options that were not understood, for a warning.
    ignored: tuple[str, ...] = field(default=(), compare=False)

    @property
    def read_only(self) -> bool:
        """Whether nothing can change: there is no upper directory, or `ro` was asked for."""
        return self.upperdir is None or "ro" in self.fuse_options

    @property
    def access_times(self) -> int:
        """The MOUNT_ATTR_* that count for the upper: on a read-only mount nothing moves."""
        return syscalls.MOUNT_ATTR_NOATIME if self.read_only else self.atime

    @property
    def user_attributes(self) -> bool:
        """Whether `user.` attributes of the layers count whoever can set them."""
        return self.userxattr or self.xattr_permissions == 2

    @property
    def private(self) -> bool:
        """Whether the kernel may rely on nobody else changing the layers."""
        return self.timeout >= FOREVER

    def shown_as(self, source: str) -> MountConfig:
        """The same with `source` in lists of mounts, unless `fsname=` names another one; also
        unless it is too long, or not ASCII, which pyfuse3 does not pass on."""
        named = any(option.startswith("fsname=") for option in self.fuse_options)
        if named or not source or not source.isascii() or len(source) > LONGEST_NAME:
            return self
        return replace(self, fuse_options=(*self.fuse_options, f"fsname={source}"))

    @property
    def durable(self) -> bool:
        """Whether to wait for the disk at all."""
        return self.fsync and not self.volatile


def check(config: MountConfig) -> MountConfig:
    """The same, if it names the directories that a mount needs. Raises `UsageError`."""
    if not config.lowerdirs:
        raise UsageError("no lowerdir= given", hint="name at least one: -o lowerdir=DIR")
    if config.data_only and not config.metacopy:
        raise UsageError("data-only lowers need metacopy=on", hint="add it, or leave them out")
    return check_upper(config)


def check_upper(config: MountConfig) -> MountConfig:
    """The same, if it names all or none of what changes take. Raises `UsageError`."""
    if (config.upperdir is None) != (config.workdir is None):
        missing = "workdir" if config.workdir is None else "upperdir"
        raise UsageError(
            f"{missing}= is missing",
            hint="a writable mount needs both upperdir= and workdir=, a read-only one neither",
        )
    return config
