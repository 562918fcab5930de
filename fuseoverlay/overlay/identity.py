"""Owner, mode and type: what the mount shows against what the layers store.

Normally both are the same. Where a layer keeps them in an attribute (see
`layers.overridestat`), that counts; in such an upper every object is a regular file
or a directory, and the attribute says what it stands for. Which ids the stored ones are
shown as is for `layers.idmap`. What comes from a process is shown ids, what goes from
layer to layer stored ones.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final, NamedTuple

from fuseoverlay.errors import UpperError, describe, os_error
from fuseoverlay.layers import capability, trust, xattrs
from fuseoverlay.layers.idmap import IdMap
from fuseoverlay.layers.layer import Layer, pinned
from fuseoverlay.layers.objects import sighting
from fuseoverlay.layers.overridestat import OverrideStat, accessible
from fuseoverlay.system import acl, credentials, syscalls, userns
from fuseoverlay.system.userns import MappedIds

_HOLDERS: Final = (stat.S_IFREG, stat.S_IFDIR)
_OVERRIDES: Final = {1: xattrs.PRIVILEGED_OVERRIDE_STAT, 2: xattrs.OVERRIDE_STAT}
_OURSELVES: Final = nullcontext()
# What chown(2) says to who may not, or of an id that the user namespace does not map.
_NOT_GIVABLE: Final = (errno.EPERM, errno.EINVAL)


class Status(NamedTuple):
    """Owner, type with permission bits, and device number, as stored or as shown."""

    uid: int
    gid: int
    mode: int
    rdev: int


class Identity:
    """How this mount translates. `override`: the attribute that the upper keeps; `acls`: whether
    the mount has ACLs."""

    __slots__ = ("_acts", "_maps", "acls", "gids", "groups", "override", "uids", "users")

    def __init__(self, override: bytes | None, uids: IdMap, gids: IdMap, *, acls: bool) -> None:
        self.override = override
        self.acls = acls
        self.uids = uids
        self.gids = gids
        self._maps = bool(uids) or bool(gids)
        #: Whether our thread can make what belongs to others; None: it had no need to yet.
        self._acts: bool | None = None
        #: What our user namespace knows.
        self.users = userns.users()
        self.groups = userns.groups()

    def translates(self, layer: Layer) -> bool:
        """Whether what is shown of the layer is not what its files' real status says, strangers
        to the user namespace aside."""
        return self._maps or layer.override is not None or layer.hides_acls

    def stored(
        self, layer: Layer, path: bytes, st: os.stat_result, *, follow: bool = False
    ) -> Status:
        """What is stored of the real file at `path` with the status `st`."""
        if layer.override is not None:
            if stat.S_IFMT(st.st_mode) in _HOLDERS:
                override = _override_of(layer, layer.override, path, st, follow=follow)
                if override is not None:
                    return Status(override.uid, override.gid, override.mode, override.rdev)
            elif stat.S_ISLNK(st.st_mode):
                return Status(0, 0, st.st_mode, 0)
        return self._real(st, _mode_without_acl(layer, path, st, follow=follow))

    def _real(self, st: os.stat_result, mode: int) -> Status:
        """The same where no attribute says anything; as the extension does, answers.c."""
        status = Status(st.st_uid, st.st_gid, mode, st.st_rdev)
        if st.st_uid == self.users.stranger or st.st_gid == self.groups.stranger:
            return self._nameable(status, limit=True)
        return status

    def _nameable(self, status: Status, *, limit: bool) -> Status:
        """With owners that our user namespace has ids for. `limit`: the mode gives away nothing
        of those who stand in, by setuid and setgid, nor anything to the members of root's group."""
        uid, gid = self.users.show(status.uid), self.groups.show(status.gid)
        if (uid, gid) == status[:2]:
            return status
        mode = status.mode
        if limit and not stat.S_ISDIR(mode):
            mode &= ~(stat.S_ISUID | stat.S_ISGID)
        if limit and gid != status.gid:
            mode &= ~stat.S_IRWXG | (mode & stat.S_IRWXO) << 3
        return Status(uid, gid, mode, status.rdev)

    def to_copy(
        self, layer: Layer, path: bytes, st: os.stat_result, *, follow: bool = False
    ) -> Status:
        """What to store in the upper of what is made from it. Owners that only the layer's
        attribute can have, and the upper has none, become root."""
        status = self.stored(layer, path, st, follow=follow)
        if layer.override is None or self.override is not None:
            return status
        return self._nameable(status, limit=self.users.several)

    def shown(
        self, layer: Layer, path: bytes, st: os.stat_result, *, follow: bool = False
    ) -> Status:
        """What to show for it."""
        if not self.translates(layer):
            return self._real(st, st.st_mode)
        return self.shown_for(self.stored(layer, path, st, follow=follow))

    def shown_for(self, status: Status) -> Status:
        """The same for what is known to be stored."""
        uid, gid = self.uids.owner(status.uid), self.gids.owner(status.gid)
        shown = Status(uid, gid, self.mode_of_its_owner(status), status.rdev)
        return self._nameable(shown, limit=self.users.several)

    def mode_of_its_owner(self, status: Status) -> int:
        """The mode without setuid and setgid where who is shown is not who is stored: a program of
        one owner must not run as another. Where everybody is root modes give nothing away, and an
        image shows its own."""
        mode = status.mode
        if self.users.several and not stat.S_ISDIR(mode):
            mode &= ~(0 if self.uids.stands_for(status.uid) else stat.S_ISUID)
            mode &= ~(0 if self.gids.stands_for(status.gid) else stat.S_ISGID)
        return mode

    def shown_attribute(self, name: bytes, value: bytes, st: os.stat_result) -> bytes:
        """A stored extended attribute of a file with that status as processes see it: ids in ACLs,
        and whose root file capabilities count for. Nothing in there is squashed, so that it can be
        given back."""
        if name.startswith(acl.PREFIX):
            users = _known(self.users, self.uids.shown)
            groups = _known(self.groups, self.gids.shown)
            return self._limited(name, acl.with_ids(value, users, groups), st)
        if self._maps and name == xattrs.CAPABILITY:
            return capability.shown(value, self.uids)
        return value

    def copied_attribute(self, name: bytes, value: bytes, st: os.stat_result) -> bytes:
        """A stored one as a copy can have it: an ACL without those whom we cannot name."""
        if name.startswith(acl.PREFIX):
            value = acl.with_ids(value, _known(self.users), _known(self.groups))
            return self._limited(name, value, st)
        return value

    def _limited(self, name: bytes, value: bytes, st: os.stat_result) -> bytes:
        """An ACL that gives nothing to the group that stands in for the file's."""
        strange = name == acl.ACCESS and st.st_gid == self.groups.stranger
        return acl.without_group(value) if strange else value

    def stored_attribute(self, name: bytes, value: bytes) -> bytes:
        """The same for one that a process gives. EOVERFLOW: nothing is shown as an id in it."""
        if self._maps and name.startswith(acl.PREFIX):
            return acl.with_ids(value, self.uids.stored, self.gids.stored)
        if self._maps and name == xattrs.CAPABILITY:
            return capability.stored(value, self.uids)
        return value

    def making_as(self, uid: int, gid: int) -> AbstractContextManager[None]:
        """What is made in the block belongs to these stored ids. EPERM where the process cannot
        do that."""
        if (uid, gid) == (self.users.own, self.groups.own):
            return _OURSELVES
        if self._acts is None:
            self._acts = credentials.keep_capabilities()
        if not self._acts:
            raise os_error(errno.EPERM)
        return credentials.acting_as(uid, gid)

    def dress(self, dir_fd: int, name: bytes, stored: Status) -> None:
        """Give a new object of ours, `name` in `dir_fd`, its owner and mode.

        EPERM where the process may not give it away.
        """
        path = syscalls.at(dir_fd, name)
        if self.override is not None:
            write_override(path, self.override, stored)
            os.chmod(path, accessible(stored.mode))
            return
        if (stored.uid, stored.gid) != (os.geteuid(), os.getegid()) or _setgid_parent(dir_fd):
            self.give(path, stored.uid, stored.gid)
        if not stat.S_ISLNK(stored.mode):
            os.chmod(path, stat.S_IMODE(stored.mode))

    def dress_open(self, fd: int, stored: Status) -> None:
        """The same for a regular file or a directory that is open as `fd`."""
        path = syscalls.fd_path(fd)
        if self.override is not None:
            write_override(path, self.override, stored, follow=True)
            os.chmod(fd, accessible(stored.mode))
            return
        self.give(path, stored.uid, stored.gid, follow=True)
        os.chmod(fd, stat.S_IMODE(stored.mode))

    def give(self, path: bytes, uid: int, gid: int, *, follow: bool = False) -> None:
        """chown(2) an object of the upper to stored ids, -1: leave it. Where it always shows
        the same owner, one whom we may not give it to does not matter."""
        try:
            os.chown(path, uid, gid, follow_symlinks=follow)
        except OSError as exc:
            squashed = self.uids.squash is not None or self.gids.squash is not None
            if not squashed or exc.errno not in _NOT_GIVABLE:
                raise
            if self.uids.squash is None:
                os.chown(path, uid, -1, follow_symlinks=follow)
            if self.gids.squash is None:
                os.chown(path, -1, gid, follow_symlinks=follow)


