"""The merged index of one directory: which names there are, and in which layers.

A directory is scanned once, on first use. From then on a look-up costs no
directory search, and every change that we make updates the index in place.
Source of the merge rules: kernel Documentation/filesystems/overlayfs.rst,
"Directories" and "whiteouts and opaque directories".
"""

from __future__ import annotations

import contextlib
import os
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple

import trio

from fuseoverlay.layers import whiteout
from fuseoverlay.layers.layer import RealDir
from fuseoverlay.layers.stack import LayerStack
from fuseoverlay.native import extension

#: Positions 1 and 2 belong to "." and "..".
FIRST_POSITION: Final = 3
# A cookie is a position and, in the bits above, the end of the pass that it was given in.
_POSITION_BITS: Final = 32
_POSITION_MASK: Final = (1 << _POSITION_BITS) - 1
# Cookies are positive numbers of 64 bits.
_MOST_POSITIONS: Final = (1 << 31) - 1
# Directory entries looked at between two checkpoints: about a millisecond.
_BATCH: Final = 500
# Batches that are looked at without a checkpoint.
_SOON: Final = 4
_ENCODING: Final = sys.getfilesystemencoding()


@dataclass(slots=True)
class Listing:
    """What one layer's directory holds. `masks` are whiteouts that stand at the name
    itself, `wh` are names with a `.wh.NAME` beside them."""

    entries: dict[bytes, bool] = field(default_factory=dict)  # name -> is a directory
    masks: set[bytes] = field(default_factory=set)
    wh: set[bytes] = field(default_factory=set)
    opaque: bool = False


#: A name in the lowers: the directory that holds a non-directory, or every
#: directory that holds a directory of this name, top first.
LowerEntry = RealDir | tuple[RealDir, ...]


class Found(NamedTuple):
    """Where a visible name is: in the upper or not, and in which lower directories."""

    is_dir: bool
    in_upper: bool
    #: Lower directories holding a directory of this name; empty for non-directories.
    lower_dirs: tuple[RealDir, ...] = ()
    #: The lower directory holding a non-directory of this name.
    lower_file: RealDir | None = None


