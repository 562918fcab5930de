"""The command line: finds the command that is meant, and reports its errors.

Three spellings mount directories: `fuseoverlay mount -o OPTS MNT`, `fuseoverlay -o OPTS MNT` (as
container tools call a mount program) and `fuseoverlay SOURCE MNT -o OPTS` (as mount.fuse calls it).
mount(8) runs its helper as `mount.fuseoverlay SOURCE MNT -o OPTS`.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable, Sequence

from fuseoverlay import __version__
from fuseoverlay.commands import advice, output
from fuseoverlay.errors import (
    INTERRUPTED,
    FuseOverlayError,
    UsageError,
    describe,
    mount_exit_code,
    printable,
)


def main(argv: Sequence[str]) -> int:
    """Run one command and return the exit code. An error becomes one line on stderr."""
    return _bounded(_run, argv)


def main_of_helper(argv: Sequence[str]) -> int:
    """The same for the helper of mount(8), with the exit codes of mount(8)."""
    from fuseoverlay.commands import mount

    return mount_exit_code(_bounded(mount.helper, argv))


def _bounded(command: Callable[[list[str]], int], argv: Sequence[str]) -> int:
    output.open_missing()
    # Our parent may have ignored SIGCHLD, and the kernel would then reap our children too: we would
    # not learn how they end.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        return command(list(argv))
    except output.NobodyReadsError as exc:
        return exc.exit_code
    except FuseOverlayError as exc:
        output.complain("error", str(exc))
        return exc.exit_code
    except (KeyboardInterrupt, EOFError) as exc:
        output.complain("error", "; ".join(["interrupted", *map(str, exc.args)]))
        return INTERRUPTED
    except OSError as exc:
        output.complain("error", f"{printable(exc.filename or 'fuseoverlay')}: {describe(exc)}")
        return 1
    finally:
        output.settle()


def _run(argv: list[str]) -> int:
    if argv and argv[0] in advice.COMMANDS:
        return _command(argv[0], argv[1:])
    if argv and argv[0] == "__complete":
        from fuseoverlay.commands import complete

        return complete.command(argv[1:])
    if argv:
        advice.check_first(argv)
    from fuseoverlay.commands import mount

    parser = mount.parser("fuseoverlay")
    parser.add_argument("--version", "-V", action="store_true",
                        help="print the version; with -v also of what it runs on")  # fmt: skip
    parser.add_argument("-v", dest="verbose", action="store_true", help=argparse.SUPPRESS)
    parser.description = (
        "Mount layer directories as one: fuseoverlay -o lowerdir=A:B,upperdir=U,workdir=W MNT."
    )
    if not {"-h", "--help"}.isdisjoint(argv):
        # Mounting loads neither.
        from fuseoverlay.commands import complete, tables

        parser.epilog = tables.commands(complete.commands())
    parser.set_defaults(command=False)
    args = parser.parse_intermixed_args(argv)
    return _version(verbose=args.verbose) if args.version else mount.mount(args)


def _command(name: str, argv: list[str]) -> int:
    match name:
        case "mount":
            from fuseoverlay.commands import mount

            return mount.command(argv)
        case "unmount" | "umount":
            from fuseoverlay.commands import unmount

            return unmount.command(argv)
        case "mounts":
            from fuseoverlay.commands import mounts

            return mounts.command(argv)
        case "completion":
            from fuseoverlay.commands import completion

            return completion.command(argv)
        case "fsck":
            from fuseoverlay.commands import fsck

            return fsck.command(argv)
        case "help":
            return _help(argv)
        case "image":
            from fuseoverlay.commands.image import words

            return words.command(argv)
        case _ if name in advice.FOR_IMAGES:
            from fuseoverlay.commands.image import words

            return words.run(words.SPELLINGS[name], argv, f"fuseoverlay {name}")
        case _ if name in advice.FOR_LAYERS:
            from fuseoverlay.commands.view import words as looking

            return looking.run(name, argv, f"fuseoverlay {name}")
        case _:
            return _run(["--version", *argv])


def _help(argv: list[str]) -> int:
    """`fuseoverlay help [COMMAND]`."""
    if argv and not argv[0].startswith("-") and argv[0] not in advice.COMMANDS:
        commands = ", ".join(advice.COMMANDS)
        raise UsageError(f"{argv[0]} is not a command", hint=f"the commands are {commands}")
    return _run([*argv[:1], "--help"])


def _version(*, verbose: bool) -> int:
    output.say(f"fuseoverlay {__version__}")
    if verbose:
        from fuseoverlay.fuse import about

        for line in about.lines():
            output.say(line)
    return 0
