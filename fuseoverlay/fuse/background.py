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
    """The caller's descriptors besides 0 to 2: all of ours are close-on-exec."""
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        # The listing's own descriptor is closed by now.
        with contextlib.suppress(OSError):
            if fd > 2 and os.get_inheritable(fd):
                found.append(fd)
    return found


def leave_when_ready(ready: int, mountpoint: bytes, device: str | None) -> NoReturn:
    """In the parent: exit once the child serves. Exit with an error if the child died first, or if
    stat(2) of the mount point fails; in that case take the mount away."""
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
    # No normal exit, which would clean up: what the owners hold belongs to the child now.
    os._exit(0 if problem is None else FuseError.exit_code)


def detach(inherited: Iterable[int]) -> None:
    """In the child: keep nothing of the caller's, so that whoever reads its stderr sees end of
    file."""
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
    """In the background: log the exception that ends the daemon; nobody would see it on stderr."""
    try:
        yield
    except Exception:
        log.critical("the daemon ends by a bug", exc_info=True)
        raise SystemExit(1) from None
