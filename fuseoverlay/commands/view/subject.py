"""What a command looks into: an image, `-o lowerdir=`, or what is mounted somewhere."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
from collections.abc import Iterator
from typing import Final

from fuseoverlay.commands import output, progress
from fuseoverlay.commands.image import common
from fuseoverlay.commands.parser import Parser, parsed_options
from fuseoverlay.errors import ImageError, UsageError
from fuseoverlay.fuse import mounts
from fuseoverlay.oci import names
from fuseoverlay.oci.model import Platform
from fuseoverlay.registry import shortnames
from fuseoverlay.store import sources
from fuseoverlay.store.images import Images
from fuseoverlay.store.root import Store, default_root
from fuseoverlay.store.sources import Remote
from fuseoverlay.view import opened
from fuseoverlay.view.opened import View
from fuseoverlay.view.stack import Path, Stack

#: IMAGE:PATH as docker cp has it; a name ends where an absolute path begins.
JOINED: Final = re.compile(r"(?P<image>.+):(?P<path>/(?!/).*)\Z", re.DOTALL)
WHAT: Final = "an image by name, id or file, or a mount point"


def parser(prog: str, description: str, *examples: str, image: bool = True) -> Parser:
    """A parser with the options that say what to look into. With `image`, its first argument is
    IMAGE; `image_first` has to be called then."""
    made = common.parser(prog, description, *examples, manual="fuseoverlay-layers(1)")
    if image:
        made.add_argument("image", metavar="IMAGE|MNT", help=WHAT)
    made.add_argument("-o", dest="options", action="append", default=[], metavar="OPTS",
                      help="in place of IMAGE: lowerdir=A:B[,upperdir=U], directories as layers"
                      )  # fmt: skip
    common.add_platform(made)
    made.add_argument("--pull", choices=sources.POLICIES, default="missing",
                      help="when to ask a registry for the image (default missing)")  # fmt: skip
    return made


def parsed(made: Parser, argv: list[str]) -> argparse.Namespace:
    """The arguments. With `-o lowerdir=` there is no IMAGE, and `image` is None."""
    probe = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    probe.add_argument("-o", dest="options", action="append", default=[])
    if {"-h", "--help"}.isdisjoint(argv) and probe.parse_known_args(argv)[0].options:
        # argparse cannot leave out a first argument.
        args = made.parse_intermixed_args(["", *argv])
        args.image = None
        return args
    args = made.parse_intermixed_args(argv)
    if args.image == "":
        raise UsageError("IMAGE is empty", hint="write it out; a variable may not be set")
    return args


@contextlib.contextmanager
def look(args: argparse.Namespace, image: str | None = None) -> Iterator[View]:
    """Open what the arguments say, or the image or mount `image`. UsageError, ImageError,
    LayerError, StoreError, RegistryError."""
    text = image or args.image
    if text is None:
        config = parsed_options(args.options)
        if not config.lowerdirs:
            raise UsageError("-o without lowerdir=", hint="write -o lowerdir=A:B, or an IMAGE")
        name = os.fsdecode(b":".join(config.lowerdirs))
        with opened.directories(
            name, config.lowerdirs, config.upperdir, output.warn, config.data_only
        ) as view:
            yield view
        return
    mount = _mounted(text)
    if mount is not None:
        with _of_mount(args, text, mount) as view:
            yield view
        return
    if args.root == "":
        raise UsageError("--root is empty", hint="write it out; a variable may not be set")
    store = Store(args.root or default_root())
    _check_directory(store, text)
    remote = Remote(lambda name: _fetched(store, name, args.platform), args.pull)
    with contextlib.ExitStack() as stack:
        with progress.shown("Indexing") as report:
            view = stack.enter_context(
                opened.image(
                    store, text, platform=args.platform, remote=remote, progress=report,
                    warn=output.warn,
                )
            )  # fmt: skip
        for layer in view.layers:
            if layer.problem:
                output.warn(f"layer {layer.number} cannot be read: {layer.problem}")
        yield view


def code_of(*views: View) -> int:
    """The exit code of what has to know all layers: not 0 if one of them cannot be read."""
    whole = not any(layer.problem for view in views for layer in view.layers)
    return 0 if whole else ImageError.exit_code


def as_of(view: View, layer: int | None) -> Stack:
    """The stack up to this layer, counted from 1 at the bottom. UsageError."""
    return view.stack if layer is None else view.stack.up_to(number_of(view, layer) + 1)


def number_of(view: View, layer: int) -> int:
    """The layer, counted from 0, that people call so. UsageError."""
    if not 1 <= layer <= len(view.layers):
        count = len(view.layers)
        hint = "there are none" if not count else f"write a number from 1 to {count}"
        raise UsageError(f"{view.name} has no layer {layer}", hint=hint)
    return layer - 1


def path_of(text: str) -> Path:
    """A path inside an image, with or without its leading slash."""
    parts: list[bytes] = []
    for part in os.fsencode(text).split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return tuple(parts)


def shown(path: Path) -> str:
    """A path inside an image as people write it, escaped for a terminal."""
    return "/" + output.named(b"/".join(path))


def raw(path: Path) -> str:
    """The same as JSON has it: nothing is escaped, and bytes that are not UTF-8 are surrogates."""
    return "/" + os.fsdecode(b"/".join(path))


def _fetched(store: Store, name: str, platform: str | None) -> str:
    from fuseoverlay.commands.image import fetching

    wanted = Platform.parse(platform) if platform else None
    # Nothing need be unpacked to be looked into.
    return fetching.fetch(store, name, platform=wanted, unpack=False, only_new=True).name


def _mounted(text: str) -> mounts.Mount | None:
    """The mount at this path."""
    if not os.path.isdir(text) or names.transport(text):
        return None
    path = os.fsencode(os.path.realpath(text))
    return next((mount for mount in reversed(mounts.mounted()) if mount.path == path), None)


@contextlib.contextmanager
def _of_mount(args: argparse.Namespace, text: str, mount: mounts.Mount) -> Iterator[View]:
    facts = mount.facts
    if facts is None:
        what = "its daemon does not say what it shows: it is another user's, or has ended"
        raise ImageError(what, where=text, hint="become that user, or name the image")
    lowers = [os.fsencode(path) for path in facts.lowers]
    upper = os.fsencode(facts.upper) if facts.upper is not None else None
    store = Store(args.root or default_root())
    image = (facts.image.id, facts.image.name) if facts.image is not None else None
    with opened.mounted(store, text, lowers, upper, image, output.warn) as view:
        yield view


def _check_directory(store: Store, text: str) -> None:
    """Refuse a directory that is neither an image nor mounted. ImageError."""
    if not os.path.isdir(text) or names.is_image(text):
        return
    if names.is_path(text) or not sources.is_there(Images(store, shortnames.meanings), text):
        hint = f"to look at it as a layer write -o lowerdir={text}"
        what = "a directory, and neither an image nor a mount of fuseoverlay"
        raise ImageError(what, where=text, hint=hint)
