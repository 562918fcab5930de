"""Detached copies of mounts: mounts and unmounts made elsewhere later do not show in them.

open_tree(2) makes them and needs CAP_SYS_ADMIN over the mount. Where we lack it, a helper process
makes them: it has the capability in a user namespace and mount namespace of its own.
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

# A request to the helper: whether recursive, how access times move; then the path.
_REQUEST: Final = struct.Struct("?Q")
_REPLY: Final = struct.Struct("i")
_LONGEST: Final = 2 * 4096


class Clones:
    """Makes copies of mounts until it is closed. It forks, so not for a process with several
    threads."""

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
        """A descriptor of a copy of the mount through which the directory `fd` was opened, starting
        at that directory. Without `recursive` it contains nothing that is mounted below, with it
        everything that is mounted there now.

        Reading through the copy moves access times as `access_times` (MOUNT_ATTR_*) says, where we
        may choose. EPERM: we may not make a copy. EINVAL: what is mounted below may not be left
        out, or the mount cannot be copied at all. ESTALE: the directory has moved.
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
        # The helper has ended: it may not create namespaces.
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
                # Whatever happens, no other code of the program may run in the child.
                os._exit(0)
        theirs.close()
        self._helper = ours
        return ours


def _serve(requests: socket.socket) -> None:
    """Serve requests in the helper, in namespaces of its own, until the other end is closed."""
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
        # Otherwise later mounts on the original would propagate to the copy.
        syscalls.make_private(fd, recursive=recursive)
        # In a user namespace the kernel keeps these flags as they were.
        with contextlib.suppress(PermissionError):
            syscalls.set_access_times(fd, access_times, recursive=recursive)
    except BaseException:
        os.close(fd)
        raise
    return fd
