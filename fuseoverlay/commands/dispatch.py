"""The command line.

Three spellings mount directories: `fuseoverlay mount -o OPTS MNT`, `fuseoverlay -o OPTS MNT`
(mount programs) and `fuseoverlay SOURCE MNT -o OPTS` (mount.fuse). mount(8) runs its helper as
`mount.fuseoverlay SOURCE MNT -o OPTS`. Mounting directories imports nothing that only images
need.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fuseoverlay import __version__
from fuseoverlay.commands import advice, output
from fuseoverlay.errors import (
    INTERRUPTED,
    PROBLEMS_LEFT,
    FuseOverlayError,
    UsageError,
    describe,
    mount_exit_code,
)
from fuseoverlay.overlay.config import MountConfig

if TYPE_CHECKING:
    from fuseoverlay.fuse.daemonlog import DaemonLog

_EPILOG = """\
exit codes: 0 done; 1 unexpected error; 2 usage; 3 lower directory; 4 upper or work
directory; 5 mount point; 6 FUSE; 7 image; 8 digest; 9 layer store; 10 fsck left problems
"""


class _Parser(argparse.ArgumentParser):
    """One line instead of the usage text; the text is for --help."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UsageError(message, hint="see fuseoverlay --help")

    def print_help(self, file: object = None) -> None:
        """On stdout, whatever that is."""
        output.say(self.format_help().removesuffix("\n"))


def main(argv: Sequence[str]) -> int:
    """Run one command; the exit code. Errors become one line on stderr."""
    return _bounded(_run, argv)


def main_of_helper(argv: Sequence[str]) -> int:
    """The same for mount(8)'s helper, with mount(8)'s exit codes."""
    return mount_exit_code(_bounded(_helper, argv))


def _bounded(command: Callable[[list[str]], int], argv: Sequence[str]) -> int:
    output.open_missing()
    # Whoever started us may have had the kernel reap his children: we would not learn how ours end.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        return command(list(argv))
    except FuseOverlayError as exc:
        output.complain("error", str(exc))
        return exc.exit_code
    except KeyboardInterrupt:
        output.complain("error", "interrupted")
        return INTERRUPTED
    except OSError as exc:
        output.complain("error", f"{exc.filename or 'fuseoverlay'}: {describe(exc)}")
        return 1
    finally:
        output.settle()


def _run(argv: list[str]) -> int:
    if argv and argv[0] in advice.COMMANDS:
        return _command(argv[0], argv[1:])
    if argv:
        advice.check_first(argv[0])
    parser = _mount_parser("fuseoverlay")
    parser.add_argument("--version", "-V", action="store_true",
                        help="print the version; with -v also of what it runs on")  # fmt: skip
    parser.add_argument("-v", dest="verbose", action="store_true", help=argparse.SUPPRESS)
    parser.description = (
        "Mount layer directories as one: fuseoverlay -o lowerdir=A:B,upperdir=U,workdir=W MNT. "
        "Commands: mount (also images), unmount, fsck, help, version; see fuseoverlay mount --help."
    )
    parser.set_defaults(command=False)
    args = parser.parse_intermixed_args(argv)
    return _version(verbose=args.verbose) if args.version else _mount_with(args)


def _command(name: str, argv: list[str]) -> int:
    match name:
        case "mount":
            return _mount(argv)
        case "unmount" | "umount":
            return _unmount(argv)
        case "fsck":
            return _fsck(argv)
        case "help":
            return _run([*argv[:1], "--help"])
        case _:
            return _run(["--version", *argv])


def _version(*, verbose: bool) -> int:
    output.say(f"fuseoverlay {__version__}")
    if verbose:
        from fuseoverlay.fuse import about

        for line in about.lines():
            output.say(line)
    return 0


