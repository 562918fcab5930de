"""Requests that are answered at once, without pyfuse3 and without a task of their own.

The extension calls these functions with the body of a request. They return the payload of the
reply, an errno, or NotImplemented if they would have to wait: then pyfuse3 serves the request. They
must not suspend, and must change nothing before they know that they can answer. Structures:
<linux/fuse.h>.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
import struct
from collections.abc import Callable
from typing import Any, Final

from fuseoverlay.fuse import requests, wire
from fuseoverlay.layers.index import Index
from fuseoverlay.layers.layer import RealDir
from fuseoverlay.native import extension, opcodes
from fuseoverlay.overlay import attributes, lookup, make
from fuseoverlay.overlay.attributes import Attr
from fuseoverlay.overlay.directory import read
from fuseoverlay.overlay.inodes import Directory
from fuseoverlay.overlay.lookup import NotMerged
from fuseoverlay.overlay.make import Caller
from fuseoverlay.overlay.owners import Overlay

log = logging.getLogger("fuseoverlay")

_FORGET_IN: Final = struct.Struct("=Q")
_FORGET_ONE: Final = struct.Struct("=QQ")
_READ_IN: Final = struct.Struct("=QQI")
# Also the reply to a request with room for 0 bytes: size
_XATTR_SIZE: Final = struct.Struct("=I4x")
# attr_valid, attr_valid_nsec, dummy
_ATTR_OUT: Final = struct.Struct("=QI4x")

# Room for an entry of a listing with the longest name.
_ONE_ENTRY: Final = 512

#: How long the kernel may cache an inode without a name: seconds and nanoseconds.
_NEVER: Final = (0, 0)

Answer = bytes | int | None | Any
#: Takes the node id, the caller's uid and gid, and the body.
Function = Callable[["Direct", int, tuple[int, int], bytes], Answer]


def _bounded(function: Function) -> Callable[..., Answer]:
    """The error boundary: an OSError becomes its errno; any other exception is a bug."""

    @functools.wraps(function)
    def bounded(self: Direct, ino: int, uid: int, gid: int, pid: int, body: bytes) -> Answer:
        try:
            return function(self, ino, (uid, gid), body)
        except NotMerged:
            return NotImplemented
        except OSError as exc:
            return exc.errno or errno.EIO
        except Exception:
            log.exception("bug in %s(%d)", function.__name__, ino)
            return errno.EIO

    return bounded


def hand_over(ov: Overlay, *, read_listed: bool, acls: bool) -> None:
    """Give the extension the overlay's prepared answers: see `extension.prepare`."""
    extension.prepare(
        ov.prepared.bound,
        ov.prepared.names,
        ov.prepared.plain,
        ov.inodes.entries,
        ov.stack.descriptors,
        read_listed=read_listed,
        acls=acls,
    )


