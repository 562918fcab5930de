"""Layers: their roots, and descriptors of the real directories in them.

`LayerStack` owns every descriptor of a real directory. A directory is always
opened from its parent's descriptor, one name at a time and never through a
symbolic link, so no layer content can lead outside its root, and no depth
meets PATH_MAX.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Final, NamedTuple, Self
from weakref import WeakValueDictionary

from fuseoverlay.errors import LayerError, UpperError, describe, printable
from fuseoverlay.layers import trust, xattrs
from fuseoverlay.layers.overridestat import accessible
from fuseoverlay.native import extension
from fuseoverlay.system import acl, syscalls
from fuseoverlay.system.descriptors import open_file
from fuseoverlay.system.syscalls import (
    DIR_FLAGS,
    MOUNT_ATTR_NOATIME,
    MOUNT_ATTR_NODIRATIME,
    open_noatime,
)
from fuseoverlay.system.transaction import tidy

log = logging.getLogger("fuseoverlay")

#: Access times that reading does not move.
NEVER_MOVE: Final = MOUNT_ATTR_NOATIME | MOUNT_ATTR_NODIRATIME

#: Directories kept open at the end of a path that had to be walked.
_KEPT_STEPS: Final = 4
#: More than any function asks for before it suspends, with the ends of their paths.
_IN_USE: Final = 16
_DIR_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


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
        #: MOUNT_ATTR_*: whether reading moves access times. Of a lower it never does.
        self.access_times = NEVER_MOVE
        self.root = RealDir(self, None, b"")
        #: Whether it is reached through a mount of our own, see `fuseoverlay.ownmount`.
        self.detached = False
        #: Whether what is mounted below it shows.
        self.crosses = True
        #: Names that do not show, by the path of their directory.
        self.hidden: dict[bytes, set[bytes]] = {}
        #: Whether its files may have ACLs and the mount shows modes without them.
        self.hides_acls = False
        #: `st_dev` of the root.
        self.device = os.stat(root_fd).st_dev
        #: Whether its filesystem answers questions about extended attributes as it should.
        self.lists_attributes = True
        #: UUID of the filesystem, 16 bytes; None: another one of the lowers has the same.
        self.uuid: bytes | None = syscalls.filesystem_uuid(root_fd)
        #: The namespaces of overlay attributes that count, see `fuseoverlay.trust`.
        self.namespaces: tuple[bytes, ...] = (xattrs.TRUSTED,)
        #: The attribute that owners, modes and types are kept in; None: where they belong.
        self.override: bytes | None = None
        #: Whether that attribute counts only of objects that root alone can have given it.
        self.only_of_root = False
        #: Whether some directories only exist because something inside them does. Whoever owns
        #: the layer gains nothing by saying so: what is below counts then.
        self.implied = False

    def settle(self, *, user_attributes: bool) -> None:
        """Decide which of its attributes count, once its root is the one to stay;
        `user_attributes`: the mount asks for `user.` ones. Errors of getxattr(2), listxattr(2)."""
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
        """UUID of the filesystem that a file with this status is on; None: it does not tell that
        from all others. What is mounted below the layer never has one here: in the next mount
        there may be something else with the same."""
        return None if self.crosses and st.st_dev != self.device else self.uuid

    def may_have_acls(self) -> bool:
        """Whether there may be ACLs in it."""
        if self.crosses:
            return True
        try:
            os.getxattr(self.root_fd, acl.ACCESS)
        except OSError as exc:
            return exc.errno == errno.ENODATA or exc.errno not in xattrs.NONE
        return True

    @property
    def reading(self) -> int:
        """The flag with which files are opened to be read."""
        return os.O_NOATIME if self.access_times & MOUNT_ATTR_NOATIME else 0

    @property
    def keeps_capabilities(self) -> bool:
        """Whether file capabilities are kept in an attribute that a plain user can set."""
        kept = self.override is not None and self.override.startswith(b"user.")
        return kept and not self.only_of_root

    def stored_name(self, name: bytes) -> bytes:
        """The name under which an attribute of a user's is stored; errors of `xattrs.to_real`."""
        if name == xattrs.CAPABILITY and self.keeps_capabilities:
            return xattrs.OVERRIDE_CAPABILITY
        return xattrs.to_real(name)

    def shown_name(self, name: bytes) -> bytes | None:
        """The name that a user sees for a stored attribute; None: it is private."""
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
        #: Which one of a lower was opened; None: not opened yet, or any will do.
        self.seen: Sighting | None = None

    def path(self) -> bytes:
        """Path in the layer, for messages."""
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


