"""What is known of a layer, or of what is wasted, in lines of a name and a value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from rich.text import Text

from fuseoverlay.commands.show import units
from fuseoverlay.commands.view import reasons, subject
from fuseoverlay.errors import visible
from fuseoverlay.view.dive import Figures
from fuseoverlay.view.layerindex import LayerIndex
from fuseoverlay.view.opened import Layer, View
from fuseoverlay.view.waste import Effect, Found, Waste

#: The colour of what is wrong.
PROBLEM: Final = "#e06c75"

Fact = tuple[str, str]


def text(facts: Iterable[Fact]) -> Text:
    """The facts one below the other; one without a name has the whole line."""
    made = Text()
    for name, value in facts:
        if name:
            made.append(f"{name:<11} ", "dim")
        made.append(f"{visible(value)}\n", PROBLEM if name == "problem" else "")
    return made


def of_layer(layer: Layer, index: LayerIndex, effect: Effect | None) -> Iterator[Fact]:
    """All that is known of a layer; `effect` may not be known yet."""
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


def of_waste(view: View, waste: Waste) -> Iterator[Fact]:
    """Why bytes are wasted at a path, which is what people look for; and how many."""
    for reason in reasons.reasons(view, waste):
        yield "", reason
    count = files(waste)
    yield "wasted", f"{units.size(waste.bytes)} in {count} {'file' if count == 1 else 'files'}"
    yield "path", subject.shown(waste.path)


def of_image(view: View, found: Found | None, figures: Figures | None) -> Iterator[Fact]:
    """The same of all layers, as far as it is known."""
    size = image_size(view)
    yield "image", f"{units.size(size)}, {_saveable(found, size)}"
    yield "as dive", "…" if figures is None else (
        f"efficiency {efficiency(figures)}, wasted {units.size(figures.wasted)}"
    )  # fmt: skip


def _saveable(found: Found | None, size: int) -> str:
    if found is None:
        return "…"
    if not found.wasted:
        return "nothing to save"
    return f"could save {units.size(found.wasted)} ({found.wasted / size * 100:.1f} %)"


def efficiency(figures: Figures) -> str:
    """dive's score."""
    return f"{figures.efficiency * 100:.2f} %"


def files(waste: Waste) -> int:
    """How many files are hidden: of a single path its copies that nobody sees."""
    return sum(cause.files for cause in waste.causes)


def image_size(view: View) -> int:
    """Bytes of all layers."""
    return sum(index.size for index in view.stack.layers)