def _helper(argv: list[str]) -> int:
    """What mount(8) runs. Its -f is not ours: all but the mount is to be done."""
    parser = _Parser(
        prog="mount.fuseoverlay",
        description="Called by mount -t fuseoverlay SOURCE MNT -o OPTS. SOURCE is an image, or "
        "with lowerdir= any word, which is shown as the source.",
    )
    parser.add_argument("source", metavar="SOURCE", help="what to mount")
    parser.add_argument("mountpoint", metavar="MNT", help="and where")
    parser.add_argument("-o", dest="options", action="append", default=[], metavar="OPTS",
                        help="lowerdir=A:B,upperdir=U,workdir=W and mount options")  # fmt: skip
    parser.add_argument("-r", dest="read_only", action="store_true", help="allow no changes")
    parser.add_argument("-f", dest="fake", action="store_true", help="check the options only")
    parser.add_argument("-t", dest="type", metavar="TYPE", help="fuseoverlay, whatever is said")
    for flag in "snvw":
        parser.add_argument(f"-{flag}", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(foreground=False, debug=False, upper=None, platform=None, command=True)
    args = parser.parse_intermixed_args(argv)
    args.paths = [args.source, args.mountpoint]
    if args.fake:
        _parsed(args.options)
        return 0
    return _mount_with(args)


def _mount(argv: list[str]) -> int:
    parser = _mount_parser("fuseoverlay mount")
    parser.description = (
        "Mount layer directories (-o lowerdir=...) or an image: an OCI layout directory, an "
        "OCI archive or a docker-save archive, as IMAGE[:REF]."
    )
    parser.set_defaults(command=True)
    return _mount_with(parser.parse_intermixed_args(argv))


def _mount_parser(prog: str) -> _Parser:
    parser = _Parser(
        prog=prog, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", metavar="[IMAGE] MNT", help="what and where to mount")
    parser.add_argument("-o", dest="options", action="append", default=[], metavar="OPTS",
                        help="lowerdir=A:B,upperdir=U,workdir=W and mount options")  # fmt: skip
    parser.add_argument("-f", "--foreground", action="store_true", help="stay in the foreground")
    parser.add_argument("-d", "--debug", action="store_true",
                        help="log each request, with its error if any; implies -f")  # fmt: skip
    parser.add_argument("-s", dest="single", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--upper", metavar="DIR",
                        help="image: keep changes in DIR/diff, work in DIR/work")  # fmt: skip
    parser.add_argument("--read-only", action="store_true", help="allow no changes")
    parser.add_argument("--platform", metavar="OS/ARCH[/VARIANT]",
                        help="image: which of a multi-platform image")  # fmt: skip
    return parser


def _mount_with(args: argparse.Namespace) -> int:
    """Tell an image from directories, and mount."""
    from fuseoverlay.fuse.daemonlog import DaemonLog
    from fuseoverlay.overlay import config

    parsed = _parsed(args.options)
    advice.check_given({"--upper": args.upper, "--platform": args.platform})
    advice.check_paths(
        args.paths,
        directories=bool(parsed.lowerdirs),
        image=bool(args.upper or args.platform),
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
        if args.platform:
            raise UsageError("--platform is for images", hint="leave it out")
        config.check(parsed)
        _serve(args, parsed, DaemonLog(parsed.log, debug=args.debug))
    else:
        config.check_upper(parsed)
        _mount_image(args, parsed, DaemonLog(parsed.log, debug=args.debug))
    return 0


def _parsed(options: Sequence[str]) -> MountConfig:
    from fuseoverlay.overlay import config

    parsed = config.parse(os.fsencode(",".join(options)))
    parsed = config.with_environment(parsed, os.environ)
    for option in parsed.ignored:
        output.warn(f"option {option} is unknown and ignored")
    return parsed


def _serve(
    args: argparse.Namespace,
    config: MountConfig,
    logs: DaemonLog,
    at_exit: Callable[[], None] | None = None,
) -> None:
    # What is imported stays to the end: no collection need look at it, not the last one either.
    gc.disable()
    from fuseoverlay.fuse import mount

    gc.freeze()
    # Inodes live long and make few cycles: looking at each of them again and again takes as
    # long as serving them, and a look at all of them at once would be felt.
    gc.set_threshold(20_000, 5, 1_000)
    gc.enable()
    mount.run(
        config,
        os.fsencode(args.paths[-1]),
        foreground=args.foreground or args.debug,
        logs=logs,
        at_exit=at_exit,
    )


def _mount_image(args: argparse.Namespace, config: MountConfig, logs: DaemonLog) -> None:
    from fuseoverlay.commands import images, progress
    from fuseoverlay.fuse import mount

    mountpoint = os.fsencode(args.paths[-1])
    mount.check(config, mountpoint)
    with contextlib.ExitStack() as changes:
        with progress.shown("Unpacking") as report:
            config = changes.enter_context(
                images.prepared(
                    args.paths[0],
                    config,
                    platform=args.platform,
                    keep_in=args.upper,
                    check=lambda now: mount.check(now, mountpoint),
                    progress=report,
                    warn=output.warn,
                )
            )
        _serve(args, config, logs, at_exit=changes.close)


def _unmount(argv: list[str]) -> int:
    parser = _Parser(prog="fuseoverlay unmount", description="Unmount; waits for the daemon.")
    parser.add_argument("mountpoint", metavar="MNT")
    args = parser.parse_args(argv)
    advice.check_given({"MNT": args.mountpoint})
    from fuseoverlay.fuse import unmount

    if not unmount.unmount(os.fsencode(args.mountpoint)):
        output.warn(
            f"{args.mountpoint}: unmounted, but its daemon goes on: another mount namespace (a "
            "container, say) has a copy of the mount, or the disk is slow"
        )
    return 0


def _fsck(argv: list[str]) -> int:
    parser = _Parser(
        prog="fuseoverlay fsck", epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Check an upper directory that is not mounted: whiteouts, redirects, the "
        "work directory. Name the layers, or the image, as for the mount.",
    )  # fmt: skip
    parser.add_argument("what", metavar="UPPER|IMAGE",
                        help="the upper directory, or with --upper the image")  # fmt: skip
    parser.add_argument("-o", dest="options", action="append", default=[], metavar="OPTS",
                        help="lowerdir=A:B[,workdir=W] and mount options")  # fmt: skip
    parser.add_argument("--upper", metavar="DIR", help="image: check the changes kept in DIR")
    parser.add_argument("--platform", metavar="OS/ARCH[/VARIANT]",
                        help="image: which of a multi-platform image")  # fmt: skip
    parser.add_argument("--repair", action="store_true",
                        help="repair what does not change what a mount shows")  # fmt: skip
    parser.add_argument("--force", action="store_true",
                        help="repair although the layers seem to be the wrong ones")  # fmt: skip
    args = parser.parse_intermixed_args(argv)
    parsed = _parsed(args.options)
    advice.check_given({"--upper": args.upper, "--platform": args.platform})
    advice.check_given({"UPPER" if args.upper is None else "IMAGE": args.what})
    advice.check_fsck(args.what, directories=bool(parsed.lowerdirs), kept=args.upper)
    upper = _of_image(args, parsed) if args.upper else _of_directories(args.what, parsed)
    return _check(upper, repair=args.repair, force=args.force)


def _of_directories(name: str, parsed: MountConfig) -> MountConfig:
    """What a check of this upper directory looks at."""
    from fuseoverlay.overlay import config

    upper = os.fsencode(name)
    if parsed.upperdir is not None and not _is_same(parsed.upperdir, upper):
        raise UsageError("upperdir= is not UPPER", hint="leave upperdir= out")
    config.check(replace(parsed, upperdir=None, workdir=None, metacopy=True))
    return replace(parsed, upperdir=upper)


def _of_image(args: argparse.Namespace, parsed: MountConfig) -> MountConfig:
    """What a check of the changes of this image looks at."""
    from fuseoverlay.commands import images, progress

    with progress.shown("Unpacking") as report:
        return images.to_check(
            args.what,
            parsed,
            platform=args.platform,
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
    """Print findings as they come and then their sum; the exit code."""
    import logging

    from fuseoverlay.fsck import run

    # What the look-up would warn of are findings here.
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
