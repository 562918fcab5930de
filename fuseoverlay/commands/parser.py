"""What the commands' parsers share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Final

from fuseoverlay.commands import output
from fuseoverlay.errors import UsageError
from fuseoverlay.overlay import mountoptions
from fuseoverlay.overlay.config import MountConfig

EPILOG: Final = """\
exit codes: 0 done; 1 unexpected error; 2 usage; 3 lower directory; 4 upper or work
directory; 5 mount point; 6 FUSE; 7 image; 8 digest; 9 layer store; 10 fsck left problems
"""


class Parser(argparse.ArgumentParser):
    """One line instead of the usage text; the text is for --help."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UsageError(message, hint="see fuseoverlay --help")

    def print_help(self, file: object = None) -> None:
        """On stdout, whatever that is."""
        output.say(self.format_help().removesuffix("\n"))


def parsed_options(options: Sequence[str]) -> MountConfig:
    """What the arguments of `-o`, and the environment, ask for. Warns of what is unknown."""
    parsed = mountoptions.parse(os.fsencode(",".join(options)))
    parsed = mountoptions.with_environment(parsed, os.environ)
    for option in parsed.ignored:
        output.warn(f"option {option} is unknown and ignored")
    return parsed
