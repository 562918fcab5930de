"""A command on a terminal, and what is seen there."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.commands.conftest import Cli
from tests.helpers.mounts import command, daemon_env


@dataclass(frozen=True)
class Seen:
    """All that was written, and how it ended."""

    text: str
    code: int

    @property
    def lines(self) -> list[str]:
        """Every line that was ever shown, without what moves the cursor."""
        return [line for line in re.split(r"[\r\n]+", self.plain) if line]

    @property
    def plain(self) -> str:
        """Without what moves the cursor."""
        return re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", self.text)


def on_terminal(
    cli: Cli,
    *argv: object,
    size: tuple[int, int] = (24, 80),
    term: str = "xterm",
    act: Callable[[str, subprocess.Popen[bytes]], bool] = lambda text, process: True,
) -> Seen:
    """Run a command on a terminal of so many lines and columns. `act` gets what was written so far
    until it returns True."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    env = daemon_env(FUSEOVERLAY_ROOT=str(cli.root), TERM=term, **cli.env)
    process = subprocess.Popen(
        command(*argv), cwd=cli.base, env=env, stdin=follower, stdout=follower, stderr=follower
    )
    os.close(follower)
    said, acted, end = b"", False, time.monotonic() + 60
    try:
        while time.monotonic() < end:
            if select.select([leader], [], [], 0.1)[0]:
                try:
                    said += os.read(leader, 1 << 16)
                except OSError:  # The last one has closed it.
                    break
            acted = acted or act(said.decode(errors="replace"), process)
        return Seen(said.decode(errors="replace"), process.wait(20))
    finally:
        process.kill()
        process.wait()
        os.close(leader)
