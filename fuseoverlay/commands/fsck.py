"""The command `fsck`."""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import replace

from fuseoverlay.commands import advice, mount, output
from fuseoverlay.commands.parser import Parser, parsed_options
from fuseoverlay.errors import PROBLEMS_LEFT, UsageError
from fuseoverlay.fsck import run
from fuseoverlay.overlay import config
from fuseoverlay.overlay.config import MountConfig


def command(argv: list[str]) -> int:
    """Check what the arguments name; return the exit code."""
    args = parser("fuseoverlay fsck").parse_intermixed_args(argv)
    parsed = parsed_options(args.options)
    advice.check_given({"--upper": args.upper, "--platform": args.platform})
    for name in ("layer", "only_layer"):
        flag = f"--{name.replace('_', '-')}"
        advice.check_given({flag: getattr(args, name)})
        if getattr(args, name) and args.upper is None:
            raise UsageError(f"{flag} is for images", hint="leave it out")
    advice.check_given({"UPPER" if args.upper is None else "IMAGE": args.what})
    advice.check_fsck(args.what, directories=bool(parsed.lowerdirs), kept=args.upper)
    upper = _of_image(args, parsed) if args.upper else _of_directories(args.what, parsed)
    return _check(upper, repair=args.repair, force=args.force)


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = Parser(
        prog=prog,
        description="Check an upper directory that is not mounted: whiteouts, redirects, the "
        "work directory. Name the layers, or the image, as for the mount.",
    )
    made.add_argument("what", metavar="UPPER|IMAGE",
                      help="the upper directory, or with --upper the image")  # fmt: skip
    made.add_argument("-o", dest="options", action="append", default=[], metavar="OPTS",
                      help="lowerdir=A:B[,workdir=W] and what the mount has")  # fmt: skip
    made.add_argument("--upper", metavar="DIR", help="image: check the changes kept in DIR")
    made.add_argument("--platform", metavar="OS/ARCH[/VARIANT]",
                      help="image: which of a multi-platform image")  # fmt: skip
    mount.add_store(made)
    mount.add_parts(made)
    made.add_argument("--repair", action="store_true",
                      help="repair what leaves the view of a mount unchanged")  # fmt: skip
    made.add_argument("--force", action="store_true",
                      help="repair although the layers seem to be the wrong ones")  # fmt: skip
    return made


def _of_directories(name: str, parsed: MountConfig) -> MountConfig:
    """The mount options for a check of this upper directory."""
    upper = os.fsencode(name)
    if parsed.upperdir is not None and not _is_same(parsed.upperdir, upper):
        raise UsageError("upperdir= is not UPPER", hint="leave upperdir= out")
    config.check(replace(parsed, upperdir=None, workdir=None, metacopy=True))
    return replace(parsed, upperdir=upper)


def _of_image(args: argparse.Namespace, parsed: MountConfig) -> MountConfig:
    """The mount options for a check of this image's changes."""
    from fuseoverlay.commands import imagemount, progress
    from fuseoverlay.store.root import Store, default_root

    with output.advising(), progress.shown("Unpacking") as report:
        return imagemount.to_check(
            Store(args.root or default_root()),
            imagemount.Wanted(args.what, args.platform, mount.part_of(args)),
            parsed,
            keep_in=args.upper,
            progress=report,
            warn=output.warn,
        )


def _is_same(one: bytes, other: bytes) -> bool:
    try:
        return one == other or os.path.samefile(one, other)
    except OSError:
        return False


def _check(config: MountConfig, *, repair: bool, force: bool) -> int:
    """Print findings as they come, then how many there were; return the exit code."""
    # Warnings of the look-up would only repeat findings.
    logging.getLogger("fuseoverlay").addHandler(logging.NullHandler())
    found = repaired = 0
    with run.opened(config) as check:
        for finding in check.findings(repair=repair, force=force):
            output.say(finding)
            found += 1
            repaired += bool(finding.repaired)
        if check.doubt:
            output.say(f"not everything was repaired: {check.doubt}")
        skipped = "".join(f"; not checked: {what}" for what in check.skipped)
    problems = "1 problem" if found == 1 else f"{found} problems"
    output.say(f"{f'{problems}, {repaired} repaired' if found else 'clean'}{skipped}")
    return 0 if repaired == found else PROBLEMS_LEFT
