"""The life of one path: what each layer says of it, from the bottom up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fuseoverlay.view.changes import Same, is_same, same_by_digest
from fuseoverlay.view.layerindex import HIDES, OPAQUE, REDIRECT
from fuseoverlay.view.said import Event, Said, Sayings
from fuseoverlay.view.stack import Node, Path, Stack

#: The kernel's limit (ELOOP).
_MAX_LINKS: Final = 40


@dataclass(frozen=True, slots=True)
class Moment:
    """What the layer `layer`, from 0, does to a path. `at`: the path itself, or the directory above
    that it deletes, covers, renames or makes opaque. `before` and `after`: what shows at the
    path."""

    layer: int
    event: Event
    at: Path
    before: Node | None
    after: Node | None


def life(stack: Stack, path: Path, same: Same | None = None) -> Iterator[Moment]:
    """All that happens to the path, from the bottom up."""
    compare = same or same_by_digest(stack)
    before: Node | None = None
    for said in Sayings(stack.layers).of(path):
        number, event = said.layer, said.event
        after = stack.up_to(number + 1).node(path)
        if event is Event.ADDS:
            event = _event(stack, said, before, after, compare)
        elif before is None and after is None:
            # There was nothing to hide.
            continue
        yield Moment(number, event, said.at, before, after)
        before = after


def _event(
    stack: Stack, said: Said, before: Node | None, after: Node | None, same: Same
) -> Event:  # fmt: skip
    flags = stack.layers[said.layer].flags[said.row]
    if flags & REDIRECT:
        return Event.RENAMES
    if before is None or after is None:
        return Event.ADDS
    if not is_same(stack.entry(before), stack.entry(after)):
        return Event.CHANGES
    if after.is_dir:
        return Event.OPAQUE if flags & (OPAQUE | HIDES) else Event.MERGES
    return Event.REPEATS if same(before, after) else Event.CHANGES


def hidden_by(
    stack: Stack, sayings: Sayings, node: Node
) -> tuple[int, Event, Path] | None:  # fmt: skip
    """The first layer above that of `node` that hides it, how, and where; None if it shows.
    `sayings`: of the layers of the stack."""
    is_dir = stack.layers[node.layer].is_dir(node.row)
    for said in sayings.of(node.path, node.layer):
        if said.event is not Event.ADDS:
            return said.layer, said.event, said.at
        layer = stack.layers[said.layer]
        if not is_dir or not layer.is_dir(said.row) or layer.flags[said.row] & (OPAQUE | HIDES):
            return said.layer, Event.CHANGES, node.path
        if said.opaque is not None:
            return said.layer, Event.OPAQUE, said.opaque
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
