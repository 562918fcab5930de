"""The life of one path: what each layer says of it, from the bottom up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fuseoverlay.view.changes import Same, is_same, same_by_digest
from fuseoverlay.view.layerindex import HIDES, OPAQUE, REDIRECT, LayerIndex
from fuseoverlay.view.stack import Node, Path, Stack

#: The kernel's limit (ELOOP).
_MAX_LINKS: Final = 40


class Event(StrEnum):
    """What a layer does to a path. `MERGES`: it has a directory that shows together with those
    below. `REPEATS`: it has the file again as it was. `COVERS`: it has something else than a
    directory above the path, `OPAQUE` an opaque directory above it, without the path. `RENAMES`: it
    has the directory, or one above the path, that goes on under another name below."""

    ADDS = "adds"
    CHANGES = "changes"
    REPEATS = "repeats"
    MERGES = "merges"
    DELETES = "deletes"
    COVERS = "covers"
    OPAQUE = "makes opaque"
    RENAMES = "renames"


@dataclass(frozen=True, slots=True)
class Moment:
    """What the layer `layer`, from 0, does to a path. `at`: the path itself, or the directory above
    that it deletes, covers or makes opaque. `before` and `after`: what shows at the path."""

    layer: int
    event: Event
    at: Path
    before: Node | None
    after: Node | None


def touches(layer: LayerIndex, path: Path) -> tuple[Event, Path] | None:
    """What a layer alone says of a path: that it has it (`ADDS`, `RENAMES`), or how it hides it,
    and where; None if it says nothing."""
    row = 0
    opaque: Path | None = () if layer.flags[0] & OPAQUE else None
    renamed: Path | None = None
    for depth, name in enumerate(path, 1):
        found = layer.child(row, name)
        at = path[:depth]
        if found is None:
            hidden = None if opaque is None else (Event.OPAQUE, opaque)
            return hidden if renamed is None else (Event.RENAMES, renamed)
        row = found
        if not layer.mode[row]:
            return Event.DELETES, at
        if depth < len(path):
            if not layer.is_dir(row):
                return Event.COVERS, at
            if layer.flags[row] & REDIRECT:
                renamed = at
            elif layer.flags[row] & (OPAQUE | HIDES):
                opaque, renamed = at, None
    return Event.RENAMES if layer.flags[row] & REDIRECT else Event.ADDS, path


def life(stack: Stack, path: Path, same: Same | None = None) -> Iterator[Moment]:
    """All that happens to the path, from the bottom up."""
    compare = same or same_by_digest(stack)
    before: Node | None = None
    for number, layer in enumerate(stack.layers):
        said = touches(layer, path)
        if said is None:
            continue
        after = stack.up_to(number + 1).node(path)
        event, at = said
        if event is Event.ADDS:
            event = _event(stack, number, before, after, compare)
        elif before is None and after is None:
            # There was nothing to hide.
            continue
        yield Moment(number, event, at, before, after)
        before = after


def _event(
    stack: Stack, number: int, before: Node | None, after: Node | None, same: Same
) -> Event:  # fmt: skip
    if before is None or after is None:
        return Event.ADDS
    if before.is_dir and after.is_dir and len(after.dirs) > 1:
        return Event.MERGES
    equal = before.is_dir == after.is_dir and is_same(stack.entry(before), stack.entry(after))
    if equal and not after.is_dir and same(before, after):
        return Event.REPEATS
    return Event.CHANGES


def hidden_by(stack: Stack, node: Node) -> tuple[int, Event, Path] | None:
    """The first layer above that of `node` that hides it, how, and where; None if it shows."""
    for number in range(node.layer + 1, len(stack.layers)):
        layer = stack.layers[number]
        said = touches(layer, node.path)
        if said is None:
            continue
        event, at = said
        if event not in (Event.ADDS, Event.RENAMES):
            return number, event, at
        row = layer.find(node.path)
        both = row is not None and layer.is_dir(row) and stack.layers[node.layer].is_dir(node.row)
        if not both or (row and layer.flags[row] & (OPAQUE | HIDES)):
            return number, Event.CHANGES, node.path
    return None


def resolved(stack: Stack, path: Path) -> Path | None:
    """The path with its symbolic links followed inside the stack, the last one, too; None if they
    lead nowhere, or in circles."""
    left = [*reversed(path)]
    at: list[Node] = [stack.root]
    links = 0
    while left:
        name = left.pop()
        if name == b"..":
            at = at[: max(len(at) - 1, 1)]
            continue
        found = stack.child(at[-1], name) if at[-1].is_dir else None
        if found is None:
            return None
        target = stack.layers[found.layer].target(found.row)
        if not target:
            at.append(found)
            continue
        links += 1
        if links > _MAX_LINKS:
            return None
        if target.startswith(b"/"):
            at = at[:1]
        left += [part for part in reversed(target.split(b"/")) if part not in (b"", b".")]
    return at[-1].path