class Index:
    """Names of one merged directory, each at a position in its listing: a name keeps its
    position while it exists, and positions only grow.

    A pass through the listing ends where the positions ended when it began: names that are
    made meanwhile, or renamed to, come too late for it, and so it ends. Nobody tells when a
    pass is over, so nothing is kept of it here: `begun` puts its end into the first cookie, and
    every cookie that follows has it, too.
    """

    __slots__ = (
        "_names",
        "_next",
        "_position_of",
        "_positions",
        "_skip",
        "_subdirectories",
        "expires",
        "lower",
        "masks",
        "stamp",
        "upper",
        "wh",
    )

    def __init__(self, upper: Listing, lower: dict[bytes, LowerEntry]) -> None:
        self.lower = lower
        self.upper = upper.entries
        self.masks = upper.masks
        self.wh = upper.wh
        names = list(self.upper)
        above = self.upper.keys() | self.masks | self.wh
        names += [n for n in lower if n not in above] if above else lower
        self._names = names
        self._positions = list(range(FIRST_POSITION, FIRST_POSITION + len(names)))
        self._position_of = dict(zip(names, self._positions, strict=True))
        self._next = FIRST_POSITION + len(names)
        # Positions in the lists from which everything is gone up to another position: who
        # deletes and starts again meets what is gone once.
        self._skip: dict[int, int] = {}
        # How many visible names are directories; None: nobody has asked yet.
        self._subdirectories: int | None = None
        #: Until when it is good, by time.monotonic(), and of which state of the lowers it tells,
        #: see `fuseoverlay.renewal`; None: for ever.
        self.expires: float | None = None
        self.stamp: tuple[tuple[int, int], ...] | None = None

    def __contains__(self, name: bytes) -> bool:
        return name in self._position_of

    def __len__(self) -> int:
        return len(self._position_of)

    def position(self, name: bytes) -> int | None:
        """The position of a visible name."""
        return self._position_of.get(name)

    def find(self, name: bytes) -> Found | None:
        """Where the visible name is; None: there is no such name."""
        if name not in self._position_of:
            return None
        below = self.lower.get(name) if name not in self.wh else None
        is_dir = self.upper.get(name)
        if is_dir is None:
            if isinstance(below, tuple):
                return Found(True, False, lower_dirs=below)
            return Found(False, False, lower_file=below)
        if is_dir:
            return Found(True, True, lower_dirs=below if isinstance(below, tuple) else ())
        return Found(False, True, lower_file=below if isinstance(below, RealDir) else None)

    def plain_lower(self, name: bytes) -> RealDir | None:
        """The lower directory of a visible name that only lowers have, and that is no directory
        there."""
        if name in self.upper:
            return None
        below = self.lower.get(name)
        return None if isinstance(below, tuple) else below

    def covers(self, name: bytes) -> bool:
        """Whether a lower layer would show through if the upper had nothing at `name`."""
        return name in self.lower

    def subdirectories(self) -> int:
        """Number of visible directories: counted once, then kept true by every change."""
        if self._subdirectories is None:
            self._subdirectories = sum(map(self._is_directory, self._position_of))
        return self._subdirectories

    def _is_directory(self, name: bytes) -> bool:
        is_dir = self.upper.get(name)
        return isinstance(self.lower[name], tuple) if is_dir is None else is_dir

    def _recount(self, name: bytes, is_dir: bool) -> None:
        """Before a change: `name` will be a directory, or not, or be gone."""
        if self._subdirectories is not None:
            was_dir = name in self._position_of and self._is_directory(name)
            self._subdirectories += is_dir - was_dir

    def put(self, name: bytes, is_dir: bool) -> None:
        """The upper now holds `name`, and no whiteout of it."""
        self._recount(name, is_dir)
        self.upper[name] = is_dir
        self.masks.discard(name)
        self.wh.discard(name)
        if name not in self._position_of:
            self._append(name)

    def _append(self, name: bytes) -> None:
        if self._next == _MOST_POSITIONS:
            self._renumber()
        self._position_of[name] = self._next
        self._positions.append(self._next)
        self._names.append(name)
        self._next += 1

    def relower(self, lower: dict[bytes, LowerEntry]) -> None:
        """The lowers now hold this. Names that stay keep their positions."""
        self.lower = lower
        self._subdirectories = None
        for name in [n for n in self._position_of if n not in self.upper and n not in lower]:
            self.remove(name)
        for name in lower:
            known = name in self._position_of or name in self.masks or name in self.wh
            if not known and name not in self.upper:
                self._append(name)

    def remove(self, name: bytes) -> None:
        """The upper no longer holds `name`, and nothing shows through."""
        self._recount(name, False)
        self.upper.pop(name, None)
        if self._position_of.pop(name, None) is not None and len(self._names) > 64 + 2 * len(self):
            self._compact()

    def hide(self, name: bytes, *, oci: bool) -> None:
        """The upper now holds a whiteout of `name`: a `.wh.NAME` if `oci`, else in its place."""
        self.remove(name)
        (self.wh if oci else self.masks).add(name)

    def conceal(self, name: bytes) -> None:
        """A visible file has turned out to be a whiteout, in a directory that is not marked for
        such. No position moves: somebody may just be listing."""
        if self.upper.pop(name, None) is None:
            del self.lower[name]
        else:
            self.masks.add(name)
        del self._position_of[name]

    def _compact(self) -> None:
        kept = [
            (c, n)
            for c, n in zip(self._positions, self._names, strict=True)
            if self._position_of.get(n) == c
        ]
        self._positions = [c for c, _ in kept]
        self._names = [n for _, n in kept]
        self._skip.clear()

    @property
    def visible(self) -> dict[bytes, int]:
        """The visible names; the dictionary itself, which every change keeps true."""
        return self._position_of

    def _renumber(self) -> None:
        """Begin with small positions again, two thousand million names after the scan. The
        passes that are under way right now end early."""
        self._compact()
        self._next = FIRST_POSITION + len(self._names)
        self._positions = list(range(FIRST_POSITION, self._next))
        self._position_of.update(zip(self._names, self._positions, strict=True))

    def begun(self, cookie: int) -> int:
        """The cookie itself, or what stands for 0, with which a pass begins: "list what there is
        now"."""
        return cookie or self._next << _POSITION_BITS

    def following(self, cookie: int) -> Iterator[tuple[bytes, int]]:
        """The entries after `cookie`, as `after` gives them, while nothing changes."""
        start, end, its_pass = self._rest(cookie)
        for at in range(start, end):
            name, position = self._names[at], self._positions[at]
            if self._position_of.get(name) == position:
                yield name, its_pass | position

    def after(self, cookie: int) -> tuple[bytes, int] | None:
        """The entry that follows `cookie` in the listing, with its own cookie."""
        start, end, its_pass = self._rest(cookie)
        at = start
        while at < end:
            name, position = self._names[at], self._positions[at]
            if self._position_of.get(name) == position:
                break
            at = self._skip.get(at, at + 1)
        if at != start:
            self._skip[start] = at
        return (name, its_pass | position) if at < end else None

    def _rest(self, cookie: int) -> tuple[int, int, int]:
        """Where in the lists the rest of a pass begins and ends, and the bits of its cookies."""
        cookie = self.begun(cookie)
        start = bisect_right(self._positions, cookie & _POSITION_MASK)
        end = bisect_left(self._positions, cookie >> _POSITION_BITS)
        return start, end, cookie & ~_POSITION_MASK


