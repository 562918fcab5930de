"""Real objects, seen and opened again: what tells that one is still the one that was looked up.

Whoever owns a directory of a layer may put another object in a name's place between any two
calls, so what is taken of an object is taken through a descriptor that was compared.
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
        raise os_error(errno.ESTALE)


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
