"""The command `unmount`."""

from __future__ import annotations

import os

from fuseoverlay.commands import advice, output
from fuseoverlay.commands.parser import Parser
from fuseoverlay.fuse import unmount


def command(argv: list[str]) -> int:
    """Unmount what the arguments name; return the exit code."""
    parser = Parser(prog="fuseoverlay unmount", description="Unmount; waits for the daemon.")
    parser.add_argument("mountpoint", metavar="MNT")
    args = parser.parse_args(argv)
    advice.check_given({"MNT": args.mountpoint})
    if not unmount.unmount(os.fsencode(args.mountpoint)):
        output.warn(
            f"{args.mountpoint}: unmounted, but its daemon goes on: another mount namespace (a "
            "container, say) has a copy of the mount, or the disk is slow"
        )
    return 0
