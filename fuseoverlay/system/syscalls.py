"""System calls that the `os` module lacks, as thin functions that raise `OSError`.

Numbers and structures are the kernel's ABI, for x86-64 and for architectures with the generic
system call table, which agree on the numbers of all calls used here.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import struct
import sys
from ctypes import c_int, c_long, c_size_t, c_uint, c_void_p
from typing import Final

from fuseoverlay.errors import os_error
from fuseoverlay.system.descriptors import open_file

AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
_AT_SYMLINK_NOFOLLOW: Final = 0x100

#: Flags to open a directory for listing, never through a symbolic link.
DIR_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4

STATX_ATTR_IMMUTABLE: Final = 0x10
STATX_ATTR_APPEND: Final = 0x20
_STATX_BTIME: Final = 0x800

FALLOC_FL_KEEP_SIZE: Final = 1

# linux/fs.h. The argument of the first two is an int, although their numbers encode a long.
FS_IOC_GETFLAGS: Final = 0x80086601
FS_IOC_SETFLAGS: Final = 0x40086602
FS_IOC_FSGETXATTR: Final = 0x801C581F
FS_IOC_FSSETXATTR: Final = 0x401C5820
FS_SYNC_FL: Final = 0x08
FS_IMMUTABLE_FL: Final = 0x10
FS_APPEND_FL: Final = 0x20
FS_NOATIME_FL: Final = 0x80
#: Those that some filesystem hands down to what is made in a directory: s, u, c, S, d, A, no
#: compression, j, t, D, C, x, P, F of chattr(1).
FS_INHERITED_FL: Final = 0x6281_C4CF
FS_XFLAG_IMMUTABLE: Final = 0x08
FS_XFLAG_APPEND: Final = 0x10

RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08

_SYS_OPENAT2: Final = 437
_SYS_CACHESTAT: Final = 451
_SYNC_FILE_RANGE_WAIT_BEFORE: Final = 1
_SYNC_FILE_RANGE_WRITE: Final = 2
_SYNC_FILE_RANGE_WAIT_AFTER: Final = 4
# _IOW(0x94, 9, int), linux/fs.h
_FICLONE: Final = 0x40049409
# _IOR(0x15, 0, struct fsuuid2), linux/fs.h since Linux 6.9
_FS_IOC_GETFSUUID: Final = 0x80111500
_MAX_HANDLE_SZ: Final = 128
# Pieces of a long path stay below PATH_MAX (4096 with the final NUL).
_PIECE: Final = 4000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = c_long
_renameat2 = _libc.renameat2
_renameat2.argtypes = (c_int, ctypes.c_char_p, c_int, ctypes.c_char_p, c_uint)
_name_to_handle_at = _libc.name_to_handle_at
_name_to_handle_at.argtypes = (c_int, ctypes.c_char_p, c_void_p, c_void_p, c_int)
_open_by_handle_at = _libc.open_by_handle_at
_open_by_handle_at.argtypes = (c_int, c_void_p, c_int)
_fallocate = _libc.fallocate
_fallocate.argtypes = (c_int, c_int, ctypes.c_int64, ctypes.c_int64)
_syncfs = _libc.syncfs
_syncfs.argtypes = (c_int,)
_sync_file_range = _libc.sync_file_range
_sync_file_range.argtypes = (c_int, ctypes.c_int64, ctypes.c_int64, c_uint)
_fstatfs = _libc.fstatfs
_fstatfs.argtypes = (c_int, c_void_p)

# musl has only the second name.
_getdents = getattr(_libc, "getdents64", None) or _libc.getdents
_getdents.argtypes = (c_int, c_void_p, c_size_t)
_statx = _libc.statx
_statx.argtypes = (c_int, ctypes.c_char_p, c_int, c_uint, c_void_p)


class _OpenHow(ctypes.Structure):
    """`struct open_how` of openat2(2)."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def _fail(name: bytes | None = None) -> OSError:
    code = ctypes.get_errno()
    return os_error(code, name)


def renameat2(src_dir: int, src: bytes, dst_dir: int, dst: bytes, flags: int = 0) -> None:
    """Rename with RENAME_NOREPLACE, RENAME_EXCHANGE or RENAME_WHITEOUT; renameat2(2)."""
    if _renameat2(src_dir, src, dst_dir, dst, flags) != 0:
        raise _fail(src)


