"""Mounting, in the foreground or in the background.

pyfuse3 allows one mount per process. The order: open and check every directory, mount, fork, serve
in the child. The parent exits once the kernel and the child have agreed on the protocol and stat(2)
of the root directory has been answered. So the caller still sees every error on stderr, which the
daemon then closes.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable

from fuseoverlay.errors import UsageError
from fuseoverlay.fuse import background, mountpoint, mounts, server, turns
from fuseoverlay.fuse.daemonlog import DaemonLog
from fuseoverlay.fuse.ending import Ending
from fuseoverlay.fuse.mounts import Facts, MountedImage
from fuseoverlay.overlay import owners
from fuseoverlay.overlay.config import MountConfig
from fuseoverlay.overlay.owners import Overlay
from fuseoverlay.system import syscalls

log = logging.getLogger("fuseoverlay")


def run(
    config: MountConfig,
    where: bytes,
    *,
    foreground: bool,
    logs: DaemonLog,
    image: MountedImage | None = None,
    at_exit: Callable[[], None] | None = None,
) -> None:
    """Mount at `where` and serve until unmounted; in the background unless `foreground`.

    `image`: where the lowers come from, for lists of mounts. `at_exit` runs once the mount is gone,
    in the process that served it. Raises `FuseOverlayError` before anything is mounted.
    """
    os.umask(0)
    facts = Facts.of(config, image)
    inherited = background.inherited()
    _check_allowed(config)
    where = mountpoint.check(where)
    with contextlib.ExitStack() as undo:
        waits = turns.Trio()
        ov = undo.enter_context(owners.opened(config, waits.lowlevel.wait_for_thread))
        mountpoint.check_outside(where, ov)
        _warn_of_access_times(ov)
        serving = server.Server(ov, waits, where)
        serving.mount()
        if ov.workdir is not None:
            ov.workdir.note_lowers(ov.stack.below)
        if not foreground:
            if os.fork():
                serving.wait_apart()
                background.leave_when_ready(serving.ready, where, serving.device)
            background.detach(inherited)
            logs.detach()
        _tell(facts, serving.device, undo)
        ending = Ending(undo, ov, at_exit)
        with contextlib.nullcontext() if foreground else background.last_words():
            try:
                serving.serve(ending.finish)
            finally:
                ending.finish()


def _tell(facts: Facts, device: str | None, undo: contextlib.ExitStack) -> None:
    """Let lists of mounts tell of this one. It works without."""
    if device is not None:
        try:
            undo.callback(os.close, mounts.tell(facts, device))
        except OSError as exc:
            log.warning("lists of mounts will say nothing of this one: %s", exc)


def check(config: MountConfig, where: bytes) -> None:
    """Raise what `run` would raise, as far as that is known without the lowers; for callers that
    have to make the lowers first."""
    _check_allowed(config)
    mountpoint.check(where)
    server.check_device()
    owners.check_upper(config)


def _check_allowed(config: MountConfig) -> None:
    if "allow_root" in config.fuse_options and os.geteuid() != 0:
        raise UsageError(
            "allow_root takes root: the kernel lets in everybody or the mounting user alone",
            hint="leave it out, or use allow_other: others may then do what permissions allow",
        )


def _warn_of_access_times(ov: Overlay) -> None:
    """Warn where `strictatime` has no effect: without root, access times move as the mount options
    of the upper's filesystem say."""
    upper = ov.stack.upper
    if upper is None or not upper.access_times & syscalls.MOUNT_ATTR_STRICTATIME:
        return
    if os.fstatvfs(upper.root_fd).f_flag & (os.ST_NOATIME | os.ST_RELATIME):
        log.warning(
            "strictatime has no effect: only root can have access times move more often than "
            "on the mount that upperdir lies on"
        )
