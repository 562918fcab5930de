"""Inodes: one object per file of the merged tree that the kernel knows.

`InodeTable` owns every `Inode`, its number and its look-up count. A node id is also the `st_ino`:
it is never given to another file while the kernel holds it.

A directory lives longer, for as long as the kernel knows anything below it: files refer to their
directories, and directories to their parents, so each chain is whole up to the root. The table
finds directories by weak references, so those that nothing needs are freed.
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
    """How to reach an upper object that has no name we know."""

    #: An O_PATH descriptor of the object, which the holder owns; or, if `name` is set, a descriptor
    #: of a directory, which the holder does not own.
    fd: int
    #: Its name in that directory; empty: the descriptor is of the object itself.
    name: bytes = b""
    #: Whether the name exists only for the holder, and is removed with it.
    parked: bool = False


class Inode:
    """What files and directories share. `kind` is the shown type, `S_IFREG` and so on."""

    __slots__ = ("generation", "held", "ino", "kind", "nlookup", "protection")

    def __init__(self, ino: int, kind: int) -> None:
        self.ino = ino
        self.kind = kind
        self.nlookup = 0
        #: Sent with the number. It must not change while the kernel knows the inode: with another
        #: one the kernel would take it for another file.
        self.generation = 0
        #: How to reach an upper object that has no name we know; set by the table.
        self.held: Held | None = None
        #: See `protection`; None: not read yet.
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
        #: Where the data is, if the file with the metadata has none (metacopy).
        self.data: Place | None = None
        #: The objects seen at these places of lowers; another one may be there later.
        self.lower_seen: Sighting | None = None
        self.data_seen: Sighting | None = None
        #: Names by which the kernel knows it, in order; a dictionary, since there may be many.
        self.names: dict[tuple[Directory, bytes], None] = {}
        #: Real (device, inode) pairs under which the table finds it.
        self.keys: list[tuple[int, int]] = []
        #: If the names of a lower file are kept apart: the one by which this file is found.
        self.alone: tuple[Directory, bytes] | None = None
        #: How many of the file's lower names whiteouts hide.
        self.hidden = 0
        #: The link count of a file in the index of hard links; 0: the real one counts.
        self.links = 0
        #: Held during copy-up.
        self.lock: trio.Lock | None = None
        #: The groups common to all that opened it for writing without CAP_FSETID: their writes
        #: clear setuid. None: nobody did.
        self.writers: frozenset[int] | None = None

    @property
    def in_upper(self) -> bool:
        """Whether what counts is in the upper, with a name or without."""
        return self.upper is not None or self.held is not None

    def check_upper(self, st: os.stat_result) -> None:
        """ESTALE if this is not the status of the upper object: somebody has put another one in its
        place by the upper's own path."""
        if stat_key(st) not in self.keys:
            raise os_error(errno.ESTALE)

    def links_of(self, st: os.stat_result) -> int:
        """The link count of the upper object with this status, less a name that only holds it."""
        return st.st_nlink - (self.held is not None and self.held.parked)


class Directory(Inode):
    """A directory: its places in the upper and the lowers, which are merged on first use."""

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
        #: Whether it has flags that new objects in it inherit; None: not read yet.
        self.hands_down: bool | None = None
        self.index: Index | None = None
        #: Whether we may read it, which counting its subdirectories requires.
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
    """Release what the holder owns: a descriptor, or the parked name of a file or an empty
    directory."""
    if not held.name:
        os.close(held.fd)
    elif held.parked:
        try:
            os.unlink(held.name, dir_fd=held.fd)
        except IsADirectoryError:
            tidy(os.rmdir, held.name, dir_fd=held.fd)
        except OSError as exc:
            log.warning("a name in the work directory stays until the next mount: %s", exc)
