"""What a case is, and the topics they are in."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers.mounts import NATIVE

Steps = Callable[[Path], Iterator[object]]

#: Sets of features that most cases run under. "userns" is the one of a user namespace,
#: where the kernel has none of the features.
COMMON = ("off", "on", "userns")


@dataclass(frozen=True)
class Design:
    """Why kernel overlayfs differs, in what, and under which sets of features."""

    reason: str
    aspects: tuple[str, ...]
    sets: tuple[str, ...] = ()
    #: Only with, or only without the extension; None: both.
    extension: bool | None = None

    def covers(self, features: str) -> bool:
        """Whether the difference is expected under this set of features."""
        return (not self.sets or features in self.sets) and self.extension in (None, NATIVE)


#: Of all cases in which a lower file has several names.
APART = Design(
    "with index=off each name of a lower file has a number of its own; in the kernel's overlay "
    "they have one until they are copied up",
    ("calls", "tree", "remount", "ours elsewhere", "others' here"),
    ("off",),
)


#: Except for those in which nobody sees two such names.
NUMBERLESS = {
    "links-all-names-removed",
    "links-open-file-with-several-names",
    "rename-exchange-of-two-names-of-one-file",
    "rename-onto-its-other-name",
}


@dataclass(frozen=True)
class Case:
    """One row of the table: objects in layers, and steps in a mount of them.

    `steps` takes the case's directory in the mount and yields what a program sees; an
    `OSError` that it lets out counts as the last answer. `needs` is for `layers.make`.
    """

    topic: str
    name: str
    needs: str
    steps: Steps
    design: tuple[Design, ...] = ()
    sets: tuple[str, ...] = COMMON
    root: bool = False

    def by_design(self, features: str) -> set[str]:
        """The aspects in which the kernel differs by design under this set of features."""
        return {
            aspect for design in self.design if design.covers(features) for aspect in design.aspects
        }


@dataclass
class Topic:
    """The cases of one module."""

    name: str
    cases: list[Case] = field(default_factory=list)

    def add(
        self, name: str, needs: str, steps: Steps, *design: Design, sets=COMMON, root: bool = False
    ) -> None:
        """A case made from a function that several share."""
        name = f"{self.name}-{name}"
        if re.search(r"\bhard", needs) and name not in NUMBERLESS:
            design += (APART,)
        self.cases.append(Case(self.name, name, needs, steps, design, sets, root))

    def case(
        self, needs: str = "", *design: Design, sets=COMMON, root: bool = False
    ) -> Callable[[Steps], Steps]:
        """A case of its own: the name is the function's."""

        def register(steps: Steps) -> Steps:
            assert inspect.isgeneratorfunction(steps), steps
            name = steps.__name__.replace("_", "-")
            self.add(name, needs, steps, *design, sets=sets, root=root)
            return steps

        return register
