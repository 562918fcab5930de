"""Small-file read-ahead: a reader of a directory's files finds the next ones in the page cache.

Reading a small file costs one READ, and waiting for the answer costs more than all else. So when
the files of a directory are read one after the other, we give the kernel the data of the next ones
unasked (FUSE_NOTIFY_STORE). We do so before we answer the READ: while the reader waits, it asks for
none of them. Read-ahead begins with the second file that is read, or with the first one if that is
also the first in the order of the listing.

It is only for mounts where nobody can write, because the data that we give replaces what is in the
page cache, even if that was just written; and only for mounts whose kernel caches never expire.

Giving data takes the locks of the pages, which the kernel holds while it waits for a READ of the
same file. Three rules prevent a deadlock: data is given in a thread, never on the loop that answers
READs; one batch is given at a time, and a READ that arrives meanwhile is answered without a batch;
a batch never contains the file whose READ waits for it.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

import trio

from fuseoverlay.layers.index import FIRST_POSITION, Index
from fuseoverlay.layers.objects import open_known, sighting
from fuseoverlay.overlay import files
from fuseoverlay.overlay.inodes import File
from fuseoverlay.overlay.owners import Overlay
from fuseoverlay.system.threads import Wait, Worker

log = logging.getLogger("fuseoverlay")

#: Bytes. Larger files take several READs anyway.
LARGEST: Final = 128 << 10
#: Files in the first batch of a directory, and in any batch at most.
FIRST: Final = 16
MOST: Final = 64
# Bytes in a batch.
_BYTES: Final = 1 << 20
# In directories of up to so many entries any order of reading will do: all are soon given.
_SMALL_DIRECTORY: Final = 1024
# Files looked at between two checkpoints; that takes a fraction of a millisecond.
_STEP: Final = 16
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

#: Gives the kernel data of an inode from an offset on. Waits while a READ of the same pages is
#: under way. ENOENT: the kernel does not know the inode.
Store = Callable[[int, int, memoryview], None]


class Window:
    """What was read and given of one directory. A position is an index into `names`."""

    __slots__ = ("done", "end", "names", "reads", "size")

    def __init__(self, names: Sequence[bytes]) -> None:
        self.names = names
        self.begin()

    def begin(self) -> None:
        """Begin again, with nothing read or given."""
        #: 1 for every entry that was read or given, or that cannot be given.
        self.done = bytearray(len(self.names))
        self.reads = 0
        #: How many files the next batch has, and the position where the last one ended.
        self.size = FIRST
        self.end = 0

    def read(self, position: int) -> None:
        """The kernel has asked for a file. It asks once while it keeps the data; if it asks again,
        the others may be gone from the page cache, too."""
        if self.done[position]:
            self.begin()
        self.done[position] = 1
        self.reads += 1
        if self.reads > 2:
            near = abs(position - self.end) <= 2 * self.size
            if near or len(self.names) <= _SMALL_DIRECTORY:
                self.size = min(MOST, self.size * 2)
            else:
                self.size = max(1, self.size // 2)

    def following(self, position: int) -> Iterator[int]:
        """The positions that are not done, from `position` on, then those before it."""
        for begin, end in ((position, len(self.names)), (0, position)):
            found = self.done.find(0, begin, end)
            while found >= 0:
                yield found
                found = self.done.find(0, found + 1, end)


class _Gift(NamedTuple):
    ino: int
    data: memoryview


class _Giver:
    """Gives the kernel batches of files, one at a time."""

    def __init__(self, store: Store, wait: Wait) -> None:
        self._store = store
        self._worker = Worker(wait)

    async def give(self, gifts: Sequence[_Gift]) -> None:
        """Return when the kernel has them. Raises the errors of the store except ENOENT."""
        await self._worker.run(self._give_all, gifts)

    def _give_all(self, gifts: Sequence[_Gift]) -> None:
        for gift in gifts:
            self._give(gift)

    def _give(self, gift: _Gift) -> None:
        try:
            self._store(gift.ino, 0, gift.data)
        except OSError as exc:
            if exc.errno != errno.ENOENT:
                raise


class ReadAhead:
    """Owns the `Window` of each directory of a read-only overlay."""

    def __init__(self, ov: Overlay, store: Store, wait: Wait) -> None:
        self._ov = ov
        self._windows: dict[int, Window] = {}
        self._giver = _Giver(store, wait)
        wanted = ov.config.private and ov.config.readahead != "off"
        self._wanted = wanted and ov.stack.upper is None
        self._busy = trio.Lock()

    async def read(self, file: File) -> None:
        """Called when the kernel has asked for the start of `file` and waits for the answer. Never
        fails."""
        if not self._wanted or not file.names:
            return
        try:
            await self._read(file)
        except OSError as exc:
            log.debug("no more read-ahead: %s", exc)
            self._wanted = False
        except Exception:
            log.exception("bug in read-ahead of %d", file.ino)
            self._wanted = False

    @property
    def wanted(self) -> bool:
        """Whether `read` is to learn of the kernel's reads."""
        return self._wanted

    def forget(self, ino: int) -> None:
        """Called when the kernel has forgotten an inode, which may be a directory."""
        self._windows.pop(ino, None)

    async def stop(self) -> None:
        """Start no more batches, and return when the one under way is done, for which READs must
        still be answered."""
        self._wanted = False
        async with self._busy:
            pass

    async def _read(self, file: File) -> None:
        directory, name = next(reversed(file.names))
        index = directory.index
        found = index.position(name) if index is not None else None
        if index is None or found is None or not self._ov.inodes.knows(directory):
            return
        window = self._windows.get(directory.ino)
        if window is None:
            # Without an upper, the lowers' names are all the names.
            window = self._windows[directory.ino] = Window(list(index.lower))
        position = found - FIRST_POSITION
        if not window.reads and _is_first(index, window, position):
            window.reads = 1
        window.read(position)
        if window.reads < 2 or self._busy.locked():
            return
        async with self._busy:
            gifts = await self._collect(index, window, position)
            if gifts:
                await self._giver.give(gifts)
                log.debug("read-ahead of %d files after %d", len(gifts), file.ino)

    async def _collect(self, index: Index, window: Window, position: int) -> list[_Gift]:
        """The next files after `position` that the kernel knows and whose data is in the page
        cache."""
        gifts: list[_Gift] = []
        size = 0
        for looked, at in enumerate(islice(window.following(position), 2 * window.size), 1):
            if looked % _STEP == 0:
                await trio.lowlevel.checkpoint()
            window.end = at
            gift = self._look(index, window, at)
            if gift is not None:
                gifts.append(gift)
                size += len(gift.data)
            if len(gifts) == window.size or size >= _BYTES:
                break
        return gifts

    def _look(self, index: Index, window: Window, position: int) -> _Gift | None:
        """The data of the entry at `position`, if it can be given. Does not suspend."""
        name = window.names[position]
        real = index.lower[name]
        window.done[position] = 1
        if isinstance(real, tuple):
            return None
        try:
            dir_fd = self._ov.stack.fd(real)
            st = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            # A file with several names may be the very file whose READ waits.
            if not (stat.S_ISREG(st.st_mode) and 0 < st.st_size <= LARGEST and st.st_nlink == 1):
                return None
            ino = self._ov.inodes.known_regular(st)
            data = _read(name, dir_fd, st) if ino is not None else None
        except OSError:
            return None
        if ino is None or data is None:
            window.done[position] = 0
            return None
        return _Gift(ino, data)


def _is_first(index: Index, window: Window, position: int) -> bool:
    """Whether only directories come before it. A program that reads all files in the order of the
    listing begins here, and hardly any other does."""
    before = islice(window.names, position)
    return all(isinstance(index.lower[name], tuple) for name in before)


def _read(name: bytes, dir_fd: int, st: os.stat_result) -> memoryview | None:
    """The whole file, if it is in the page cache and of this size. ESTALE."""
    fd, size = open_known(name, _FLAGS, dir_fd, sighting(st)), st.st_size
    try:
        buffer = bytearray(size + 1)
        count = files.read_nowait(fd, buffer, 0)
    finally:
        os.close(fd)
    return memoryview(buffer)[:size] if count == size else None
