"""The work directory: objects are built there and published by one rename.

What a crash leaves behind is here and nowhere else; the next mount removes it. The layout is the
kernel's: `work/`, in the directory that the user named, is the staging directory. Other names in
that directory are left alone, as by the kernel. In `work/` only what an overlay may have left is
removed; if there is anything else, the mount is refused, whereas the kernel deletes it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from fuseoverlay.errors import UpperError, describe, printable
from fuseoverlay.layers import usedlowers, whiteout, xattrs
from fuseoverlay.layers.layer import Layer
from fuseoverlay.layers.objects import stat_key
from fuseoverlay.layers.whiteout import Dialect
from fuseoverlay.overlay.claim import (
    INCOMPAT,
    INDEX,
    LINKS,
    STAGING,
    claim,
    foreign,
    mark_of,
    refuse_leftovers,
)
from fuseoverlay.system import acl, syscalls
from fuseoverlay.system.clones import Clones
from fuseoverlay.system.removal import clear
from fuseoverlay.system.syscalls import DIR_FLAGS

log = logging.getLogger("fuseoverlay")

# Filesystem types, from linux/magic.h; ext2 and ext3 have the number of ext4.
_EXT4: Final = 0xEF53
_XFS: Final = 0x58465342

_VOLATILE: Final = b"volatile"
_OTHER_UPPER: Final = "use an upper directory on another filesystem"
_ADVICE: Final = {
    errno.ENOSPC: "free some, or mount with ro",
    errno.EDQUOT: "free some, or mount with ro",
    errno.EROFS: "mount with ro, or use directories elsewhere",
}


class WorkDir:
    """Owns the staging directory, the names in it, and the locks on upper and work directory."""

    def __init__(
        self,
        path: bytes,
        upper: Layer,
        clones: Clones,
        *,
        dialect: Dialect | None = None,
        userxattr: bool = False,
        volatile: bool = False,
        index: bool = True,
    ) -> None:
        """Lock, clean and probe. Raises `UpperError`, and then leaves nothing open.

        `volatile` leaves a mark for which the next mount is refused: nobody knows what of the upper
        has reached the disk. The mark is the kernel's (Documentation/filesystems/overlayfs.rst,
        "Volatile mount").
        """
        self.path = path
        self.upper = upper
        #: Called with the number of each inode that a copy-up changes, since the kernel caches
        #: attributes.
        self.changed: Callable[[int], None] = lambda ino: None
        self._counter = 0
        #: Staging name of the whiteout to which new ones are links.
        self._whiteout: bytes | None = None
        with contextlib.ExitStack() as undo:
            self._root = claim(path, upper, clones)
            undo.callback(os.close, self._root)
            self.key = stat_key(os.fstat(self._root))
            try:
                self.fd = self._prepare_staging(volatile)
                undo.callback(os.close, self.fd)
                self._choose_namespace(userxattr)
                names = (INDEX, LINKS) if index else ()
                self._subdirectories = {name: self._open_subdirectory(name) for name in names}
                self._probe(dialect)
            except OSError as exc:
                raise _unwritable(path, exc) from None
            undo.pop_all()

    def _choose_namespace(self, userxattr: bool) -> None:
        # Probe on the staging directory, never on the upper.
        self.namespace = xattrs.USER if userxattr else whiteout.best_namespace(self.fd)
        if self.namespace not in self.upper.namespaces:
            # The filesystem takes no `trusted.` attributes, so those that we write must count.
            self.upper.namespaces = xattrs.NAMESPACES
        #: Whether the filesystem keeps the overlay's attributes.
        self.has_attributes = whiteout.takes_attributes(self.fd, self.namespace)

    def _probe(self, dialect: Dialect | None) -> None:
        self.dialect = self._probe_whiteouts(dialect)
        self.keeps_order = keeps_order(self.fd)
        self.can_exchange = self._probe_rename(syscalls.RENAME_EXCHANGE)
        self.can_whiteout = self.dialect is Dialect.CHAR and self._probe_rename(
            syscalls.RENAME_WHITEOUT
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            clear(self.fd, keep=[INCOMPAT, *foreign(self.fd)])
        os.close(self.fd)
        for fd in self._subdirectories.values():
            if fd is not None:
                os.close(fd)
        os.close(self._root)

    def note_lowers(self, lowers: Sequence[Layer]) -> None:
        """`usedlowers.note`. Warns if the index of hard links was made over other lowers: it finds
        lower files by their handles."""
        index_fd = self.index_fd()
        indexed = index_fd is not None and bool(os.listdir(index_fd))
        if indexed and usedlowers.are_others(self._root, lowers):
            log.warning(
                "%s: the lower directories are not those of the last mount: each name of a changed "
                "file with several may lead to a file of its own now; fsck says of which",
                printable(self.path),
            )
        usedlowers.note(self._root, lowers)

    def index_fd(self, *, create: bool = False) -> int | None:
        """The directory of links to copies of lower files with several names; None: there is none
        yet."""
        return self._subdirectory(INDEX, create)

    def links_fd(self, *, create: bool = False) -> int | None:
        """The directory of notes on lower files with hidden names; None: there is none yet."""
        return self._subdirectory(LINKS, create)

    def _subdirectory(self, name: bytes, create: bool) -> int | None:
        fd = self._subdirectories.get(name)
        if fd is None and create:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=self._root)
            fd = self._subdirectories[name] = self._open_subdirectory(name)
        return fd

    def _open_subdirectory(self, name: bytes) -> int | None:
        try:
            fd = os.open(name, DIR_FLAGS, dir_fd=self._root)
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            raise UpperError(
                f"{os.fsdecode(name)} in the work directory is not a directory",
                where=self.path,
                hint="remove it, or name an empty directory as workdir",
            ) from None
        try:
            self._own(fd, name)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _own(self, fd: int, name: bytes) -> None:
        """Mark a subdirectory as belonging to this upper, in the kernel's form.

        Refuse one that belongs to another upper: its entries would lead to that one's files.
        """
        mine = mark_of(self.upper)
        stored = xattrs.get_overlay(fd, xattrs.UPPER, self.upper.namespaces)
        if mine is None or stored == mine:
            return
        if stored is not None and os.listdir(fd):
            raise UpperError(
                f"{os.fsdecode(name)} in the work directory belongs to another upper",
                where=self.path,
                hint="use the work directory that belongs to this upper, or an empty one",
            )
        with contextlib.suppress(OSError):
            os.setxattr(fd, self.namespace + xattrs.UPPER, mine)

    def new_name(self) -> bytes:
        """A name for the staging directory that has not been used in this mount yet."""
        self._counter += 1
        return b"#%x" % self._counter

    def make_whiteout(self, staged: bytes, dialect: Dialect, *, shared: bool = True) -> None:
        """Stage a whiteout. Not for `Dialect.OCI`.

        With `shared` all character device whiteouts are links to one, as in the kernel's overlay,
        so that each takes a name but no inode. Without: for a whiteout that is renamed over another
        one; rename(2) does nothing if both are links to one file.
        """
        if dialect is not Dialect.CHAR or not shared:
            whiteout.make(dialect, self.fd, staged, self.namespace)
            return
        if self._whiteout is None:
            name = self.new_name()
            whiteout.make(dialect, self.fd, name, self.namespace)
            self._whiteout = name
        try:
            os.link(
                self._whiteout,
                staged,
                src_dir_fd=self.fd,
                dst_dir_fd=self.fd,
                follow_symlinks=False,
            )
        except OSError:
            # It may have all the links that the filesystem allows: use it up, and make a new one
            # next time.
            name, self._whiteout = self._whiteout, None
            os.rename(name, staged, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def discard(self, staged: bytes) -> bool:
        """Remove a staged object; False: it is a directory that is not empty."""
        try:
            st = os.stat(staged, dir_fd=self.fd, follow_symlinks=False)
            if not stat.S_ISDIR(st.st_mode):
                os.unlink(staged, dir_fd=self.fd)
            else:
                os.rmdir(staged, dir_fd=self.fd)
        except FileNotFoundError:
            pass
        except OSError as exc:
            if exc.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        return True

    def _prepare_staging(self, volatile: bool) -> int:
        with contextlib.suppress(FileExistsError):
            os.mkdir(STAGING, 0o700, dir_fd=self._root)
        fd = os.open(STAGING, DIR_FLAGS, dir_fd=self._root)
        try:
            refuse_leftovers(fd, self.path, self.upper.path)
            clear(fd)
            for name in (acl.DEFAULT, acl.ACCESS):
                # Whatever is created here would inherit it and take it along.
                xattrs.drop_any(fd, name)
            if volatile:
                os.mkdir(INCOMPAT, 0o700, dir_fd=fd)
                os.mkdir(INCOMPAT + b"/" + _VOLATILE, 0o700, dir_fd=fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _probe_whiteouts(self, asked: Dialect | None) -> Dialect:
        """The dialect of new whiteouts. Raises `UpperError` if the filesystem cannot keep the one
        that was asked for; warns if it cannot keep any."""
        if asked is not None and whiteout.keeps(asked, self.fd, self.namespace):
            return asked
        best = whiteout.probe(self.fd, self.namespace)
        if asked is not None:
            better = f"use whiteout={best.value}, or leave it out" if best else _OTHER_UPPER
            raise UpperError(
                f"the filesystem of upperdir keeps no whiteouts of whiteout={asked.value}",
                where=self.upper.path,
                hint=better,
            )
        if best is None:
            log.warning(
                "%s: the filesystem of upperdir keeps no whiteouts: what lower directories have "
                "cannot be deleted or renamed; %s",
                printable(self.upper.path),
                _OTHER_UPPER,
            )
        # If none can be kept, making one of this dialect fails later.
        return best or Dialect.OCI

    def _probe_rename(self, flag: int) -> bool:
        """Whether the filesystem supports this flag of renameat2(2)."""
        a, b = self.new_name(), self.new_name()
        for name in (a, b):
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self.fd))
        try:
            syscalls.renameat2(self.fd, a, self.fd, b, flag)
            left = os.stat(a, dir_fd=self.fd, follow_symlinks=False)
            return flag != syscalls.RENAME_WHITEOUT or whiteout.is_char_whiteout(left)
        except OSError:
            return False
        finally:
            self.discard(a)
            self.discard(b)


def _unwritable(path: bytes, exc: OSError) -> UpperError:
    return UpperError(
        f"workdir cannot be written: {describe(exc)}",
        where=path,
        hint=_ADVICE.get(exc.errno or 0, "it needs to be yours to write"),
    )


def keeps_order(fd: int) -> bool:
    """Whether the filesystem's journal keeps the order of changes: a file that is renamed after its
    data was written out is, after a crash, either there with its data or not there.

    True of ext4 with a journal and of XFS. Both complete the writing of a file only after its
    extents and size are in the journal's running transaction; the rename goes into that or a later
    one; and both flush the disk's cache before a transaction counts. Not true of ext4 without a
    journal, nor of btrfs, which enters extents after the writing has completed.
    """
    try:
        kind = syscalls.filesystem_type(fd)
        if kind != _EXT4:
            return kind == _XFS
        device = os.fstat(fd).st_dev
        link = os.readlink(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
        # The name holds the device and the inode number of the journal, which is always 8.
        return os.path.exists(f"/proc/fs/jbd2/{os.path.basename(link)}-8")
    except OSError:
        return False
