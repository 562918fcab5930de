"""Going to the background: what the parent waits for, and what the child lets go of."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from typing import NoReturn

from fuseoverlay.errors import FuseError, describe
from fuseoverlay.fuse.unmount import give_up

log = logging.getLogger("fuseoverlay")


def inherited() -> list[int]:
    """Descriptors of the caller's beside the first three: ours are all closed on exec."""
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        # That of the listing is gone.
        with contextlib.suppress(OSError):
            if fd > 2 and os.get_inheritable(fd):
                found.append(fd)
    return found


def leave_when_ready(ready: int, mountpoint: bytes, device: str | None) -> NoReturn:
    """In the parent: end when the child serves, or with an error when it died before, or answers
    what anybody asks first with an error: then the mount goes again."""
    problem = None if os.read(ready, 1) else "the daemon ended before the mount answered"
    if problem is None:
        try:
            os.stat(mountpoint)
        except OSError as exc:
            problem = f"the mount answers with an error, {describe(exc)}; log=FILE tells more"
            give_up(mountpoint, device)
    if problem is not None:
        with contextlib.suppress(OSError):
            os.write(2, f"fuseoverlay: error: {problem}\n".encode())
    # Not a normal exit: what the owners hold belongs to the child now.
    os._exit(0 if problem is None else FuseError.exit_code)


def detach(inherited: Iterable[int]) -> None:
    """In the child: keep nothing of the caller's; whoever reads its stderr sees the end."""
    for fd in inherited:
        os.close(fd)
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)


@contextlib.contextmanager
def last_words() -> Iterator[None]:
    """In the background: log what ends the daemon, since nobody sees what else is said of it."""
    try:
        yield
    except Exception:
        log.critical("the daemon ends by a bug", exc_info=True)
        raise SystemExit(1) from None
