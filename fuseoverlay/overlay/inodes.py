"""Inodes: one object per file of the merged tree that the kernel knows.

`InodeTable` owns every `Inode`, its number and its look-up count. A node id is
also the `st_ino`: it is never given to another file while the kernel holds it.

A directory is there for longer, as long as anything that the kernel knows lies in it: files know
their directories, and those the directories above, so that each chain is whole up to the root. The
table finds directories by weak references: what nobody needs any more goes by itself.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from typing import NamedTuple

import trio

from fuseoverlay.errors import os_error
from fuseoverlay.layers.index import Index
from fuseoverlay.layers.layer import Place, RealDir
from fuseoverlay.layers.objects import Sighting, stat_key
from fuseoverlay.system.transaction import tidy

log = logging.getLogger("fuseoverlay")


class Held(NamedTuple):
    """How an upper object is reached that has no name we know."""

    #: An O_PATH descriptor of it, the holder's own; or of a directory that somebody else owns.
    fd: int
    #: Its name in that directory; empty: the descriptor is of the object itself.
    name: bytes = b""
    #: Whether the name is there for the holder alone, and goes with it.
    parked: bool = False


class Inode:
    """What files and directories share. `kind` is the shown type, `S_IFREG` and so on."""

    __slots__ = ("generation", "held", "ino", "kind", "nlookup", "protection")

    def __init__(self, ino: int, kind: int) -> None:
        self.ino = ino
        self.kind = kind
        self.nlookup = 0
        #: Told with the number, as long as the kernel knows it: another one would be another file.
        self.generation = 0
        #: The way to an upper object that has no name we know; the table's to set.
        self.held: Held | None = None
        #: See `protection`; None: not asked yet.
        self.protection: bytes | None = None

    @property
    def in_upper(self) -> bool:
        """Whether what counts is in the upper, with a name or without."""
        raise NotImplementedError


class File(Inode):
    """Anything but a directory."""

    __slots__ = (
        "alone",
        "data",
        "data_seen",
        "hidden",
        "keys",
        "links",
        "lock",
        "lower",
        "lower_seen",
        "names",
        "upper",
        "writers",
    )

    def __init__(self, ino: int, kind: int) -> None:
        super().__init__(ino, kind)
        self.upper: Place | None = None
        self.lower: Place | None = None
        #: Where the data is if it is not where the metadata is (metacopy).
        self.data: Place | None = None
        #: What was seen at those places of lowers: what is found there later may be another object.
        self.lower_seen: Sighting | None = None
        self.data_seen: Sighting | None = None
        #: Names by which the kernel knows it now, in order; a dictionary, since they may be many.
        self.names: dict[tuple[Directory, bytes], None] = {}
        #: Real (device, inode) pairs under which the table finds it.
        self.keys: list[tuple[int, int]] = []
        #: The name that it is found by, of a lower file whose names are kept apart.
        self.alone: tuple[Directory, bytes] | None = None
        #: Lower names of the file that whiteouts hide.
        self.hidden = 0
        #: Link count of a file copied up from one of several names; 0: the real one counts.
        self.links = 0
        self.lock: trio.Lock | None = None
        #: The groups that all have who opened it for writing without CAP_FSETID; None: nobody
        #: did. A write ends setuid then.
        self.writers: frozenset[int] | None = None

    @property
    def in_upper(self) -> bool:
        """Whether what counts is in the upper, with a name or without."""
        return self.upper is not None or self.held is not None

    def check_upper(self, st: os.stat_result) -> None:
        """ESTALE where that is not the upper object: somebody has put another one in its place, by
        the upper's own path."""
        if stat_key(st) not in self.keys:
            raise os_error(errno.ESTALE)

    def links_of(self, st: os.stat_result) -> int:
        """Link count of the upper object with this status, but for a name that only holds it."""
        return st.st_nlink - (self.held is not None and self.held.parked)


class Directory(Inode):
    """A directory: where it is in the upper and in the lowers, merged on first use."""

    __slots__ = (
        "__weakref__",
        "countable",
        "hands_down",
        "impure",
        "index",
        "lowers",
        "name",
        "parent",
        "redirect",
        "removed",
        "upper",
    )

    def __init__(
        self,
        ino: int,
        parent: Directory | None,
        name: bytes,
        upper: RealDir | None,
        lowers: tuple[RealDir, ...],
    ) -> None:
        super().__init__(ino, stat.S_IFDIR)
        self.parent = parent
        self.name = name
        self.upper = upper
        self.lowers = lowers
        #: `overlay.redirect` of the upper directory.
        self.redirect: bytes | None = None
        #: Whether `overlay.impure` was set in this mount.
        self.impure = False
        #: Whether it has flags that what is made in it inherits; None: nobody has asked yet.
        self.hands_down: bool | None = None
        self.index: Index | None = None
        #: Whether we may read it, as to count the subdirectories takes.
        self.countable = True
        self.removed = False

    @property
    def in_upper(self) -> bool:
        """Whether the upper has it, with a name or without."""
        return self.upper is not None or self.held is not None

    def real(self) -> RealDir:
        """The topmost real directory."""
        return self.upper if self.upper is not None else self.lowers[0]


def release(held: Held) -> None:
    """End what a holder has for itself: a descriptor, or a name of an object that is no directory
    or an empty one."""
    if not held.name:
        os.close(held.fd)
    elif held.parked:
        try:
            os.unlink(held.name, dir_fd=held.fd)
        except IsADirectoryError:
            tidy(os.rmdir, held.name, dir_fd=held.fd)
        except OSError as exc:
            log.warning("a name in the work directory stays until the next mount: %s", exc)
