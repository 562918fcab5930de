"""Which layer is compared with which."""

from __future__ import annotations

from dataclasses import dataclass

from fuseoverlay.commands.explore.comparing import Comparison
from fuseoverlay.view.changes import Same
from fuseoverlay.view.stack import Stack


@dataclass(slots=True)
class Choice:
    """The layer `number` is selected, from 0 at the bottom. It is compared with the one below it,
    or with the bottom layer if `all_changes` are wanted, or with any `other`."""

    number: int = 0
    all_changes: bool = False
    other: int | None = None

    def comparison(self, stack: Stack, same: Same) -> Comparison:
        """Compare these states of all the layers."""
        before = self._before()
        below = None if before is None else stack.up_to(before + 1)
        return Comparison(below, stack.up_to(self.number + 1), same)

    def _before(self) -> int | None:
        if self.other is not None:
            return self.other
        if not self.number:
            return None
        return 0 if self.all_changes else self.number - 1

    def __str__(self) -> str:
        if self.other is not None:
            return f"from layer {self.other + 1} to layer {self.number + 1}"
        if self.all_changes and self.number > 1:
            return f"changes of layers 2 to {self.number + 1}"
        return f"changes of layer {self.number + 1}"
