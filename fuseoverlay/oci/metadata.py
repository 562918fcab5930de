"""Owner, mode, type, attributes and times of an unpacked file.

Root of the first user namespace sets the real ones. Other users record owner, mode and type in
`user.containers.override_stat` on every regular file and directory; other types become a regular
placeholder file with that attribute.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping
from typing import Final

from fuseoverlay.errors import StoreError
from fuseoverlay.layers import overridestat, trust, xattrs
from fuseoverlay.layers.overridestat import OverrideStat
from fuseoverlay.oci.entries import MAX_PATH, Entry
from fuseoverlay.system import acl, syscalls

_PROBE: Final = b".fuseoverlay-owner"
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Errors if the filesystem, or our privileges, do not allow an attribute here.
_NOT_SETTABLE: Final = (
    errno.EPERM,
    errno.EACCES,
    errno.EOPNOTSUPP,
    errno.EINVAL,
    errno.E2BIG,
    errno.ERANGE,
)
#: Never taken from an image: it decides what a file may do on this machine. umoci and podman ignore
#: it, too.
_LABEL: Final = b"security.selinux"
#: Linux's XATTR_SIZE_MAX.
_MAX_VALUE: Final = 64 << 10
#: At most so many kinds of warnings for one layer: they name attributes, which a layer may make up.
_MAX_KINDS: Final = 40


def can_own(dir_fd: int) -> bool:
    """Whether this process may give files to any owner and make devices in `dir_fd`.

    True only for root of the first user namespace, if both work.
    """
    if not trust.is_superuser():
        return False
    try:
        os.mknod(_PROBE, stat.S_IFCHR | 0o600, os.makedev(1, 3), dir_fd=dir_fd)
    except OSError:
        return False
    try:
        os.chown(_PROBE, 1, 1, dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return False
    finally:
        os.unlink(_PROBE, dir_fd=dir_fd)
    return True


class Warnings:
    """Collects warnings, to report one line per kind and layer, whatever the number of files."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, str]] = {}

    def add(self, what: str, name: str) -> None:
        """Add the warning `what` about the entry `name`."""
        if what not in self._seen and len(self._seen) >= _MAX_KINDS:
            what = "there is more to warn of"
        count, first = self._seen.get(what, (0, name))
        self._seen[what] = count + 1, first

    def report(self, warn: Callable[[str], None], where: str) -> None:
        """Pass one line per kind to `warn`."""
        for what, (count, first) in self._seen.items():
            more = f" and {count - 1} more" if count > 1 else ""
            warn(f"{where}: {what} ({first}{more})")


def fit(entry: Entry, warnings: Warnings) -> Mapping[bytes, bytes]:
    """The attributes of `entry` that may be set. Those that no file can have are dropped before
    they are kept in memory."""
    kept = {}
    for name, value in entry.xattrs.items():
        if name == _LABEL:
            continue
        if name.startswith(xattrs.RESERVED):
            warnings.add(f"the reserved attribute {_show(name)} is left out", entry.name)
        elif len(value) > _MAX_VALUE:
            leave_out(name, entry, warnings)
        else:
            kept[name] = value
    return kept


def leave_out(name: bytes, entry: Entry, warnings: Warnings) -> None:
    """Warn that an attribute of `entry` is lost."""
    warnings.add(f"the attribute {_show(name)} cannot be set here and is left out", entry.name)


