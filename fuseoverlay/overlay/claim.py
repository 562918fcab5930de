"""Claiming an upper and a work directory for a mount: locks, and which directories are refused."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from typing import Final

from fuseoverlay.errors import UpperError, describe
from fuseoverlay.layers import kerneloverlays, ownmount
from fuseoverlay.layers.layer import Layer
from fuseoverlay.layers.roots import absence
from fuseoverlay.system import handles, syscalls
from fuseoverlay.system.clones import Clones
from fuseoverlay.system.locks import flock_holder
from fuseoverlay.system.removal import names_in
from fuseoverlay.system.syscalls import DIR_FLAGS

STAGING: Final = b"work"
INDEX: Final = b"index"
LINKS: Final = b"links"
INCOMPAT: Final = b"incompat"
#: Names of staged objects: the kernel's and ours, fuse-overlayfs's, `whiteout.PROBE`.
_STAGED: Final = re.compile(rb"#[0-9a-f]+|[0-9]+|\.fuseoverlay-probe")
_LOCK_PATIENCE: Final = 2.0


def mark_of(upper: Layer) -> bytes | None:
    """The `overlay.upper` attribute of directories that belong to this upper; None: its filesystem
    has no handles."""
    return handles.encode(upper.root_fd, b"", upper.uuid, handles.UPPER)


def claim(path: bytes, upper: Layer, clones: Clones) -> int:
    """Open the work directory, and lock it and the upper until their descriptors are closed.

    The caller owns the descriptor returned. Raises `UpperError`.
    """
    fd = _open_directory(path)
    try:
        _check_pair(path, fd, upper)
        fd = ownmount.moved(path, fd, upper, clones)
        lock_upper(upper)
        lock(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_directory(path: bytes) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UpperError(f"workdir {absence(path)}", where=path, hint="create it") from None
    except NotADirectoryError:
        raise UpperError("workdir is not a directory", where=path) from None
    except OSError as exc:
        raise UpperError(f"workdir cannot be opened: {describe(exc)}", where=path) from None


def _check_pair(path: bytes, work_fd: int, upper: Layer) -> None:
    """Upper and work directory must allow renames between them, so share a filesystem and a mount;
    neither may be inside the other."""
    work, up = os.path.realpath(path), os.path.realpath(upper.path)
    if work == up or work.startswith(up + b"/"):
        raise UpperError(
            "workdir is inside upperdir", where=path, hint="put it beside the upper directory"
        )
    if up.startswith(work + b"/"):
        raise UpperError(
            "upperdir is inside workdir", where=upper.path, hint="put it beside the work directory"
        )
    if os.fstat(work_fd).st_dev != os.fstat(upper.root_fd).st_dev or _other_mount(work, up):
        raise UpperError(
            "workdir is on another filesystem than upperdir",
            where=path,
            hint="put both on one filesystem and mount",
        )


def _other_mount(a: bytes, b: bytes) -> bool:
    """Whether a rename between the two directories would cross a mount boundary."""
    source = os.path.join(a, b".fuseoverlay-no-such-file")
    target = os.path.join(b, b".fuseoverlay-no-such-file")
    try:
        os.rename(source, target)
    except OSError as exc:
        return exc.errno == errno.EXDEV
    return False


def check_staging(work_fd: int, path: bytes, upper: Layer) -> None:
    """Apply `refuse_leftovers` to the work directory `path` if a mount has used it before."""
    try:
        fd = os.open(STAGING, DIR_FLAGS, dir_fd=work_fd)
    except OSError:
        # The mount creates it, or refuses what is in its place.
        return
    try:
        refuse_leftovers(fd, path, upper.path)
    finally:
        os.close(fd)


def refuse_leftovers(staging_fd: int, path: bytes, upper: bytes) -> None:
    """Refuse the staging directory of the work directory `path` if data of the upper may be
    missing, or if it holds anything that no overlay has made: its content is about to be deleted.
    Raises `UpperError`."""
    marks = incompatible(staging_fd)
    if marks:
        mark = os.path.join(path, STAGING, INCOMPAT, marks[0])
        raise UpperError(
            f"upper was mounted with {os.fsdecode(marks[0])}: data may be missing",
            where=upper,
            hint=f"use a new upper and work directory, or remove {os.fsdecode(mark)} if the system "
            "has not crashed since",
        )
    others = foreign(staging_fd)
    if others:
        raise UpperError(
            f"something here is no overlay's: {os.fsdecode(others[0])}",
            where=os.path.join(path, STAGING),
            hint="move it away, since all in here is deleted, or use another workdir",
        )


def incompatible(staging_fd: int) -> list[bytes]:
    """Marks of mounts after which the upper may not be mounted again, such as `volatile`."""
    try:
        return sorted(
            map(os.fsencode, os.listdir(b"%s/%s" % (syscalls.fd_path(staging_fd), INCOMPAT)))
        )
    except FileNotFoundError:
        return []


def is_foreign(name: bytes) -> bool:
    """Whether no overlay uses such a name in its staging directory."""
    return name != INCOMPAT and not _STAGED.fullmatch(name)


def foreign(staging_fd: int) -> list[bytes]:
    """The names in a staging directory that no overlay uses."""
    return sorted(filter(is_foreign, names_in(staging_fd)))


def lock_upper(upper: Layer) -> None:
    """`lock` the upper; refuse it if one of the kernel's overlays uses it."""
    lock(upper.root_fd, upper.path)
    kerneloverlays.refuse_upper(upper)


def lock(fd: int, path: bytes) -> None:
    """Lock the directory for this mount; the lock ends with the daemon, however that ends.

    Wait for `_LOCK_PATIENCE` seconds: after an unmount the previous daemon may still be exiting.
    """
    deadline = time.monotonic() + _LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.02)
                continue
            raise _in_use(path, flock_holder(fd)) from None
        except OSError as exc:
            raise UpperError(f"cannot be locked: {describe(exc)}", where=path) from None


def _in_use(path: bytes, daemon: int | None) -> UpperError:
    """The error for a directory in use. It names the daemon, since the mount may be in a namespace
    in which no other process is left."""
    hint = "unmount that one first, or use other directories"
    if daemon is None:
        return UpperError("is in use by another mount", where=path, hint=hint)
    return UpperError(
        f"is in use by another mount, whose daemon is process {daemon}",
        where=path,
        hint=f"{hint}; kill {daemon} unmounts one that was left in a namespace of its own",
    )
