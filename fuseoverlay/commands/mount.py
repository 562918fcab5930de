"""The command `mount`, the helper for mount(8), and serving what they mount.

Mounting directories imports nothing that only images need.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from fuseoverlay.commands import advice, output
from fuseoverlay.commands.parser import Parser, parsed_options
from fuseoverlay.errors import MOUNT_EXIT_CODES, UsageError
from fuseoverlay.overlay import config
from fuseoverlay.overlay.config import MountConfig

if TYPE_CHECKING:
    from fuseoverlay.fuse.daemonlog import DaemonLog
    from fuseoverlay.fuse.mounts import MountedImage
    from fuseoverlay.store.part import Part

#: The options that choose what of an image is mounted.
_FOR_IMAGES = ("platform", "pull", "layer", "only_layer", "root")


def command(argv: list[str]) -> int:
    """Mount what the arguments name; return the exit code."""
    made = parser("fuseoverlay mount")
    made.description = (
        "Mount layer directories (-o lowerdir=...) or an image: a name in the store or in a "
        "registry, or an OCI layout, an OCI archive or a docker-save archive, as PATH[:REF]."
    )
    made.set_defaults(command=True)
    return mount(made.parse_intermixed_args(argv))


def helper(argv: list[str]) -> int:
    """The helper that mount(8) runs. Its -f is not ours: it means a dry run."""
    parser = Parser(
        prog="mount.fuseoverlay",
        lists_options=True,
        codes=MOUNT_EXIT_CODES,
        description="Called by mount -t fuseoverlay SOURCE MNT -o OPTS. SOURCE is an image, or "
        "with lowerdir= any word, which is shown as the source.",
    )
    parser.add_argument("source", metavar="SOURCE", help="what to mount")
    parser.add_argument("mountpoint", metavar="MNT", help="and where")
    parser.add_argument("-o", dest="options", action="append", default=[], metavar="OPTS",
                        help="lowerdir=A:B,upperdir=U,workdir=W and others, see below")  # fmt: skip
    parser.add_argument("-r", dest="read_only", action="store_true", help="allow no changes")
    parser.add_argument("-f", dest="fake", action="store_true", help="check the options only")
    parser.add_argument("-t", dest="type", metavar="TYPE", help="fuseoverlay, whatever is said")
    for flag in "snvw":
        parser.add_argument(f"-{flag}", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(foreground=False, debug=False, upper=None, platform=None, pull=None,
                        layer=None, only_layer=None, root=None, command=True)  # fmt: skip
    args = parser.parse_intermixed_args(argv)
    args.paths = [args.source, args.mountpoint]
    if args.fake:
        parsed_options(args.options)
        return 0
    return mount(args)


def parser(prog: str) -> Parser:
    """The parser for the arguments of `mount`."""
    made = Parser(prog=prog, lists_options=True)
    made.add_argument("paths", nargs="*", metavar="[IMAGE] MNT", help="what and where to mount")
    made.add_argument("-o", dest="options", action="append", default=[], metavar="OPTS",
                      help="lowerdir=A:B,upperdir=U,workdir=W and others, see below")  # fmt: skip
    made.add_argument("-f", "--foreground", action="store_true", help="stay in the foreground")
    made.add_argument("-d", "--debug", action="store_true",
                      help="log each request, with its error if any; implies -f")  # fmt: skip
    made.add_argument("-s", dest="single", action="store_true", help=argparse.SUPPRESS)
    made.add_argument("--upper", metavar="DIR",
                      help="image: keep changes in DIR/diff, work in DIR/work")  # fmt: skip
    made.add_argument("--read-only", action="store_true", help="allow no changes")
    made.add_argument("--platform", metavar="OS/ARCH[/VARIANT]",
                      help="image: which of a multi-platform image")  # fmt: skip
    made.add_argument("--pull", choices=("missing", "always", "newer", "never"),
                      help="image: when to ask a registry (default missing)")  # fmt: skip
    add_store(made)
    add_parts(made)
    return made


def add_store(parser: Parser) -> None:
    """The option that says where the images are."""
    parser.add_argument("--root", metavar="DIR", help="image: the store (default "
                        "$FUSEOVERLAY_ROOT, else $XDG_DATA_HOME/fuseoverlay)")  # fmt: skip


def add_parts(parser: Parser) -> None:
    """The options that choose layers of an image."""
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--layer", metavar="LAYER",
                       help="image: as of that layer: its number, from 1 at the bottom, its digest "
                       "or the beginning of that, or history:LINE")  # fmt: skip
    parts.add_argument("--only-layer", metavar="LAYER", help="image: that layer alone")


def part_of(args: argparse.Namespace) -> Part | None:
    """The part of the image that they ask for. Raises `UsageError`."""
    word = args.only_layer or args.layer
    if word is None:
        return None
    # Mounting directories must import nothing that only images need.
    from fuseoverlay.store.part import Part

    return Part(word, alone=args.only_layer is not None)


def mount(args: argparse.Namespace) -> int:
    """Tell an image from directories, and mount."""
    from fuseoverlay.fuse.daemonlog import DaemonLog

    parsed = parsed_options(args.options)
    advice.check_given(
        {
            "--upper": args.upper,
            "--platform": args.platform,
            "--layer": args.layer,
            "--only-layer": args.only_layer,
            "--root": args.root,
        }
    )
    advice.check_paths(
        args.paths,
        directories=bool(parsed.lowerdirs),
        image=bool(args.upper or any(getattr(args, name) for name in _FOR_IMAGES)),
        command=args.command,
    )
    if args.read_only:
        parsed = replace(parsed, fuse_options=(*parsed.fuse_options, "ro"))
    if len(args.paths) == 2:
        parsed = parsed.shown_as(args.paths[0])
    args.debug |= parsed.debug
    if parsed.lowerdirs or len(args.paths) == 1:
        if args.upper:
            raise UsageError("--upper is for images", hint="use upperdir= and workdir=")
        for name in _FOR_IMAGES:
            if getattr(args, name):
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} is for images", hint="leave it out")
        config.check(parsed)
        _serve(args, parsed, DaemonLog(parsed.log, debug=args.debug))
    else:
        config.check_upper(parsed)
        _mount_image(args, parsed, DaemonLog(parsed.log, debug=args.debug))
    return 0


def _serve(
    args: argparse.Namespace,
    config: MountConfig,
    logs: DaemonLog,
    image: MountedImage | None = None,
    at_exit: Callable[[], None] | None = None,
) -> None:
    # What is imported stays to the end: no collection, not even the last, needs to look at it.
    gc.disable()
    from fuseoverlay.fuse import mount

    gc.freeze()
    # Inodes live long and make few cycles. To look at each of them again and again takes as long as
    # serving them, and a look at all of them at once would be a noticeable pause.
    gc.set_threshold(20_000, 5, 1_000)
    gc.enable()
    mount.run(
        config,
        os.fsencode(args.paths[-1]),
        foreground=args.foreground or args.debug,
        logs=logs,
        image=image,
        at_exit=at_exit,
    )


def _mount_image(args: argparse.Namespace, config: MountConfig, logs: DaemonLog) -> None:
    from fuseoverlay.commands import imagemount, progress
    from fuseoverlay.fuse import mount
    from fuseoverlay.store.root import Store, default_root

    wanted = imagemount.Wanted(args.paths[0], args.platform, part_of(args), args.pull or "missing")
    mountpoint = os.fsencode(args.paths[-1])
    mount.check(config, mountpoint)
    with contextlib.ExitStack() as changes:
        with output.advising(), progress.shown("Unpacking") as report:
            config, image = changes.enter_context(
                imagemount.prepared(
                    Store(args.root or default_root()),
                    wanted,
                    config,
                    keep_in=args.upper,
                    check=lambda now: mount.check(now, mountpoint),
                    progress=report,
                    warn=output.warn,
                )
            )
        _serve(args, config, logs, image, at_exit=changes.close)