class Direct:
    """Answers for one overlay. Owns nothing."""

    def __init__(self, ov: Overlay, forget: Callable[[int, int], None], *, acls: bool) -> None:
        """`forget` takes an inode number and a count; `acls`: whether the mount has ACLs."""
        self._ov = ov
        self._acls = acls
        self._forget = forget
        self._valid = wire.split(ov.config.timeout)

    def register(self) -> None:
        """Have the extension call us."""
        for opcode, function in (
            (opcodes.LOOKUP, self.lookup),
            (opcodes.GETATTR, self.getattr),
            (opcodes.GETXATTR, self.getxattr),
            (opcodes.LISTXATTR, self.listxattr),
            (opcodes.CREATE, self.create),
            (opcodes.READDIRPLUS, self.readdirplus),
            (opcodes.FORGET, self.forget),
            (opcodes.BATCH_FORGET, self.batch_forget),
        ):
            extension.call(opcode, function)

    @_bounded
    def lookup(self, ino: int, who: tuple[int, int], body: bytes) -> Answer:
        """The entry of a name. The extension itself answers for most absent names."""
        parent = self._ov.inodes.directory(ino)
        name = body[:-1]
        lookup.check_name(name)
        index = lookup.index_now(self._ov, parent)
        listed = self._listed(parent, index, name) if name in index else None
        if listed is not None:
            return listed
        attr = requests.look_up(self._ov, parent, index, name)
        if attr is None:
            return wire.entry(0, 0, self._valid, _NEVER) + bytes(wire.ATTR_SIZE)
        return self._entry(attr)

    def _listed(self, parent: Directory, index: Index, name: bytes) -> bytes | None:
        """The entry of a plain file of a lower layer, as in a listing; None if it is something
        else."""
        lower = index.plain_lower(name)
        base = self._base(lower)
        if base is None:
            return None
        listing = extension.listing(_ONE_ENTRY)
        if not listing.add_lower(name, 0, parent, lower, *base):
            return None
        # An entry of a listing, struct fuse_direntplus, begins with struct fuse_entry_out.
        payload: bytes = listing.payload()
        return payload[: wire.ENTRY_SIZE]

    def _entry(self, attr: Attr) -> bytes:
        valid = self._valid if attr.nlink else _NEVER
        generation = self._ov.inodes.generation(attr.ino)
        return wire.entry(attr.ino, generation, valid, valid) + _packed(attr)

    @_bounded
    def create(self, ino: int, who: tuple[int, int], body: bytes) -> Answer:
        """Make a regular file and open it."""
        ov = self._ov
        ov.writable()
        parent = ov.inodes.directory(ino)
        index = lookup.index_now(ov, parent)
        mode, umask, name = wire.create(body)
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        inode, real = make.make_now(ov, parent, index, name, mode, Caller(*who, umask))
        ov.data.expect_writes(ov.inodes.file(inode.ino))
        return self._entry(requests.tell(ov, inode, real)) + wire.opened(inode.ino)

    @_bounded
    def getattr(self, ino: int, who: tuple[int, int], body: bytes) -> Answer:
        """Attributes of an inode."""
        inode = self._ov.inodes.get(ino)
        attr = attributes.getattr(self._ov, inode)
        if isinstance(inode, Directory):
            self._note_plain(inode)
        return _ATTR_OUT.pack(*(self._valid if attr.nlink else _NEVER)) + _packed(attr)

    def _note_plain(self, directory: Directory) -> None:
        """Let the extension answer from now on for a directory that only the upper has: after a
        change in it the kernel asks again."""
        real = directory.upper
        if real is None or directory.lowers or directory.held is not None:
            return
        if not self._ov.identity.translates(real.layer) and not self._ov.config.static_nlink:
            self._ov.prepared.plain[directory.ino] = real

    @_bounded
    def getxattr(self, ino: int, who: tuple[int, int], body: bytes) -> Answer:
        """The value of an attribute."""
        name = body[_XATTR_SIZE.size : -1]
        inode = self._ov.inodes.get(ino)
        return _fitting(attributes.getxattr(self._ov, inode, name, acls=self._acls), body)

    @_bounded
    def listxattr(self, ino: int, who: tuple[int, int], body: bytes) -> Answer:
        """The names of all attributes, each ended by a zero byte."""
        inode = self._ov.inodes.get(ino)
        names = attributes.listxattr(self._ov, inode, uid=who[0], acls=self._acls)
        return _fitting(b"".join(name + b"\0" for name in names), body)

    @_bounded
    def forget(self, ino: int, who: tuple[int, int], body: bytes) -> Answer:
        """The kernel drops references to one inode."""
        self._forget(ino, *_FORGET_IN.unpack_from(body))
        return None

    @_bounded
    def batch_forget(self, ino: int, who: tuple[int, int], body: bytes) -> Answer:
        """The same for many inodes: the body is a count, 4 bytes of padding, and pairs."""
        for number, count in _FORGET_ONE.iter_unpack(body[8:]):
            self._forget(number, count)
        return None

    @_bounded
    def readdirplus(self, ino: int, who: tuple[int, int], body: bytes) -> Answer:
        """Entries with their attributes. Each one but `.` and `..` adds 1 to its inode's look-up
        count."""
        directory = self._ov.inodes.directory(ino)
        index = lookup.index_now(self._ov, directory)
        _, cookie, size = _READ_IN.unpack_from(body)
        listing = extension.listing(size)
        # Names from one real directory mostly come in a row, so it is looked up once for all of
        # them.
        known: RealDir | None = None
        base: tuple[int, int, int] | None = None

        def emit(name: bytes, attr: Attr, cookie: int) -> bool:
            generation = self._ov.inodes.generation(attr.ino)
            return bool(listing.add(name, cookie, generation, _packed(attr)))

        def emit_plain(name: bytes, cookie: int) -> bool | None:
            nonlocal known, base
            real = index.plain_lower(name)
            if real is not known:
                known, base = real, self._base(real)
            added: bool | None = None
            if base is not None:
                added = listing.add_lower(name, cookie, directory, real, *base)
            if added is None:
                # The look-up that now follows may close the descriptor.
                known = base = None
            return added

        read(self._ov, directory, index, cookie, emit, emit_plain)
        payload: bytes = listing.payload()
        return payload

    def _base(self, real: RealDir | None) -> tuple[int, int, int] | None:
        """What the extension needs to stat the files of a real directory: its descriptor, the base
        that is added to their inode numbers, and their device. None: they have to be looked up."""
        if real is None or self._ov.identity.translates(real.layer):
            return None
        fd = self._ov.stack.fd(real)
        # The directory may be on another filesystem that is mounted below the layer.
        device = os.fstat(fd).st_dev if real.layer.crosses else real.layer.device
        base = self._ov.inodes.base(device)
        return None if base is None else (fd, base, device)


def _fitting(value: bytes, body: bytes) -> Answer:
    """The answer to a request for an attribute. The body begins with the room that the caller has;
    0 asks for the size. ERANGE if the value does not fit."""
    (room,) = _XATTR_SIZE.unpack_from(body)
    if not room:
        return _XATTR_SIZE.pack(len(value))
    return value if len(value) <= room else errno.ERANGE


def _packed(attr: Attr) -> bytes:
    return wire.attr(
        attr.ino, attr.size, attr.blocks, attr.atime_ns, attr.mtime_ns, attr.ctime_ns,
        attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, attr.blksize,
    )  # fmt: skip
