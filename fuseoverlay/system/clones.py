"""Detached copies of mounts: what is mounted or unmounted elsewhere later does not show in them.

open_tree(2) makes them, for whoever has CAP_SYS_ADMIN over the mount. Where we lack it, a process
of ours makes them, which has it in a user namespace and a copy of the mounts of its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from types import TracebackType
from typing import Final, Self

from fuseoverlay.errors import os_error
from fuseoverlay.system import syscalls

# What is asked of the process: whether recursive, how access times move, and then the path.
_REQUEST: Final = struct.Struct("?Q")
_REPLY: Final = struct.Struct("i")
_LONGEST: Final = 2 * 4096


class Clones:
    """Makes copies of mounts, while it is open. Not for a process with several threads."""

    def __init__(self) -> None:
        self._helper: socket.socket | None = None
        self._pid = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._helper is not None:
            self._helper.close()
            os.waitpid(self._pid, 0)

    def of(self, fd: int, access_times: int, *, recursive: bool = False) -> int:
        """A descriptor of a copy of the mount that the directory `fd` was opened through, from that
        directory on. Nothing mounted below is in it, or with `recursive` all that is now.

        Reading through it moves access times as the MOUNT_ATTR_* say, where we may choose. EPERM:
        we may not have one. EINVAL: we may not leave out what is mounted below, or the mount is
        nobody's to copy. ESTALE: the directory has moved.
        """
        try:
            return _clone(syscalls.fd_path(fd), recursive, access_times)
        except PermissionError:
            clone = self._ask(os.readlink(syscalls.fd_path(fd)), recursive, access_times)
        if not os.path.samestat(os.fstat(clone), os.fstat(fd)):
            os.close(clone)
            raise os_error(errno.ESTALE)
        return clone

    def _ask(self, path: bytes, recursive: bool, access_times: int) -> int:
        helper = self._helper or self._start()
        try:
            helper.send(_REQUEST.pack(recursive, access_times) + path)
            reply, fds, _, _ = socket.recv_fds(helper, _REPLY.size, 1, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            reply, fds = b"", []
        if fds:
            return fds[0]
        # It has gone where it may not have namespaces.
        code = _REPLY.unpack(reply)[0] if reply else errno.EPERM
        raise os_error(code, path)

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if not self._pid:
            try:
                ours.close()
                _serve(theirs)
            finally:
                # Whatever happens: nothing else of the program runs twice.
                os._exit(0)
        theirs.close()
        self._helper = ours
        return ours


def _serve(requests: socket.socket) -> None:
    """In the process with namespaces of its own: until the other end is closed."""
    syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
    while request := requests.recv(_LONGEST):
        recursive, access_times = _REQUEST.unpack_from(request)
        try:
            clone = _clone(request[_REQUEST.size :], recursive, access_times)
        except OSError as exc:
            requests.send(_REPLY.pack(exc.errno or errno.EIO))
        else:
            socket.send_fds(requests, [_REPLY.pack(0)], [clone])
            os.close(clone)


def _clone(path: bytes, recursive: bool, access_times: int) -> int:
    fd = syscalls.clone_mount(path, recursive=recursive)
    try:
        # Else what is mounted later on the original would appear in the copy, too.
        syscalls.make_private(fd, recursive=recursive)
        # Not in a user namespace: there the kernel keeps that as it was.
        with contextlib.suppress(PermissionError):
            syscalls.set_access_times(fd, access_times, recursive=recursive)
    except BaseException:
        os.close(fd)
        raise
    return fd