class LayerStack:
    """All layers, and a bounded number of open directories in them.

    Descriptors that `fd` returns stay valid until the next await: a later call may
    close the least recently used.
    """

    def __init__(
        self,
        upper: bytes | None,
        lowers: Sequence[bytes],
        data_only: Sequence[bytes] = (),
        *,
        as_stored: bool = False,
        user_attributes: bool = False,
    ) -> None:
        """Open every root; with `as_stored` none through a mount that maps ids. `user_attributes`
        is for `Layer.settle`. Raises `UpperError` or `LayerError`; then nothing stays open."""
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._open: OrderedDict[RealDir, int] = OrderedDict()
            # Every file below an upper directory must see its renames: one object for each.
            self._upper_dirs: WeakValueDictionary[tuple[RealDir, bytes], RealDir]
            self._upper_dirs = WeakValueDictionary()
            self.limit = 64
            #: Whether nobody else changes the lowers: what is opened again must be the same.
            self.lasting = False
            #: `stat_key` of upper and work directory, in no lower; of the lowers, not in the upper.
            self.written: frozenset[tuple[int, int]] = frozenset()
            self.read: frozenset[tuple[int, int]] = frozenset()
            #: Whether `overlay.redirect` counts.
            self.follow_redirects = True
            self.upper: Layer | None = None
            self.lowers: list[Layer] = []
            #: Layers that only hold data for metacopy files of the others.
            self.data_only: list[Layer] = []
            seen: dict[tuple[int, int], bytes] = {}
            if upper is not None:
                self.upper = Layer(0, upper, _open_root(upper, UpperError, "upperdir"))
                _refuse_twice(self.upper, seen)
            for number, path in enumerate([*lowers, *data_only], 1):
                layer = Layer(number, path, _open_root(path, LayerError, "lowerdir"))
                (self.lowers if number <= len(lowers) else self.data_only).append(layer)
                _refuse_twice(layer, seen)
                _ask_for_attributes(layer)
                if as_stored:
                    _see_stored_ids(layer, self.upper)
            _distrust_copies(self.below)
            for layer in self.all():
                _settle(layer, user_attributes=user_attributes)
            undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    @property
    def descriptors(self) -> dict[RealDir, int]:
        """The directories that are open now, for the extension."""
        return self._open

    def close(self) -> None:
        """Close every descriptor."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()
        for layer in self.all():
            os.close(layer.root_fd)
        self.upper = None
        self.lowers.clear()
        self.data_only.clear()

    def all(self) -> list[Layer]:
        """Upper, if there is one, then the lowers, then the data-only lowers."""
        return ([self.upper] if self.upper else []) + self.below

    @property
    def below(self) -> list[Layer]:
        """What is never written: the lowers, then the data-only lowers."""
        return self.lowers + self.data_only

    def _missing(self, real: RealDir) -> tuple[int, list[RealDir]]:
        """The descriptor to start from, and the steps to `real` from there, last one first."""
        missing = []
        step = real
        while step not in self._open and step.parent is not None:
            missing.append(step)
            step = step.parent
        return self._open.get(step, step.layer.root_fd), missing

    def fd(self, real: RealDir) -> int:
        """An O_PATH descriptor of the directory, valid until the next await.

        Of a path only the end is kept, so that a deep one does not close what the caller
        has just got for another directory.
        """
        fd = self._open.get(real)
        if fd is not None:
            self._open.move_to_end(real)
            return fd
        self._open_known_above(real)
        fd = self._open_lower(real) if real.layer.number else -1
        if fd >= 0:
            self._keep(real, fd)
        else:
            fd = self._walk(real)
        self._close_oldest(self.limit)
        return fd

    def _open_known_above(self, real: RealDir) -> None:
        """Pass through no directory that was looked at before without seeing that it is still
        the same."""
        known = []
        step = real.parent
        while step is not None and step not in self._open:
            if step.seen is not None:
                known.append(step)
            step = step.parent
        # From the top down: each finds the one above it open.
        for step in reversed(known):
            self.fd(step)

    def _keep(self, real: RealDir, fd: int) -> None:
        """A directory is open; `_check`."""
        try:
            self._check(real, sighting(os.fstat(fd)))
        except OSError:
            os.close(fd)
            raise
        self._open[real] = fd

    def _check(self, real: RealDir, now: Sighting) -> None:
        """ELOOP where a lower leads into what we write, or the upper into a lower, by whatever bind
        mount; the kernel's ovl_lookup_trap_inode(). ESTALE where there is another directory by
        now: the kernel was told who may enter the one that was looked up, not this one."""
        lower = bool(real.layer.number)
        if now[:2] in (self.written if lower else self.read):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if lower and not self.lasting:
            return
        # Of the upper it is we who change owners.
        if real.seen is not None and (now != real.seen if lower else now[:2] != real.seen[:2]):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        real.seen = now

    def _open_lower(self, real: RealDir) -> int:
        """A lower's directories are mostly wanted for themselves: one call, one descriptor; -1:
        they have to be walked to."""
        fd = extension.open_real(real, self._open, _DIR_FLAGS)
        if fd < 0:
            base, missing = self._missing(real)
            if 1 < len(missing) <= _KEPT_STEPS:
                with contextlib.suppress(OSError):
                    fd = syscalls.open_beneath(base, _path(missing), _DIR_FLAGS)
        return fd

    def _walk(self, real: RealDir) -> int:
        """Open one directory after the other, and keep the last ones."""
        fd, missing = self._missing(real)
        passing = -1
        for left in range(len(missing) - 1, -1, -1):
            try:
                fd = open_file(missing[left].name, _DIR_FLAGS, dir_fd=fd)
            finally:
                if passing >= 0:
                    os.close(passing)
            passing = -1
            if left >= _KEPT_STEPS:
                passing = fd
            else:
                self._keep(missing[left], fd)
        return fd

    def shrink(self) -> None:
        """Close all directories but those that a caller may just have asked for: their
        descriptors are needed for something else."""
        self._close_oldest(_IN_USE)

    def _close_oldest(self, keep: int) -> None:
        while len(self._open) > keep:
            _, oldest = self._open.popitem(last=False)
            os.close(oldest)

    def upper_dir(self, parent: RealDir, name: bytes) -> RealDir:
        """The one `RealDir` of a directory in the upper."""
        real = self._upper_dirs.get((parent, name))
        if real is None:
            real = self._upper_dirs[parent, name] = RealDir(parent.layer, parent, name)
        return real

    def moved(self, real: RealDir, parent: RealDir, name: bytes) -> None:
        """A directory of the upper was renamed."""
        self._unlist(real)
        real.parent, real.name = parent, name
        self._upper_dirs[parent, name] = real

    def _unlist(self, real: RealDir) -> None:
        if real.parent is not None and self._upper_dirs.get((real.parent, real.name)) is real:
            del self._upper_dirs[real.parent, real.name]

    def forget(self, real: RealDir) -> None:
        """A directory of the upper is gone: its name may come back for another."""
        self._unlist(real)
        fd = self._open.pop(real, None)
        if fd is not None:
            os.close(fd)

    def hides(self, real: RealDir) -> set[bytes]:
        """Names in the directory that do not show."""
        hidden = real.layer.hidden
        return hidden.get(real.path(), set()) if hidden else set()

    @contextlib.contextmanager
    def listing_fd(self, real: RealDir) -> Iterator[int]:
        """A readable descriptor, the caller's own; no access time moves, see `note_listing`."""
        base = self.fd(real)
        try:
            fd = open_noatime(b".", DIR_FLAGS, base)
        except PermissionError:
            # Without search permission the link in /proc leads there all the same.
            path, flags = syscalls.fd_path(base), DIR_FLAGS & ~os.O_NOFOLLOW
            fd = open_noatime(path, flags) if real.layer.number else open_own(path, flags)
        try:
            yield fd
        finally:
            os.close(fd)

    def note_listing(self, real: RealDir) -> None:
        """A program lists the directory: its access time moves if the mount wants that. We read
        it when we please, or have done so before."""
        if real.layer.access_times & NEVER_MOVE:
            return
        try:
            fd = os.open(b".", DIR_FLAGS, dir_fd=self.fd(real))
        except OSError:
            return
        syscalls.note_listing(fd)
        os.close(fd)


