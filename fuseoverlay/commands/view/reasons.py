"""Why bytes are wasted, in a person's words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from fuseoverlay.errors import visible
from fuseoverlay.view.changes import How
from fuseoverlay.view.opened import Layer, View
from fuseoverlay.view.waste import Cause, Waste

#: Characters of a command.
_CUT: Final = 45
#: What builders write before the command itself, and what it means.
_STARTS: Final = (
    ("/bin/sh -c #(nop) ", ""),
    ("RUN /bin/sh -c ", "RUN "),
    ("/bin/sh -c ", "RUN "),
)
_END: Final = " # buildkit"


def reasons(view: View, waste: Waste) -> Iterator[str]:
    """A line for each cause of a waste."""
    return (reason(view, cause, "it") for cause in waste.causes)


def step(layer: Layer) -> str:
    """The step that made a layer, on one line and escaped, whole."""
    text = " ".join(layer.step.created_by.split()).removesuffix(_END)
    for start, instead in _STARTS:
        if text.startswith(start):
            text = instead + text.removeprefix(start).lstrip()
            break
    if not text:
        # `docker import` notes no command, but where the image comes from.
        text = " ".join(layer.step.comment.split())
    if not text and layer.upper:
        text = "changes of the mount"
    return visible(text)


def reason(view: View, cause: Cause, what: str) -> str:
    """A cause in a line; `what`: it, or them."""
    by = named(view.layers[cause.by])
    below = [view.layers[number] for number in sorted(cause.of)]
    match cause.how:
        case How.DELETED:
            end = "it frees nothing, delete it in the same step"
            return f"{by} deletes what {_listed(below)} added: {end}"
        case How.OPAQUE:
            where = "the directory" if what == "it" else "directories"
            added = f"what {_listed(below)} added"
            return f"{by} makes {where} opaque, which hides {added}: it frees nothing"
        case How.METADATA:
            its, made = ("its", "it is") if what == "it" else ("their", "they are")
            end = f"set them where {made} made, as by COPY --chown"
            return f"{by} copies {what} only to change {its} owner, mode or attributes: {end}"
        case How.AGAIN:
            end = f"leave {what} out of that step"
            return f"{by} has the same again that {_listed(below)} added: {end}"
        case _:
            keep = "keeps its copy" if len(below) == 1 else "keep their copies"
            return f"{by} replaces {what}, {_listed(below)} {keep}"


def short_step(layer: Layer) -> str:
    """The beginning of the step."""
    text = step(layer)
    return text if len(text) <= _CUT else text[: _CUT - 1] + "…"


def named(layer: Layer) -> str:
    """`layer 7 (RUN rm -rf …)`."""
    text = short_step(layer)
    return f"layer {layer.number} ({text})" if text else f"layer {layer.number}"


def _listed(layers: Iterable[Layer]) -> str:
    """One by its step, several by their numbers."""
    *before, last = layers
    if not before:
        return named(last)
    numbers = ", ".join(str(layer.number) for layer in before)
    return f"layers {numbers} and {last.number}"
