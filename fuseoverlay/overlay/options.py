"""All mount options, in one table for the parser, `--help` and the documents.

`mountoptions` parses lists of options by it. `scripts/tables` writes it into docs/options.md and
the manual page, with the longer texts of docs/options.toml.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from fuseoverlay.layers.whiteout import Dialect


class Kind(enum.Enum):
    """The kind of value that an option takes."""

    #: Directories, from top to bottom.
    LOWERS = enum.auto()
    #: A path; if the option is repeated, the last one counts.
    PATH = enum.auto()
    #: A path; if the option is repeated, all of them count.
    PATHS = enum.auto()
    #: No value; the option sets its field to True.
    SWITCH = enum.auto()
    #: One of `choices`.
    CHOICE = enum.auto()
    SECONDS = enum.auto()
    BYTES = enum.auto()
    #: `C:H:N[:C:H:N...]`; `sets` is "uids" or "gids".
    RANGES = enum.auto()
    #: The one id shown for all objects; `sets` is "uids" or "gids".
    ID = enum.auto()
    #: No value; id 0 is shown for all users and groups.
    ROOT = enum.auto()
    #: No value; a word for mount(2) or libfuse. Of the names of one row the last given counts.
    FLAG = enum.auto()
    #: Likewise, for access times.
    ACCESS_TIMES = enum.auto()
    #: A name that lists of mounts show.
    NAME = enum.auto()
    #: A label for SELinux.
    LABEL = enum.auto()
    #: Anything that fits `follows`.
    NO_EFFECT = enum.auto()
    #: Always an error.
    REFUSED = enum.auto()


class Origin(enum.Enum):
    """Which program an option comes from."""

    KERNEL = "kernel overlayfs"
    MOUNT = "mount(8)"
    LIBFUSE = "libfuse"
    FUSE_OVERLAYFS = "fuse-overlayfs"
    OURS = "fuseoverlay"


_NONE: Final[Mapping[str, object]] = {}


class Option(NamedTuple):
    """One row: an option, or several that are explained together."""

    #: The names, separated by spaces. One that ends with a hyphen is a prefix of names.
    words: str
    origin: Origin
    kind: Kind
    #: One line; in the documents it starts a sentence.
    summary: str
    #: What follows the name, as the documents write it; empty if there are `choices`, see `value`.
    follows: str = ""
    #: The possible values, and what each sets the field to.
    choices: Mapping[str, object] = _NONE
    #: The default, if it is one of `choices` or as short.
    default: str = ""
    #: The field of `MountConfig` that it sets; empty: none, or `kind` implies it.
    sets: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the row."""
        return tuple(self.words.split())

    @property
    def value(self) -> str:
        """What follows a name, with placeholders in capitals."""
        return f"={'|'.join(self.choices)}" if self.choices else self.follows

    @property
    def spellings(self) -> tuple[str, ...]:
        """Each name with its value."""
        return tuple(name + self.value for name in self.names)


def _as_written(*values: str) -> Mapping[str, object]:
    return {value: value for value in values}


_ON_OFF: Final = {"on": True, "off": False}
_WHITEOUTS: Final = {dialect.value: dialect for dialect in Dialect}
# "off" still follows, as under the kernel's default of redirect_always_follow.
_REDIRECTS: Final = {"on": "on", "off": "follow", "follow": "follow", "nofollow": "nofollow"}