def dots_seen(cookie: int) -> int:
    """How many of "." and ".." are before a cookie that is not 0, see `Index.begun`."""
    return min(cookie & _POSITION_MASK, FIRST_POSITION - 1)


async def scan(
    stack: LayerStack, upper: RealDir | None, lowers: Sequence[RealDir]
) -> tuple[Index, int]:
    """Read the directory in every layer; (index, number of `lowers` that count).

    Suspends between batches. Raises `OSError` of opening or reading a directory.
    """
    with contextlib.closing(_scan(stack, upper, lowers)) as steps:
        for found in steps:
            if found is not None:
                return found
            await trio.lowlevel.checkpoint()
    raise RuntimeError("a scan without result")


def scan_nowait(
    stack: LayerStack, upper: RealDir | None, lowers: Sequence[RealDir]
) -> tuple[Index, int]:
    """The same without suspending, for where nobody waits."""
    return next(filter(None, _scan(stack, upper, lowers)))


def scan_soon(
    stack: LayerStack, upper: RealDir | None, lowers: Sequence[RealDir]
) -> tuple[Index, int] | None:
    """The same where it takes no longer than some batches; None: it would."""
    with contextlib.closing(_scan(stack, upper, lowers)) as steps:
        for found in islice(steps, _SOON):
            if found is not None:
                return found
    return None


def at_once(stack: LayerStack, upper: RealDir | None, lowers: tuple[RealDir, ...]) -> Index | None:
    """The index of directories that have no marks, so that all of them count, if the extension
    can read them in a few batches; None: they take a closer look."""
    if _plain_until(stack, lowers, 0) < len(lowers):
        return None
    top = Listing()
    if upper is not None:
        found = _list_at_once(stack, upper)
        if found is None:
            return None
        top = found
    below = Merged()
    size = _SOON * _BATCH
    end, _ = extension.merge(below.names, below.closed, lowers, 0, stack.descriptors, size)
    return Index(top, below.names) if end == len(lowers) else None


