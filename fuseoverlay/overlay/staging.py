"""New objects: made at their final place if one call can complete them, otherwise in the work
directory, ready to be published."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from fuseoverlay.errors import os_error
from fuseoverlay.layers import xattrs
from fuseoverlay.layers.layer import Place
from fuseoverlay.layers.objects import open_known, open_own, sighting
from fuseoverlay.overlay.identity import Status
from fuseoverlay.overlay.inodes import Held
from fuseoverlay.overlay.owners import Overlay
from fuseoverlay.overlay.realobject import Real
from fuseoverlay.system import acl, syscalls
from fuseoverlay.system.descriptors import open_file
from fuseoverlay.system.transaction import Transaction, tidy

_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK
# PATH_MAX without the final NUL.
_TARGET_MAX = 4095


class New(NamedTuple):
    """An object to be made."""

    #: The status to store.
    status: Status
    #: The target of a symbolic link.
    target: bytes
    #: Names and values of the ACLs that it inherits from its directory.
    acls: list[tuple[bytes, bytes]]
    #: The ids to make it with if one call at its place then completes it, ACLs included; None: that
    #: takes more calls.
    born: tuple[int, int] | None

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.status.mode)


def stage(ov: Overlay, change: Transaction) -> bytes:
    """A new name in the work directory; if the change fails, whatever has it is removed."""
    workdir = ov.writable()
    staged = workdir.new_name()
    change.on_error(workdir.discard, staged)
    return staged


def move(src_dir: int, src: bytes, dst_dir: int, dst: bytes, flags: int = 0) -> None:
    """Rename between the work directory and the upper; flags and errors of renameat2(2).

    That takes write permission on both directories, and on a directory that moves. If we are a
    plain user without it on directories of our own, their modes are widened during the call.
    """
    try:
        syscalls.renameat2(src_dir, src, dst_dir, dst, flags)
    except PermissionError:
        with contextlib.ExitStack() as stack:
            for fd, name in ((src_dir, src), (dst_dir, dst)):
                stack.enter_context(_writable(fd))
                moving = stack.enter_context(_directory(fd, name))
                if moving is not None:
                    stack.enter_context(_writable(moving))
            syscalls.renameat2(src_dir, src, dst_dir, dst, flags)


@contextlib.contextmanager
def _writable(fd: int) -> Iterator[None]:
    """Widen the mode of a directory within the block, if we own it."""
    st = os.stat(fd)
    if st.st_uid != os.geteuid():
        yield
        return
    path, mode = syscalls.fd_path(fd), stat.S_IMODE(st.st_mode)
    os.chmod(path, mode | 0o700)
    try:
        yield
    finally:
        tidy(os.chmod, path, mode)


@contextlib.contextmanager
def _directory(dir_fd: int, name: bytes) -> Iterator[int | None]:
    """A descriptor of the directory, valid even after it moves; None: there is no directory."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = open_file(name, flags, dir_fd=dir_fd)
    except (FileNotFoundError, NotADirectoryError):
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def move_to_free(src_dir: int, src: bytes, dst_dir: int, dst: bytes, flags: int = 0) -> None:
    """`move` to a name that is free according to the index; EEXIST if it is not."""
    try:
        move(src_dir, src, dst_dir, dst, syscalls.RENAME_NOREPLACE | flags)
    except OSError as exc:
        if exc.errno != errno.EINVAL or flags:
            raise
        # The filesystem does not support RENAME_NOREPLACE.
        move(src_dir, src, dst_dir, dst)


def make(ov: Overlay, staged: bytes, status: Status, target: bytes = b"") -> None:
    """Stage an object of the stored type, mode, owner and device; `target`: that of a symbolic
    link.

    In an upper that keeps those in an attribute, a regular file stands for anything but a
    directory. EPERM for devices that we may not make, and for a character device 0:0, which would
    be a whiteout.
    """
    work = ov.writable().fd
    mode = 0o700 if stat.S_ISDIR(status.mode) else 0o600
    fd = _make(ov, work, staged, mode, status, target)
    if fd is not None:
        os.close(fd)
    ov.identity.dress(work, staged, status)


def _make(
    ov: Overlay, dir_fd: int, name: bytes, mode: int, status: Status, target: bytes
) -> int | None:
    """Make an object of the stored type and device with these permission bits. If it is a regular
    file, returns a descriptor for reading and writing, which the caller owns."""
    kind = stat.S_IFMT(status.mode)
    if kind == stat.S_IFCHR and status.rdev == 0:
        raise os_error(errno.EPERM)
    if kind == stat.S_IFDIR:
        os.mkdir(name, mode, dir_fd=dir_fd)
    elif kind == stat.S_IFREG or ov.identity.override is not None:
        flags = _NEW_FILE | ov.writable().upper.reading
        fd = open_file(name, flags, mode, dir_fd=dir_fd)
        try:
            _write_target(fd, target)
        except BaseException:
            os.close(fd)
            raise
        return fd
    elif kind == stat.S_IFLNK:
        os.symlink(target, name, dir_fd=dir_fd)
    else:
        os.mknod(name, kind | mode, status.rdev, dir_fd=dir_fd)
    return None


