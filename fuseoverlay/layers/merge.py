"""Build the merged index of one directory: which names there are, and in which layers.

A directory is scanned once, on first use. From then on a look-up searches no directory, and every
change that we make updates the index in place. Source of the merge rules: kernel
Documentation/filesystems/overlayfs.rst, "Directories" and "whiteouts and opaque directories".
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator, Iterator, Sequence
from itertools import islice
from typing import Final

import trio

from fuseoverlay.layers import whiteout
from fuseoverlay.layers.index import Index, Listing
from fuseoverlay.layers.layer import RealDir
from fuseoverlay.layers.merged import Merged
from fuseoverlay.layers.stack import LayerStack
from fuseoverlay.native import extension

# Directory entries read between two checkpoints: about a millisecond.
_BATCH: Final = 500
# Batches that may be read without a checkpoint.
_SOON: Final = 4
_ENCODING: Final = sys.getfilesystemencoding()


async def scan(
    stack: LayerStack, upper: RealDir | None, lowers: Sequence[RealDir]
) -> tuple[Index, int]:
    """Read the directory in every layer; returns (index, number of `lowers` that count).

    Suspends between batches. `OSError` of opening or reading a directory.
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
    """The same without suspending, for callers that nobody waits for."""
    return next(filter(None, _scan(stack, upper, lowers)))


def scan_soon(
    stack: LayerStack, upper: RealDir | None, lowers: Sequence[RealDir]
) -> tuple[Index, int] | None:
    """The same within a few batches; None if the directory is too large for that."""
    with contextlib.closing(_scan(stack, upper, lowers)) as steps:
        for found in islice(steps, _SOON):
            if found is not None:
                return found
    return None


def at_once(stack: LayerStack, upper: RealDir | None, lowers: tuple[RealDir, ...]) -> Index | None:
    """The index of directories without marks, all of which count, if the extension can read them in
    a few batches; None if they need a closer look."""
    if _plain_until(stack, lowers, 0) < len(lowers):
        return None
    top = Listing()
    if upper is not None:
        found = _list_at_once(stack, upper)
        if found is None:
            return None
        top = found
    below: Merged[RealDir] = Merged()
    size = _SOON * _BATCH
    end, _ = extension.merge(below.names, below.closed, lowers, 0, stack.descriptors, size)
    return Index(top, below.names) if end == len(lowers) else None


def _scan(
    stack: LayerStack, upper: RealDir | None, lowers: Sequence[RealDir]
) -> Generator[tuple[Index, int] | None, None, None]:
    """Steps of a scan: None between batches of entries, and the result at the end."""
    top = Listing()
    if upper is not None:
        found = _list_at_once(stack, upper)
        if found is None:
            yield from _list_directory(stack, upper, top)
        else:
            top = found
    reals = () if top.opaque else tuple(lowers)
    below: Merged[RealDir] = Merged()
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
    """The position, from `start` on, of the first directory with hidden names."""
    for position in range(start, len(reals)):
        if reals[position].layer.hidden and stack.hides(reals[position]):
            return position
    return len(reals)


def _list_at_once(stack: LayerStack, real: RealDir) -> Listing | None:
    """The result of `_list_directory`, by the extension; None if it cannot read the directory."""
    alone: Merged[RealDir] = Merged()
    end, _ = extension.merge(alone.names, alone.closed, (real,), 0, stack.descriptors, _BATCH)
    if not end:
        return None
    # With one directory alone only whiteouts close a name.
    return Listing({n: isinstance(found, tuple) for n, found in alone.names.items()}, alone.closed)


def listing_of(stack: LayerStack, real: RealDir) -> Listing:
    """What one layer's directory holds, its whiteouts apart. OSError."""
    listing = Listing()
    for _ in _list_directory(stack, real, listing):
        pass
    return listing


def _list_directory(stack: LayerStack, real: RealDir, listing: Listing) -> Iterator[None]:
    """Read one layer's directory and separate its whiteouts; pauses between batches."""
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
