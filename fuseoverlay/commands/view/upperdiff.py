"""`fuseoverlay diff MNT|UPPER`: what an upper changes, as `docker diff` has it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import stat
from collections.abc import Iterable, Iterator

from fuseoverlay.commands import output
from fuseoverlay.commands.show import units
from fuseoverlay.commands.view import differences, subject
from fuseoverlay.errors import UsageError
from fuseoverlay.overlay.config import MountConfig
from fuseoverlay.store.root import Store, default_root
from fuseoverlay.view import opened
from fuseoverlay.view.changes import Kind
from fuseoverlay.view.compare import Difference, Side, compare
from fuseoverlay.view.opened import View
from fuseoverlay.view.stack import Path


def command(args: argparse.Namespace, text: str | None) -> int:
    """Show the changes; returns the exit code."""
    with _looked_at(args, text) as view:
        if not view.layers or not view.layers[-1].upper:
            what = "has no upper directory, so nothing in it was changed"
            hint = "name two images, or --layers N M"
            raise UsageError(what, where=view.name, hint=hint)
        before = Side(view, view.stack.up_to(len(view.layers) - 1))
        after = Side(view, view.stack)
        found = _whole_trees(compare(before, after, times=args.times))
        if args.stat:
            output.say(_summary(after, found))
        elif args.json:
            output.say_all(json.dumps(differences.as_json(before, after, one)) for one in found)
        else:
            output.say_all(_lines(before, after, found, content=args.content))
        return subject.code_of(view)


@contextlib.contextmanager
def _looked_at(args: argparse.Namespace, text: str | None) -> Iterator[View]:
    """What is mounted, or the upper with its image."""
    if text is None or not _is_kept(text):
        with subject.look(args, text) as view:
            yield view
        return
    store = Store(args.root or default_root())
    config, image = _kept(store, text)
    with opened.mounted(
        store, text, config.lowerdirs, config.upperdir, (None, image), output.warn
    ) as view:
        yield view


def _is_kept(text: str) -> bool:
    """Whether it is a directory in which a mount has kept the changes of an image."""
    from fuseoverlay.commands.changes import Changes

    return os.path.isdir(text) and Changes(text).is_there()


def _kept(store: Store, text: str) -> tuple[MountConfig, str]:
    """The layers for such a directory, which are unpacked if they are not yet, and the name of the
    image."""
    from fuseoverlay.commands import imagemount, progress
    from fuseoverlay.commands.changes import Changes

    name = Changes(text).image()
    with progress.shown("Unpacking") as report:
        config = imagemount.to_check(
            store, imagemount.Wanted(name), MountConfig(()), keep_in=text, progress=report,
            warn=output.warn,
        )  # fmt: skip
    return config, name


def _whole_trees(found: Iterable[Difference]) -> list[Difference]:
    """Sorted by path; of a directory that is removed, only itself."""
    kept = []
    removed: set[Path] = set()
    for one in found:
        if one.kind is Kind.REMOVED:
            removed.add(one.path)
            if one.path[:-1] in removed:
                continue
        kept.append(one)
    return sorted(kept, key=lambda one: one.path)


def _lines(
    before: Side, after: Side, found: Iterable[Difference], *, content: bool
) -> Iterator[str]:  # fmt: skip
    """As Docker has them: a directory in which something changed has changed, too."""
    told: set[Path] = {()}
    for one in found:
        for depth in range(1, len(one.path)):
            if one.path[:depth] not in told:
                told.add(one.path[:depth])
                yield f"C {subject.shown(one.path[:depth])}"
        if one.path not in told:
            told.add(one.path)
            yield f"{differences.LETTERS[one.kind]} {subject.shown(one.path)}"
        if content:
            yield from differences.content(before, after, one)


def _summary(after: Side, found: Iterable[Difference]) -> str:
    counts = dict.fromkeys((Kind.ADDED, Kind.CHANGED, Kind.REMOVED), 0)
    size = 0
    for one in found:
        counts[one.kind] += 1
        is_new = one.kind is Kind.ADDED or "content" in one.fields or "type" in one.fields
        if is_new and one.after is not None:
            entry = after.stack.entry(one.after)
            size += entry.size if stat.S_ISREG(entry.mode) else 0
    added, changed, removed = counts.values()
    return f"{added} added, {changed} changed, {removed} removed; {units.size(size)} of new content"
