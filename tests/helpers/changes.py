"""Changes to make through a mount, one per mount, and layers on which each can be made."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path

from fuseoverlay.system.credentials import acting_as
from fuseoverlay.system.syscalls import (
    AT_FDCWD,
    FS_IOC_GETFLAGS,
    FS_IOC_SETFLAGS,
    FS_NOATIME_FL,
    RENAME_EXCHANGE,
    renameat2,
)
from tests.helpers import libc
from tests.helpers.mounts import MODE, NATIVE, make_whiteout, set_overlay_xattr


def make_layers(top: Path, bottom: Path, upper: Path) -> None:
    """Fill two lower directories and an upper one. `up` things are in the upper, `gone` ones are
    hidden by whiteouts, `copied` is a copy of a lower file."""
    for layer, text in ((top, b"top"), (bottom, b"bottom")):
        for name in ("dir", "empty", "emptied"):
            (layer / name).mkdir()
        (layer / "dir" / "inside").write_bytes(text)
        (layer / "dir" / text.decode()).write_bytes(text)
    (bottom / "emptied" / "gone").write_bytes(b"old")
    for name in ("file", "other", "gone", "copied"):
        (bottom / name).write_bytes(b"lower " + name.encode())
        os.setxattr(bottom / name, "user.colour", name.encode())
        os.utime(bottom / name, ns=(10**18, 10**18))
    (bottom / "big").write_bytes(b"big" * 100_000)
    (bottom / "linked").write_bytes(b"linked")
    os.link(bottom / "linked", bottom / "alias")
    os.symlink("file", bottom / "symlink")
    make_whiteout(top / "gone")
    (bottom / "gone-dir").mkdir()
    (bottom / "gone-dir" / "child").write_bytes(b"must not come back")
    (upper / "up").write_bytes(b"up")
    (upper / "up-dir").mkdir()
    (upper / "up-dir" / "x").write_bytes(b"x")
    (upper / "copied").write_bytes(b"changed")
    (upper / "emptied").mkdir()
    make_whiteout(upper / "emptied" / "gone")
    make_whiteout(upper / "gone-dir")
    (upper / "own").mkdir()
    set_overlay_xattr(upper / "own", "opaque", b"y")


def _append(path: Path) -> None:
    with open(path, "ab", buffering=0) as stream:
        stream.write(b"!")


def _copy_and_leave_one_name(mnt: Path) -> None:
    _append(mnt / "linked")
    os.unlink(mnt / "alias")


def exchange(one: Path, two: Path) -> None:
    """Exchange two names, RENAME_EXCHANGE."""
    renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(two), RENAME_EXCHANGE)


def _name_nameless(path: Path) -> None:
    """Give a name to a file that had none; without the extension, make one with a name."""
    fd = os.open(path.parent, os.O_TMPFILE | os.O_RDWR, 0o640) if NATIVE else -1
    if fd < 0:
        os.mknod(path, 0o640)
        return
    try:
        libc.linkat(f"/proc/self/fd/{fd}".encode(), path, libc.AT_SYMLINK_FOLLOW)
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)


def _allocate(path: Path) -> None:
    """Allocate 100 bytes; without the extension, which fallocate(2) needs, write the last of
    them."""
    fd = os.open(path, os.O_RDWR)
    try:
        if NATIVE:
            libc.fallocate(fd, 0, 0, 100)
        else:
            os.pwrite(fd, b"!", 99)
    finally:
        os.close(fd)


def _copy_range(source: Path, target: Path) -> None:
    with open(source, "rb") as one, open(target, "r+b") as other:
        os.copy_file_range(one.fileno(), other.fileno(), 4, 0, 2)


def _sync(path: Path) -> None:
    """Sync a file. A test cannot see what is on disk then, but it can see an error."""
    with open(path, "r+b", buffering=0) as stream:
        os.fsync(stream.fileno())


def _scribble(path: Path) -> None:
    """Change the file: this stays even if a sync fails."""
    with open(path, "r+b", buffering=0) as stream:
        stream.write(b"!")


#: Another owner, if this mode may set one.
_SOMEBODY = (1, 1) if MODE != "user" else (os.getuid(), os.getgid())


def _by_somebody(path: Path, make: Callable[..., object], *args: object) -> None:
    """Make an object who does not own the layers."""
    fd = os.open(path.parent, os.O_RDONLY)
    try:
        with acting_as(*_SOMEBODY):
            make(path.name, *args, dir_fd=fd)
    finally:
        os.close(fd)


def _hand_down(path: Path) -> None:
    """Have a directory hand a flag down."""
    # Without the extension there is no chattr.
    if NATIVE:
        fd = os.open(path, os.O_RDONLY)
        [flags] = struct.unpack("i", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(4)))
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("i", flags | FS_NOATIME_FL))
        os.close(fd)


#: user::rwx user:1:rwx group::r-x mask::rwx other::r-x
_ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, bits, number)
    for tag, bits, number in (
        (1, 7, 2**32 - 1), (2, 7, 1), (4, 5, 2**32 - 1), (16, 7, 2**32 - 1), (32, 5, 2**32 - 1),
    )
)  # fmt: skip


def _set_default_acl(path: Path) -> None:
    os.setxattr(path, "system.posix_acl_default", _ACL)


Change = Callable[[Path], object]

#: Copy-ups and other changes that are the same in every dialect of whiteouts.
CHANGES: dict[str, Change] = {
    "append": lambda mnt: _append(mnt / "file"),
    "append deeper": lambda mnt: _append(mnt / "dir" / "bottom"),
    "append to big": lambda mnt: _append(mnt / "big"),
    "append to linked": lambda mnt: _append(mnt / "linked"),
    "truncate": lambda mnt: os.truncate(mnt / "file", 3),
    "chmod": lambda mnt: os.chmod(mnt / "file", 0o600),
    "chmod directory": lambda mnt: os.chmod(mnt / "dir", 0o700),
    "utime of symlink": lambda mnt: os.utime(mnt / "symlink", (5, 5), follow_symlinks=False),
    "setxattr": lambda mnt: os.setxattr(mnt / "file", "user.x", b"y"),
    "link": lambda mnt: os.link(mnt / "file", mnt / "new"),
    "link of linked": lambda mnt: os.link(mnt / "linked", mnt / "new"),
    "create": lambda mnt: os.mknod(mnt / "new", 0o640),
    "create deeper": lambda mnt: os.mknod(mnt / "dir" / "new", 0o640),
    "name a nameless file": lambda mnt: _name_nameless(mnt / "dir" / "new"),
    "symlink": lambda mnt: os.symlink("target", mnt / "new"),
    "mkdir": lambda mnt: os.mkdir(mnt / "new", 0o750),
    "create by somebody": lambda mnt: _by_somebody(mnt / "own" / "new", os.mknod, 0o640),
    "mkdir by somebody": lambda mnt: _by_somebody(mnt / "own" / "new", os.mkdir, 0o750),
    "create with an ACL": lambda mnt: os.mknod(mnt / "own" / "new", 0o640),
    "mkdir with an ACL": lambda mnt: os.mkdir(mnt / "own" / "new", 0o750),
    "link in upper": lambda mnt: os.link(mnt / "up", mnt / "new"),
    "rmdir in upper": lambda mnt: os.rmdir(mnt / "own"),
    "create over whiteout": lambda mnt: os.mknod(mnt / "gone", 0o640),
    "mkdir over whiteout": lambda mnt: os.mkdir(mnt / "gone-dir"),
    "unlink in upper": lambda mnt: os.unlink(mnt / "up"),
    "rename in upper": lambda mnt: os.rename(mnt / "up", mnt / "new"),
    "rename upper directory": lambda mnt: os.rename(mnt / "up-dir", mnt / "new"),
    "rename upper directory over whiteout": lambda mnt: os.rename(
        mnt / "up-dir", mnt / "gone-dir"),
    "rename over emptied directory": lambda mnt: os.rename(mnt / "up-dir", mnt / "emptied"),
    "rename over lower directory": lambda mnt: os.rename(mnt / "up-dir", mnt / "empty"),
    "exchange files": lambda mnt: exchange(mnt / "file", mnt / "up"),
    "exchange file and directory": lambda mnt: exchange(mnt / "file", mnt / "up-dir"),
}  # fmt: skip
#: Changes that leave whiteouts.
REMOVALS: dict[str, Change] = {
    "unlink": lambda mnt: os.unlink(mnt / "file"),
    "unlink copied": lambda mnt: os.unlink(mnt / "copied"),
    "unlink deeper": lambda mnt: os.unlink(mnt / "dir" / "bottom"),
    "unlink linked": lambda mnt: os.unlink(mnt / "linked"),
    "rmdir": lambda mnt: os.rmdir(mnt / "empty"),
    "rmdir emptied": lambda mnt: os.rmdir(mnt / "emptied"),
    "rename": lambda mnt: os.rename(mnt / "file", mnt / "new"),
    "rename over file": lambda mnt: os.rename(mnt / "file", mnt / "other"),
    "rename over copied": lambda mnt: os.rename(mnt / "file", mnt / "copied"),
    "rename over whiteout": lambda mnt: os.rename(mnt / "file", mnt / "gone"),
    "rename linked": lambda mnt: os.rename(mnt / "linked", mnt / "new"),
    "rename deeper": lambda mnt: os.rename(mnt / "file", mnt / "dir" / "new"),
}
#: Changes that need redirect_dir=on or metacopy=on.
FEATURES: dict[str, Change] = {
    "rename merged directory": lambda mnt: os.rename(mnt / "dir", mnt / "new"),
    "move merged directory": lambda mnt: os.rename(mnt / "dir", mnt / "own" / "new"),
    "rename merged over emptied": lambda mnt: os.rename(mnt / "dir", mnt / "emptied"),
    "exchange merged directories": lambda mnt: exchange(mnt / "dir", mnt / "empty"),
    "metadata": lambda mnt: os.chmod(mnt / "big", 0o600),
    "rename metadata": lambda mnt: os.rename(mnt / "big", mnt / "own" / "new"),
    "data after metadata": lambda mnt: _append(mnt / "big"),
}
#: Where an attribute keeps owners and modes.
OVERRIDDEN: dict[str, Change] = {
    "create with override": lambda mnt: os.mknod(mnt / "own" / "new", 0o640),
    "mkdir with override": lambda mnt: os.mkdir(mnt / "own" / "new", 0o750),
    "create with override and flags": lambda mnt: os.mknod(mnt / "own" / "new", 0o640),
    "mkdir with override and flags": lambda mnt: os.mkdir(mnt / "own" / "new", 0o750),
    "symlink with override and flags": lambda mnt: os.symlink("target", mnt / "own" / "new"),
}
#: More changes of all sorts.
MORE: dict[str, Change] = {
    "append in upper": lambda mnt: _append(mnt / "up"),
    "truncate linked": lambda mnt: os.truncate(mnt / "linked", 0),
    "truncate big": lambda mnt: os.truncate(mnt / "big", 70_000),
    "extend": lambda mnt: os.truncate(mnt / "file", 100),
    "open to truncate": lambda mnt: os.close(os.open(mnt / "file", os.O_WRONLY | os.O_TRUNC)),
    "open linked to truncate": lambda mnt: os.close(
        os.open(mnt / "linked", os.O_WRONLY | os.O_TRUNC)
    ),
    "truncate in upper": lambda mnt: os.truncate(mnt / "up", 1),
    "chmod linked": lambda mnt: os.chmod(mnt / "linked", 0o600),
    "chmod in upper": lambda mnt: os.chmod(mnt / "up", 0o600),
    "chmod of an open file": lambda mnt: os.chmod(mnt / "up", 0o4711),
    "chown of an open file": lambda mnt: os.chown(mnt / "up", *_SOMEBODY),
    "utime of an open file": lambda mnt: os.utime(mnt / "up", (5, 5)),
    "chown": lambda mnt: os.chown(mnt / "file", *_SOMEBODY),
    "utime": lambda mnt: os.utime(mnt / "file", (5, 5)),
    "setxattr in upper": lambda mnt: os.setxattr(mnt / "up", "user.x", b"y"),
    "removexattr": lambda mnt: os.removexattr(mnt / "other", "user.colour"),
    "allocate": lambda mnt: _allocate(mnt / "file"),
    "copy a range": lambda mnt: _copy_range(mnt / "other", mnt / "file"),
    "sync": lambda mnt: _sync(mnt / "file"),
    "mkdir deeper": lambda mnt: os.mkdir(mnt / "dir" / "new", 0o750),
    "make a fifo": lambda mnt: os.mkfifo(mnt / "new", 0o640),
    "make a fifo over whiteout": lambda mnt: os.mkfifo(mnt / "gone", 0o640),
    "symlink over whiteout": lambda mnt: os.symlink("target", mnt / "gone"),
    "link over whiteout": lambda mnt: os.link(mnt / "file", mnt / "gone"),
    "rename in upper over upper": lambda mnt: os.rename(mnt / "up", mnt / "copied"),
    "rename symlink": lambda mnt: os.rename(mnt / "symlink", mnt / "new"),
    "unlink second name": lambda mnt: os.unlink(mnt / "alias"),
    "unlink second name of a copy": lambda mnt: os.unlink(mnt / "alias"),
    "unlink last name of a copy": lambda mnt: os.unlink(mnt / "linked"),
    "append to what has lost a name": lambda mnt: _append(mnt / "linked"),
    "rename over last name of a copy": lambda mnt: os.rename(mnt / "up", mnt / "linked"),
}
#: What has to be done before some changes, while no call is made to fail.
BEFORE: dict[str, Change] = {
    "sync": lambda mnt: _scribble(mnt / "file"),
    "chmod of an open file": lambda mnt: _append(mnt / "up"),
    "chown of an open file": lambda mnt: _append(mnt / "up"),
    "utime of an open file": lambda mnt: _append(mnt / "up"),
    "data after metadata": lambda mnt: os.chmod(mnt / "big", 0o600),
    "create by somebody": lambda mnt: os.chmod(mnt / "own", 0o777),
    "mkdir by somebody": lambda mnt: os.chmod(mnt / "own", 0o777),
    "create with an ACL": lambda mnt: _set_default_acl(mnt / "own"),
    "mkdir with an ACL": lambda mnt: _set_default_acl(mnt / "own"),
    "create with override and flags": lambda mnt: _hand_down(mnt / "own"),
    "mkdir with override and flags": lambda mnt: _hand_down(mnt / "own"),
    "symlink with override and flags": lambda mnt: _hand_down(mnt / "own"),
    "unlink second name": lambda mnt: os.unlink(mnt / "linked"),
    "unlink second name of a copy": lambda mnt: _append(mnt / "linked"),
    "unlink last name of a copy": _copy_and_leave_one_name,
    "append to what has lost a name": lambda mnt: os.unlink(mnt / "alias"),
    "rename over last name of a copy": _copy_and_leave_one_name,
}
