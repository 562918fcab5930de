"""Open real objects, and check that an object is still the one that was looked up.

The owner of a layer's directory may put another object at a name between any two calls. So
everything about an object is read through one descriptor that was compared.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from fuseoverlay.errors import os_error
from fuseoverlay.layers.overridestat import accessible
from fuseoverlay.system.descriptors import open_file
from fuseoverlay.system.syscalls import open_noatime
from fuseoverlay.system.transaction import tidy


def open_own(path: bytes, flags: int, dir_fd: int | None = None) -> int:
    """Open an object of the upper, whatever its permissions: the kernel has checked the caller.

    A file created with mode 0444 stays writable for its creator: if the mode forbids us, the owner,
    to open it, the mode is widened for the moment of the call. O_NOATIME is dropped where we are
    not the owner.
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


def stat_key(st: os.stat_result) -> tuple[int, int]:
    """Identifies a real file on this machine."""
    return st.st_dev, st.st_ino


#: Device, inode number, user, group, and type (S_IFREG and so on).
Sighting = tuple[int, int, int, int, int]


def sighting(st: os.stat_result) -> Sighting:
    """What identifies an object of a lower as the one that was looked up. A filesystem may give the
    inode number of a removed file to the next one. But whoever puts that in its place cannot give
    it to another owner, and can write to files of their own anyway."""
    return st.st_dev, st.st_ino, st.st_uid, st.st_gid, stat.S_IFMT(st.st_mode)


def check_sighting(st: os.stat_result, seen: Sighting | None, *, lasting: bool = True) -> None:
    """ESTALE if the status is not that of the object `seen`; None: any object will do. Without
    `lasting` others may change the lower: then any object of the same type will do, since the
    kernel keeps the type of an inode."""
    now = sighting(st)
    if seen is not None and (now != seen if lasting else now[-1] != seen[-1]):
        raise os_error(errno.ESTALE)


def open_known(
    name: bytes, flags: int, dir_fd: int | None, seen: Sighting | None, *, lasting: bool = True
) -> int:
    """Open an object of a lower again, for reading; errors of `check_sighting`. The owner of the
    directory may have put another object there, for which the attributes that the kernel keeps are
    not true."""
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
    """The descriptor that `opening` returns for the object at `name` in `dir_fd`, if `check`
    accepts its status. If opening fails, `check` is asked first: another object there may be one
    that cannot be opened, such as a symbolic link or a socket."""
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
