"""The panes beside the tree: the layers, what is known of one, and what is wasted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from rich.text import Text

from fuseoverlay.commands.explore.lines import Lines
from fuseoverlay.commands.show import units
from fuseoverlay.commands.view import reasons, subject
from fuseoverlay.errors import visible
from fuseoverlay.view.layerindex import LayerIndex
from fuseoverlay.view.opened import Layer, View
from fuseoverlay.view.waste import Effect, Found, Waste

_PROBLEM: Final = "#e06c75"
#: Columns of a size.
_SIZE: Final = 7


class Layers(Lines):
    """The layers, the bottom one first."""

    def __init__(self, name: str, view: View) -> None:
        super().__init__(name)
        self._view = view

    def count(self) -> int:
        """How many layers there are."""
        return len(self._view.layers)

    def text(self, index: int) -> Text:
        """Number, size and command."""
        layer = self._view.layers[index]
        size = units.size(self._view.stack.layers[index].size)
        text = Text(f"{layer.number:>3} ", no_wrap=True)
        if layer.problem:
            text.append(f"{'!':>{_SIZE}} {visible(layer.problem)}", _PROBLEM)
        else:
            text.append(f"{size:>{_SIZE}} {made_by(layer)}")
        return text


def made_by(layer: Layer) -> str:
    """The command that made the layer, or what else it can be known by."""
    return reasons.step(layer) or visible(layer.name)


def details(layer: Layer, index: LayerIndex, effect: Effect | None) -> Text:
    """All that is known of a layer; `effect` may not be known yet."""
    text = Text()
    for name, value in _facts(layer, index, effect):
        style = _PROBLEM if layer.problem and name == "problem" else ""
        text.append(f"{name:<11} ", "dim").append(f"{visible(value)}\n", style)
    return text


def _facts(layer: Layer, index: LayerIndex, effect: Effect | None) -> Iterator[tuple[str, str]]:
    if layer.problem:
        yield "problem", layer.problem
    size = units.size(index.size)
    if layer.compressed is not None:
        size += f", compressed {units.size(layer.compressed)}"
    yield "size", size
    yield "entries", f"{len(index) - 1}" + ("" if effect is None else (
        f": {effect.added} added, {effect.changed} changed, {effect.removed} removed"
    ))  # fmt: skip
    yield "reclaimable", "…" if effect is None else units.size(effect.wasted)
    if command := reasons.step(layer):
        yield "command", command
    yield "layer", layer.name
    if layer.digest:
        yield "blob", layer.digest


class Wastes(Lines):
    """The paths at which something is wasted, the most first."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        #: None: not known yet.
        self.found: Found | None = None
        self.problem: str | None = None

    @property
    def wastes(self) -> Sequence[Waste]:
        """What is wasted, as far as it is known."""
        return self.found.wastes if self.found else ()

    def show(self, found: Found) -> None:
        """This was found."""
        self.found = found
        self.border_title = f"Waste: {units.size(found.wasted)}"
        self.changed()

    def fail(self, problem: str) -> None:
        """It cannot be found out, for this reason."""
        self.problem = problem
        self.changed()

    def count(self) -> int:
        """How many there are; one line says that there is none."""
        return max(1, len(self.wastes))

    def text(self, index: int) -> Text:
        """Size and path."""
        if self.problem:
            return Text(visible(self.problem), _PROBLEM, no_wrap=True)
        if not self.wastes:
            return Text("nothing" if self.found else "…", "dim")
        waste = self.wastes[index]
        return Text(f"{units.size(waste.bytes):>{_SIZE}} {subject.shown(waste.path)}", no_wrap=True)
