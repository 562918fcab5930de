"""Unmount, and wait for the daemon."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from typing import Final

from fuseoverlay.errors import FuseError, MountpointError, describe
from fuseoverlay.layers import xattrs
from fuseoverlay.system import syscalls

_FUSERMOUNT: Final = "fusermount3"
#: Seconds to wait for a daemon to say who it is; it may be stopped.
_PATIENCE: Final = 1.0
#: Seconds to wait for it to end; the disk may take some.
_END_PATIENCE: Final = 10.0


def unmount(mountpoint: bytes) -> bool:
    """Unmount, and wait for the daemon to end, unless it is in another pid namespace. Once it has
    ended, the layers are free and the changes on disk. False: it goes on, because another mount
    namespace has a copy of the mount or because the disk is slow. Raises `MountpointError`,
    `FuseError`."""
    path = _resolved(mountpoint)
    if fuse_mount(path) is None:
        raise MountpointError("no FUSE filesystem is mounted here", where=mountpoint)
    with contextlib.ExitStack() as undo:
        daemon = _daemon(path)
        if daemon is not None:
            undo.callback(os.close, daemon)
        problem = _umount(path) if os.geteuid() == 0 else _fusermount_u(path)
        if problem is not None:
            raise FuseError(
                f"unmounting failed: {problem}",
                where=mountpoint,
                hint="end the processes that use it" if "busy" in problem else None,
            )
        return daemon is None or bool(select.select([daemon], [], [], _END_PATIENCE)[0])


def is_mount_point(path: bytes) -> bool:
    """Whether a FUSE filesystem is mounted at this path."""
    try:
        return fuse_mount(_resolved(path)) is not None
    except MountpointError:
        return False


def _umount(path: bytes) -> str | None:
    """Unmount; what went wrong, None if nothing did."""
    try:
        syscalls.umount(path)
    except OSError as exc:
        return describe(exc)
    return None


def _fusermount_u(path: bytes) -> str | None:
    argv: list[str | bytes] = [fusermount(), "-u", path]
    done = subprocess.run(argv, stderr=subprocess.PIPE, check=False, text=True)
    return done.stderr.strip() if done.returncode else None


def _daemon(path: bytes) -> int | None:
    """A pidfd of the daemon that serves the mount; None if it does not say who it is, or not in
    time. A daemon that is stopped answers nothing; its mount can still be unmounted, but not while
    somebody waits for an answer. So a child process asks, which can be killed."""
    answer, told = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(OSError):
            os.write(told, os.getxattr(path, xattrs.DAEMON))
        os._exit(0)
    os.close(told)
    try:
        if not select.select([answer], [], [], _PATIENCE)[0]:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return syscalls.process_named(os.read(answer, 256))
    except (OSError, ValueError):
        return None
    finally:
        os.close(answer)


def _resolved(path: bytes) -> bytes:
    """The absolute path, found without asking the daemon."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as exc:
        raise MountpointError(
            f"cannot be unmounted: {describe(exc)}", where=path, hint="name the mount point"
        ) from None
    try:
        return os.readlink(syscalls.fd_path(fd))
    finally:
        os.close(fd)


def fusermount() -> str:
    """Path of fusermount3. Raises `FuseError`."""
    for directory in (*os.get_exec_path(), "/usr/bin", "/bin"):
        path = os.path.join(directory, _FUSERMOUNT)
        if os.access(path, os.X_OK):
            return path
    raise FuseError(
        f"{_FUSERMOUNT} is not installed, without which only root can mount and unmount",
        hint="install the package fuse3",
    )


def fuse_mount(path: bytes) -> str | None:
    """The device number, as `major:minor`, of the last thing mounted at `path` if that is a FUSE
    filesystem; proc(5), mountinfo."""
    device = None
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            fields = line.split(b" ")
            if syscalls.unescaped(fields[4]) == path:
                kind = line.partition(b" - ")[2].split(b" ")[0]
                is_fuse = kind == b"fuse" or kind.startswith(b"fuse.")
                device = fields[2].decode() if is_fuse else None
    return device


def give_up(path: bytes, device: str | None) -> None:
    """Take away the mount with this device number (`fuse_mount`). Whoever waits for an answer gets
    an error. A mount that is already detached is reached only by the kernel's control
    filesystem."""
    number = (device or "").partition(":")[2]
    control = f"/sys/fs/fuse/connections/{number}/abort"
    with contextlib.suppress(OSError), open(control, "w", encoding="ascii") as switch:
        switch.write("1")
    if device is None or fuse_mount(path) != device:
        return
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            syscalls.umount(path, syscalls.MNT_FORCE | syscalls.MNT_DETACH)
    else:
        argv: list[str | bytes] = [fusermount(), "-u", "-z", path]
        subprocess.run(argv, capture_output=True, check=False)
