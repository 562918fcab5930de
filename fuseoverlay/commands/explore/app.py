"""The program: its panes, and how they go together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Final, TypeVar

from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.filter import LineFilter
from textual.geometry import Size
from textual.widgets import Input, Static

from fuseoverlay.commands.explore import asking, background, content, extracting, facts, panes, room
from fuseoverlay.commands.explore.choice import Choice
from fuseoverlay.commands.explore.comparing import bounded
from fuseoverlay.commands.explore.content import Content
from fuseoverlay.commands.explore.finder import Finder
from fuseoverlay.commands.explore.lines import Lines
from fuseoverlay.commands.explore.model import Model
from fuseoverlay.commands.explore.nocolor import Plain
from fuseoverlay.commands.explore.totals import Totals
from fuseoverlay.commands.explore.tree import Tree
from fuseoverlay.commands.explore.viewer import Viewer
from fuseoverlay.commands.view import subject
from fuseoverlay.errors import visible
from fuseoverlay.view import kept
from fuseoverlay.view.changes import Kind
from fuseoverlay.view.dive import Figures
from fuseoverlay.view.opened import View
from fuseoverlay.view.stack import Node, Path
from fuseoverlay.view.waste import Found

T = TypeVar("T")

#: The keys that the last line names, for every pane and for each.
_KEYS: Final = "q quit  ? help  tab pane  / find  m mode  c compare  "
_KEYS_OF: Final[Mapping[str | None, str]] = {
    "layers": "enter files",
    "tree": "space open  enter view  A M R U kinds  o sort  e extract",
    "wastes": "enter show",
    "find": "enter files  esc all",
}
#: With fewer columns only one side is shown, with fewer lines only the layers of the left one.
_NARROW: Final = 60
_LOW: Final = 20
#: With fewer columns the left side is the wider one while the waste has the focus: its reasons are
#: long.
_SMALL: Final = 100


class Explorer(App[None]):
    """Looks into an open view."""

    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("ctrl+c", "quit", "quit", priority=True),
        Binding("question_mark,f1", "help", "help"),
        Binding("ctrl+l", "all_changes(False)", "this layer's changes"),
        Binding("ctrl+a", "all_changes(True)", "all changes up to it"),
        Binding("m", "mode", "the other mode"),
        Binding("c", "compare", "compare with a layer"),
        Binding("ctrl+f,slash,ctrl+underscore", "find", "find paths"),
        Binding("escape", "end", "end finding and comparing"),
        Binding("v", "view", "content"),
        Binding("ctrl+e,e", "extract", "extract"),
    ]
    CSS = """
    #left { width: 2fr; max-width: 64; }
    #right { width: 3fr; }
    #layers { border: round $primary; }
    #details { border: round $primary; }
    #wastes { height: 1fr; border: round $primary; }
    #tree { height: 1fr; border: round $primary; }
    #heading, #keys { height: 1; }
    Lines:focus { border: round $accent; }
    Lines:nocolor:focus { border: heavy $accent; }
    Input:nocolor .input--cursor { text-style: reverse; }
    .low #details, .low #wastes { display: none; }
    .low #layers, .low #tree { border: none; }
    .small #left { width: 3fr; }
    .small #right { width: 2fr; }
    .narrow #left { max-width: 100%; }
    .narrow #right { display: none; }
    .narrow.tree #right { display: block; }
    .narrow.tree #left { display: none; }
    """

    def __init__(self, view: View) -> None:
        super().__init__()
        self.view = view
        self.choice = Choice()
        self.layers = panes.Layers("layers", view)
        self.wastes = panes.Wastes("wastes", view)
        self._totals = Totals(view.stack)
        self._same = bounded(view)
        comparison = self.choice.comparison(view.stack, self._same)
        self.files = Tree("tree", Model(comparison, self._totals))
        self.finder = Finder("find", self.files)
        self._details = Static()
        self._box = VerticalScroll(self._details, id="details", can_focus=False)
        self._heading, self._keys = Static(id="heading"), Static(id="keys")
        #: Sums that are no longer wanted have another number.
        self._summing = 0

    def compose(self) -> ComposeResult:
        """All panes."""
        with Horizontal():
            with Vertical(id="left"):
                yield self.layers
                yield self._box
                yield self.wastes
            with Vertical(id="right"):
                yield self._heading
                yield self.files
        yield self.finder
        yield self._keys

    def on_mount(self) -> None:
        """Show the layers at once, and begin to find out what takes longer."""
        self.layers.border_title, self.files.border_title = "Layers", "Tree"
        self.layers.focus()
        self._describe()
        self.call_after_refresh(self._begin)

    def _begin(self) -> None:
        self._sum()
        background.start(self, lambda: kept.found(self.view), self._found, self.wastes.fail)

    def _in_background(self, work: Callable[[], T], then: Callable[[T], None]) -> None:
        background.start(self, work, then, self.tell)

    def on_done(self, done: background.Done) -> None:
        """Some work in the background is done."""
        done.then()

    def _found(self, found: Found) -> None:
        self.wastes.show(found)
        self._describe()
        self._in_background(lambda: kept.figures(self.view), self._counted)

    def _counted(self, figures: Figures) -> None:
        self.wastes.show_figures(figures)
        self._describe()

    def _sum(self) -> None:
        """Find the sizes of directories."""
        self._summing += 1
        number = self._summing
        comparison = self.files.model.comparison

        def fill() -> None:
            for stack in (comparison.after, comparison.before):
                if stack is not None:
                    self._totals.fill(stack, lambda: number == self._summing)

        def filled(_: None) -> None:
            if self.files.model.by_size:
                self.files.after(self.files.model.rebuild)
            self.files.changed()

        self._in_background(fill, filled)

    def tell(self, text: str) -> None:
        """Say what is wrong, or done."""
        self.push_screen(asking.Tell(visible(text)))

    # what is compared

    def _compare(self) -> None:
        """Compare what is chosen now."""
        comparison = self.choice.comparison(self.view.stack, self._same)
        self.files.after(lambda: self.files.model.compare(comparison))
        self._sum()
        if self.finder.value:
            self.finder.find()

    def _describe(self) -> None:
        """Say which layer it is, or what is wasted and why, and what the tree shows."""
        known = self.wastes.facts() if self._of_waste else self._of_layer()
        self._box.border_title = "Waste" if self._of_waste else "Layer"
        self._details.update(facts.text(known))
        self._box.scroll_home(animate=False)
        text = f"{self.choice}{self.files.model}, in {visible(self.view.name)}"
        self._heading.update(Text(text, no_wrap=True))

    @property
    def _of_waste(self) -> bool:
        """Whether the details are those of a waste."""
        return self.screen_stack[0].focused is self.wastes

    def _of_layer(self) -> Iterable[facts.Fact]:
        number = self.choice.number
        effect = self.wastes.found.effects[number] if self.wastes.found else None
        return facts.of_layer(self.view.layers[number], self.view.stack.layers[number], effect)

    def on_lines_moved(self, event: Lines.Moved) -> None:
        """Another layer is selected, or the tree shows something else."""
        if event.lines is self.layers and self.layers.cursor != self.choice.number:
            self.choice.number = self.layers.cursor
            self._compare()
        self._describe()

    def on_lines_chosen(self, event: Lines.Chosen) -> None:
        """Enter, or a second click."""
        if event.lines is self.layers:
            self._go(self.files)
        elif event.lines is self.files:
            if self.files.row.is_dir:
                self.files.action_fold()
            else:
                self.action_view()
        elif event.lines is self.wastes and (waste := self.wastes.selected):
            self._jump(waste.path, waste.causes[-1].by)

    def _jump(self, path: Path, layer: int) -> None:
        """Show what this layer does to a path."""
        self.choice = Choice(layer)
        self.layers.move_to(layer)
        self._reveal(path)

    def _reveal(self, path: Path) -> None:
        """Show a path, whatever was left out."""
        self.finder.end()
        self.files.model.kinds = frozenset(Kind)
        self._compare()
        self.files.reveal(path, opening=True)
        self._go(self.files)

    # keys

    def action_pane(self, by: int) -> None:
        """Go to the next pane, or the previous one."""
        every = [self.layers, self.files, self.wastes]
        seen = [pane for pane in every if pane.display]
        at = next((at for at, pane in enumerate(seen) if pane is self.focused), 0)
        self._go(seen[(at + by) % len(seen)])

    def _go(self, pane: Lines) -> None:
        """Go to this pane, which a narrow screen has to show first."""
        screen = self.screen_stack[0]
        screen.set_class(pane is self.files, "tree")
        screen.set_focus(pane)

    def action_help(self) -> None:
        """Show what the keys do."""
        self.push_screen(asking.help_screen())

    def action_all_changes(self, every: bool) -> None:
        """Show the changes of the layer, or of all up to it."""
        self.choice = Choice(self.choice.number, every)
        self._compare()

    def action_mode(self) -> None:
        """Show the other of the two."""
        self.action_all_changes(not self.choice.all_changes)

    def action_compare(self) -> None:
        """Ask for a layer to compare with."""
        count = len(self.view.layers)
        question = f"Compare layer {self.choice.number + 1} with which layer, 1 to {count}?"
        self.push_screen(asking.Ask(question), self._compare_with)

    def _compare_with(self, answer: str | None) -> None:
        if not answer:
            return
        if not (answer.strip().isdecimal() and 1 <= int(answer) <= len(self.view.layers)):
            self.tell(f"there is no layer {answer}")
            return
        self.choice.other = int(answer) - 1
        self._compare()

    def action_view(self) -> None:
        """Show the content of the file at the cursor; or the directory that a link leads to."""
        row, model = self.files.row, self.files.model
        node, stack = model.node(row), model.comparison.stack(model.pair(row))

        def work() -> tuple[Node, Content | None]:
            found = content.followed(stack, node)
            is_file = stack.layers[found.layer].is_file(found.row)
            return found, content.read(self.view, stack, found) if is_file else None

        self._in_background(work, lambda seen: self._show(node, *seen))

    def _show(self, node: Node, found: Node, held: Content | None) -> None:
        """Show what is at `node`, which leads to `found`."""
        shown = subject.shown(node.path)
        if found is not node:
            shown += f" -> {subject.shown(found.path)}"
        if held is not None:
            self.push_screen(Viewer(shown, held))
        elif found is not node and found.is_dir:
            self._reveal(found.path)
        else:
            self.tell(f"{shown} is no regular file")

    def action_extract(self) -> None:
        """Ask where the file or directory at the cursor is to go."""
        extracting.ask(self, self.view, self.files, self.tell)

    def action_find(self) -> None:
        """Ask for what is to be found."""
        self.finder.begin()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Look at what was found."""
        if event.input is self.finder:
            self.finder.when_found(lambda: self._go(self.files))

    def action_end(self) -> None:
        """Show all again."""
        if self.finder.is_on:
            self.finder.end()
            self._go(self.files)
        elif self.choice.other is not None:
            self.choice.other = None
            self._compare()

    # what is shown around them

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """Name the keys of another pane, and say what is in it."""
        if event.widget.id in _KEYS_OF:
            self._keys.update(Text(_KEYS + _KEYS_OF[event.widget.id], no_wrap=True))
            self._fit(self.size)
            self._describe()

    def on_resize(self, event: events.Resize) -> None:
        """Show what there is room for."""
        self.screen_stack[0].set_class(event.size.width < _NARROW, "narrow")
        self.screen_stack[0].set_class(event.size.height < _LOW, "low")
        self._fit(event.size)

    def _fit(self, size: Size) -> None:
        """Share the screen among the panes; the last line is that of the keys."""
        width, height = size
        self.screen_stack[0].set_class(self._of_waste and width < _SMALL, "small")
        of = room.heights(height - 1, len(self.view.layers), of_waste=self._of_waste)
        self.layers.styles.height = of.layers if height >= _LOW else "1fr"
        self._box.styles.height = of.details

    def get_line_filters(self) -> Sequence[LineFilter]:
        """What changes all that is painted."""
        return [Plain()] if self.no_color else super().get_line_filters()
