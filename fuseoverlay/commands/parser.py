"""What the commands' parsers share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fuseoverlay.commands import output
from fuseoverlay.errors import UsageError, exit_codes

if TYPE_CHECKING:
    from fuseoverlay.overlay.config import MountConfig


class Parser(argparse.ArgumentParser):
    """Reports an error in one line, without the usage text. With `lists_options` --help ends with
    the mount options and the exit codes, `codes` instead of our own; without, it names the page of
    the `manual` that has them."""

    def __init__(
        self,
        *,
        prog: str,
        description: str = "",
        lists_options: bool = False,
        codes: Mapping[int, str] | None = None,
        epilog: str | None = None,
        manual: str = "fuseoverlay(1)",
    ) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.lists_options = lists_options
        self.codes = codes or exit_codes()
        self._manual = manual

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UsageError(message, hint=f"see {self.prog} --help")

    def print_help(self, file: object = None) -> None:
        """Print it on stdout, even if that is closed or full; `file` is ignored."""
        # Imported here, because mounting does not need it.
        from fuseoverlay.commands import tables

        parts = [self.format_help().removesuffix("\n")]
        if self.lists_options:
            parts.append(tables.mount_options())
            parts.append(tables.exit_codes(self.codes))
        else:
            parts.append(f"Exit codes: see {self._manual}.")
        output.say("\n\n".join(parts))


def parsed_options(options: Sequence[str]) -> MountConfig:
    """What the arguments of `-o` and the environment ask for. Warns of unknown options."""
    # The commands for images need none of it.
    from fuseoverlay.overlay import mountoptions

    parsed = mountoptions.parse(os.fsencode(",".join(options)))
    parsed = mountoptions.with_environment(parsed, os.environ)
    for option in parsed.ignored:
        output.warn(f"option {option} is unknown and ignored")
    return parsed
