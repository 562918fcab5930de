"""Standard output and standard error, whatever the caller has made of them: closed, full, a pipe
that nobody reads."""

from __future__ import annotations

import os
import sys
from typing import Final, TextIO

from fuseoverlay.errors import FuseOverlayError, describe, visible

#: The streams of `sys` by descriptor: how each is used, and how it is not, so that what is lost
#: there is noticed.
_STREAMS: Final = (
    ("stdin", "r", os.O_WRONLY),
    ("stdout", "w", os.O_RDONLY),
    ("stderr", "w", os.O_RDONLY),
)


def open_missing() -> None:
    """Open something on what is missing of 0 to 2: else a layer's directory would get the number,
    and lose it to /dev/null when the daemon goes to the background. The interpreter, which found
    nothing there, has no stream either."""
    for fd, (name, mode, contrary) in enumerate(_STREAMS):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest number that is free.
            os.open(os.devnull, contrary)
        if getattr(sys, name) is None:
            # By lines, as the interpreter's stderr is.
            stream = os.fdopen(fd, mode, buffering=1, closefd=False, errors="backslashreplace")
            setattr(sys, name, stream)


def say(text: object) -> None:
    """A line of what was asked for, at once. Raises `FuseOverlayError`."""
    try:
        print(text, flush=True)
    except OSError as exc:
        raise _lost(exc) from None


def complain(level: str, text: str) -> None:
    """A line on stderr. Where nobody can see it the exit code has to do."""
    # Names from layers and images may hold what moves the cursor, or begins a line.
    try:
        print(f"fuseoverlay: {level}: {visible(text)}", file=sys.stderr)
    except OSError:
        _drop(sys.stderr)


def warn(text: str) -> None:
    """A warning on stderr."""
    complain("warning", text)


def settle() -> None:
    """Nothing is left for the interpreter to write when it ends: it would exit with a code of its
    own where that fails."""
    try:
        sys.stderr.flush()
    except OSError:
        _drop(sys.stderr)


def _lost(exc: OSError) -> FuseOverlayError:
    _drop(sys.stdout)
    return FuseOverlayError(
        f"the output cannot be written: {describe(exc)}", hint="give it somewhere else to go"
    )


def _drop(stream: TextIO) -> None:
    """Let what the stream holds, and what will be written to it, go nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