def use_override(upper: Layer, permissions: int, *, note: bool) -> None:
    """Have the upper keep owners, modes and types in the attribute of `xattr_permissions=`, or go
    on with the one that it has. With `note` its root says so, to later mounts and other
    programs. `UpperError` where the attribute cannot be set."""
    if upper.override is not None:
        return
    upper.override = _OVERRIDES[permissions]
    if not note:
        return
    st = os.fstat(upper.root_fd)
    status = Status(st.st_uid, st.st_gid, st.st_mode, 0)
    try:
        write_override(syscalls.fd_path(upper.root_fd), upper.override, status, follow=True)
    except OSError as exc:
        raise UpperError(
            f"cannot keep owners and modes in extended attributes: {describe(exc)}",
            where=upper.path,
            hint="xattr_permissions=1 takes root, xattr_permissions=2 user attributes",
        ) from None


def _mode_without_acl(layer: Layer, path: bytes, st: os.stat_result, *, follow: bool) -> int:
    """The real mode; where the mount has no ACLs, what the object's leaves of it."""
    if not layer.hides_acls or stat.S_ISLNK(st.st_mode):
        return st.st_mode
    try:
        value = xattrs.get(path, acl.ACCESS, follow=follow)
    except OSError:
        # There may be one.
        value = b""
    return st.st_mode if value is None else acl.limited(st.st_mode, value)


