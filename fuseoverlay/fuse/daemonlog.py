"""Where a daemon's log goes: to stderr while that is still the caller's, to a file, to syslog."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from typing import Any, Final

from fuseoverlay.errors import UsageError, describe, visible

log = logging.getLogger("fuseoverlay")

#: Stands for syslog in place of a file name; a file of this name is `./syslog`.
SYSLOG: Final = b"syslog"
#: syslog(3)
_DAEMON: Final = 3 << 3
_SEVERITIES: Final = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6}
_DEBUG: Final = 7
#: What pyfuse3 says if the kernel does not know the request any more.
_NOBODY: Final = "failed with No such file or directory"
_FILE_FORMAT: Final = "%(asctime)s fuseoverlay[%(process)d] %(levelname)s: %(message)s"


class DaemonLog:
    """Sends what is logged from now on to stderr and to `target`, which is a file, `SYSLOG` or
    None. With None only a daemon in the background uses syslog, and only for warnings: nobody has
    asked for more.

    `debug` adds every request and its answer. Raises `UsageError` if the file cannot be opened.
    """

    def __init__(self, target: bytes | None, *, debug: bool) -> None:
        self._fd = None if target in (None, SYSLOG) else _opened(target)
        self._asked = target is not None
        form = "fuseoverlay: %(levelname)s: %(message)s" if not debug else "%(message)s"
        self._stderr = logging.StreamHandler(sys.stderr)
        self._stderr.setFormatter(_Lines(form))
        logging.addLevelName(logging.WARNING, "warning")
        root = logging.getLogger()
        root.setLevel(logging.DEBUG if debug else logging.INFO)
        root.addHandler(self._stderr)
        if self._fd is not None:
            stream = os.fdopen(self._fd, "a", encoding="utf-8", errors="backslashreplace")
            file = logging.StreamHandler(stream)
            file.setFormatter(_Lines(_FILE_FORMAT))
            root.addHandler(file)
        elif target == SYSLOG:
            root.addHandler(_Syslog())
        # pyfuse3 and trio have nothing to say about requests.
        pyfuse3 = logging.getLogger("pyfuse3")
        pyfuse3.setLevel(logging.WARNING)
        pyfuse3.addFilter(_matters)

    def detach(self) -> None:
        """Stop using stderr, which nobody reads any more. What libraries and the interpreter write
        to it goes to the log file, if there is one."""
        root = logging.getLogger()
        root.removeHandler(self._stderr)
        if self._fd is not None:
            os.dup2(self._fd, 2)
        if not self._asked:
            syslog = _Syslog()
            syslog.setLevel(logging.WARNING)
            root.addHandler(syslog)
        sys.unraisablehook = _unraisable


def _matters(record: logging.LogRecord) -> bool:
    """Whether a message of pyfuse3 is worth a line. Where nobody waits for the answer to RELEASE,
    because the mount ended meanwhile, nothing is lost."""
    text = record.getMessage()
    return not (text.startswith("fuse_release(): fuse_reply_") and text.endswith(_NOBODY))


class _Lines(logging.Formatter):
    """Formats a message as one line, whatever the names in it hold: they come from the layers. A
    traceback follows, indented, so that none of its lines can be taken for another message."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return visible(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        lines = super().formatException(ei).splitlines()
        return "\n".join(f"  {visible(line)}" for line in lines)


def _unraisable(what: sys.UnraisableHookArgs) -> None:
    """Log a bug in a function that C code called; the interpreter would only write it to stderr."""
    error = what.exc_value
    log.error("bug in %r", what.object, exc_info=error if error is not None else False)


def _opened(path: bytes) -> int:
    """Open for appending. Does not wait for a reader if `path` is a FIFO."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except OSError as exc:
        raise UsageError(
            f"log= cannot be written: {describe(exc)}",
            where=path,
            hint="name a file that you may write, or leave log= out",
        ) from None


class _Syslog(logging.Handler):
    """Sends to whatever listens at /dev/log. Never waits: what cannot be sent at once is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(_Lines())
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        place, self._name = os.path.split(os.path.realpath("/dev/log"))
        try:
            # Opened now, because after the mount the path could lead into it.
            self._place = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            self._place = -1

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record as one datagram, as syslog(3) does: the listener queues only a few."""
        severity = _SEVERITIES.get(record.levelno, _DEBUG)
        text = f"<{_DAEMON | severity}>fuseoverlay[{os.getpid()}]: {self.format(record)}"
        with contextlib.suppress(OSError):
            self._socket.sendto(text.encode(), f"/proc/self/fd/{self._place}/{self._name}")
