"""The table of inodes: their numbers, their look-up counts, and what holds objects without a name.

A directory outlives the kernel's references to it for as long as the kernel knows anything below
it: files refer to the directories of their names, and directories to their parents.
"""

from __future__ import annotations

import errno
import os
import stat
from types import TracebackType
from typing import Final, Self
from weakref import WeakValueDictionary

from fuseoverlay.errors import os_error
from fuseoverlay.layers.layer import Place, RealDir
from fuseoverlay.layers.objects import sighting, stat_key
from fuseoverlay.overlay import listed
from fuseoverlay.overlay.generations import Generations
from fuseoverlay.overlay.inodes import Directory, File, Held, Inode, release
from fuseoverlay.overlay.listed import Listed
from fuseoverlay.overlay.prepared import Prepared

ROOT: Final = 1
# Real inode numbers use the low 56 bits; the bits above hold the index of their filesystem.
_INO_BITS: Final = 56
_DYNAMIC: Final = 0x7F


def is_own_number(ino: int) -> bool:
    """Whether the number is one of our own, not that of a real file; it is valid in this mount
    only."""
    return ino >> _INO_BITS == _DYNAMIC


class InodeTable:
    """Finds inodes by number and by real file. The root is always in it.

    Most files of an image are only ever listed or looked up. They stay `Listed` tuples until a
    request needs an `Inode`.
    """

    def __init__(
        self,
        prepared: Prepared,
        devices: list[int],
        upper: RealDir | None,
        lowers: tuple[RealDir, ...],
        *,
        most_held: int = 64,
    ) -> None:
        """`devices`: the `st_dev` of each layer, to keep inode numbers of different filesystems
        distinct. `most_held`: the most descriptors to hold for objects without a name."""
        self._prepared = prepared
        self._most_held = most_held
        self._held = 0
        self._holders: set[Inode] = set()
        self._filesystems: dict[int, int] = {}
        self._devices: list[int] = []
        for device in devices:
            self.base(device)
        self._by_ino: dict[int, Inode | listed.Raw] = {}
        self._by_key: dict[tuple[int, int], File] = {}
        self._alone: dict[tuple[Directory, bytes], File] = {}
        # The numbers that `number_apart` has returned.
        self._apart: dict[tuple[int, bytes, tuple[int, int]], int] = {}
        #: All directories that still have a name, whether or not the kernel knows them.
        self._named: WeakValueDictionary[tuple[Directory, bytes], Directory] = WeakValueDictionary()
        self._dynamic = _DYNAMIC << _INO_BITS
        self._generations = Generations()
        self.root = Directory(ROOT, None, b"", upper, lowers)
        self._by_ino[ROOT] = self.root

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        # Free nothing else: the unmount waits for this, and a million objects take a while.
        for inode in list(self._holders):
            self.let_go(inode)

    def __len__(self) -> int:
        return len(self._by_ino)

    @property
    def entries(self) -> dict[int, Inode | listed.Raw]:
        """What the kernel knows, by number; for the extension, which adds the files it lists."""
        return self._by_ino

    def get(self, ino: int) -> Inode:
        """The inode with this number; ESTALE if the kernel should not know it any more."""
        found = self._by_ino.get(ino)
        if found is None:
            raise os_error(errno.ESTALE)
        return self._learn(ino, found) if isinstance(found, tuple) else found

    def _learn(self, ino: int, raw: listed.Raw) -> File:
        """Make an inode of a `Listed` tuple."""
        known = Listed(*raw)
        file = File(ino, known.kind)
        file.nlookup = known.lookups
        file.lower = Place(known.real, known.name)
        file.names[known.parent, known.name] = None
        self.add(file)
        # The generation that the extension sent to the kernel.
        file.generation = 0
        device = self._devices[ino >> _INO_BITS]
        key = device, ino & (1 << _INO_BITS) - 1
        file.lower_seen = *key, *known.ids, known.kind
        self.bind(file, key)
        return file

    def directory(self, ino: int) -> Directory:
        """The same for directories; ENOTDIR."""
        inode = self.get(ino)
        if not isinstance(inode, Directory):
            raise os_error(errno.ENOTDIR)
        return inode

    def file(self, ino: int) -> File:
        """The same for anything but directories; EISDIR."""
        inode = self.get(ino)
        if not isinstance(inode, File):
            raise os_error(errno.EISDIR)
        return inode

    def find(self, key: tuple[int, int]) -> File | None:
        """The file that the real (device, inode) pair belongs to, if the kernel knows it."""
        file = self._by_key.get(key)
        number = self._real_number(key) if file is None else None
        if number is not None:
            found = self._by_ino.get(number)
            if isinstance(found, tuple):
                return self._learn(number, found)
        return file

    def find_alone(self, parent: Directory, name: bytes) -> File | None:
        """The same for one name of a lower file whose names are kept apart."""
        return self._alone.get((parent, name))

    def bind_alone(self, file: File, name: tuple[Directory, bytes]) -> None:
        """Let `find_alone` lead to `file`."""
        self._alone[name] = file
        file.alone = name

    def known_regular(self, st: os.stat_result) -> int | None:
        """The number of the regular lower file with this status, if the kernel knows it and its
        data is its own."""
        key, seen = stat_key(st), sighting(st)
        file = self._by_key.get(key)
        if file is not None:
            plain = file.kind == stat.S_IFREG and file.data is None and not file.in_upper
            return file.ino if plain and file.lower_seen == seen else None
        number = self._real_number(key)
        raw = self._by_ino.get(number) if number is not None else None
        if not isinstance(raw, tuple):
            return None
        known = Listed(*raw)
        same = known.kind == stat.S_IFREG and known.ids == (st.st_uid, st.st_gid)
        return number if same else None

    def regular(self) -> list[int]:
        """The numbers of all regular files that the kernel knows."""
        return [
            ino
            for ino, inode in self._by_ino.items()
            if (Listed(*inode) if isinstance(inode, tuple) else inode).kind == stat.S_IFREG
        ]

    def base(self, device: int) -> int | None:
        """What is added to the real inode numbers on this device; None: there are too many devices,
        so all files on this one get numbers of our own."""
        filesystem = self._filesystems.get(device)
        if filesystem is None:
            filesystem = self._filesystems[device] = len(self._devices)
            self._devices.append(device)
        return filesystem << _INO_BITS if filesystem < _DYNAMIC else None

    def _real_number(self, key: tuple[int, int]) -> int | None:
        """The number derived from that of the real file; None: that does not fit."""
        device, ino = key
        base = self.base(device)
        return base | ino if base is not None and 0 < ino < 1 << _INO_BITS else None

    def generation(self, ino: int) -> int:
        """The generation to send with the number of an inode that the kernel knows or is about to
        learn of."""
        inode = self._by_ino.get(ino)
        return inode.generation if isinstance(inode, Inode) else 0

    def end(self, inode: Inode) -> None:
        """Note that the file is deleted; it may still be open. Its number gets a new generation."""
        self._generations.end(inode.ino)

    def number(self, key: tuple[int, int]) -> int:
        """A free number: the one derived from the real file if unused, else one of our own."""
        number = self._real_number(key)
        return self.own_number() if number is None or number in self._by_ino else number

    def number_apart(self, parent: Directory, name: bytes, key: tuple[int, int]) -> int:
        """The number for one name of a lower file whose names are kept apart: one of our own,
        always the same. Two files must not share a number, even at different times: programs that
        archive a tree would take them for two names of one file."""
        apart = (parent.ino, name, key)
        number = self._apart.get(apart)
        if number is None or number in self._by_ino:
            number = self._apart[apart] = self.own_number()
        return number

    def own_number(self) -> int:
        """A number that no file has, had or will have."""
        self._dynamic += 1
        return self._dynamic

    def add(self, inode: Inode) -> None:
        """Add a new inode under its number, a directory also under its name."""
        self._by_ino[inode.ino] = inode
        inode.generation = self._generations.of(inode.ino, is_own=is_own_number(inode.ino))
        if isinstance(inode, Directory) and inode.parent is not None:
            self._named[inode.parent, inode.name] = inode

    def subdirectory(self, parent: Directory, name: bytes) -> Directory | None:
        """The directory of that name, if it is in the table; the kernel need not know it."""
        return self._named.get((parent, name))

    def recall(self, directory: Directory) -> None:
        """Put a directory that the kernel may have forgotten back into the table: the kernel is
        about to be told of it."""
        if not self.knows(directory):
            if directory.ino in self._by_ino:
                # Another file got the number meanwhile, since the kernel had forgotten this one.
                directory.ino = self.own_number()
                directory.generation = self._generations.of(directory.ino, is_own=True)
            self._by_ino[directory.ino] = directory
            index = directory.index
            if index is not None and index.expires is None:
                self._prepared.names[directory.ino] = index.visible

    def move(self, directory: Directory, parent: Directory, name: bytes) -> None:
        """Record that a directory was renamed."""
        self.unname(directory)
        directory.parent, directory.name = parent, name
        self._named[parent, name] = directory

    def unname(self, directory: Directory) -> None:
        """Record that the name of a directory no longer leads to it, because it was removed, moved
        or replaced."""
        above = directory.parent
        if above is not None and self._named.get((above, directory.name)) is directory:
            del self._named[above, directory.name]

    def is_in_place(self, directory: Directory) -> bool:
        """Whether its path leads to it: neither it nor an ancestor was removed or replaced."""
        step = directory
        while step.parent is not None:
            if self._named.get((step.parent, step.name)) is not step:
                return False
            step = step.parent
        return True

    def bind(self, file: File, key: tuple[int, int]) -> None:
        """Let `find` lead from the real file to `file`, and to no other."""
        if self._by_key.get(key) is not file:
            self.unbind(key)
            self._by_key[key] = file
            file.keys.append(key)

    def unbind(self, key: tuple[int, int]) -> None:
        """Let `find` no longer lead from the real file to any: it was deleted, and another one may
        get its inode number."""
        file = self._by_key.pop(key, None)
        if file is not None:
            file.keys.remove(key)

    def knows(self, inode: Inode) -> bool:
        """Whether the kernel still refers to the inode."""
        return self._by_ino.get(inode.ino) is inode

    def forget(self, ino: int, count: int) -> Inode | None:
        """Subtract from the look-up count; returns the inode if it was removed from the table. None
        for `Listed` tuples."""
        inode = self._by_ino.get(ino)
        if inode is None:
            return None
        if isinstance(inode, tuple):
            self._forget_listed(ino, inode, count)
            return None
        inode.nlookup -= count
        return inode if self.drop_unused(inode) else None

    def _forget_listed(self, ino: int, raw: listed.Raw, count: int) -> None:
        parent, name, real, lookups, kind, has_xattrs, owner = raw
        if lookups > count:
            # A plain tuple: the extension checks for exactly that type.
            self._by_ino[ino] = (parent, name, real, lookups - count, kind, has_xattrs, owner)
        else:
            del self._by_ino[ino]

    def drop_unused(self, inode: Inode) -> bool:
        """Remove the inode from the table if the kernel has no references to it; returns whether
        it did."""
        if inode.nlookup > 0 or inode is self.root or not self.knows(inode):
            return False
        del self._by_ino[inode.ino]
        self.let_go(inode)
        if isinstance(inode, File):
            for key in list(inode.keys):
                self.unbind(key)
            if inode.alone is not None and self._alone.get(inode.alone) is inode:
                del self._alone[inode.alone]
            return True
        self._prepared.forget_directory(inode.ino)
        return True

    @property
    def may_hold(self) -> bool:
        """Whether one more descriptor may be held; if not, a name in the work directory holds the
        object."""
        return self._held < self._most_held

    def hold(self, inode: Inode, held: Held) -> None:
        """Take over `held`, by which an upper object without a name is reached."""
        self.let_go(inode)
        inode.held = held
        self._holders.add(inode)
        self._held += not held.name

    def let_go(self, inode: Inode) -> None:
        """Release what holds the object: it has a name again, or is no longer needed."""
        if inode.held is not None:
            held, inode.held = inode.held, None
            self._holders.discard(inode)
            self._held -= not held.name
            release(held)

    def names_of(self, file: File) -> list[tuple[Directory, bytes]]:
        """The names by which the kernel knows a lower file and that still exist. None are left if
        all were removed through the mount; ESTALE if they are gone because somebody else changed
        the lower."""
        names = [name for name in file.names if self._leads(*name)]
        if file.names and not names:
            raise os_error(errno.ESTALE)
        return names

    def _leads(self, directory: Directory, name: bytes) -> bool:
        """Whether the name still exists and shows an object of a lower."""
        index = directory.index
        shown = index is None or (name in index and name not in index.upper)
        return shown and self.is_in_place(directory)