def _known(
    ids: MappedIds, shown: Callable[[int], int] = lambda number: number
) -> Callable[[int], int | None]:
    """How such ids are shown, None: those whom our user namespace does not map."""

    def known(number: int) -> int | None:
        if number not in ids:
            return None
        name = shown(number)
        return name if name in ids else None

    return known


def _setgid_parent(dir_fd: int) -> bool:
    """Whether objects made in the directory get its group and not ours."""
    return bool(os.stat(dir_fd).st_mode & stat.S_ISGID)


def read_override(
    path: bytes, attribute: bytes, real_mode: int, *, follow: bool = False
) -> OverrideStat | None:
    """What the override attribute says; None where there is none or it is malformed."""
    value = xattrs.get(path, attribute, follow=follow)
    return OverrideStat.parse(value, real_mode) if value is not None else None


def _override_of(
    layer: Layer, attribute: bytes, path: bytes, st: os.stat_result, *, follow: bool
) -> OverrideStat | None:
    """What counts of the attribute in this layer; ESTALE where a lower has another object at the
    path by now."""
    if layer.only_of_root and not trust.is_roots_alone(st):
        return None
    if follow or not layer.number:
        return read_override(path, attribute, st.st_mode, follow=follow)
    with pinned(layer, path, None, sighting(st)) as lower:
        return read_override(lower.path, attribute, st.st_mode, follow=True)


def write_override(path: bytes, attribute: bytes, stored: Status, *, follow: bool = False) -> None:
    """Set the override attribute."""
    value = OverrideStat(*stored).format()
    os.setxattr(path, attribute, value, follow_symlinks=follow)