def _path(steps: Sequence[RealDir]) -> bytes:
    return b"/".join(step.name for step in reversed(steps))


def open_own(path: bytes, flags: int, dir_fd: int | None = None) -> int:
    """Open an object of the upper, whatever its permissions: the kernel has checked the caller.

    A file created 0444 stays writable for its creator: where its mode forbids us, the
    owner, to open it, the mode is widened for the moment of the call. O_NOATIME is the owner's,
    too: others do without.
    """
    try:
        return open_file(path, flags, dir_fd=dir_fd)
    except PermissionError as exc:
        if exc.errno == errno.EPERM and flags & os.O_NOATIME:
            return open_own(path, flags & ~os.O_NOATIME, dir_fd)
        mode = os.stat(path, dir_fd=dir_fd).st_mode
        os.chmod(path, stat.S_IMODE(accessible(mode) | mode), dir_fd=dir_fd)
        try:
            return open_file(path, flags, dir_fd=dir_fd)
        finally:
            tidy(os.chmod, path, stat.S_IMODE(mode), dir_fd=dir_fd)


def _open_root(path: bytes, error: type[LayerError | UpperError], option: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.stat(b".", dir_fd=fd)
        except OSError:
            os.close(fd)
            raise
    except FileNotFoundError:
        raise error(
            f"{option} {absence(path)}", where=path, hint="create it or correct the path"
        ) from None
    except NotADirectoryError:
        raise error(f"{option} is not a directory", where=path, hint="name a directory") from None
    except PermissionError:
        raise error(
            f"{option} cannot be read", where=path, hint="it needs read and search permission"
        ) from None
    except OSError as exc:
        raise error(f"{option} cannot be opened: {describe(exc)}", where=path) from None
    return fd


def absence(path: bytes) -> str:
    """What is to be said of a path that leads nowhere."""
    try:
        target = os.readlink(path)
    except OSError:
        return "does not exist"
    return f"is a link to {printable(target)}, which does not exist"


def _refuse_twice(layer: Layer, seen: dict[tuple[int, int], bytes]) -> None:
    st = os.fstat(layer.root_fd)
    key = (st.st_dev, st.st_ino)
    if key in seen:
        raise LayerError(
            f"is the same directory as {os.fsdecode(seen[key])}",
            where=layer.path,
            hint="name each layer once",
        )
    seen[key] = layer.path


def _distrust_copies(lowers: Sequence[Layer]) -> None:
    """Forget UUIDs that several filesystems have, such as a disk and its snapshot: file handles
    would lead to the wrong one. The kernel does so, too, ovl_lower_uuid_ok()."""
    devices: dict[bytes | None, set[int]] = {}
    for layer in lowers:
        devices.setdefault(layer.uuid, set()).add(layer.device)
    for layer in lowers:
        if len(devices[layer.uuid]) > 1:
            layer.uuid = None


def _ask_for_attributes(layer: Layer) -> None:
    """Say so where a lower's filesystem, which seems to have no attributes, will not tell whether
    an overlay has marked anything."""
    try:
        os.listxattr(layer.root_fd)
    except OSError as exc:
        if exc.errno != errno.EOPNOTSUPP and exc.errno in xattrs.NONE:
            layer.lists_attributes = False
            log.warning(
                "%s: extended attributes cannot be listed (%s): none of this layer count",
                printable(layer.path),
                describe(exc),
            )


def _settle(layer: Layer, *, user_attributes: bool) -> None:
    """`Layer.settle`. `LayerError` or `UpperError` where there are attributes, as it seems, that
    cannot be read: what they hide or forbid would be open to all."""
    try:
        layer.settle(user_attributes=user_attributes)
    except OSError as exc:
        error = LayerError if layer.number else UpperError
        raise error(
            f"extended attributes cannot be read: {describe(exc)}",
            where=layer.path,
            hint="deletions, owners and permissions may be in them; use a copy of the directory "
            "on another filesystem, or have its server say that there are none (EOPNOTSUPP)",
        ) from None


def _see_stored_ids(layer: Layer, upper: Layer | None) -> None:
    """Go around an idmapped mount that the lower was named by, through the mount of the upper or
    of the working directory. podman maps the lowers so and asks us to map them, too; once is
    meant. `LayerError` where there is no way around it."""
    if not syscalls.is_idmapped(layer.root_fd):
        return
    with contextlib.ExitStack() as undo:
        here = os.open(b".", DIR_FLAGS)
        undo.callback(os.close, here)
        for fd in (upper.root_fd, here) if upper else (here,):
            if os.fstat(fd).st_dev != layer.device or syscalls.is_idmapped(fd):
                continue
            with contextlib.suppress(OSError):
                found = syscalls.open_by_handle(fd, *syscalls.file_handle(layer.root_fd, b""))
                undo.callback(os.close, found)
                root_fd = os.open(b".", DIR_FLAGS, dir_fd=found)
                os.close(layer.root_fd)
                layer.root_fd = root_fd
                return
    raise LayerError(
        "is on a mount that maps ids already",
        where=layer.path,
        hint="name it by a path that does not, or leave uidmapping= and gidmapping= out",
    )


def stat_key(st: os.stat_result) -> tuple[int, int]:
    """What identifies a real file on this machine."""
    return st.st_dev, st.st_ino


#: `stat_key`, owner and type (S_IFREG and so on).
Sighting = tuple[int, int, int, int, int]


def sighting(st: os.stat_result) -> Sighting:
    """What tells whether an object of a lower is the one that was looked up. A filesystem gives the
    number of a removed file to the next one; but whoever puts that in its place cannot make it
    anybody else's, and in a file of his own he may write anyway."""
    return st.st_dev, st.st_ino, st.st_uid, st.st_gid, stat.S_IFMT(st.st_mode)


def check_sighting(st: os.stat_result, seen: Sighting | None, *, lasting: bool = True) -> None:
    """ESTALE where that is not the object that was seen; None: any will do. Where others may
    change the lower, so not `lasting`, any of its type will do: a type the kernel keeps."""
    now = sighting(st)
    if seen is not None and (now != seen if lasting else now[-1] != seen[-1]):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


class Lower(NamedTuple):
    """An object of a lower, or of the upper where both are served alike, that all its facts are
    taken from by one descriptor: whoever owns its directory may exchange it for another between
    two calls that name it."""

    layer: Layer
    #: O_PATH.
    fd: int
    st: os.stat_result

    @property
    def path(self) -> bytes:
        """For calls that take no descriptor; to be followed."""
        return syscalls.fd_path(self.fd)


@contextlib.contextmanager
def pinned(
    layer: Layer, name: bytes, dir_fd: int | None, seen: Sighting | None, *, lasting: bool = True
) -> Iterator[Lower]:
    """Such an object; `check_sighting`."""
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = open_file(name, flags, dir_fd=dir_fd)
    try:
        st = os.fstat(fd)
        check_sighting(st, seen, lasting=lasting)
        yield Lower(layer, fd, st)
    finally:
        os.close(fd)


def open_known(
    name: bytes, flags: int, dir_fd: int | None, seen: Sighting | None, *, lasting: bool = True
) -> int:
    """Open an object of a lower for reading, again: who owns the directory may have put another
    one there, which the attributes that the kernel keeps are not true of. `check_sighting`."""
    return open_checked(
        lambda: open_noatime(name, flags, dir_fd),
        name,
        dir_fd,
        lambda st: check_sighting(st, seen, lasting=lasting),
    )


def open_checked(
    opening: Callable[[], int],
    name: bytes,
    dir_fd: int | None,
    check: Callable[[os.stat_result], None],
) -> int:
    """The descriptor that `opening` gives of the object at `name` in `dir_fd`, if `check` lets its
    status pass. Another object there may be none to open, a link or a socket: `check` says so."""
    try:
        fd = opening()
    except OSError:
        check(os.stat(name, dir_fd=dir_fd, follow_symlinks=False))
        raise
    try:
        check(os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def enclosing(
    path: bytes, roots: Mapping[tuple[int, int], bytes], *, crossing: bool = True
) -> bytes | None:
    """The directory of `roots` (by `stat_key`) that `path` is inside of; its own name does
    not count. Bind mounts do not hide what a directory really is. Without `crossing` what is on
    another filesystem is not around it."""
    path = os.path.realpath(path)
    device = os.stat(path).st_dev
    while path != b"/":
        path = os.path.dirname(path)
        key = stat_key(os.stat(path))
        if key[0] != device and not crossing:
            return None
        found = roots.get(key)
        if found is not None:
            return found
    return None
