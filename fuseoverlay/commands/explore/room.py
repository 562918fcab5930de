"""How the panes on the left share the lines of the screen."""

from __future__ import annotations

from typing import Final, NamedTuple

#: Lines of a frame.
_FRAME: Final = 2
#: With their frames: lines of the details at most and at least; those that the layers keep if there
#: are so many, and those that the waste keeps.
_DETAILS: Final = 12
_FEW_DETAILS: Final = 3
_LAYERS: Final = 8
_WASTES: Final = 4
#: The same while the waste has the focus: why it is wasted takes more words.
_DETAILS_OF_WASTE: Final = 14
_LAYERS_BESIDE_WASTE: Final = 5


class Heights(NamedTuple):
    """Lines of two panes with their frames; the waste has what remains."""

    layers: int
    details: int


def heights(lines: int, count: int, *, of_waste: bool) -> Heights:
    """Share so many lines, where there are `count` layers. `of_waste`: the waste has the focus."""
    wanted = count + _FRAME
    most, kept = (_DETAILS, _LAYERS) if not of_waste else (_DETAILS_OF_WASTE, _LAYERS_BESIDE_WASTE)
    details = max(_FEW_DETAILS, min(most, lines - min(wanted, kept) - _WASTES))
    others = lines - details
    return Heights(max(_FRAME, min(wanted, others - max(_WASTES, others // 3))), details)
