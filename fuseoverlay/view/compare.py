"""Compare two merged trees: of two images, or of one as of two layers.

Directories that both sides merge from the same directories of the same layers are the same, and so
is all that is below them; of two images on one base most of it is never looked at.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass

from fuseoverlay.view.changes import Kind
from fuseoverlay.view.opened import View, same_content
from fuseoverlay.view.stack import Node, Path, Stack


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two trees."""

    view: View
    stack: Stack

    def key(self, node: Node) -> object:
        """What two nodes have in common that are the same by their origin."""
        dirs = [(self.stack.layers[one.layer].identity, one.row) for one in node.dirs]
        return tuple(dirs) or (self.stack.layers[node.layer].identity, node.row)


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs at a path. `fields`: of what is on both sides, what differs: type, mode, owner,
    size, content, target, device, xattrs, time."""

    kind: Kind
    path: Path
    before: Node | None
    after: Node | None
    fields: tuple[str, ...] = ()


def compare(one: Side, other: Side, *, times: bool = False) -> Iterator[Difference]:
    """What differs, sorted within each directory; parents before what is in them. With `times` also
    modification times. ImageError, OSError where contents have to be read."""
    before, after = one.stack.root, other.stack.root
    fields = tuple(_fields(one, other, before, after, times=times))
    if fields:
        yield Difference(Kind.CHANGED, (), before, after, fields)
    waiting = [(before, after)]
    while waiting:
        before, after = waiting.pop()
        if one.key(before) == other.key(after):
            continue
        inside = []
        for was, now in _pairs(one.stack, other.stack, before, after):
            if was is None or now is None:
                yield from _only(one, was, Kind.REMOVED)
                yield from _only(other, now, Kind.ADDED)
                continue
            if one.key(was) == other.key(now):
                continue
            found = tuple(_fields(one, other, was, now, times=times))
            if found:
                yield Difference(Kind.CHANGED, now.path, was, now, found)
            if was.is_dir and now.is_dir:
                inside.append((was, now))
                continue
            yield from _below(one, was, Kind.REMOVED)
            yield from _below(other, now, Kind.ADDED)
        waiting += reversed(inside)


def _pairs(
    one: Stack, other: Stack, before: Node, after: Node
) -> Iterator[tuple[Node | None, Node | None]]:
    was, now = one.names(before), other.names(after)
    for name in sorted(was.keys() | now.keys()):
        yield (
            one.named(before, name, was[name]) if name in was else None,
            other.named(after, name, now[name]) if name in now else None,
        )


def _only(side: Side, node: Node | None, kind: Kind) -> Iterator[Difference]:
    """All of what is on one side only."""
    if node is not None:
        for inner in side.stack.walk(node):
            removed = kind is Kind.REMOVED
            yield Difference(
                kind, inner.path, inner if removed else None, None if removed else inner
            )


def _below(side: Side, node: Node, kind: Kind) -> Iterator[Difference]:
    """All below a directory; nothing of a file."""
    if not node.is_dir:
        return iter(())
    return (found for found in _only(side, node, kind) if found.path != node.path)


def _fields(
    one: Side, other: Side, before: Node, after: Node, *, times: bool
) -> Iterator[str]:  # fmt: skip
    was, now = one.stack.entry(before), other.stack.entry(after)
    if stat.S_IFMT(was.mode) != stat.S_IFMT(now.mode):
        yield "type"
    elif stat.S_ISREG(was.mode):
        if was.size != now.size:
            yield "size"
        if not same_content(one.view, before, other.view, after):
            yield "content"
    if stat.S_IMODE(was.mode) != stat.S_IMODE(now.mode):
        yield "mode"
    if (was.uid, was.gid) != (now.uid, now.gid):
        yield "owner"
    if was.link != now.link:
        yield "target"
    if was.rdev != now.rdev:
        yield "device"
    if was.xattrs != now.xattrs:
        yield "xattrs"
    if times and was.mtime != now.mtime:
        yield "time"
