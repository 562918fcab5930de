"""The pyfuse3 adapter.

Every handler turns the kernel's numbers into inodes, calls one function of the overlay and turns
its answer into pyfuse3's types. `boundary.handler` is the error boundary: `OSError` becomes the
errno; anything else is a bug, logged and answered EIO, because an exception that pyfuse3 does not
know ends the mount.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol, TypeVar

# Before pyfuse3: the extension has to be found first.
from fuseoverlay.native import extension, opcodes, terms  # isort: skip

import pyfuse3
from pyfuse3 import EntryAttributes, RequestContext, StatvfsData

from fuseoverlay.errors import os_error
from fuseoverlay.fuse import requestlog, requests
from fuseoverlay.fuse.boundary import handler
from fuseoverlay.fuse.direct import Direct, hand_over
from fuseoverlay.fuse.readahead import ReadAhead
from fuseoverlay.layers import trust
from fuseoverlay.overlay import (
    attributes,
    directory,
    files,
    lookup,
    make,
    realobject,
    remove,
    rename,
    staging,
)
from fuseoverlay.overlay.attributes import Attr, Changes
from fuseoverlay.overlay.inodes import Directory, Inode
from fuseoverlay.overlay.lookup import NotMerged
from fuseoverlay.overlay.make import Caller
from fuseoverlay.overlay.owners import Overlay
from fuseoverlay.overlay.ownership import Changer
from fuseoverlay.system import acl

log = logging.getLogger("fuseoverlay")

T = TypeVar("T")

# Copied from the real filesystem as they are.
_STATFS = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree")

_XATTR_REQUESTS: Final = (
    opcodes.SETXATTR, opcodes.GETXATTR, opcodes.LISTXATTR, opcodes.REMOVEXATTR,
)  # fmt: skip

_ALL_GROUPS: Final = range(2**32)


class Asker(Protocol):
    """The process that a request is from."""

    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def pid(self) -> int: ...


class Operations(pyfuse3.Operations):
    """Request handlers for one overlay. Owns nothing."""

    #: Opcodes of requests that do not come through pyfuse3.
    taken: Collection[int] = ()
    #: How many requests are being served.
    under_way = 0
    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(
        self, ov: Overlay, ahead: ReadAhead, *, acls: bool, ready: Callable[[], None]
    ) -> None:
        """`acls`: whether the kernel is to handle ACLs. `ready` is called once the kernel has
        agreed on the protocol."""
        super().__init__()
        self.enable_acl = acls
        self._ov = ov
        self._ahead = ahead
        self._ready = ready
        self._timeout = ov.config.timeout
        # Whether the kernel opens and closes without asking us, see `terms.agree`.
        self._handleless = False

    def init(self) -> None:
        """Called at the kernel's first request, INIT."""
        self._handleless = terms.agree(self.taken, private=self._ov.config.private)
        self._ov.data.may_bind_writers = self._handleless
        if log.isEnabledFor(logging.DEBUG):
            extension.log(requestlog.answered)
        users, groups = self._ov.identity.users, self._ov.identity.groups
        extension.name_strangers(
            (users.stranger, groups.stranger), (users.stand_in, groups.stand_in)
        )
        hand_over(
            self._ov,
            # The extension reads data in the page cache sooner than read-ahead could give it.
            read_listed=not self._ahead.wanted or self._ov.config.readahead != "on",
            acls=self.enable_acl,
        )
        if self._handleless:
            direct = Direct(self._ov, self._forget, acls=self.enable_acl)
            direct.register()
        if self._ov.workdir is not None:
            self._ov.workdir.changed = self._changed
        if self._ov.config.noxattrs:
            terms.refuse(_XATTR_REQUESTS)
        self._ready()

    def _attributes(self, attr: Attr) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(attr.ino)
        entry.generation = self._ov.inodes.generation(attr.ino)
        entry.st_mode = pyfuse3.ModeT(attr.mode)
        entry.st_nlink = attr.nlink
        entry.st_uid = attr.uid
        entry.st_gid = attr.gid
        entry.st_rdev = attr.rdev
        entry.st_size = attr.size
        entry.st_blocks = attr.blocks
        entry.st_blksize = attr.blksize
        entry.st_atime_ns = attr.atime_ns
        entry.st_mtime_ns = attr.mtime_ns
        entry.st_ctime_ns = attr.ctime_ns
        entry.attr_timeout = entry.entry_timeout = self._timeout if attr.nlink else 0
        return entry

    def _changer(self, ino: int, asker: Asker, *, privileged: bool | None = None) -> Changer:
        """Who asks for a change. `privileged`: what the kernel says of the caller's privileges,
        None if it says nothing."""
        if privileged is None:
            privileged = asker.uid == 0
        return Changer(asker.uid, lambda: _groups(asker), privileged, lambda: self._changed(ino))

    def _changed(self, ino: int) -> None:
        """Have the kernel drop its cached mode, link count, times ... It does so without asking us
        anything, because no data is involved."""
        with contextlib.suppress(OSError):
            pyfuse3.invalidate_inode(pyfuse3.InodeT(ino), attr_only=True)

    async def _merging(self, function: Callable[[], T]) -> T:
        """The function's answer. Directories that it needs are merged first."""
        # Keeps a reference: the kernel may not know the directory yet, and nobody else would keep
        # it until the next call.
        merged: Directory | None = None
        while True:
            try:
                return function()
            except NotMerged as exc:
                merged = exc.directory
            try:
                await lookup.index_of(self._ov, merged)
            except OSError:
                merged.countable = False

    async def _status(self, inode: Inode) -> EntryAttributes:
        return self._attributes(await self._merging(lambda: attributes.getattr(self._ov, inode)))

    def _told(self, inode: Inode, real: realobject.Real) -> EntryAttributes:
        return self._attributes(requests.tell(self._ov, inode, real))

    # Names

    @handler
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """A negative answer is an entry too, so that the kernel caches it."""
        parent = self._ov.inodes.directory(parent_inode)
        lookup.check_name(name)
        index = await lookup.index_of(self._ov, parent)
        attr = await self._merging(lambda: requests.look_up(self._ov, parent, index, name))
        if attr is None:
            absent = EntryAttributes()
            absent.st_ino = pyfuse3.InodeT(0)
            absent.entry_timeout = self._timeout
            return absent
        return self._attributes(attr)

    @handler
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            self._forget(ino, count)

    def _forget(self, ino: int, count: int) -> None:
        if self._ov.inodes.forget(ino, count) is not None:
            self._ov.data.drop(ino)
            self._ahead.forget(ino)

    @handler
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        return await self._make(parent_inode, name, mode, ctx, rdev=rdev)

    @handler
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        mode = stat.S_IFDIR | stat.S_IMODE(mode)
        return await self._make(parent_inode, name, mode, ctx)

    @handler
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        return await self._make(parent_inode, name, stat.S_IFLNK | 0o777, ctx, target=target)

    async def _make(
        self,
        parent_inode: int,
        name: bytes,
        mode: int,
        ctx: RequestContext,
        *,
        rdev: int = 0,
        target: bytes = b"",
    ) -> EntryAttributes:
        parent = self._ov.inodes.directory(parent_inode)
        caller = Caller(ctx.uid, ctx.gid, ctx.umask)
        made = await make.make(self._ov, parent, name, mode, caller, rdev=rdev, target=target)
        return self._told(*made)

    @handler
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[pyfuse3.FileInfo, EntryAttributes]:
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        entry = await self._make(parent_inode, name, mode, ctx)
        file = self._ov.inodes.file(entry.st_ino)
        if self._handleless:
            self._ov.data.expect_writes(file)
        else:
            files.opened(self._ov, file, flags, self._changer(file.ino, ctx))
        return _handle(entry.st_ino), entry

    @handler
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        parent = self._ov.inodes.directory(new_parent_inode)
        file = self._ov.inodes.file(inode)
        return self._told(*await make.link(self._ov, file, parent, new_name))

    @handler
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await remove.unlink(self._ov, self._ov.inodes.directory(parent_inode), name)

    @handler
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await remove.rmdir(self._ov, self._ov.inodes.directory(parent_inode), name)

    @handler
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        old = self._ov.inodes.directory(parent_inode_old)
        new = self._ov.inodes.directory(parent_inode_new)
        await rename.rename(self._ov, old, name_old, new, name_new, flags)

    @handler
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        file = self._ov.inodes.file(inode)
        with realobject.pinned_of(self._ov, file) as real:
            return staging.read_link(self._ov, real)

    # Directories

    @handler
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        """The handle is the inode: listings need no state."""
        return self._ov.inodes.directory(inode).ino

    @handler
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        def emit(name: bytes, attr: Attr, cookie: int) -> bool:
            return pyfuse3.readdir_reply(token, name, self._attributes(attr), cookie)

        listed = self._ov.inodes.directory(fh)
        index = await lookup.index_of(self._ov, listed)
        await self._merging(lambda: directory.read(self._ov, listed, index, start_id, emit))

    @handler
    async def releasedir(self, fh: int) -> None:
        """Nothing was opened."""

    @handler
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await files.fsync_directory(self._ov, self._ov.inodes.directory(fh))

    # Data

    @handler
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> pyfuse3.FileInfo:
        """The handle is the inode. O_TRUNC arrives here and not as a setattr."""
        file = self._ov.inodes.file(inode)
        who = self._changer(inode, ctx)
        files.opened(self._ov, file, flags, who)
        if flags & os.O_TRUNC:
            await attributes.setattr(self._ov, file, Changes(size=0), who)
        return _handle(inode)

    @handler
    async def read(  # type: ignore[override]  # any buffer will do
        self, fh: int, off: int, size: int
    ) -> bytes | memoryview:
        file = self._ov.inodes.file(fh)
        data = await files.read(self._ov, file, off, size)
        if not off:
            await self._ahead.read(file)
        return data

    @handler
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        file = self._ov.inodes.file(fh)
        if self._handleless:
            who = self._changer(fh, terms.caller(), privileged=not terms.kills_privileges())
        else:
            writers = file.writers
            who = Changer(0, lambda: writers or (), writers is None, lambda: self._changed(fh))
        return await files.write(self._ov, file, off, buf, who)

    @handler
    async def flush(self, fh: int) -> None:
        """Every write has been answered already. ENOSYS: the kernel does not ask again."""
        raise os_error(errno.ENOSYS)

    @handler
    async def release(self, fh: int) -> None:
        """Nothing was opened."""

    @handler
    async def fsync(self, fh: int, datasync: bool) -> None:
        await files.fsync(self._ov, self._ov.inodes.file(fh), data_only=datasync)

    @handler
    async def poll(self, inode: int, fh: int, handle: object, ctx: RequestContext) -> int:
        """ENOSYS: the kernel answers poll for regular files itself from now on."""
        raise os_error(errno.ENOSYS)

    # Attributes

    @handler
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return await self._status(self._ov.inodes.get(inode))

    @handler
    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        changes = Changes(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            touch=terms.is_touch(),
        )
        target = self._ov.inodes.get(inode)
        # For chown(2) the kernel says the same whoever the caller is.
        is_told = self._handleless and fields.update_size
        privileged = not terms.kills_privileges() if is_told else None
        who = self._changer(inode, ctx, privileged=privileged)
        await attributes.setattr(self._ov, target, changes, who)
        try:
            return await self._status(target)
        except OSError:
            # An error would tell the caller that nothing was changed.
            return await self._status(target)

    @handler
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        """The kernel asks only where the mounting user may do everything (see
        `fuse.fuseoptions`)."""
        self._ov.inodes.get(inode)
        return True

    def _refuse_acl(self, name: bytes) -> None:
        attributes.check_acl(name, acls=self.enable_acl)

    @handler
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        target = self._ov.inodes.get(inode)
        return attributes.getxattr(self._ov, target, name, acls=self.enable_acl)

    @handler
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        target = self._ov.inodes.get(inode)
        return attributes.listxattr(self._ov, target, uid=ctx.uid, acls=self.enable_acl)

    @handler
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        self._refuse_acl(name)
        target = self._ov.inodes.get(inode)
        await attributes.setxattr(self._ov, target, name, value)
        if name == acl.ACCESS and ctx.uid != 0:
            attributes.leave_group(self._ov, target, _groups(ctx))

    @handler
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        self._refuse_acl(name)
        await attributes.removexattr(self._ov, self._ov.inodes.get(inode), name)

    @handler
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        real = attributes.statfs(self._ov)
        shown = StatvfsData()
        for field in _STATFS:
            setattr(shown, field, getattr(real, field))
        shown.f_favail = real.f_favail
        shown.f_namemax = min(real.f_namemax, 255)
        return shown


def _groups(ctx: Asker) -> Collection[int]:
    """The caller's groups; only the primary one if /proc does not tell the others. Root of a user
    namespace may do what a member of any of its groups may."""
    if ctx.uid == 0 and not trust.is_superuser():
        return _ALL_GROUPS
    try:
        return {ctx.gid, *pyfuse3.get_sup_groups(ctx.pid)}
    except (OSError, RuntimeError):
        return {ctx.gid}


def _handle(ino: int) -> pyfuse3.FileInfo:
    """I/O is by inode. The kernel keeps its cached data of the file, which stays right."""
    return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(ino), keep_cache=True)