def openat2(dir_fd: int, path: bytes, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """Open `path` below `dir_fd` under the RESOLVE_* restrictions; openat2(2).

    Returns a close-on-exec descriptor. EXDEV: the path would leave the directory. ELOOP: it meets a
    symbolic link.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    while True:
        fd = _libc.syscall(
            c_long(_SYS_OPENAT2),
            c_int(dir_fd),
            ctypes.c_char_p(path),
            ctypes.byref(how),
            c_size_t(ctypes.sizeof(how)),
        )
        if fd >= 0:
            return int(fd)
        # EAGAIN: a concurrent rename left a ".." check inconclusive.
        if ctypes.get_errno() not in (errno.EINTR, errno.EAGAIN):
            raise _fail(path)


def open_beneath(root_fd: int, path: bytes, flags: int) -> int:
    """Open `path` below `root_fd`, following no symbolic link in any component.

    An empty path is the root itself. Paths longer than PATH_MAX are walked in
    pieces. ELOOP: a component is a symbolic link. Errors of openat2(2).
    """
    base = root_fd
    try:
        while len(path) > _PIECE:
            cut = path.rindex(b"/", 0, _PIECE)
            step = openat2(base, path[:cut], os.O_PATH | os.O_DIRECTORY, resolve=_BENEATH)
            if base != root_fd:
                os.close(base)
            base, path = step, path[cut + 1 :]
        return openat2(base, path or b".", flags | os.O_NOFOLLOW, resolve=_BENEATH)
    finally:
        if base != root_fd:
            os.close(base)


_BENEATH: Final = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS


def at(dir_fd: int, name: bytes) -> bytes:
    """A path for calls that have no *at form (xattrs): `name` in the directory `dir_fd`.

    Use with `follow_symlinks=False`. Needs /proc.
    """
    return b"/proc/self/fd/%d/%s" % (dir_fd, name)


def fd_path(fd: int) -> bytes:
    """A path to the very inode of `fd`, which may be O_PATH. Needs /proc."""
    return b"/proc/self/fd/%d" % fd


def open_noatime(name: bytes, flags: int, dir_fd: int | None = None) -> int:
    """Open for reading, without moving the access time if we may."""
    try:
        return open_file(name, flags | os.O_NOATIME, dir_fd=dir_fd)
    except PermissionError:
        return open_file(name, flags, dir_fd=dir_fd)


def clone_file(src_fd: int, dst_fd: int) -> None:
    """Make `dst_fd` share all data with `src_fd` (reflink); ioctl_ficlone(2)."""
    fcntl.ioctl(dst_fd, _FICLONE, src_fd)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Reserve, punch or zero a range, as `mode` says; fallocate(2). May block for long."""
    if _fallocate(fd, mode, offset, length) != 0:
        raise _fail()


def file_flags(fd: int) -> int:
    """The FS_*_FL flags of a regular file or directory; ioctl_iflags(2). ENOTTY if the filesystem
    has none."""
    return int.from_bytes(fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(4)), sys.byteorder)


def set_file_flags(fd: int, flags: int) -> None:
    """Set all FS_*_FL flags; errors of ioctl_iflags(2)."""
    fcntl.ioctl(fd, FS_IOC_SETFLAGS, flags.to_bytes(4, sys.byteorder))


def syncfs(fd: int) -> None:
    """Write the filesystem of `fd` to disk; syncfs(2). May block for long."""
    if _syncfs(fd) != 0:
        raise _fail()


def start_writing(fd: int) -> None:
    """Start writing the data of `fd` to disk without waiting; sync_file_range(2)."""
    if _sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE) != 0:
        raise _fail()


def write_out(fd: int) -> None:
    """Write the data of `fd` to disk and wait for it, but neither write its metadata nor flush the
    disk's cache; sync_file_range(2). May block for long, unless `is_written`."""
    flags = _SYNC_FILE_RANGE_WAIT_BEFORE | _SYNC_FILE_RANGE_WRITE | _SYNC_FILE_RANGE_WAIT_AFTER
    if _sync_file_range(fd, 0, 0, flags) != 0:
        raise _fail()


