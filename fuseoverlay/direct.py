"""Requests that are answered at once, without pyfuse3 and a task of their own.

Where nothing has to be waited for, the extension calls these functions with the body of a
request; they return the payload of the reply, an error number, or NotImplemented: then
pyfuse3 serves the request. They must not suspend, and change nothing before they are
sure. Structures: <linux/fuse.h>.
"""

from __future__ import annotations

import errno
import functools
import logging
import stat
import struct
from collections.abc import Callable
from typing import Any, Final

from fuseoverlay import attributes, lookup, merge, native
from fuseoverlay.attributes import Attr
from fuseoverlay.inodes import Directory, Inode, generation_of
from fuseoverlay.layers import RealDir
from fuseoverlay.lookup import Real
from fuseoverlay.overlay import Overlay

log = logging.getLogger("fuseoverlay")

_LOOKUP, _FORGET, _GETATTR, _BATCH_FORGET, _READDIRPLUS = 1, 2, 3, 42, 44

_FORGET_IN: Final = struct.Struct("=Q")
_FORGET_ONE: Final = struct.Struct("=QQ")
_READ_IN: Final = struct.Struct("=QQI")
_TIMES: Final = struct.Struct("=QI")
# nodeid, generation, entry_valid, attr_valid, entry_valid_nsec, attr_valid_nsec
_ENTRY: Final = struct.Struct("=QQQQII")
# attr_valid, attr_valid_nsec, dummy
_ATTR_OUT: Final = struct.Struct("=QII")
# ino, size, blocks, three times in seconds, their nanoseconds, mode, nlink, uid, gid, rdev,
# blksize, flags
_ATTR: Final = struct.Struct("=QQQqqqIIIIIIIIII")
_SECOND: Final = 10**9

Answer = bytes | int | None | Any
Function = Callable[["Direct", int, bytes], Answer]


def _bounded(function: Function) -> Callable[..., Answer]:
    """The error boundary: errors become numbers, anything else is a bug."""

    @functools.wraps(function)
    def bounded(self: Direct, ino: int, uid: int, gid: int, pid: int, body: bytes) -> Answer:
        try:
            return function(self, ino, body)
        except OSError as exc:
            return exc.errno or errno.EIO
        except Exception:
            log.exception("bug in %s(%d)", function.__name__, ino)
            return errno.EIO

    return bounded


