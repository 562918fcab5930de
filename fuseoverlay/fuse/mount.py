"""Mount and serve; signals; going to the background.

One mount per process (pyfuse3). Order: open and check every directory, mount, fork,
serve in the child; the parent leaves once the kernel and the child have agreed on the
protocol, and the root directory has been asked for. So every error is still the caller's to
see, on a stderr that then closes.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import stat
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, NoReturn

# Before pyfuse3: the extension has to be found first.
from fuseoverlay.native import extension, terms  # isort: skip

import pyfuse3
import trio

from fuseoverlay.errors import FuseError, MountpointError, UsageError, describe
from fuseoverlay.fuse import turns
from fuseoverlay.fuse.daemonlog import DaemonLog
from fuseoverlay.fuse.ending import Ending
from fuseoverlay.fuse.extended import ExtendedOperations
from fuseoverlay.fuse.readahead import ReadAhead
from fuseoverlay.fuse.unmount import fuse_mount, fusermount, give_up
from fuseoverlay.layers import trust
from fuseoverlay.layers.objects import stat_key
from fuseoverlay.layers.roots import enclosing
from fuseoverlay.overlay import owners
from fuseoverlay.overlay.config import MountConfig
from fuseoverlay.overlay.owners import Overlay
from fuseoverlay.system import syscalls

log = logging.getLogger("fuseoverlay")

# Less than what service managers wait before they kill.
_WRITE_BACK_SECONDS = 30
# Four times what the kernel reads ahead by itself: more gains nothing.
_READ_AHEAD_KIB = 512


def run(
    config: MountConfig,
    mountpoint: bytes,
    *,
    foreground: bool,
    logs: DaemonLog,
    at_exit: Callable[[], None] | None = None,
) -> None:
    """Mount and serve until unmounted; in the background unless `foreground`.

    `at_exit` runs once the mount is gone, in the process that served it. Raises
    `FuseOverlayError` before anything is mounted.
    """
    os.umask(0)
    inherited = _inherited()
    _check_allowed(config)
    mountpoint = _check_mountpoint(mountpoint)
    with contextlib.ExitStack() as undo:
        waits = turns.Trio()
        ov = undo.enter_context(owners.opened(config, waits.lowlevel.wait_for_thread))
        _check_outside(mountpoint, ov)
        _warn_of_access_times(ov)
        ready_read, ready_write = os.pipe()

        def agreed() -> None:
            log.info("%s", terms.terms())
            _read_further_ahead(device)

        def ready() -> None:
            with contextlib.suppress(OSError):
                os.write(ready_write, b"1")
            # The kernel has no reply yet.
            waits.lowlevel.before_next(agreed)

        pyfuse3.trio = waits  # type: ignore[attr-defined]
        store: Any = pyfuse3.notify_store  # takes any buffer
        ahead = ReadAhead(ov, store, waits.lowlevel.wait_for_thread)
        options, acls = _options(ov)
        operations = ExtendedOperations(ov, ahead, acls=acls, ready=ready)
        requests = _mount(operations, mountpoint, options, ov.config)
        device = fuse_mount(mountpoint)
        if ov.workdir is not None:
            ov.workdir.note_lowers(ov.stack.below)

        async def stop() -> None:
            # They may wait for a READ or WRITE, which nobody answers after the end.
            await ahead.stop()
            await operations.stop()
            if not await operations.write_back(_WRITE_BACK_SECONDS):
                log.warning("changes of shared mappings are lost: they took too long to arrive")
                give_up(mountpoint, device)
            pyfuse3.terminate()

        if not foreground:
            if os.fork():
                os.close(ready_write)
                _leave_when_ready(ready_read, mountpoint, device)
            _detach(inherited)
            logs.detach()
        os.close(ready_read)
        ending = Ending(undo, ov, at_exit)

        def gone() -> None:
            # Else what is under way needs the layers until its end.
            if not operations.under_way:
                ending.finish()

        waits.lowlevel.at_end(gone)
        with contextlib.nullcontext() if foreground else _last_words():
            try:
                _serve(operations, stop, requests)
            finally:
                ending.finish()


def check(config: MountConfig, mountpoint: bytes) -> None:
    """Raise what `run` would, as far as that can be told without the lowers: for who has to make
    them first."""
    _check_allowed(config)
    _check_mountpoint(mountpoint)
    _check_device()
    owners.check_upper(config)


def _check_allowed(config: MountConfig) -> None:
    if "allow_root" in config.fuse_options and os.geteuid() != 0:
        raise UsageError(
            "allow_root takes root: the kernel lets in everybody or the mounting user alone",
            hint="leave it out, or use allow_other: others may then do what permissions allow",
        )


def _mount(
    operations: ExtendedOperations, mountpoint: bytes, options: set[str], config: MountConfig
) -> int | None:
    """Returns what `ExtendedOperations.serve` waits for, if it has to."""
    _check_device()
    if config.max_write is not None and extension.absence():
        log.warning("max_write is ignored: it needs the extension (%s)", extension.absence())
    requests = extension.setup(config.timeout, config.max_write)
    try:
        # libfuse explains on stderr what went wrong; one line of our own is enough.
        with _stderr_kept() as said:
            pyfuse3.init(operations, os.fsdecode(mountpoint), options)
    except RuntimeError:
        if os.geteuid() != 0:
            fusermount()
        raise FuseError(
            f"mounting failed: {said() or 'the kernel refused'}",
            where=mountpoint,
            hint=_who_may_mount(),
        ) from None
    return requests


def _who_may_mount() -> str:
    """What to do about a mount that was refused."""
    if not trust.is_first_namespace():
        return (
            "in a user namespace it takes root there and a mount namespace of its own: use "
            "unshare -Urm, or mount outside"
        )
    if os.geteuid() == 0:
        return "root needs the capability CAP_SYS_ADMIN: give the container --cap-add SYS_ADMIN"
    return "the mount point must be yours unless you are root"


def _check_device() -> None:
    """Raises `FuseError` where /dev/fuse cannot be opened; access(2) knows no device policies."""
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
    """Catch what C code writes to stderr; yields a function that tells it."""
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


def _options(ov: Overlay) -> tuple[set[str], bool]:
    """Options for libfuse, and whether the kernel shall know ACLs.

    The kernel checks permissions by what is shown, as on any filesystem. The exception: a
    plain user who mounted with fusermount3 where owners are kept in
    `user.containers.override_stat`. Nothing shown belongs to him, yet all of it is his: unless
    others can get in, every access is granted.

    `allow_root` the kernel does not know: it would let everybody in, and give them what it has
    been told before libfuse could refuse them. Who is root need only keep the others out.

    ACLs are off wherever modes are kept in such an attribute, and with `noacl`: see
    `fuseoverlay.overlay`.
    """
    root = os.geteuid() == 0
    options = {"fsname=fuseoverlay", "subtype=fuseoverlay"}
    names = {option.partition("=")[0] for option in ov.config.fuse_options}
    options = {option for option in options if option.partition("=")[0] not in names}
    options.update(ov.config.fuse_options)
    if ov.workdir is None:
        options.add("ro")
    initial = trust.is_superuser()
    options.update(_labels(ov.config, initial=initial))
    if initial:
        for name in ("suid", "dev"):
            # Users may have mounted what is below, and claim anything there.
            if f"no{name}" not in options and not ov.config.submounts:
                options.add(name)
    if "allow_root" in options:
        options -= {"allow_root", "allow_other"}
    elif root:
        options.add("allow_other")
    override = any(layer.override is not None for layer in ov.stack.all())
    if root or not override or "allow_other" in options:
        options.add("default_permissions")
    # libfuse takes an unescaped comma for the end of the option.
    escaped = {option.replace("\\", "\\\\").replace(",", "\\,") for option in options}
    return escaped, ov.identity.acls


def _labels(config: MountConfig, *, initial: bool) -> tuple[str, ...]:
    """SELinux labels for mount(2); none, and a warning, where they would fail the mount.

    `initial`: we are root of the first user namespace. In others the kernel refuses labels of
    a FUSE mount, security/selinux/hooks.c."""
    if not config.contexts:
        return ()
    reason = "only root may give a FUSE mount labels"
    if initial:
        with open("/proc/filesystems", encoding="ascii") as known:
            if any(line.split()[-1] == "selinuxfs" for line in known):
                return config.contexts
        reason = "the kernel has no SELinux"
    for label in config.contexts:
        log.warning("option %s is ignored: %s", label, reason)
    return ()


def _check_mountpoint(mountpoint: bytes) -> bytes:
    """Its absolute path. It must be a directory on which no FUSE filesystem is mounted."""
    try:
        st = os.stat(mountpoint)
    except FileNotFoundError:
        raise MountpointError(
            "mount point does not exist", where=mountpoint, hint="create the directory"
        ) from None
    except OSError as exc:
        raise MountpointError(
            f"mount point cannot be used: {describe(exc)}",
            where=mountpoint,
            hint="a daemon that was killed leaves its mount behind: fusermount3 -u it",
        ) from None
    if not stat.S_ISDIR(st.st_mode):
        raise MountpointError("mount point is not a directory", where=mountpoint)
    if _is_in_proc(st):
        raise MountpointError(
            "mount point is in /proc, where fuseoverlay itself has to look",
            where=mountpoint,
            hint="mount somewhere else",
        )
    path = os.path.realpath(mountpoint)
    if fuse_mount(path):
        raise MountpointError(
            "mount point is busy: a FUSE filesystem is mounted on it",
            where=mountpoint,
            hint="unmount that first: fuseoverlay unmount MNT",
        )
    return path


def _is_in_proc(st: os.stat_result) -> bool:
    try:
        return st.st_dev == os.stat("/proc/self").st_dev
    except FileNotFoundError:
        return False


def _read_further_ahead(device: str | None) -> None:
    """Have the kernel, once it has the reply to INIT, ask for more at a time of a file that is read
    in order. The protocol cannot say so, and here only root may;
    Documentation/ABI/testing/sysfs-class-bdi."""
    setting = f"/sys/class/bdi/{device}/read_ahead_kb"
    with contextlib.suppress(OSError), open(setting, "w", encoding="ascii") as kib:
        kib.write(str(_READ_AHEAD_KIB))


def _check_outside(mountpoint: bytes, ov: Overlay) -> None:
    """The daemon would wait for itself if a layer contained the mount point, unless it reaches
    that through a mount of its own."""
    roots = owners.roots_of(ov.stack, ov.workdir)
    for layer in ov.stack.all():
        if layer.detached:
            del roots[stat_key(os.fstat(layer.root_fd))]
    around = roots.get(stat_key(os.stat(mountpoint))) or enclosing(mountpoint, roots)
    if around is not None:
        raise MountpointError(
            f"mount point is inside {os.fsdecode(around)}, which belongs to the mount",
            where=mountpoint,
            hint="mount somewhere else",
        )


def _warn_of_access_times(ov: Overlay) -> None:
    """Where we may not choose, they move as the mount that the upper lies on says."""
    upper = ov.stack.upper
    if upper is None or not upper.access_times & syscalls.MOUNT_ATTR_STRICTATIME:
        return
    if os.fstatvfs(upper.root_fd).f_flag & (os.ST_NOATIME | os.ST_RELATIME):
        log.warning(
            "strictatime has no effect: only root can have access times move more often than "
            "on the mount that upperdir lies on"
        )


def _leave_when_ready(ready: int, mountpoint: bytes, device: str | None) -> NoReturn:
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


def _inherited() -> list[int]:
    """Descriptors of the caller's beside the first three: ours are all closed on exec."""
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        # That of the listing is gone.
        with contextlib.suppress(OSError):
            if fd > 2 and os.get_inheritable(fd):
                found.append(fd)
    return found