#: The rows by group, in the order of the documents.
TABLE: Final[Mapping[str, tuple[Option, ...]]] = {
    "Directories": (
        Option("lowerdir", Origin.KERNEL, Kind.LOWERS,
               "lower directories, from top to bottom", follows="=A:B:..."),
        Option("lowerdir+", Origin.KERNEL, Kind.PATHS,
               "one more lower directory, at the bottom", follows="=DIR", sets="lowerdirs"),
        Option("datadir+", Origin.KERNEL, Kind.PATHS,
               "one more layer that only holds data for metacopy files",
               follows="=DIR", sets="data_only"),
        Option("upperdir", Origin.KERNEL, Kind.PATH,
               "where changes go; without it the mount is read-only",
               follows="=DIR", sets="upperdir"),
        Option("workdir", Origin.KERNEL, Kind.PATH,
               "the work directory, on the filesystem of the upper",
               follows="=DIR", sets="workdir"),
        Option("submounts", Origin.OURS, Kind.SWITCH,
               "show file systems that are mounted inside a lower directory", sets="submounts"),
    ),
    "Overlay": (
        Option("ro rw", Origin.MOUNT, Kind.FLAG, "allow no changes, or do"),
        Option("redirect_dir", Origin.KERNEL, Kind.CHOICE,
               "whether directories that a lower layer has part in can be renamed",
               choices=_REDIRECTS, default="off", sets="redirect_dir"),
        Option("metacopy", Origin.KERNEL, Kind.CHOICE,
               "whether a change of owner, mode, times or attributes copies no data up",
               choices=_ON_OFF, default="off", sets="metacopy"),
        Option("index", Origin.KERNEL, Kind.CHOICE,
               "whether a lower file with several names stays one file when it is changed",
               choices=_ON_OFF, default="on", sets="index"),
        Option("whiteout", Origin.OURS, Kind.CHOICE,
               "how deletions are written", choices=_WHITEOUTS, sets="whiteout"),
        Option("userxattr", Origin.KERNEL, Kind.SWITCH,
               "use `user.overlay.*` attributes even where root mounts", sets="userxattr"),
        Option("static_nlink", Origin.FUSE_OVERLAYFS, Kind.SWITCH,
               "every directory has the link count 1: nothing is read to count it",
               sets="static_nlink"),
        Option("noacl", Origin.FUSE_OVERLAYFS, Kind.SWITCH, "no POSIX ACLs", sets="noacl"),
        Option("noxattrs", Origin.FUSE_OVERLAYFS, Kind.CHOICE,
               "whether there are no extended attributes, ACLs among them",
               choices={"0": False, "1": True}, default="0", sets="noxattrs"),
        # Options of the kernel that have nothing to switch here.
        Option("xino", Origin.KERNEL, Kind.CHOICE,
               "accepted: inode numbers are always unique",
               choices=_as_written("on", "off", "auto")),
        Option("uuid", Origin.KERNEL, Kind.CHOICE,
               "accepted without effect", choices=_as_written("off", "null", "auto", "on")),
        Option("nfs_export", Origin.KERNEL, Kind.CHOICE,
               "accepted; there is no export by NFS", choices=_as_written("off")),
    ),
    "Owners": (
        Option("uidmapping", Origin.FUSE_OVERLAYFS, Kind.RANGES,
               "show N user ids from C on, as the layers have them, as ids from H on",
               follows="=C:H:N[:C:H:N...]", sets="uids"),
        Option("gidmapping", Origin.FUSE_OVERLAYFS, Kind.RANGES,
               "the same for group ids", follows="=C:H:N[:C:H:N...]", sets="gids"),
        Option("squash_to_root", Origin.FUSE_OVERLAYFS, Kind.ROOT,
               "show user and group 0 as the owner of everything"),
        Option("squash_to_uid", Origin.FUSE_OVERLAYFS, Kind.ID,
               "show this user as the owner of everything", follows="=ID", sets="uids"),
        Option("squash_to_gid", Origin.FUSE_OVERLAYFS, Kind.ID,
               "show this group as that of everything", follows="=ID", sets="gids"),
        Option("xattr_permissions", Origin.FUSE_OVERLAYFS, Kind.CHOICE,
               "keep owners, modes and types of the upper in an attribute, not in its files",
               choices={"0": 0, "1": 1, "2": 2}, default="0", sets="xattr_permissions"),
    ),
    "Caching and durability": (
        Option("timeout", Origin.FUSE_OVERLAYFS, Kind.SECONDS,
               "how long the kernel may keep what it knows",
               follows="=SECONDS", default="a year", sets="timeout"),
        Option("readahead", Origin.OURS, Kind.CHOICE,
               "give small files to the kernel before it asks, on mounts without an upper",
               choices=_as_written("auto", "on", "off"), default="auto", sets="readahead"),
        Option("max_write", Origin.LIBFUSE, Kind.BYTES,
               "the most that one request may write, from 4096",
               follows="=BYTES", sets="max_write"),
        Option("volatile", Origin.KERNEL, Kind.SWITCH,
               "never wait for the disk, and refuse the next mount of this upper",
               sets="volatile"),
        Option("fsync", Origin.FUSE_OVERLAYFS, Kind.CHOICE,
               "whether to wait for the disk; `0` leaves no mark, unlike `volatile`",
               choices={"0": False, "1": True}, default="1", sets="fsync"),
        Option("sync async", Origin.MOUNT, Kind.FLAG,
               "whether each write waits for the disk, as in mount(8)"),
        Option("dirsync", Origin.MOUNT, Kind.FLAG,
               "whether each change of a directory does, as in mount(8)"),
    ),
    "Access": (
        Option("allow_other", Origin.LIBFUSE, Kind.FLAG,
               "others get in, and may do what the permissions shown allow"),
        Option("allow_root", Origin.LIBFUSE, Kind.FLAG,
               "nobody but root gets in; for root only"),
        Option("suid nosuid", Origin.MOUNT, Kind.FLAG,
               "whether setuid, setgid and capabilities of files count"),
        Option("dev nodev", Origin.MOUNT, Kind.FLAG, "whether device files work"),
        Option("exec noexec", Origin.MOUNT, Kind.FLAG, "whether programs can be run"),
        Option("context fscontext defcontext rootcontext", Origin.MOUNT, Kind.LABEL,
               "labels for SELinux, in double quotes where they hold a comma",
               follows="=LABEL"),
    ),
    "Access times": (
        Option("noatime atime", Origin.MOUNT, Kind.ACCESS_TIMES,
               "whether reading moves no access times, or does"),
        Option("nodiratime diratime", Origin.MOUNT, Kind.ACCESS_TIMES,
               "the same for directories"),
        Option("strictatime nostrictatime", Origin.MOUNT, Kind.ACCESS_TIMES,
               "whether reading always moves them"),
        Option("relatime norelatime", Origin.MOUNT, Kind.NO_EFFECT,
               "the default: reading moves them where they are older than a change, or a day"),
    ),
    "The mount and its daemon": (
        Option("fsname", Origin.LIBFUSE, Kind.NAME,
               "the source that lists of mounts show", follows="=NAME"),
        Option("subtype", Origin.LIBFUSE, Kind.NAME,
               "the type that they show after `fuse.`", follows="=NAME"),
        Option("auto_unmount", Origin.LIBFUSE, Kind.FLAG,
               "the mount goes with the daemon, even if that is killed"),
        Option("debug", Origin.LIBFUSE, Kind.SWITCH, "as `-d`", sets="debug"),
        Option("log", Origin.OURS, Kind.PATH,
               "append the log to this file; `log=syslog`: all to syslog",
               follows="=FILE", sets="log"),
        Option("remount", Origin.MOUNT, Kind.REFUSED, "refused: a mount keeps its options"),
    ),
    "Accepted without effect": (
        Option("defaults auto noauto nouser users owner group _netdev nofail",
               Origin.MOUNT, Kind.NO_EFFECT, "what /etc/fstab says to mount(8)"),
        Option("user", Origin.MOUNT, Kind.NO_EFFECT,
               "who may unmount, for mount(8)", follows="[=NAME]"),
        Option("x- X-", Origin.MOUNT, Kind.NO_EFFECT,
               "what /etc/fstab says to others", follows="NAME[=VALUE]"),
        Option("comment helper uhelper", Origin.MOUNT, Kind.NO_EFFECT,
               "notes, and whom umount(8) calls", follows="=TEXT"),
        Option("private shared slave unbindable rprivate rshared rslave runbindable",
               Origin.MOUNT, Kind.NO_EFFECT, "how mounts propagate, which mount(8) sets"),
        Option("lazytime nolazytime iversion noiversion mand nomand silent loud symfollow",
               Origin.MOUNT, Kind.NO_EFFECT, "what other filesystems know"),
        Option("default_permissions clone_fd", Origin.LIBFUSE, Kind.NO_EFFECT,
               "what fuseoverlay says to libfuse by itself"),
        Option("max_idle_threads max_threads", Origin.LIBFUSE, Kind.NO_EFFECT,
               "how libfuse divides its work", follows="=N"),
        Option("threaded fast_ino writeback", Origin.FUSE_OVERLAYFS, Kind.NO_EFFECT,
               "how fuse-overlayfs divides its work", follows="=N"),
    ),
}  # fmt: skip


def every() -> Iterator[Option]:
    """All rows, in the order of the table."""
    for rows in TABLE.values():
        yield from rows


_BY_NAME: Final = {name: option for option in every() for name in option.names}


def find(name: str) -> Option | None:
    """The row of an option, given its name."""
    return _BY_NAME.get(name) or _BY_NAME.get(name[: name.find("-") + 1])