class Direct:
    """Answers for one overlay. Owns nothing."""

    def __init__(self, ov: Overlay, generation: int, forget: Callable[[int, int], None]) -> None:
        """`generation` of numbers that are our own; `forget` takes (number, count)."""
        self._ov = ov
        self._generation = generation
        self._forget = forget
        ns = round(ov.config.timeout * _SECOND)
        self._valid = divmod(ns, _SECOND)

    def register(self) -> None:
        """Have the extension call us."""
        for opcode, function in (
            (_LOOKUP, self.lookup),
            (_GETATTR, self.getattr),
            (_READDIRPLUS, self.readdirplus),
            (_FORGET, self.forget),
            (_BATCH_FORGET, self.batch_forget),
        ):
            native.call(opcode, function)

    @_bounded
    def lookup(self, ino: int, body: bytes) -> Answer:
        """The entry of a name; absent ones the extension answers itself."""
        parent = self._ov.inodes.directory(ino)
        name = body[:-1]
        lookup.check_name(name)
        index = lookup.index_now(self._ov, parent)
        if index is None:
            return NotImplemented
        if name not in index:
            seconds, ns = self._valid
            return _ENTRY.pack(0, 0, seconds, 0, ns, 0) + bytes(_ATTR.size)
        inode, real = lookup.entry(self._ov, parent, index, name)
        if not self._is_countable(inode, real):
            self._ov.inodes.drop_unused(inode)
            return NotImplemented
        payload = self.entry(attributes.attr_of(self._ov, inode, real))
        inode.nlookup += 1
        return payload

    @_bounded
    def getattr(self, ino: int, body: bytes) -> Answer:
        """Attributes of an inode."""
        inode = self._ov.inodes.get(ino)
        real = lookup.real_of(self._ov, inode)
        if not self._is_countable(inode, real):
            return NotImplemented
        attr = attributes.attr_of(self._ov, inode, real)
        if isinstance(inode, Directory):
            self._note_plain(inode)
        seconds, ns = self._valid if attr.nlink else (0, 0)
        return _ATTR_OUT.pack(seconds, ns, 0) + _packed(attr)

    def _note_plain(self, directory: Directory) -> None:
        """From now on the extension answers for a directory that only the upper has: making
        something in it has the kernel ask again."""
        real = directory.upper
        if real is None or directory.lowers or directory.pinned >= 0:
            return
        if not self._ov.identity.translates(real.layer):
            native.plain[directory.ino] = real

    def _is_countable(self, inode: Inode, real: Real) -> bool:
        """Whether `attributes.attr_of` has all that it needs. Where the directory cannot be
        merged, the handlers that may suspend know what to make of it."""
        if not attributes.is_uncounted(inode, real) or not isinstance(inode, Directory):
            return True
        try:
            return lookup.index_now(self._ov, inode) is not None
        except OSError:
            return False

    def entry(self, attr: Attr) -> bytes:
        """struct fuse_entry_out."""
        seconds, ns = self._valid if attr.nlink else (0, 0)
        generation = generation_of(attr.ino, self._generation)
        return _ENTRY.pack(attr.ino, generation, seconds, seconds, ns, ns) + _packed(attr)

    @_bounded
    def forget(self, ino: int, body: bytes) -> Answer:
        """The kernel drops references to one inode."""
        self._forget(ino, *_FORGET_IN.unpack_from(body))
        return None

    @_bounded
    def batch_forget(self, ino: int, body: bytes) -> Answer:
        """The same of many: a count, 4 bytes of nothing, and pairs."""
        for number, count in _FORGET_ONE.iter_unpack(body[8:]):
            self._forget(number, count)
        return None

    @_bounded
    def readdirplus(self, ino: int, body: bytes) -> Answer:
        """Entries with their attributes. Every one that is not a dot adds to the look-up count
        of its inode."""
        directory = self._ov.inodes.directory(ino)
        index = lookup.index_now(self._ov, directory)
        if index is None:
            return NotImplemented
        _, cookie, size = _READ_IN.unpack_from(body)
        listing = native.listing(size)
        if cookie < merge.FIRST_COOKIE - 1:
            # Of dots the kernel takes the type and the number alone.
            parent = directory.parent or directory
            if cookie < 1:
                listing.add(b".", 1, 0, _dot(directory))
            listing.add(b"..", 2, 0, _dot(parent))
        added = True
        for name, position in index.following(cookie):
            added = self._add(listing, directory, index, name, position)
            if not added:
                break
        payload: bytes = listing.payload()
        return payload if payload or added else NotImplemented

    def _add(
        self, listing: Any, directory: Directory, index: merge.Index, name: bytes, cookie: int
    ) -> bool:
        """False: the reply is full, or the rest is to be asked for again."""
        real_dir = index.plain_lower(name)
        if real_dir is not None and self._is_plain(real_dir):
            fd = self._ov.stack.fd(real_dir)
            device = real_dir.layer.device
            base = self._ov.inodes.base(device)
            added: bool | None = listing.add_lower(
                name, cookie, fd, directory, real_dir, base, device
            )
            if added is not None:
                return added
        try:
            inode, real = lookup.entry(self._ov, directory, index, name)
        except FileNotFoundError:
            return True
        except OSError:
            found = index.find(name)
            is_dir = found is not None and found.is_dir
            attr = attributes.unknown(self._ov, is_dir=is_dir)
            return bool(listing.add(name, cookie, 0, _packed(attr)))
        accepted = False
        try:
            if self._is_countable(inode, real):
                attr = attributes.attr_of(self._ov, inode, real)
                generation = generation_of(attr.ino, self._generation)
                accepted = listing.add(name, cookie, generation, _packed(attr))
        except FileNotFoundError:
            return True
        finally:
            if accepted:
                inode.nlookup += 1
            else:
                self._ov.inodes.drop_unused(inode)
        return accepted

    def _is_plain(self, real: RealDir) -> bool:
        """Whether files of this lower directory are shown as they are."""
        return not real.layer.override


def _dot(directory: Directory) -> bytes:
    return _packed(Attr(directory.ino, stat.S_IFDIR, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))


def _packed(attr: Attr) -> bytes:
    atime, atime_ns = divmod(attr.atime_ns, _SECOND)
    mtime, mtime_ns = divmod(attr.mtime_ns, _SECOND)
    ctime, ctime_ns = divmod(attr.ctime_ns, _SECOND)
    return _ATTR.pack(
        attr.ino, attr.size, attr.blocks, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns,
        attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev & 0xFFFFFFFF, attr.blksize, 0,
    )  # fmt: skip
