"""The panes beside the tree: the layers, and what is wasted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.text import Text

from fuseoverlay.commands.explore import facts
from fuseoverlay.commands.explore.lines import Lines
from fuseoverlay.commands.show import units
from fuseoverlay.commands.view import reasons, subject
from fuseoverlay.errors import visible
from fuseoverlay.view.dive import Figures
from fuseoverlay.view.opened import Layer, View
from fuseoverlay.view.waste import Found, Waste

#: Columns of a size, and of a count.
_SIZE: Final = 7
_COUNT: Final = 3


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
            text.append(f"{'!':>{_SIZE}} {visible(layer.problem)}", facts.PROBLEM)
        else:
            text.append(f"{size:>{_SIZE}} {made_by(layer)}")
        return text


def made_by(layer: Layer) -> str:
    """The command that made the layer, or what else it can be known by."""
    return reasons.step(layer) or visible(layer.name)


class Wastes(Lines):
    """The paths at which something is wasted, the most first."""

    def __init__(self, name: str, view: View) -> None:
        super().__init__(name)
        self._view = view
        #: None: not known yet.
        self.found: Found | None = None
        self.figures: Figures | None = None
        self.problem: str | None = None
        self._entitle("…")

    def _entitle(self, wasted: str) -> None:
        self.border_title = f"Waste: {wasted} of {units.size(facts.image_size(self._view))}"

    @property
    def wastes(self) -> Sequence[Waste]:
        """What is wasted, as far as it is known."""
        return self.found.wastes if self.found else ()

    def show(self, found: Found) -> None:
        """This was found."""
        self.found = found
        self._entitle(units.size(found.wasted))
        self.changed()

    def show_figures(self, figures: Figures) -> None:
        """dive says this."""
        self.figures = figures
        said = f"dive: {facts.efficiency(figures)}, {units.size(figures.wasted)}"
        self.border_subtitle = said

    def fail(self, problem: str) -> None:
        """It cannot be found out, for this reason."""
        self.problem = problem
        self.changed()

    def count(self) -> int:
        """How many there are; one line says that there is none."""
        return max(1, len(self.wastes))

    def text(self, index: int) -> Text:
        """Size, how many files, and path."""
        if self.problem:
            return Text(visible(self.problem), facts.PROBLEM, no_wrap=True)
        if not self.wastes:
            return Text("nothing" if self.found else "…", "dim")
        waste = self.wastes[index]
        size, count = units.size(waste.bytes), facts.files(waste)
        text = f"{size:>{_SIZE}} {count:>{_COUNT}} {subject.shown(waste.path)}"
        return Text(text, no_wrap=True)

    @property
    def selected(self) -> Waste | None:
        """What is at the cursor."""
        return self.wastes[self.cursor] if self.wastes else None

    def facts(self) -> list[facts.Fact]:
        """All that is known of what is at the cursor, and of the image."""
        waste = self.selected
        known = [*facts.of_waste(self._view, waste)] if waste else []
        return [*known, *facts.of_image(self._view, self.found, self.figures)]
