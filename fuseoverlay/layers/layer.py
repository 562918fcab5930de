"""One layer, and what lies in it: real directories, places, and objects held by a descriptor."""

from __future__ import annotations

import errno
import logging
import os
from types import TracebackType
from typing import Final, NamedTuple, Self

from fuseoverlay.errors import printable
from fuseoverlay.layers import trust, xattrs
from fuseoverlay.layers.objects import Sighting, check_sighting
from fuseoverlay.system import acl, syscalls
from fuseoverlay.system.descriptors import open_file
from fuseoverlay.system.syscalls import MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODIRATIME

log = logging.getLogger("fuseoverlay")

#: Reading moves no access times.
NEVER_MOVE: Final = MOUNT_ATTR_NOATIME | MOUNT_ATTR_NODIRATIME


class Layer:
    """One layer. `number` 0 is the upper; lowers are counted from 1, top to bottom."""

    __slots__ = (
        "access_times",
        "crosses",
        "detached",
        "device",
        "hidden",
        "hides_acls",
        "implied",
        "lists_attributes",
        "namespaces",
        "number",
        "only_of_root",
        "override",
        "path",
        "root",
        "root_fd",
        "uuid",
    )

    def __init__(self, number: int, path: bytes, root_fd: int) -> None:
        self.number = number
        self.path = path
        self.root_fd = root_fd
        #: MOUNT_ATTR_*: how reading moves access times. In a lower it never does.
        self.access_times = NEVER_MOVE
        self.root = RealDir(self, None, b"")
        #: Whether it is opened through a mount of our own, see `ownmount`.
        self.detached = False
        #: Whether it shows what is mounted below it.
        self.crosses = True
        #: Hidden names, by the path of their directory.
        self.hidden: dict[bytes, set[bytes]] = {}
        #: Whether its files may have ACLs that the mount does not show; modes are then limited.
        self.hides_acls = False
        #: `st_dev` of the root.
        self.device = os.stat(root_fd).st_dev
        #: Whether its filesystem answers listxattr(2) as it should.
        self.lists_attributes = True
        #: UUID of the filesystem, 16 bytes; None if several filesystems of the lowers have the
        #: same.
        self.uuid: bytes | None = syscalls.filesystem_uuid(root_fd)
        #: The namespaces of overlay attributes that count, see `trust`.
        self.namespaces: tuple[bytes, ...] = (xattrs.TRUSTED,)
        #: The attribute that stores owners, modes and types; None: they are the files' real ones.
        self.override: bytes | None = None
        #: Whether that attribute counts only on objects where only root can have set it.
        self.only_of_root = False
        #: Whether the layer has implied directories, which exist only because something inside them
        #: does. An owner of the layer gains nothing by claiming so: the metadata of the directory
        #: below counts then.
        self.implied = False

    def settle(self, *, user_attributes: bool) -> None:
        """Decide which of the layer's attributes count. Call once `root_fd` is final.

        `user_attributes`: the mount asks for `user.` attributes. Errors of getxattr(2),
        listxattr(2).
        """
        self.implied = xattrs.get(syscalls.at(self.root_fd, b"."), xattrs.IMPLIED) is not None
        self.namespaces = trust.namespaces(self.root_fd, asked=user_attributes)
        self.override = trust.override(self.root_fd, self.namespaces)
        others = trust.override(self.root_fd, xattrs.NAMESPACES) if self.override is None else None
        if others is None:
            return
        self.only_of_root = trust.is_roots_alone(os.fstat(self.root_fd))
        if self.only_of_root:
            self.override = others
        else:
            log.warning(
                "%s: user. attributes that keep owners and modes are ignored, since others than "
                "root can set them; with userxattr they count",
                printable(self.path),
            )

    def uuid_of(self, st: os.stat_result) -> bytes | None:
        """UUID of the filesystem of a file with this status; None if it does not identify the
        filesystem. For what is mounted below the layer it is always None: the next mount may find
        another filesystem there with the same UUID."""
        return None if self.crosses and st.st_dev != self.device else self.uuid

    def may_have_acls(self) -> bool:
        """Whether the layer may hold ACLs."""
        if self.crosses:
            return True
        try:
            os.getxattr(self.root_fd, acl.ACCESS)
        except OSError as exc:
            return exc.errno == errno.ENODATA or exc.errno not in xattrs.NONE
        return True

    @property
    def reading(self) -> int:
        """The open flag for reading files."""
        return os.O_NOATIME if self.access_times & MOUNT_ATTR_NOATIME else 0

    @property
    def keeps_capabilities(self) -> bool:
        """Whether file capabilities are stored in an attribute that a plain user can set."""
        kept = self.override is not None and self.override.startswith(b"user.")
        return kept and not self.only_of_root

    def stored_name(self, name: bytes) -> bytes:
        """The name under which a user's attribute is stored; errors of `xattrs.to_real`."""
        if name == xattrs.CAPABILITY and self.keeps_capabilities:
            return xattrs.OVERRIDE_CAPABILITY
        return xattrs.to_real(name)

    def shown_name(self, name: bytes) -> bytes | None:
        """The name that users see for a stored attribute; None if it is private."""
        if self.keeps_capabilities and name in (xattrs.CAPABILITY, xattrs.OVERRIDE_CAPABILITY):
            return xattrs.CAPABILITY if name == xattrs.OVERRIDE_CAPABILITY else None
        return xattrs.to_user(name)


class RealDir:
    """One directory of one layer. In a lower it never moves; in the upper it follows renames."""

    __slots__ = ("__weakref__", "layer", "name", "parent", "seen")

    def __init__(self, layer: Layer, parent: RealDir | None, name: bytes) -> None:
        self.layer = layer
        self.parent = parent
        self.name = name
        #: The directory that was opened, in a lower; None: not opened yet, or not checked.
        self.seen: Sighting | None = None

    def path(self) -> bytes:
        """The path in the layer, for messages."""
        names = []
        real = self
        while real.parent is not None:
            names.append(real.name)
            real = real.parent
        return b"/".join(reversed(names))


class Place(NamedTuple):
    """Where a real file lies: a name in one layer's directory."""

    real: RealDir
    name: bytes


class Lower:
    """An object of a lower, held by one descriptor from which all facts about it are taken: the
    owner of its directory may exchange it between two calls that use its name. Also used for an
    object of the upper where the same code serves both. Closed at the end of its `with` block."""

    __slots__ = ("fd", "layer", "st")

    def __init__(self, layer: Layer, fd: int, st: os.stat_result) -> None:
        """`fd` is an O_PATH descriptor, from now on owned by this object."""
        self.layer = layer
        self.fd = fd
        self.st = st

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        os.close(self.fd)

    @property
    def path(self) -> bytes:
        """For calls that take no descriptor; has to be followed."""
        return syscalls.fd_path(self.fd)


def pinned(
    layer: Layer, name: bytes, dir_fd: int | None, seen: Sighting | None, *, lasting: bool = True
) -> Lower:
    """Open an object as a `Lower`; errors of open(2) and `check_sighting`."""
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = open_file(name, flags, dir_fd=dir_fd)
    try:
        st = os.fstat(fd)
        check_sighting(st, seen, lasting=lasting)
    except OSError:
        os.close(fd)
        raise
    return Lower(layer, fd, st)
