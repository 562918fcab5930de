"""Extract what the cursor is on."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

from textual.app import App

from fuseoverlay.commands.explore import asking, background
from fuseoverlay.commands.explore.tree import Tree
from fuseoverlay.commands.view import subject
from fuseoverlay.view.extract import extract
from fuseoverlay.view.opened import View
from fuseoverlay.view.stack import Node, Stack

#: So many warnings are shown.
_WARNINGS = 3


def ask(app: App[None], view: View, files: Tree, tell: Callable[[str], None]) -> None:
    """Ask where it is to go, and extract it there; `tell` is told how that went."""
    model, row = files.model, files.row
    node, stack = model.node(row), model.comparison.stack(model.pair(row))

    def answered(answer: str | None) -> None:
        if answer:
            background.start(app, lambda: _extract(view, stack, node, answer), tell, tell)

    question = "Extract all as which new directory?"
    if node.path:
        question = f"Extract {subject.shown(node.path)} into which directory?"
    app.push_screen(asking.Ask(question), answered)


def _extract(view: View, stack: Stack, node: Node, answer: str) -> str:
    target = pathlib.Path(os.path.expanduser(answer), os.fsdecode(node.name))
    target.parent.mkdir(parents=True, exist_ok=True)
    warnings: list[str] = []
    extract(view, stack, node, target, warnings.append)
    left_out = "".join(f"; {text}" for text in warnings[:_WARNINGS])
    return f"extracted {subject.shown(node.path)} to {target}{left_out}"