def is_written(fd: int) -> bool:
    """Whether the page cache holds no data of `fd` that is dirty or being written; cachestat(2),
    since Linux 6.5. False if the kernel does not tell, as of another user's file."""
    # struct cachestat_range: off, len. struct cachestat begins with nr_cache, nr_dirty,
    # nr_writeback.
    found = (ctypes.c_uint64 * 5)()
    whole = (ctypes.c_uint64 * 2)(0, 0)
    done = _libc.syscall(c_long(_SYS_CACHESTAT), c_int(fd), whole, found, c_uint(0))
    return bool(done == 0 and not found[1] and not found[2])


def filesystem_type(fd: int) -> int:
    """The magic number (linux/magic.h) of the filesystem of `fd`; fstatfs(2)."""
    # struct statfs has at most 120 bytes and begins with f_type.
    buffer = ctypes.create_string_buffer(256)
    if _fstatfs(fd, buffer) != 0:
        raise _fail()
    return int(struct.unpack_from("l", buffer)[0]) & 0xFFFFFFFF


def inode_flags(path: bytes, *, follow: bool = False) -> int:
    """The `STATX_ATTR_*` flags of `path`, 0 where the filesystem does not report them; statx(2)."""
    # struct statx: stx_mask, stx_blksize, stx_attributes
    return int(struct.unpack_from("=IIQ", _call_statx(path, 0, follow))[2])


def birth_time(path: bytes, *, follow: bool = False) -> int | None:
    """The birth time of `path` in ns; None if the filesystem does not report it; statx(2)."""
    found = _call_statx(path, _STATX_BTIME, follow)
    if not struct.unpack_from("=I", found)[0] & _STATX_BTIME:
        return None
    # stx_btime
    seconds, nanoseconds = struct.unpack_from("=qI", found, 80)
    return int(seconds * 10**9 + nanoseconds)


def _call_statx(path: bytes, mask: int, follow: bool) -> bytes:
    buffer = ctypes.create_string_buffer(256)
    flags = 0 if follow else _AT_SYMLINK_NOFOLLOW
    if _statx(AT_FDCWD, path, flags, mask, buffer) != 0:
        raise _fail(path)
    return buffer.raw


def file_handle(dir_fd: int, name: bytes) -> tuple[int, bytes]:
    """(handle type, opaque handle) of `name`, without following a symbolic link;
    name_to_handle_at(2).

    An empty name means `dir_fd` itself. EOPNOTSUPP: the filesystem has no handles.
    """
    buffer = ctypes.create_string_buffer(struct.pack("Ii", _MAX_HANDLE_SZ, 0), 8 + _MAX_HANDLE_SZ)
    mount_id = c_int()
    flags = 0 if name else AT_EMPTY_PATH
    if _name_to_handle_at(dir_fd, name, buffer, ctypes.byref(mount_id), flags) != 0:
        raise _fail(name)
    size, kind = struct.unpack_from("Ii", buffer)
    return kind, buffer.raw[8 : 8 + size]


def open_by_handle(fd: int, kind: int, handle: bytes) -> int:
    """An O_PATH descriptor of the file with this handle on the filesystem of `fd`;
    open_by_handle_at(2).

    `fd` must not be O_PATH itself. ESTALE: there is no such file. EPERM without
    CAP_DAC_READ_SEARCH.
    """
    if len(handle) > _MAX_HANDLE_SZ:
        raise os_error(errno.ESTALE)
    buffer = ctypes.create_string_buffer(struct.pack("Ii", len(handle), kind) + handle)
    found = _open_by_handle_at(fd, buffer, os.O_PATH | os.O_CLOEXEC)
    if found < 0:
        raise _fail()
    return int(found)


def filesystem_uuid(fd: int) -> bytes:
    """The 16 bytes of the UUID of `fd`'s filesystem; zeros if the kernel does not report it.

    Not for O_PATH descriptors.
    """
    reply = bytearray(17)
    try:
        fcntl.ioctl(fd, _FS_IOC_GETFSUUID, reply)
    except OSError:
        return bytes(16)
    return bytes(reply[1:17])


_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


def unescaped(field: bytes) -> bytes:
    """A field of /proc/self/mountinfo with its octal escapes decoded; proc_pid_mountinfo(5)."""
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field)


