"""Handlers for requests that pyfuse3 does not know: the extension passes those on to us.

Same error boundary, same overlay; `fuse.wire` says what the bytes mean. The kernel does without any
ioctl or request that has no handler here.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, ClassVar, Final, NamedTuple

from fuseoverlay.errors import os_error

from fuseoverlay.native import extension, opcodes  # isort: skip

import pyfuse3
import trio
from pyfuse3 import EntryAttributes

from fuseoverlay.fuse import wire
from fuseoverlay.fuse.boundary import handler
from fuseoverlay.fuse.operations import Operations
from fuseoverlay.fuse.readahead import ReadAhead
from fuseoverlay.fuse.wire import Request
from fuseoverlay.layers import trust
from fuseoverlay.overlay import attributes, files, flags, make, realobject
from fuseoverlay.overlay.inodes import File
from fuseoverlay.overlay.make import Caller
from fuseoverlay.overlay.owners import Overlay

# The most bytes that the kernel may copy by one call.
_MOST: Final = 0x7FFFF000


def _write_back(files: Iterable[int]) -> None:
    for ino in files:
        # ENOENT: the kernel has forgotten it.
        with contextlib.suppress(OSError):
            pyfuse3.invalidate_inode(pyfuse3.InodeT(ino))


def _may_keep(request: Request) -> bool:
    """Whether the caller has CAP_FSETID, as far as can be known."""
    return request.uid == 0 and trust.is_superuser()


class _Served(NamedTuple):
    """How a request is served: `function` takes the request and what `decode` made of its body;
    `encode` turns the answer into bytes."""

    function: Callable[..., Awaitable[Any]]
    decode: Callable[[bytes], tuple[Any, ...]]
    encode: Callable[[Any], bytes]


class ExtendedOperations(Operations):
    """All request handlers of one overlay."""

    def __init__(
        self, ov: Overlay, ahead: ReadAhead, *, acls: bool, ready: Callable[[], None]
    ) -> None:
        super().__init__(ov, ahead, acls=acls, ready=ready)
        # Held during a call into the kernel that may not return before we have answered a request.
        self._telling = trio.Lock()
        self._ending = False

    async def stop(self) -> None:
        """Start no more calls that flush mappings, and return when the one under way is done, for
        which WRITEs must still be answered."""
        self._ending = True
        async with self._telling:
            pass

    async def write_back(self, seconds: float) -> bool:
        """Have the kernel send us what was written to shared mappings of any file, while requests
        are still served. False: it took more than `seconds`. A file without changes costs a system
        call."""
        if self._ov.workdir is None:
            return True
        files = iter(self._ov.inodes.regular())
        with trio.move_on_after(seconds) as limit:
            await trio.to_thread.run_sync(_write_back, files, abandon_on_cancel=True)
        # Use up the iterator, so that the thread ends after the file that it is working on.
        for _ in files if limit.cancelled_caught else ():
            pass
        return not limit.cancelled_caught

    async def serve(self, requests: int) -> None:
        """Serve what the eventfd(2) `requests` announces, each request in a task, until
        cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(requests)
                os.eventfd_read(requests)
                for request in extension.take_all():
                    nursery.start_soon(self._answer, *wire.parse(request))

    async def _answer(self, request: Request, body: bytes) -> None:
        error, payload = 0, b""
        served = self.handlers[request.opcode]
        try:
            payload = served.encode(await served.function(self, request, *served.decode(body)))
        except pyfuse3.FUSEError as exc:
            error = exc.errno
        extension.reply(request.unique, error, payload)

    @handler
    async def fallocate(self, request: Request, mode: int, offset: int, length: int) -> None:
        file = self._ov.inodes.file(request.ino)
        who = self._changer(request.ino, request, privileged=_may_keep(request))
        await files.allocate(self._ov, file, mode, offset, length, who)

    @handler
    async def lseek(self, request: Request, offset: int, whence: int) -> int:
        file = self._ov.inodes.file(request.ino)
        if self._ov.workdir is not None:
            await self._write_mappings_back(file)
        return files.seek(self._ov, file, offset, whence)

    async def _write_mappings_back(self, file: File) -> None:
        """Have the kernel send us what was written to shared mappings of the file. It does not do
        so before it asks for holes, and whoever copies the file would miss data.

        This runs in a thread that is none of the overlay's, which those writes may need."""
        async with self._telling:
            if self._ending:
                raise os_error(errno.ENOTCONN)
            await trio.to_thread.run_sync(_write_back, [file.ino], abandon_on_cancel=True)

    @handler
    async def copy_file_range(
        self, request: Request, source_offset: int, target: int, target_offset: int, length: int
    ) -> int:
        return await files.copy_range(
            self._ov,
            self._ov.inodes.file(request.ino),
            source_offset,
            self._ov.inodes.file(target),
            target_offset,
            min(length, _MOST),
            self._changer(target, request, privileged=_may_keep(request)),
        )

    @handler
    async def ioctl(self, request: Request, command: int, argument: bytes) -> bytes:
        """The flags of chattr(1) and lsattr(1) only; the kernel itself asks, on their behalf."""
        inode = self._ov.inodes.get(request.ino)
        for form in (flags.FLAGS, flags.FSXATTR):
            if command == form.get:
                return flags.get(self._ov, inode, form)
            if command == form.set and len(argument) == form.size:
                await flags.put(self._ov, inode, form, argument)
                # The change time has moved; a copy-up changes more than that.
                self._changed(inode.ino)
                return b""
        raise os_error(errno.ENOTTY)

    @handler
    async def statx(self, request: Request) -> tuple[EntryAttributes, int | None]:
        inode = self._ov.inodes.get(request.ino)
        return await self._status(inode), attributes.birth_time(self._ov, inode)

    @handler
    async def tmpfile(self, request: Request, mode: int, umask: int) -> EntryAttributes:
        parent = self._ov.inodes.directory(request.ino)
        caller = Caller(request.uid, request.gid, umask)
        file = await make.make_nameless(self._ov, parent, mode, caller)
        real = realobject.real_of(self._ov, file)
        return self._told(file, real)

    #: By opcode.
    handlers: ClassVar[dict[int, _Served]] = {
        opcodes.FALLOCATE: _Served(fallocate, wire.fallocate, lambda _: b""),
        opcodes.LSEEK: _Served(lseek, wire.lseek, wire.number_reply),
        opcodes.COPY_FILE_RANGE: _Served(copy_file_range, wire.copy_file_range, wire.count_reply),
        opcodes.COPY_FILE_RANGE_64: _Served(
            copy_file_range, wire.copy_file_range, wire.number_reply
        ),
        opcodes.IOCTL: _Served(ioctl, wire.ioctl, wire.ioctl_reply),
        # The answer is the same whatever fields are asked for.
        opcodes.STATX: _Served(statx, lambda _: (), lambda answer: wire.statx_reply(*answer)),
        opcodes.TMPFILE: _Served(tmpfile, wire.tmpfile, wire.create_reply),
    }
    taken: Collection[int] = handlers.keys()
