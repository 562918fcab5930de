"""What to mount and how: the frozen `MountConfig`.

`mountoptions` makes one from the argument of `-o`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from fuseoverlay.errors import UsageError
from fuseoverlay.layers import idmap
from fuseoverlay.layers.idmap import IdMap
from fuseoverlay.layers.whiteout import Dialect
from fuseoverlay.system import syscalls

#: The timeout if nobody else changes the layers, seconds: a year, so the kernel's cache stays.
FOREVER: Final = 365 * 86400.0
#: The most characters of a name that lists of mounts show: two such names must fit into the one
#: page that mount(2) and fusermount3 accept, beside other options.
LONGEST_NAME: Final = 1500


@dataclass(frozen=True, slots=True)
class MountConfig:
    """One mount, as requested. Paths are bytes; lowers are in order from top to bottom."""

    lowerdirs: tuple[bytes, ...]
    upperdir: bytes | None = None
    workdir: bytes | None = None
    #: How long the kernel may cache entries and attributes, seconds.
    timeout: float = FOREVER
    #: Dialect of new whiteouts; None: the best that the upper filesystem supports.
    whiteout: Dialect | None = None
    #: `on`: directories that are in a lower may be renamed; `follow`: existing redirects count,
    #: none are made; `nofollow`: existing redirects are refused too.
    redirect_dir: str = "follow"
    #: Copy up only metadata until the data changes.
    metacopy: bool = False
    #: Keep the hard links of a lower file together when it is copied up.
    index: bool = True
    #: Data-only lowers: they hold only data of metacopy files.
    data_only: tuple[bytes, ...] = ()
    #: Wait for the disk when a program asks for it, and before a copy-up is published.
    fsync: bool = True
    #: Never wait for the disk, and refuse the next mount of this upper.
    volatile: bool = False
    #: Give small files to the kernel before they are read, on mounts without an upper; `auto`: if
    #: that pays.
    readahead: str = "auto"
    #: Read and write `user.overlay.*` even if `trusted.overlay.*` could be written.
    userxattr: bool = False
    #: Show 1 as the link count of every directory instead of counting.
    static_nlink: bool = False
    #: No POSIX ACLs: EOPNOTSUPP; those in the layers have no effect.
    noacl: bool = False
    #: No extended attributes, and so no ACLs: EOPNOTSUPP; those in the layers are kept.
    noxattrs: bool = False
    #: Show filesystems that are mounted inside the lowers when this mount begins.
    submounts: bool = False
    #: The most bytes that one WRITE request may carry; None: libfuse's limit.
    max_write: int | None = None
    #: SELinux labels for mount(2): `context="..."` and the like.
    contexts: tuple[str, ...] = ()
    #: Stay in the foreground and log every request with its answer.
    debug: bool = False
    #: Where the log goes in addition to the caller's stderr, see `daemonlog`.
    log: bytes | None = None
    #: Keep owner, mode and type in an extended attribute (see `overridestat`). 0: no; 1: in one
    #: that only root can write; 2: in one that needs no privilege.
    xattr_permissions: int = 0
    #: How owners and groups are shown.
    uids: IdMap = idmap.NOTHING
    gids: IdMap = idmap.NOTHING
    #: MOUNT_ATTR_* of mount_setattr(2): when reading updates access times on a writable mount.
    atime: int = syscalls.MOUNT_ATTR_RELATIME
    #: Options for mount(2) and libfuse.
    fuse_options: tuple[str, ...] = ()
    #: Unknown options, to be warned of.
    ignored: tuple[str, ...] = field(default=(), compare=False)

    @property
    def read_only(self) -> bool:
        """Whether nothing can change: there is no upper directory, or `ro` was given."""
        return self.upperdir is None or "ro" in self.fuse_options

    @property
    def access_times(self) -> int:
        """The MOUNT_ATTR_* for the upper: a read-only mount updates no access times."""
        return syscalls.MOUNT_ATTR_NOATIME if self.read_only else self.atime

    @property
    def user_attributes(self) -> bool:
        """Whether the layers' `user.` overlay attributes count, no matter who can set them."""
        return self.userxattr or self.xattr_permissions == 2

    @property
    def private(self) -> bool:
        """Whether the kernel may rely on nobody else changing the layers."""
        return self.timeout >= FOREVER

    def shown_as(self, source: str) -> MountConfig:
        """The same with `source` in lists of mounts. No change if `fsname=` gives another source,
        if `source` is too long, or if it is not ASCII, which pyfuse3 does not pass on."""
        named = any(option.startswith("fsname=") for option in self.fuse_options)
        if named or not source or not source.isascii() or len(source) > LONGEST_NAME:
            return self
        return replace(self, fuse_options=(*self.fuse_options, f"fsname={source}"))

    @property
    def durable(self) -> bool:
        """Whether to wait for the disk at all."""
        return self.fsync and not self.volatile


def check(config: MountConfig) -> MountConfig:
    """Return `config` if it names the directories that a mount needs. Raises `UsageError`."""
    if not config.lowerdirs:
        raise UsageError("no lowerdir= given", hint="name at least one: -o lowerdir=DIR")
    if config.data_only and not config.metacopy:
        raise UsageError("data-only lowers need metacopy=on", hint="add it, or leave them out")
    return check_upper(config)


def check_upper(config: MountConfig) -> MountConfig:
    """Return `config` if it names both or none of upper and work directory. Raises `UsageError`."""
    if (config.upperdir is None) != (config.workdir is None):
        missing = "workdir" if config.workdir is None else "upperdir"
        raise UsageError(
            f"{missing}= is missing",
            hint="a writable mount needs both upperdir= and workdir=, a read-only one neither",
        )
    return config
