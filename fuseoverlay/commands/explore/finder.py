"""The line that asks which paths are to be found."""

from __future__ import annotations

from collections.abc import Callable

from textual.widgets import Input

from fuseoverlay.commands.explore import background, search
from fuseoverlay.commands.explore.search import Found
from fuseoverlay.commands.explore.tree import Tree


class Finder(Input):
    """Has the tree show what is found, while it is written."""

    DEFAULT_CSS = "Finder { display: none; } Finder.on { display: block; }"

    def __init__(self, name: str, files: Tree) -> None:
        super().__init__(id=name, placeholder="find paths", select_on_focus=False, compact=True)
        self._files = files
        #: Searches that are no longer wanted have another number.
        self._number = 0
        self._busy = False
        #: What is to be done once the search is done.
        self._next: Callable[[], None] | None = None

    @property
    def is_on(self) -> bool:
        """Whether it is seen."""
        return self.has_class("on")

    def begin(self) -> None:
        """Ask."""
        self.add_class("on")
        self.focus()

    def end(self) -> None:
        """Show all again."""
        self.remove_class("on")
        # Its change is told later, when the tree may show something else.
        with self.prevent(Input.Changed):
            self.value = ""
        self.find()

    def on_input_changed(self, _event: Input.Changed) -> None:
        """Find while it is written."""
        self.find(anew=True)

    def when_found(self, then: Callable[[], None]) -> None:
        """Do this once all that is asked for is found."""
        if self._busy:
            self._next = then
        else:
            then()

    def find(self, *, anew: bool = False) -> None:
        """Find it in what the tree compares now. The cursor goes to the first path that is found;
        if it is not `anew`, only from one that is not."""
        self._number += 1
        text = self.value
        self._busy, self._next = bool(text), None
        if text:
            self._files.border_subtitle = "…"
            self._begin(text, self._number, anew=anew)
        elif self._files.model.found is not None:
            self._show(None)
        else:
            self._files.border_subtitle = ""

    def _begin(self, text: str, number: int, *, anew: bool) -> None:
        model = self._files.model
        comparison, kinds = model.comparison, model.kinds

        def work() -> Found:
            matches = search.matcher(text)
            return search.search(comparison, matches, kinds, lambda: number == self._number)

        def then(found: Found) -> None:
            if number == self._number:
                self._show(found)
                self._files.go_to_found(anew=anew)
                self._done()

        background.start(self.app, work, then, lambda _: None)

    def _done(self) -> None:
        then, self._busy, self._next = self._next, False, None
        if then is not None:
            then()

    def _show(self, found: Found | None) -> None:
        shown = found.shown if found else None
        self._files.after(lambda: self._files.model.show_found(shown))
        self._files.border_subtitle = _words(found) if found else ""


def _words(found: Found) -> str:
    return f"{'' if found.complete else 'the first '}{found.count} found"
