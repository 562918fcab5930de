"""Standard output and standard error, which the caller may have closed, or connected to a full disk
or to a pipe that nobody reads."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterable, Iterator
from typing import IO, Any, Final, TextIO

from fuseoverlay.errors import FuseOverlayError, describe, escaped, printable, visible

#: The streams of `sys` by descriptor: its mode, and the opposite access mode for /dev/null in its
#: place, so that using it fails and the loss is noticed.
_STREAMS: Final = (
    ("stdin", "r", os.O_WRONLY),
    ("stdout", "w", os.O_RDONLY),
    ("stderr", "w", os.O_RDONLY),
)
#: Characters that are printed at a time.
_PIECE: Final = 1 << 16


class NobodyReadsError(FuseOverlayError):
    """Whoever reads the output has had enough, such as `head`: nothing to complain of, but not all
    was done either."""


def open_missing() -> None:
    """Open /dev/null on those of the descriptors 0 to 2 that are closed. Otherwise a layer's
    directory would get the number, and lose it to /dev/null when the daemon goes to the background.
    Make the stream, too, which the interpreter does not have then."""
    for fd, (name, mode, contrary) in enumerate(_STREAMS):
        try:
            os.fstat(fd)
        except OSError:
            # Gets the lowest free number, which is `fd`.
            os.open(os.devnull, contrary)
        if getattr(sys, name) is None:
            # Line-buffered, like the interpreter's stderr.
            stream = os.fdopen(fd, mode, buffering=1, closefd=False, errors="backslashreplace")
            setattr(sys, name, stream)
    # A terminal that cannot show every character is no reason to fail.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def named(name: bytes) -> str:
    """A name from a layer, with all escaped that is no printable character."""
    return escaped(printable(name))


def say(text: object) -> None:
    """Print a line of the output that was asked for, and flush it. Raises `FuseOverlayError`."""
    try:
        print(text, flush=True)
    except OSError as exc:
        raise _lost(exc) from None


def say_all(lines: Iterable[str]) -> None:
    """Print lines, many at a time. Raises `FuseOverlayError`."""
    waiting: list[str] = []
    length = 0
    for line in lines:
        waiting.append(line)
        length += len(line)
        if length > _PIECE:
            say("\n".join(waiting))
            waiting, length = [], 0
    if waiting:
        say("\n".join(waiting))


def write(data: bytes) -> int:
    """Write bytes to standard output, all of them. Raises `FuseOverlayError`."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(1, view) :]
    except OSError as exc:
        raise _lost(exc) from None
    return len(data)


@contextlib.contextmanager
def stream() -> Iterator[IO[bytes]]:
    """Standard output for bytes. What is wrong with it is a `FuseOverlayError`."""
    with io.BufferedWriter(_Stdout(), 1 << 20) as file:
        yield file


class _Stdout(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return write(bytes(data))


def complain(level: str, text: str) -> None:
    """Print a line on stderr. If that fails, the exit code has to do."""
    # Names from layers and images may hold control characters that move the cursor or begin a line.
    try:
        print(f"fuseoverlay: {level}: {visible(text)}", file=sys.stderr)
    except OSError:
        _drop(sys.stderr)


def note(text: str) -> None:
    """Print a line of progress on stderr. If that fails, nothing is lost."""
    try:
        print(visible(text), file=sys.stderr)
    except OSError:
        _drop(sys.stderr)


def is_screen() -> bool:
    """Whether stderr is a terminal on which lines can be written anew."""
    return sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def warn(text: str) -> None:
    """Print a warning on stderr."""
    complain("warning", text)


@contextlib.contextmanager
def advising(hint: str = "run it again to resume") -> Iterator[None]:
    """Whoever interrupts this is told the hint."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(hint) from None


def settle() -> None:
    """Flush stderr, so that the interpreter has nothing left to write when it ends: if that failed,
    it would exit with a code of its own."""
    try:
        sys.stderr.flush()
    except OSError:
        _drop(sys.stderr)


def _lost(exc: OSError) -> FuseOverlayError:
    _drop(sys.stdout)
    if isinstance(exc, BrokenPipeError):
        return NobodyReadsError("nobody reads the output")
    return FuseOverlayError(
        f"the output cannot be written: {describe(exc)}", hint="give it somewhere else to go"
    )


def _drop(stream: TextIO) -> None:
    """Send to /dev/null what the stream holds and what will be written to it."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
