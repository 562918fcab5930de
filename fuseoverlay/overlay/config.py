"""What to mount and how: the frozen `MountConfig` and the parser of `-o` strings.

Option syntax: mount(8) for the comma-separated list; kernel
Documentation/filesystems/overlayfs.rst for `lowerdir`, `upperdir`, `workdir`,
`volatile`, `userxattr` and the escapes `\\:`, `\\,` and `\\\\`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from fuseoverlay.errors import UsageError
from fuseoverlay.layers import idmap
from fuseoverlay.layers.idmap import IdMap
from fuseoverlay.layers.whiteout import Dialect
from fuseoverlay.system import syscalls

#: Nobody else changes the layers, so the kernel may keep what it knows: a year.
FOREVER: Final = 365 * 86400.0

# Options of mount(2) and libfuse; of those with one value the last one counts.
_FLAGS: Final = {
    "ro": "ro", "rw": "ro",
    "suid": "suid", "nosuid": "suid",
    "dev": "dev", "nodev": "dev",
    "exec": "exec", "noexec": "exec",
    "atime": "noatime", "noatime": "noatime",
    "diratime": "nodiratime", "nodiratime": "nodiratime",
    "strictatime": "strictatime", "nostrictatime": "strictatime",
    "sync": "sync", "async": "sync",
    "dirsync": "dirsync",
    "allow_other": "allow_other", "allow_root": "allow_root",
    "auto_unmount": "auto_unmount",
}  # fmt: skip
# Those that say what is so anyway, and what libfuse does not know.
_NOT_PASSED: Final = (
    "rw", "async", "atime", "noatime", "diratime", "nodiratime", "strictatime", "nostrictatime",
)  # fmt: skip
# Options whose value is a path, or several.
_PATHS: Final = ("lowerdir", "lowerdir+", "datadir+", "upperdir", "workdir", "log")
#: A value in double quotes, from the first to the second.
_CLOSED: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
#: A number, in ASCII, as in C.
_SECONDS: Final = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\Z")
_FUSE_VALUES: Final = ("fsname", "subtype")
#: Both have to go into the one page that mount(2) and fusermount3 take, and leave room for others.
_LONGEST_VALUE: Final = 1500
# SELinux labels, mount(8).
_CONTEXTS: Final = ("context", "fscontext", "defcontext", "rootcontext")
# Fields of `MountConfig` that an option of the same name turns on.
_SWITCHES: Final = ("volatile", "userxattr", "static_nlink", "noacl", "submounts", "debug")
# What mount(8) and /etc/fstab may leave in the list and no filesystem acts on, and how
# fuse-overlayfs divides its work, which changes nothing that is seen.
_NO_EFFECT: Final = re.compile(
    r"(defaults|auto|noauto|user|user=.*|nouser|users|owner|group|_netdev|nofail|private|shared"
    r"|slave|unbindable|rprivate|rshared|rslave|runbindable|relatime|norelatime"
    r"|lazytime|nolazytime|iversion|noiversion|mand|nomand|silent|loud"
    r"|symfollow|default_permissions|clone_fd|(max_idle_threads|max_threads|threaded|fast_ino"
    r"|writeback)=[0-9]+|(x-|X-|comment=|helper=|uhelper=).*)\Z"
)
#: The kernel's least `max_write`, bytes.
_LEAST_WRITE: Final = 4096
# Options with a choice of values. The last three are the kernel's and switch nothing here:
# inode numbers are always unique.
_CHOICES: Final = {
    "whiteout": tuple(dialect.value for dialect in Dialect),
    "redirect_dir": ("on", "off", "follow", "nofollow"),
    "metacopy": ("on", "off"),
    "readahead": ("auto", "on", "off"),
    "xattr_permissions": ("0", "1", "2"),
    "noxattrs": ("0", "1"),
    "fsync": ("0", "1"),
    "index": ("on", "off"),
    "xino": ("on", "off", "auto"),
    "uuid": ("off", "null", "auto", "on"),
    "nfs_export": ("off",),
}
# Options that say how ids are shown, and of which kind.
_ID_MAPS: Final = {
    "uidmapping": "uids",
    "gidmapping": "gids",
    "squash_to_uid": "uids",
    "squash_to_gid": "gids",
    "squash_to_root": "",
}
_ID_HINT: Final = "ids are numbers, mappings like 0:100000:65536"


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
        if named or not source or not source.isascii() or len(source) > _LONGEST_VALUE:
            return self
        return replace(self, fuse_options=(*self.fuse_options, f"fsname={source}"))

    @property
    def durable(self) -> bool:
        """Whether to wait for the disk at all."""
        return self.fsync and not self.volatile


def parse(options: bytes) -> MountConfig:
    """Read the argument of `-o`; which directories are needed is for `check`.

    Raises `UsageError`.
    """
    config = MountConfig(lowerdirs=())
    flags: dict[str, str] = {}
    values: dict[str, str] = {}
    contexts: dict[str, str] = {}
    ignored: list[str] = []
    redirects = "on"
    for raw in _options(options):
        name_b, _, value_b = raw.partition(b"=")
        name = os.fsdecode(name_b)
        if name in _PATHS:
            config = _path_option(config, name, value_b)
            continue
        text = os.fsdecode(_unescape(raw))
        value = os.fsdecode(_unescape(value_b)).strip('"')
        changed = _own_option(config, name, value)
        if name == "redirect_dir":
            redirects = value
        if changed is not None:
            config = changed
        elif name in _FLAGS:
            flags[_FLAGS[name]] = name
        elif name in (*_FUSE_VALUES, *_CONTEXTS) and not value:
            raise UsageError(f"{name} needs a value", hint="give it one, or leave it out")
        elif name in _FUSE_VALUES and value.isascii():
            if len(value) > _LONGEST_VALUE:
                raise UsageError(
                    f"{name}= is {len(value)} characters long",
                    hint=f"the kernel takes no names like that; use at most {_LONGEST_VALUE}",
                )
            values[name] = f"{name}={value}"
        elif name in _CONTEXTS and value.isascii():
            if '"' in value:
                raise UsageError(f"a quote inside the label of {name}=", hint="no label has one")
            # In quotes, in which the kernel takes commas for part of the label.
            contexts[name] = f'{name}="{value}"'
        elif not _NO_EFFECT.match(text):
            ignored.append(text)
    if config.metacopy and redirects != "on":
        raise UsageError(
            f"metacopy=on and redirect_dir={redirects} exclude each other",
            hint="copies find their data by redirects: use redirect_dir=on, or leave one out",
        )
    atime = _access_times(flags.values())
    passed = [flag for flag in flags.values() if flag not in _NOT_PASSED]
    if atime & syscalls.MOUNT_ATTR_NOATIME:
        passed.append("noatime")
    return replace(
        config,
        atime=atime,
        noacl=config.noacl or config.noxattrs,
        fuse_options=(*passed, *values.values()),
        contexts=tuple(contexts.values()),
        ignored=tuple(ignored),
    )


def _access_times(flags: Collection[str]) -> int:
    """What mount(2) makes of these, MOUNT_ATTR_*: `strictatime` outdoes `noatime`."""
    attributes = syscalls.MOUNT_ATTR_NODIRATIME if "nodiratime" in flags else 0
    if "strictatime" in flags:
        return attributes | syscalls.MOUNT_ATTR_STRICTATIME
    if "noatime" in flags:
        return attributes | syscalls.MOUNT_ATTR_NOATIME
    return attributes | syscalls.MOUNT_ATTR_RELATIME


def with_environment(config: MountConfig, environment: Mapping[str, str]) -> MountConfig:
    """The same with what the environment says of it, where no option does: whiteouts in the form
    `.wh.NAME` wherever this variable is set, to whatever, as in fuse-overlayfs."""
    if config.whiteout is None and "FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT" in environment:
        return replace(config, whiteout=Dialect.OCI)
    return config


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


def _path_option(config: MountConfig, name: str, value: bytes) -> MountConfig:
    if name == "lowerdir+":
        return replace(config, lowerdirs=(*config.lowerdirs, _path(name, value)))
    if name == "lowerdir":
        return _lowerdir(config, _split(value, b":"))
    if name == "datadir+":
        return replace(config, data_only=(*config.data_only, _path(name, value)))
    if name == "log":
        return replace(config, log=_path(name, value))
    if name == "upperdir":
        return replace(config, upperdir=_path(name, value))
    return replace(config, workdir=_path(name, value))


def _lowerdir(config: MountConfig, parts: list[bytes]) -> MountConfig:
    """`A:B::C::D`: lowers A and B, and after the first double colon data-only lowers."""
    cut = parts.index(b"", 1) if b"" in parts[1:-1] else len(parts)
    lowers = [_path("lowerdir", part) for part in parts[:cut]]
    # After the cut every other part is the inside of a double colon.
    data = [_path("lowerdir", part) for part in parts[cut + 1 :: 2]]
    if any(parts[cut + 2 :: 2]):
        raise UsageError(
            "a single colon after a double one in lowerdir=",
            hint="data-only layers come last, each after a double colon",
        )
    return replace(config, lowerdirs=tuple(lowers), data_only=tuple(data))


def _path(name: str, value: bytes) -> bytes:
    path = _unescape(value)
    if not path:
        raise UsageError(
            f"an empty path in {name}=", hint="write a colon that is part of a name as \\:"
        )
    return path


def _own_option(config: MountConfig, name: str, value: str) -> MountConfig | None:
    """`config` with an option that only we know applied; None: not ours."""
    if value and (name in _FLAGS or name in _SWITCHES or name == "squash_to_root"):
        raise UsageError(
            f"{name}={value}: {name} takes no value", hint=f"write {name}, or leave it out"
        )
    if name in _CHOICES and value not in _CHOICES[name]:
        trouble = "not supported" if name == "nfs_export" else "unknown"
        hint = f"use {_any_of([f'{name}={choice}' for choice in _CHOICES[name]])}"
        raise UsageError(
            f"{name}={value} is {trouble}" if value else f"{name} needs a value", hint=hint
        )
    if name == "timeout":
        return replace(config, timeout=_seconds(value))
    if name == "whiteout":
        return replace(config, whiteout=Dialect(value))
    if name == "max_write":
        return replace(config, max_write=_bytes(name, value))
    if name in _SWITCHES:
        switches: dict[str, Any] = {name: True}
        return replace(config, **switches)
    if name == "remount":
        raise UsageError("remount is not possible", hint="unmount, and mount with other options")
    if name == "fsync":
        return replace(config, fsync=value == "1")
    if name == "redirect_dir":
        # "off" still follows, as under the kernel's default of redirect_always_follow.
        return replace(config, redirect_dir="follow" if value == "off" else value)
    if name == "readahead":
        return replace(config, readahead=value)
    if name == "metacopy":
        return replace(config, metacopy=value == "on")
    if name == "index":
        return replace(config, index=value == "on")
    if name == "noxattrs":
        return replace(config, noxattrs=value == "1")
    if name == "xattr_permissions":
        return replace(config, xattr_permissions=int(value))
    if name in _ID_MAPS:
        return _mapped(config, name, value)
    return config if name in _CHOICES else None


def _mapped(config: MountConfig, name: str, value: str) -> MountConfig:
    """`config` with one of `_ID_MAPS`."""
    if name == "squash_to_root":
        uids, gids = (replace(ids, squash=ids.squash or 0) for ids in (config.uids, config.gids))
        return replace(config, uids=uids, gids=gids)
    kind = _ID_MAPS[name]
    ids: IdMap = getattr(config, kind)
    try:
        if name.startswith("squash"):
            ids = replace(ids, squash=idmap.parse_id(value))
        else:
            ids = replace(ids, ranges=idmap.parse_ranges(value))
    except ValueError as exc:
        raise UsageError(f"{name}={value} {exc}", hint=_ID_HINT) from None
    return replace(config, uids=ids) if kind == "uids" else replace(config, gids=ids)


def _any_of(choices: Sequence[str]) -> str:
    *others, last = choices
    return f"{', '.join(others)} or {last}" if others else last


def _seconds(value: str) -> float:
    if not _SECONDS.match(value):
        raise UsageError(f"timeout={value} is no number of seconds", hint="use timeout=1.5, say")
    # More would not fit into what the kernel takes, and makes no difference.
    return min(float(value), FOREVER)


def _bytes(name: str, value: str) -> int:
    if not re.fullmatch("[0-9]{4,9}", value) or int(value) < _LEAST_WRITE:
        raise UsageError(
            f"{name}={value} is no number of bytes that can be used",
            hint=f"use {name}=131072, say; the least is {_LEAST_WRITE}",
        )
    return int(value)


def _options(text: bytes) -> Iterator[bytes]:
    """The options of a list. A comma between double quotes is part of a value, if the first quote
    opens that value; elsewhere a quote is a character, and in a path always, as in the kernel."""
    begun = b""
    for piece in _split(text, b","):
        part = begun + piece
        name, _, value = part.partition(b"=")
        quoted = value.startswith(b'"') and os.fsdecode(name) not in _PATHS
        begun = part + b"," if quoted and not _CLOSED.match(value) else b""
        if part and not begun:
            yield part
    if begun:
        raise UsageError(
            f"the quote that {os.fsdecode(name)}= opens is not closed",
            hint=f'write {os.fsdecode(name)}="..."',
        )


def _split(text: bytes, separator: bytes) -> list[bytes]:
    """Parts between separators that are not escaped by a backslash."""
    parts = [bytearray()]
    for char in re.findall(rb"\\.|.", text, re.DOTALL):
        if char == separator:
            parts.append(bytearray())
        else:
            parts[-1] += char
    return [bytes(part) for part in parts]


def _unescape(text: bytes) -> bytes:
    return re.sub(rb"\\(.)", rb"\1", text, flags=re.DOTALL)