def _detach(inherited: Iterable[int]) -> None:
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
def _last_words() -> Iterator[None]:
    """In the background: log what ends the daemon, since nobody sees what else is said of it."""
    try:
        yield
    except Exception:
        log.critical("the daemon ends by a bug", exc_info=True)
        raise SystemExit(1) from None


def _serve(
    operations: ExtendedOperations, stop: Callable[[], Awaitable[None]], requests: int | None
) -> None:
    try:
        trio.run(_main, operations, stop, requests)
    finally:
        pyfuse3.close(unmount=True)


async def _main(
    operations: ExtendedOperations, stop: Callable[[], Awaitable[None]], requests: int | None
) -> None:
    async with trio.open_nursery() as nursery:
        # First of all: a signal that nobody receives would leave the mount behind.
        await nursery.start(_end_on_signal, stop)
        if requests is not None:
            nursery.start_soon(operations.serve, requests)
        try:
            await pyfuse3.main()
        except* ConnectionAbortedError:
            # The kernel ends the connection while it still has news (RELEASE, FORGET) for
            # us: so it goes when a busy mount is unmounted.
            log.debug("connection ended")
        nursery.cancel_scope.cancel()


async def _end_on_signal(
    stop: Callable[[], Awaitable[None]],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            log.info("ended by signal %d", number)
            await stop()