def _scan(
    stack: LayerStack, upper: RealDir | None, lowers: Sequence[RealDir]
) -> Generator[tuple[Index, int] | None, None, None]:
    """Steps of a scan: None between batches of entries, at last the result."""
    top = Listing()
    if upper is not None:
        found = _list_at_once(stack, upper)
        if found is None:
            yield from _list_directory(stack, upper, top)
        else:
            top = found
    reals = () if top.opaque else tuple(lowers)
    below = Merged()
    end = 0
    while end < len(reals):
        plain = reals[: _plain_until(stack, reals, end)]
        end, full = extension.merge(
            below.names, below.closed, plain, end, stack.descriptors, _BATCH
        )
        if full:
            yield None
        elif end < len(reals):
            listing = Listing()
            yield from _list_directory(stack, reals[end], listing)
            for name in stack.hides(reals[end]):
                listing.entries.pop(name, None)
            below.add(reals[end], listing)
            end += 1
            if listing.opaque:
                break
    yield Index(top, below.names), end


def _plain_until(stack: LayerStack, reals: Sequence[RealDir], start: int) -> int:
    """The position from `start` on of the first directory of which not all names show."""
    for position in range(start, len(reals)):
        if reals[position].layer.hidden and stack.hides(reals[position]):
            return position
    return len(reals)


class Merged:
    """The names that lower directories show together. They are added from the top on, here or
    by the extension."""

    __slots__ = ("closed", "names")

    def __init__(self) -> None:
        self.names: dict[bytes, LowerEntry] = {}
        #: Names at which nothing further down counts; files hide what is below them anyway.
        self.closed: set[bytes] = set()

    def add(self, real: RealDir, listing: Listing) -> None:
        """Add what the next directory holds."""
        names, closed = self.names, self.closed
        for name, is_dir in listing.entries.items():
            if name in closed:
                continue
            above = names.get(name)
            if above is None:
                names[name] = (real,) if is_dir else real
            elif isinstance(above, tuple):
                if is_dir:
                    names[name] = (*above, real)
                else:
                    closed.add(name)
        # A whiteout acts on the layers below, never on its own.
        closed |= listing.masks
        closed |= listing.wh


def _list_at_once(stack: LayerStack, real: RealDir) -> Listing | None:
    """The same as `_list_directory`, by the extension."""
    alone = Merged()
    end, _ = extension.merge(alone.names, alone.closed, (real,), 0, stack.descriptors, _BATCH)
    if not end:
        return None
    # Of one directory alone only whiteouts are closed.
    return Listing({n: isinstance(found, tuple) for n, found in alone.names.items()}, alone.closed)


def _list_directory(stack: LayerStack, real: RealDir, listing: Listing) -> Iterator[None]:
    """Read one layer's directory and sort out its whiteouts; stops between batches."""
    special: list[bytes] = []
    files: list[bytes] = []
    with stack.listing_fd(real) as fd:
        mark = whiteout.opaque_value(fd, real.layer.namespaces)
        listing.opaque = whiteout.is_opaque_value(mark)
        seen = 0
        with os.scandir(fd) as entries:
            for entry in entries:
                _sort_in(entry, listing, special, files)
                seen += 1
                if seen % _BATCH == 0:
                    yield
        for name in special:
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if whiteout.is_char_whiteout(st):
                del listing.entries[name]
                listing.masks.add(name)
        if mark == whiteout.OPAQUE_XATTR_WHITEOUTS:
            for name in files:
                if whiteout.is_xattr_whiteout(fd, name, real.layer.namespaces):
                    del listing.entries[name]
                    listing.masks.add(name)


def _sort_in(
    entry: os.DirEntry[str], listing: Listing, special: list[bytes], files: list[bytes]
) -> None:
    name = entry.name.encode(_ENCODING, "surrogateescape")
    if name.startswith(whiteout.WH_PREFIX):
        target = whiteout.oci_target(name)
        if target is not None:
            listing.wh.add(target)
            return
        if name == whiteout.WH_OPAQUE:
            listing.opaque = True
        if name.startswith(whiteout.WH_META_PREFIX):
            return
    if entry.is_file(follow_symlinks=False):
        listing.entries[name] = False
        files.append(name)
        return
    is_dir = entry.is_dir(follow_symlinks=False)
    listing.entries[name] = is_dir
    if not is_dir and not entry.is_symlink():
        special.append(name)