class Writer:
    """Makes files and sets their metadata, either real or as an override."""

    def __init__(self, override: bool, warnings: Warnings) -> None:
        self.override = override
        self._warnings = warnings

    def make_node(self, entry: Entry, dir_fd: int, name: bytes) -> None:
        """Make a symbolic link, device or fifo with all its metadata."""
        if stat.S_ISLNK(entry.mode):
            os.symlink(entry.link, name, dir_fd=dir_fd)
        else:
            os.mknod(name, stat.S_IFMT(entry.mode) | 0o600, entry.rdev, dir_fd=dir_fd)
        os.chown(name, entry.uid, entry.gid, dir_fd=dir_fd, follow_symlinks=False)
        if not stat.S_ISLNK(entry.mode):
            # Just made, neither a link nor anybody else's, so there is nothing to follow.
            os.chmod(name, stat.S_IMODE(entry.mode), dir_fd=dir_fd)
        self._set_xattrs(entry, syscalls.at(dir_fd, name))
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=dir_fd, follow_symlinks=False)

    def link_text(self, dir_fd: int, name: bytes) -> bytes | None:
        """The target of the symbolic link `name` that was made here; None if `name` is not one."""
        try:
            if not self.override:
                return os.readlink(name, dir_fd=dir_fd)
            fd = os.open(name, _READ, dir_fd=dir_fd)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.EINVAL):
                return None
            raise
        try:
            note = OverrideStat.parse(xattrs.get(fd, xattrs.OVERRIDE_STAT) or b"", stat.S_IFREG)
            is_link = note is not None and stat.S_ISLNK(note.mode)
            return os.read(fd, MAX_PATH) if is_link else None
        finally:
            os.close(fd)

    def finish(self, entry: Entry, fd: int) -> None:
        """Set the metadata of the open regular file, placeholder or directory `fd`.

        Owner first (it clears setuid and capabilities), times last.
        """
        if self.override:
            kind = stat.S_IFMT(entry.mode)
            real = entry.mode if kind in (stat.S_IFREG, stat.S_IFDIR) else stat.S_IFREG
            os.fchmod(fd, overridestat.accessible(real))
            _set_override(fd, entry)
        else:
            os.fchown(fd, entry.uid, entry.gid)
            os.fchmod(fd, stat.S_IMODE(entry.mode))
        self._set_xattrs(entry, fd)
        os.utime(fd, ns=(entry.mtime, entry.mtime))

    def _set_xattrs(self, entry: Entry, target: bytes | int) -> None:
        for name, value in entry.xattrs.items():
            if not self._set_xattr(target, name, value):
                leave_out(name, entry, self._warnings)

    def _set_xattr(self, target: bytes | int, name: bytes, value: bytes) -> bool:
        if self.override and name.startswith(acl.PREFIX):
            # An ACL would change the real mode, and its ids mean nothing here.
            return False
        try:
            if isinstance(target, int):
                os.setxattr(target, name, value)
                if self.override and name == xattrs.CAPABILITY:
                    # We may set the real one, so a mount, which reads it here, may show it.
                    os.setxattr(target, xattrs.OVERRIDE_CAPABILITY, value)
            else:
                os.setxattr(target, name, value, follow_symlinks=False)
        except OSError as exc:
            if exc.errno not in _NOT_SETTABLE and not _does_not_fit(exc, target):
                raise
            return False
        return True


def _show(name: bytes) -> str:
    return name[:80].decode("utf-8", "backslashreplace")


def _does_not_fit(exc: OSError, target: bytes | int) -> bool:
    """Whether it is ENOSPC although there is space: the attributes of one file have a limit of
    their own."""
    if exc.errno != errno.ENOSPC:
        return False
    return os.statvfs(target).f_bavail > 0 if isinstance(target, int) else False


def _set_override(fd: int, entry: Entry) -> None:
    access = entry.xattrs.get(acl.ACCESS)
    # The ACL itself is left out.
    mode = entry.mode if access is None else acl.limited(entry.mode, access)
    value = OverrideStat(entry.uid, entry.gid, mode, entry.rdev).format()
    try:
        os.setxattr(fd, xattrs.OVERRIDE_STAT, value)
    except OSError as exc:
        if exc.errno != errno.EOPNOTSUPP:
            raise
        raise StoreError(
            "the filesystem of the store has no user extended attributes",
            hint="set FUSEOVERLAY_ROOT to a directory on one that has, like ext4, xfs or btrfs",
        ) from exc
