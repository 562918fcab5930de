"""The merged index of one directory: which layers hold each name, and its position in a listing."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from fuseoverlay.layers.layer import RealDir

#: Positions 1 and 2 belong to "." and "..".
FIRST_POSITION: Final = 3
# A cookie is a position and, in the bits above, the end of the pass for which it was given.
_POSITION_BITS: Final = 32
_POSITION_MASK: Final = (1 << _POSITION_BITS) - 1
# Cookies are positive 64-bit numbers.
_MOST_POSITIONS: Final = (1 << 31) - 1


@dataclass(slots=True)
class Listing:
    """What one layer's directory holds. `masks`: names at which the whiteout itself stands; `wh`:
    names that a `.wh.NAME` beside them hides."""

    entries: dict[bytes, bool] = field(default_factory=dict)  # name -> is a directory
    masks: set[bytes] = field(default_factory=set)
    wh: set[bytes] = field(default_factory=set)
    opaque: bool = False


#: A name in the lowers: the directory that holds a non-directory of this name, or all directories
#: that hold a directory of this name, top first.
LowerEntry = RealDir | tuple[RealDir, ...]


class Found(NamedTuple):
    """Where a visible name is: whether in the upper, and in which lower directories."""

    is_dir: bool
    in_upper: bool
    #: The lower directories that hold a directory of this name; empty for non-directories.
    lower_dirs: tuple[RealDir, ...] = ()
    #: The lower directory that holds a non-directory of this name.
    lower_file: RealDir | None = None


class Index:
    """The names of one merged directory, each at a position in its listing. A name keeps its
    position while it exists, and positions only grow.

    A pass through the listing ends at the last position that existed when it began. Names created
    or renamed meanwhile come after that, so every pass ends. Nobody tells us when a pass is over,
    so the index keeps nothing about it: `begun` puts the end of the pass into the first cookie, and
    all cookies that follow carry it.
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
        # Offset in the lists -> next offset with an entry: everything between is gone. A program
        # that deletes and lists again passes the gap only once.
        self._skip: dict[int, int] = {}
        # The number of visible directories; None: not counted yet.
        self._subdirectories: int | None = None
        #: `expires`: until when the index is valid, by time.monotonic(); `stamp`: which state of
        #: the lowers it reflects, see `renewal`. None: valid for ever.
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
        """Where the visible name is; None if there is no such name."""
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
        """The lower directory of a visible name that only lowers have and that is not a directory
        there."""
        if name in self.upper:
            return None
        below = self.lower.get(name)
        return None if isinstance(below, tuple) else below

    def covers(self, name: bytes) -> bool:
        """Whether a lower would show through if the upper had nothing at `name`."""
        return name in self.lower

    def subdirectories(self) -> int:
        """The number of visible directories: counted once, then updated by every change."""
        if self._subdirectories is None:
            self._subdirectories = sum(map(self._is_directory, self._position_of))
        return self._subdirectories

    def _is_directory(self, name: bytes) -> bool:
        is_dir = self.upper.get(name)
        return isinstance(self.lower[name], tuple) if is_dir is None else is_dir

    def _recount(self, name: bytes, is_dir: bool) -> None:
        """Call before a change; `is_dir`: whether `name` will be a directory afterwards."""
        if self._subdirectories is not None:
            was_dir = name in self._position_of and self._is_directory(name)
            self._subdirectories += is_dir - was_dir

    def put(self, name: bytes, is_dir: bool) -> None:
        """The upper now holds `name` and no whiteout of it."""
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
        """The lowers now hold `lower`. Names that stay keep their positions."""
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
        """The upper now holds a whiteout of `name`: a `.wh.NAME` if `oci`, else at the name
        itself."""
        self.remove(name)
        (self.wh if oci else self.masks).add(name)

    def conceal(self, name: bytes) -> None:
        """A visible file has turned out to be a whiteout in a directory without the mark for such.
        No position moves, since a listing may be under way."""
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
        """The visible names. This is the index's own dictionary, which every change updates."""
        return self._position_of

    def _renumber(self) -> None:
        """Start again with small positions, two billion names after the scan. Passes under way end
        early."""
        self._compact()
        self._next = FIRST_POSITION + len(self._names)
        self._positions = list(range(FIRST_POSITION, self._next))
        self._position_of.update(zip(self._names, self._positions, strict=True))

    def begun(self, cookie: int) -> int:
        """The cookie itself; for 0, which begins a pass, the cookie that means "list what there is
        now"."""
        return cookie or self._next << _POSITION_BITS

    def following(self, cookie: int) -> Iterator[tuple[bytes, int]]:
        """The entries that follow `cookie` in the listing, each with its own cookie. The index must
        not change meanwhile."""
        start, end, its_pass = self._rest(cookie)
        at, passed = start, True
        while at < end:
            name, position = self._names[at], self._positions[at]
            if self._position_of.get(name) != position:
                at = self._skip.get(at, at + 1)
                continue
            if passed:
                self._note_skip(start, at)
                passed = False
            yield name, its_pass | position
            at += 1
        if passed:
            self._note_skip(start, at)

    def _note_skip(self, start: int, end: int) -> None:
        """Nothing is left between these offsets."""
        if end != start:
            self._skip[start] = end

    def _rest(self, cookie: int) -> tuple[int, int, int]:
        """The offsets in the lists at which the rest of a pass begins and ends, and the pass bits
        of its cookies."""
        cookie = self.begun(cookie)
        start = bisect_right(self._positions, cookie & _POSITION_MASK)
        end = bisect_left(self._positions, cookie >> _POSITION_BITS)
        return start, end, cookie & ~_POSITION_MASK


def dots_seen(cookie: int) -> int:
    """How many of "." and ".." come at or before a cookie, which is not 0; see `Index.begun`."""
    return min(cookie & _POSITION_MASK, FIRST_POSITION - 1)
