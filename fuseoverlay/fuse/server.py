"""One mount from mount(2) to its end: the session with the kernel, and the loop that serves it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

# Before pyfuse3: the extension has to be found first.
from fuseoverlay.native import extension, terms  # isort: skip

import pyfuse3
import trio

from fuseoverlay.errors import FuseError, describe
from fuseoverlay.fuse import fuseoptions, turns
from fuseoverlay.fuse.extended import ExtendedOperations
from fuseoverlay.fuse.readahead import ReadAhead
from fuseoverlay.fuse.unmount import fuse_mount, fusermount, give_up
from fuseoverlay.layers import trust
from fuseoverlay.overlay.owners import Overlay

log = logging.getLogger("fuseoverlay")

# Less than service managers wait before they kill.
_WRITE_BACK_SECONDS = 30
# Four times the kernel's default; more gains nothing.
_READ_AHEAD_KIB = 512


class Server:
    """Serves one overlay at one mount point; pyfuse3 allows one per process."""

    def __init__(self, ov: Overlay, waits: turns.Trio, mountpoint: bytes) -> None:
        """`waits` is how pyfuse3 waits for requests; `mountpoint` an absolute path."""
        self._ov = ov
        self._waits = waits
        self._mountpoint = mountpoint
        #: The device number of the mount, `unmount.fuse_mount`.
        self.device: str | None = None
        #: The reading end of a pipe; a byte arrives once the kernel has agreed on the protocol.
        self.ready, self._told = os.pipe()
        # The eventfd that `ExtendedOperations.serve` waits for; None without the extension.
        self._requests: int | None = None
        pyfuse3.trio = waits  # type: ignore[attr-defined]
        store: Any = pyfuse3.notify_store  # takes any buffer
        self._ahead = ReadAhead(ov, store, waits.lowlevel.wait_for_thread)
        self._options, acls = fuseoptions.of(ov)
        self._operations = ExtendedOperations(ov, self._ahead, acls=acls, ready=self._note_ready)

    def mount(self) -> None:
        """Mount. Raises `FuseError`."""
        config = self._ov.config
        check_device()
        if config.max_write is not None and extension.absence():
            log.warning("max_write is ignored: it needs the extension (%s)", extension.absence())
        self._requests = extension.setup(config.timeout, config.max_write)
        try:
            # libfuse explains on stderr what went wrong; one line of our own is enough.
            with _stderr_kept() as said:
                pyfuse3.init(self._operations, os.fsdecode(self._mountpoint), self._options)
        except RuntimeError:
            if os.geteuid() != 0:
                fusermount()
            raise FuseError(
                f"mounting failed: {said() or 'the kernel refused'}",
                where=self._mountpoint,
                hint=_who_may_mount(),
            ) from None
        self.device = fuse_mount(self._mountpoint)

    def _note_ready(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._told, b"1")
        # The kernel does not have the reply to INIT yet.
        self._waits.lowlevel.before_next(self._agreed)

    def _agreed(self) -> None:
        log.info("%s", terms.terms(private=self._ov.config.private))
        _read_further_ahead(self.device)

    def wait_apart(self) -> None:
        """Call in the parent, which waits on `ready` while the child serves."""
        os.close(self._told)

    def serve(self, gone: Callable[[], None]) -> None:
        """Serve until unmounted, or until a signal. `gone` is called as soon as the mount is gone
        and no request is under way; it may never be called."""
        os.close(self.ready)

        def ended() -> None:
            # A request that is under way needs the layers until its end.
            if not self._operations.under_way:
                gone()

        self._waits.lowlevel.at_end(ended)
        try:
            trio.run(self._main)
        finally:
            pyfuse3.close(unmount=True)

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            # This has to come first: a signal that is not caught would leave the mount behind.
            await nursery.start(self._end_on_signal)
            if self._requests is not None:
                nursery.start_soon(self._operations.serve, self._requests)
            try:
                await pyfuse3.main()
            except* ConnectionAbortedError:
                # When a busy mount is unmounted, the kernel may end the connection while RELEASEs
                # and FORGETs are still queued for us.
                log.debug("connection ended")
            nursery.cancel_scope.cancel()

    async def _end_on_signal(
        self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                log.info("ended by signal %d", number)
                await self._stop()

    async def _stop(self) -> None:
        # Both may wait for a READ or WRITE, which nobody answers after the end.
        await self._ahead.stop()
        await self._operations.stop()
        if not await self._operations.write_back(_WRITE_BACK_SECONDS):
            log.warning("changes of shared mappings are lost: they took too long to arrive")
            give_up(self._mountpoint, self.device)
        pyfuse3.terminate()


def _who_may_mount() -> str:
    """A hint for a mount that was refused."""
    if not trust.is_first_namespace():
        return (
            "in a user namespace it takes root there and a mount namespace of its own: use "
            "unshare -Urm, or mount outside"
        )
    if os.geteuid() == 0:
        return "root needs the capability CAP_SYS_ADMIN: give the container --cap-add SYS_ADMIN"
    return "the mount point must be yours unless you are root"


def check_device() -> None:
    """Raise `FuseError` if /dev/fuse cannot be opened. Opens it, because access(2) ignores the
    device policy of a cgroup."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            problem = "does not exist" if exc.errno == errno.ENOENT else "has no driver"
            hint = "load the module (modprobe fuse), or give the container --device /dev/fuse"
        else:
            problem = f"cannot be opened: {describe(exc)}"
            hint = (
                "have root run chmod 666 /dev/fuse, as udev does, or give the container "
                "--device /dev/fuse"
            )
        raise FuseError(problem, where="/dev/fuse", hint=hint) from None


@contextlib.contextmanager
def _stderr_kept() -> Iterator[Callable[[], str]]:
    """Catch what C code writes to stderr; yields a function that returns the text after the
    block."""
    with contextlib.ExitStack() as undo:
        caught = undo.enter_context(open(os.memfd_create("stderr"), "r+b", buffering=0))
        saved = os.dup(2)
        undo.callback(os.close, saved)
        os.dup2(caught.fileno(), 2)
        text: list[str] = []
        try:
            yield lambda: " ".join(text)
        finally:
            os.dup2(saved, 2)
            caught.seek(0)
            text.extend(caught.read().decode(errors="replace").split())


def _read_further_ahead(device: str | None) -> None:
    """Have the kernel ask for more at a time when a file is read in order. This takes effect only
    after the reply to INIT. The protocol has no field for it, and this setting is root's alone;
    Documentation/ABI/testing/sysfs-class-bdi."""
    setting = f"/sys/class/bdi/{device}/read_ahead_kb"
    with contextlib.suppress(OSError), open(setting, "w", encoding="ascii") as kib:
        kib.write(str(_READ_AHEAD_KIB))
