"""Owner, mode and type: how what the layers store is shown by the mount.

Normally both are the same. If a layer keeps them in an attribute (see `layers.overridestat`), that
counts; in such an upper every object is a regular file or a directory, and the attribute says what
it stands for. `layers.idmap` maps stored ids to shown ones. Processes give and see shown ids;
copies between layers use stored ones.
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
# Errors of chown(2) without permission, or for an id that the user namespace does not map.
_NOT_GIVABLE: Final = (errno.EPERM, errno.EINVAL)


class Status(NamedTuple):
    """Owner, type with permission bits, and device number, as stored or as shown."""

    uid: int
    gid: int
    mode: int
    rdev: int


class Identity:
    """How this mount translates between stored and shown. `override`: the attribute in which the
    upper keeps owner, mode and type, if any; `acls`: whether the mount has ACLs."""

    __slots__ = ("_acts", "_maps", "acls", "gids", "groups", "override", "uids", "users")

    def __init__(self, override: bytes | None, uids: IdMap, gids: IdMap, *, acls: bool) -> None:
        self.override = override
        self.acls = acls
        self.uids = uids
        self.gids = gids
        self._maps = bool(uids) or bool(gids)
        #: Whether our thread can make objects that belong to others; None: not tried yet.
        self._acts: bool | None = None
        #: The ids that our user namespace maps.
        self.users = userns.users()
        self.groups = userns.groups()

    def translates(self, layer: Layer) -> bool:
        """Whether the layer's files are shown with another status than their real one, apart from
        owners that our user namespace does not map."""
        return self._maps or layer.override is not None or layer.hides_acls

    def stored(
        self, layer: Layer, path: bytes, st: os.stat_result, *, follow: bool = False
    ) -> Status:
        """The stored status of the real file at `path`, whose real status is `st`."""
        if layer.override is not None:
            if stat.S_IFMT(st.st_mode) in _HOLDERS:
                override = _override_of(layer, layer.override, path, st, follow=follow)
                if override is not None:
                    return Status(override.uid, override.gid, override.mode, override.rdev)
            elif stat.S_ISLNK(st.st_mode):
                return Status(0, 0, st.st_mode, 0)
        return self._real(st, _mode_without_acl(layer, path, st, follow=follow))

    def _real(self, st: os.stat_result, mode: int) -> Status:
        """The stored status if no attribute holds it. The extension does the same, in answers.c."""
        status = Status(st.st_uid, st.st_gid, mode, st.st_rdev)
        if st.st_uid == self.users.stranger or st.st_gid == self.groups.stranger:
            return self._nameable(status, limit=True)
        return status

    def _nameable(self, status: Status, *, limit: bool) -> Status:
        """The status with owners that our user namespace maps; `MappedIds.stand_in` replaces all
        others. `limit`: reduce the mode, so that setuid and setgid give away no rights of the
        stand-in, and members of its group get no more than others."""
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
        """The status to store in the upper for an object made from this one. Owners that only an
        attribute can hold become root if the upper keeps none."""
        status = self.stored(layer, path, st, follow=follow)
        if layer.override is None or self.override is not None:
            return status
        return self._nameable(status, limit=self.users.several)

    def shown(
        self, layer: Layer, path: bytes, st: os.stat_result, *, follow: bool = False
    ) -> Status:
        """The status to show for it."""
        if not self.translates(layer):
            return self._real(st, st.st_mode)
        return self.shown_for(self.stored(layer, path, st, follow=follow))

    def shown_for(self, status: Status) -> Status:
        """The status to show for a stored status."""
        uid, gid = self.uids.owner(status.uid), self.gids.owner(status.gid)
        shown = Status(uid, gid, self.mode_of_its_owner(status), status.rdev)
        return self._nameable(shown, limit=self.users.several)

    def mode_of_its_owner(self, status: Status) -> int:
        """The mode without setuid or setgid if the owner or group shown is not the one stored: a
        program of one owner must not run as another. If our user namespace has only one user, modes
        give nothing away, and an image shows its own."""
        mode = status.mode
        if self.users.several and not stat.S_ISDIR(mode):
            mode &= ~(0 if self.uids.stands_for(status.uid) else stat.S_ISUID)
            mode &= ~(0 if self.gids.stands_for(status.gid) else stat.S_ISGID)
        return mode

    def shown_attribute(self, name: bytes, value: bytes, st: os.stat_result) -> bytes:
        """A stored extended attribute of a file with this status, as processes see it: translates
        ids in ACLs, and the root user of file capabilities. These ids are not squashed, so that
        processes can set the value again."""
        if name.startswith(acl.PREFIX):
            users = _known(self.users, self.uids.shown)
            groups = _known(self.groups, self.gids.shown)
            return self._limited(name, acl.with_ids(value, users, groups), st)
        if self._maps and name == xattrs.CAPABILITY:
            return capability.shown(value, self.uids)
        return value

    def copied_attribute(self, name: bytes, value: bytes, st: os.stat_result) -> bytes:
        """A stored extended attribute as a copy can have it: an ACL without the ids that our user
        namespace does not map."""
        if name.startswith(acl.PREFIX):
            value = acl.with_ids(value, _known(self.users), _known(self.groups))
            return self._limited(name, value, st)
        return value

    def _limited(self, name: bytes, value: bytes, st: os.stat_result) -> bytes:
        """The ACL, without rights for the group that stands in if the file's is not mapped."""
        strange = name == acl.ACCESS and st.st_gid == self.groups.stranger
        return acl.without_group(value) if strange else value

    def stored_attribute(self, name: bytes, value: bytes) -> bytes:
        """The value to store for an extended attribute that a process sets. EOVERFLOW if no stored
        id is shown as an id in it."""
        if self._maps and name.startswith(acl.PREFIX):
            return acl.with_ids(value, self.uids.stored, self.gids.stored)
        if self._maps and name == xattrs.CAPABILITY:
            return capability.stored(value, self.uids)
        return value

    def making_as(self, uid: int, gid: int) -> AbstractContextManager[None]:
        """A context in which objects are made with these stored ids as owner and group. EPERM if
        our process cannot do that."""
        if (uid, gid) == (self.users.own, self.groups.own):
            return _OURSELVES
        if self._acts is None:
            self._acts = credentials.keep_capabilities()
        if not self._acts:
            raise os_error(errno.EPERM)
        return credentials.acting_as(uid, gid)

    def dress(self, dir_fd: int, name: bytes, stored: Status) -> None:
        """Give a new object of ours, `name` in `dir_fd`, its owner and mode.

        EPERM if our process may not give it away.
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
        """chown(2) an object of the upper to stored ids; -1: unchanged. A squashed id that we may
        not set is ignored, since the same one is always shown."""
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
    """Make the upper keep owners, modes and types in the attribute of `xattr_permissions=`, or in
    the one that it has already. With `note` the attribute is set on its root, for later mounts and
    other programs. `UpperError` if it cannot be set."""
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
    """The real mode; if the mount has no ACLs, reduced to what the object's ACL grants."""
    if not layer.hides_acls or stat.S_ISLNK(st.st_mode):
        return st.st_mode
    try:
        value = xattrs.get(path, acl.ACCESS, follow=follow)
    except OSError:
        # There may be an ACL.
        value = b""
    return st.st_mode if value is None else acl.limited(st.st_mode, value)


def _known(
    ids: MappedIds, shown: Callable[[int], int] = lambda number: number
) -> Callable[[int], int | None]:
    """A function from stored ids to shown ones, by `shown`. It returns None if our user namespace
    does not map the stored id or the shown one."""

    def known(number: int) -> int | None:
        if number not in ids:
            return None
        name = shown(number)
        return name if name in ids else None

    return known


def _setgid_parent(dir_fd: int) -> bool:
    """Whether objects made in the directory get its group instead of ours."""
    return bool(os.stat(dir_fd).st_mode & stat.S_ISGID)


def read_override(
    path: bytes, attribute: bytes, real_mode: int, *, follow: bool = False
) -> OverrideStat | None:
    """The override attribute; None if there is none or it is malformed."""
    value = xattrs.get(path, attribute, follow=follow)
    return OverrideStat.parse(value, real_mode) if value is not None else None


def _override_of(
    layer: Layer, attribute: bytes, path: bytes, st: os.stat_result, *, follow: bool
) -> OverrideStat | None:
    """The override attribute if it counts: in a layer of root's alone that takes an object that
    only root can have written. ESTALE if a lower has another object at the path by now."""
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