def is_idmapped(fd: int) -> bool:
    """Whether `fd` was opened through an idmapped mount, mount_setattr(2)."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as lines:
        number = next(line.split()[1] for line in lines if line.startswith(b"mnt_id:"))
    with open("/proc/self/mountinfo", "rb") as lines:
        options = [fields[5] for fields in map(bytes.split, lines) if fields[0] == number]
    return any(b"idmapped" in shown.split(b",") for shown in options)


def process_name() -> bytes:
    """A name for this process: its pid namespace and its number there."""
    return os.readlink(b"/proc/self/ns/pid") + b" %d" % os.getpid()


def process_named(name: bytes) -> int:
    """A pidfd of the process with this `process_name`; ESRCH if it is in another pid namespace."""
    namespace, _, number = name.rpartition(b" ")
    if namespace != os.readlink(b"/proc/self/ns/pid"):
        raise os_error(errno.ESRCH)
    return os.pidfd_open(int(number))


def clone_mount(path: bytes, *, recursive: bool = False) -> int:
    """A descriptor of a detached copy of the mount at `path`, starting there; open_tree(2). Without
    `recursive` it contains nothing that is mounted below, with it everything.

    EPERM without CAP_SYS_ADMIN over the mount. EINVAL: what is mounted below may not be left out.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    fd = _libc.syscall(c_long(_SYS_OPEN_TREE), c_int(AT_FDCWD), ctypes.c_char_p(path), c_int(flags))
    if fd < 0:
        raise _fail(path)
    return int(fd)


def make_private(mount: int, *, recursive: bool = False) -> None:
    """Keep mounts and unmounts elsewhere from propagating to a detached mount, with `recursive`
    also to those below it; mount_setattr(2)."""
    _mount_setattr(mount, propagation=_MS_PRIVATE, recursive=recursive)


def set_access_times(mount: int, wanted: int, *, recursive: bool = False) -> None:
    """Let reading through a detached mount move access times as the MOUNT_ATTR_* in `wanted` say;
    mount_setattr(2). EPERM in a user namespace if the mount was copied from outside."""
    clear = _MOUNT_ATTR__ATIME | MOUNT_ATTR_NODIRATIME
    _mount_setattr(mount, wanted, clear, recursive=recursive)


def _mount_setattr(
    mount: int, wanted: int = 0, clear: int = 0, propagation: int = 0, *, recursive: bool
) -> None:
    # struct mount_attr: attr_set, attr_clr, propagation, userns_fd
    attr = struct.pack("QQQQ", wanted, clear, propagation, 0)
    done = _libc.syscall(
        c_long(_SYS_MOUNT_SETATTR),
        c_int(mount),
        ctypes.c_char_p(b""),
        c_int(AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)),
        ctypes.c_char_p(attr),
        c_size_t(len(attr)),
    )
    if done != 0:
        raise _fail()


def note_listing(fd: int) -> None:
    """Move the access time of a directory as listing it does, without reading anything;
    getdents(2). Never fails."""
    # The attempt is enough: without room for an entry the answer is EINVAL.
    _getdents(fd, None, 0)


def unshare(flags: int) -> None:
    """Move this process into new namespaces; unshare(2)."""
    if _libc.unshare(c_int(flags)) != 0:
        raise _fail()


# linux/sched.h
CLONE_NEWNS: Final = 0x20000
CLONE_NEWUSER: Final = 0x10000000

_SYS_OPEN_TREE: Final = 428
_SYS_MOUNT_SETATTR: Final = 442
_OPEN_TREE_CLONE: Final = 1
_AT_RECURSIVE: Final = 0x8000
_MS_PRIVATE: Final = 1 << 18
# linux/mount.h. `_MOUNT_ATTR__ATIME` masks a field, the next three are its values; NODIRATIME is a
# flag of its own.
_MOUNT_ATTR__ATIME: Final = 0x70
MOUNT_ATTR_RELATIME: Final = 0x00
MOUNT_ATTR_NOATIME: Final = 0x10
MOUNT_ATTR_STRICTATIME: Final = 0x20
MOUNT_ATTR_NODIRATIME: Final = 0x80


# linux/fs.h
MNT_FORCE: Final = 1
MNT_DETACH: Final = 2


def umount(path: bytes, flags: int = 0) -> None:
    """Unmount what is mounted at `path`; umount2(2)."""
    if _libc.umount2(ctypes.c_char_p(path), c_int(flags)) != 0:
        raise _fail(path)