def _write_target(fd: int, target: bytes) -> None:
    """Write the target into the regular file that stands for a symbolic link."""
    if target:
        os.write(fd, target)


def make_born(ov: Overlay, change: Transaction, place: Place, new: New) -> int | None:
    """Make an object at a free place, complete by one call, as the kernel's overlay does. For a
    regular file returns a descriptor for reading and writing, which the caller owns.

    So the object inherits all that the filesystem hands down, and objects can be made even where
    nothing can be moved in from elsewhere (a subvolume, another project).

    EACCES, EPERM if we lack permission; EEXIST; ENOSPC and the like.
    """
    if new.born is None:
        raise os_error(errno.EPERM)
    dir_fd, mode = ov.stack.fd(place.real), stat.S_IMODE(new.status.mode)
    with ov.identity.making_as(*new.born):
        fd = _make(ov, dir_fd, place.name, mode, new.status, new.target)
    change.on_error(os.rmdir if new.is_dir else os.unlink, place.name, dir_fd=dir_fd)
    if fd is not None:
        change.on_error(os.close, fd)
    return fd


def make_overridden(ov: Overlay, change: Transaction, place: Place, new: New) -> None:
    """Make an object at a free place in an upper that keeps owners in an attribute. A file gets the
    attribute before its name; a directory is ours, with mode 0700, until it has the attribute.

    EOPNOTSUPP on filesystems without O_TMPFILE.
    """
    dir_fd = ov.stack.fd(place.real)
    if not new.is_dir:
        fd = make_nameless(ov, dir_fd, new.status, new.target)
        try:
            os.link(syscalls.fd_path(fd), place.name, dst_dir_fd=dir_fd, follow_symlinks=True)
        finally:
            os.close(fd)
        change.on_error(os.unlink, place.name, dir_fd=dir_fd)
        return
    os.mkdir(place.name, 0o700, dir_fd=dir_fd)
    change.on_error(os.rmdir, place.name, dir_fd=dir_fd)
    fd = open_file(place.name, syscalls.DIR_FLAGS, dir_fd=dir_fd)
    try:
        _dress_open(ov, fd, new.status)
        for attribute, value in new.acls:
            os.setxattr(fd, attribute, value)
    finally:
        os.close(fd)


def make_nameless(ov: Overlay, dir_fd: int, status: Status, target: bytes = b"") -> int:
    """Make a regular file without a name that inherits from the directory; returns an O_PATH
    descriptor, which the caller owns. Without permission there the work directory is used instead.
    EOPNOTSUPP on filesystems without O_TMPFILE."""
    flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
    try:
        fd = open_file(b".", flags, 0o600, dir_fd=dir_fd)
    except PermissionError:
        fd = open_file(b".", flags, 0o600, dir_fd=ov.writable().fd)
    try:
        _write_target(fd, target)
        _dress_open(ov, fd, status)
        return open_file(syscalls.fd_path(fd), os.O_PATH | os.O_CLOEXEC)
    finally:
        os.close(fd)


def _dress_open(ov: Overlay, fd: int, status: Status) -> None:
    """Set owner and mode of an object made in an upper directory; if the mount has no ACLs, drop
    the one that it inherited."""
    if ov.writable().upper.hides_acls:
        xattrs.drop_any(fd, acl.ACCESS)
    ov.identity.dress_open(fd, status)


def hold(ov: Overlay, staged: bytes, *, is_dir: bool = False) -> Held:
    """Remove the name of a staged object and hold it by a descriptor; if too many are held already,
    keep the name to hold it."""
    work = ov.writable().fd
    if not ov.inodes.may_hold:
        return Held(work, staged, parked=True)
    fd = open_file(staged, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=work)
    try:
        (os.rmdir if is_dir else os.unlink)(staged, dir_fd=work)
    except BaseException:
        os.close(fd)
        raise
    return Held(fd)


def read_link(ov: Overlay, real: Real) -> bytes:
    """The target of a symbolic link, or of the regular file that stands for one. EIO if that holds
    more than a link can."""
    if stat.S_ISLNK(real.st.st_mode):
        if not real.follow:
            return os.readlink(real.path)
        # The path is itself a link in /proc: open the symbolic link that it leads to.
        fd = open_file(real.path, os.O_PATH | os.O_CLOEXEC)
        try:
            return os.readlink(b"", dir_fd=fd)
        finally:
            os.close(fd)
    if real.st.st_size > _TARGET_MAX:
        raise os_error(errno.EIO)
    # Somebody may have put another object in its place.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | real.layer.reading
    flags |= 0 if real.follow else os.O_NOFOLLOW
    if real.layer.number == 0:
        fd = open_own(real.path, flags)
    else:
        fd = open_known(real.path, flags, None, sighting(real.st))
    try:
        return os.read(fd, real.st.st_size)
    finally:
        os.close(fd)
