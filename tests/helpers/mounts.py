"""Overlay mounts for the tests: fuseoverlay's, or the kernel's as the oracle.

The same tests run in three modes, which depend on who runs pytest:

- `root`: the superuser of the first user namespace;
- `user`: a plain user, who mounts by fusermount3;
- `userns`: "root" of a user namespace that a plain user made (`unshare -Urm`).

`FUSEOVERLAY_TEST_IMPL=kernel` mounts kernel overlayfs instead (modes root and userns): a test that
fails there claims something false about overlays. Where fuseoverlay differs by choice, the test
says so with `differs(...)` and is skipped.

Nothing here can hang: a watchdog kills the daemon of a mount that lives too long. Then every
waiting system call fails with ENOTCONN, and so does the test.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.helpers import warm
from tests.helpers.tree import Tree, compare, record

PROJECT = Path(__file__).resolve().parents[2]
IMPL = os.environ.get("FUSEOVERLAY_TEST_IMPL", "fuse")

#: Whether the daemons of the tests use the extension, see docs/native.md.
NATIVE = (
    IMPL == "fuse"
    and os.environ.get("FUSEOVERLAY_NATIVE") != "0"
    and importlib.util.find_spec("fuseoverlay.native._native") is not None
)

#: The smallest environment in which `python -m fuseoverlay` runs this checkout, with or without the
#: extension as the test run asks.
BARE_ENV = {"PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1"}
if "FUSEOVERLAY_NATIVE" in os.environ:
    BARE_ENV["FUSEOVERLAY_NATIVE"] = os.environ["FUSEOVERLAY_NATIVE"]

#: The factor for all time limits: sanitizers slow everything down.
SLOWER = int(os.environ.get("FUSEOVERLAY_TEST_SLOWER", "1"))

#: Seconds until a mount must answer, until a daemon must be gone after the unmount,
#: and until the watchdog ends a daemon.
START_TIMEOUT = 20 * SLOWER
# Before it ends, the daemon calls syncfs(2), which also waits for what others have written.
STOP_TIMEOUT = 60 * SLOWER
WATCHDOG = 100 * SLOWER

#: Where fuseoverlay differs from kernel overlayfs by choice (docs/semantics.md).
DIFFERENCES = {
    "dialects": "OCI whiteouts, and whiteouts of all dialects in one mount, are read",
    "namespaces": "overlay xattrs of every namespace are read in one mount",
    "hidden-whiteouts": "a whiteout in a lower-only or opaque directory is not listed",
    "late-copy-up": "opening for writing copies nothing, the first change does",
    "fresh-descriptors": "a descriptor opened before copy-up sees the current file",
    "removed-directories": "a removed directory of a lower still changes through its descriptor",
    "hard-links": "hard links survive copy-up, also after a remount",
    "in-use": "an upper or work directory in use by another mount is refused",
    "daemon": "what is tested is the daemon or its command line",
}


def _mode() -> str:
    if os.geteuid() != 0:
        return "user"
    # The first user namespace maps every id to itself.
    first = Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
    return "root" if first else "userns"


MODE = _mode()

root_only = pytest.mark.skipif(MODE != "root", reason="needs the superuser")
needs_root_ids = pytest.mark.skipif(MODE != "root", reason="needs other users' ids")
fuse_only = pytest.mark.skipif(IMPL == "kernel", reason=DIFFERENCES["daemon"])

#: The kernel recognises a copied-up file by its lower's file handle, which a user may not open.
file_handles = pytest.mark.skipif(
    IMPL == "kernel" and MODE == "userns", reason="no file handles in a user namespace"
)


def differs(key: str) -> pytest.MarkDecorator:
    """Skip on the kernel, because of a chosen difference; `key` is one of `DIFFERENCES`."""
    return pytest.mark.skipif(IMPL == "kernel", reason=f"chosen difference: {DIFFERENCES[key]}")


@contextlib.contextmanager
def fails(*codes: int) -> Iterator[None]:
    """The block must raise OSError with one of these errnos."""
    wanted = {errno.errorcode[code] for code in codes}
    try:
        yield
    except OSError as exc:
        got = errno.errorcode.get(exc.errno or 0, str(exc.errno))
        assert got in wanted, f"{got} instead of {'/'.join(sorted(wanted))}"
    else:
        pytest.fail(f"succeeded instead of {'/'.join(sorted(wanted))}")


def daemon_env(**more: str) -> dict[str, str]:
    """Environment in which `python -m fuseoverlay` finds this checkout from any directory."""
    env = {**BARE_ENV, **more}
    for name in ("PATH", "HOME", "LANG", "XDG_DATA_HOME"):
        if name in os.environ:
            env.setdefault(name, os.environ[name])
    return env


def command(*args: object) -> list[str]:
    """The fuseoverlay command line with these arguments."""
    return [sys.executable, "-m", "fuseoverlay", *(str(arg) for arg in args)]


def mounts_at(path: Path, process: int | str = "self") -> list[str]:
    """The types of the filesystems mounted at exactly `path` in that process's mount namespace.
    Read from mountinfo, so no filesystem is asked."""
    wanted = os.fsencode(path)
    for char in b"\\ \t\n":
        wanted = wanted.replace(b"%c" % char, b"\\%03o" % char)
    found = []
    try:
        lines = Path(f"/proc/{process}/mountinfo").read_bytes().splitlines()
    except OSError as exc:
        # A process that is about to end has no mount namespace any more.
        if exc.errno != errno.EINVAL:
            raise
        return []
    for line in lines:
        left, _, right = line.partition(b" - ")
        if left.split()[4] == wanted:
            found.append(right.split()[0].decode())
    return found


def detach(path: Path) -> None:
    """Unmount lazily whatever is mounted at `path`; for cleaning up."""
    for _ in range(8):
        if not mounts_at(path):
            return
        tool = ["fusermount3", "-u", "-z"] if MODE == "user" else ["umount", "-l"]
        subprocess.run([*tool, str(path)], check=False, timeout=30, capture_output=True)


def unmount(path: Path) -> None:
    """Unmount `path` the way a user would; fails where it is busy."""
    tool = ["fusermount3", "-u"] if MODE == "user" else ["umount"]
    done = subprocess.run([*tool, str(path)], timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, f"unmounting {path} failed: {done.stderr.strip()}"


def wait_for(what: Callable[[], object], seconds: float, why: str) -> None:
    """Poll until `what()` is true."""
    end = time.monotonic() + seconds * SLOWER
    while not what():
        assert time.monotonic() < end, f"{why} took more than {seconds} s"
        time.sleep(0.01)


def ends(process: subprocess.Popen[bytes] | warm.Warm, seconds: float) -> bool:
    """Wait at most `seconds` for a process to end; whether it did. `Popen.wait` would poll too
    rarely."""
    if isinstance(process, warm.Warm):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    elif process.poll() is None:
        fd = os.pidfd_open(process.pid)
        try:
            select.select([fd], [], [], seconds)
        finally:
            os.close(fd)
    return process.poll() is not None


def remove_tree(path: Path) -> None:
    """Remove a test's directory, whatever modes the test has left in it."""

    def opened_up(function: Callable[[str], object], name: str, _: object) -> None:
        above = os.path.dirname(name)
        # Change modes only below `path`: what is around it is not ours.
        if not os.path.islink(name) and Path(name).is_relative_to(path):
            with contextlib.suppress(OSError):
                if Path(above).is_relative_to(path):
                    os.chmod(above, 0o700)
                if os.path.isdir(name):
                    os.chmod(name, 0o700)
                    shutil.rmtree(name, ignore_errors=True)
                else:
                    function(name)

    shutil.rmtree(path, onerror=opened_up)


#: A daemon's log holds one of these only if something went wrong that no request asked for.
BAD_LOG = re.compile(r"traceback|\bbug\b|\bEIO\b|never retrieved|never awaited|assert", re.I)


class Daemon:
    """A daemon in the foreground as our child, with its pid, log and exit code."""

    def __init__(
        self,
        argv: list[str],
        mnt: Path,
        log: Path,
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.mnt, self.log = mnt, log
        whole = daemon_env(**(env or {}))
        self._seen = log.stat().st_size if log.exists() else 0
        self.process: subprocess.Popen[bytes] | warm.Warm
        with log.open("ab") as stream:
            if warm.can_start(argv):
                self.process = warm.start(argv, stream.fileno(), cwd or "/", whole)
            else:
                self.process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    cwd=cwd or "/",
                    env=whole,
                    start_new_session=True,
                )
        self._watchdog: threading.Timer | None = None
        self.rearm()

    def rearm(self, seconds: float = WATCHDOG) -> None:
        """Give the daemon so many seconds from now on; for a mount that many tests share."""
        self._disarm()
        self._watchdog = threading.Timer(seconds, self.process.kill)
        self._watchdog.daemon = True
        self._watchdog.start()

    def _disarm(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()

    def wait_until_mounted(self, depth: int) -> None:
        """Return once there are `depth` mounts at the mount point and the top one answers."""
        end = time.monotonic() + START_TIMEOUT
        while len(mounts_at(self.mnt)) < depth:
            code = self.process.poll()
            if code is not None or time.monotonic() > end:
                self.kill()
                pytest.fail(f"no mount (exit code {code}); log:\n{self.text()}")
            time.sleep(0.005)
        os.stat(self.mnt)

    def text(self) -> str:
        """What the daemon wrote since it was started."""
        with self.log.open("rb") as stream:
            stream.seek(self._seen)
            return stream.read().decode(errors="replace")

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def finish(self) -> None:
        """After the mount is gone: the daemon must end by itself, with 0 and a clean log."""
        if not ends(self.process, STOP_TIMEOUT):
            self.kill()
            pytest.fail(f"the daemon outlived its mount; log:\n{self.text()}")
        self._disarm()
        code = self.process.wait()
        assert code == 0, f"the daemon exited with {code}; log:\n{self.text()}"
        self.check_log()

    def check_log(self) -> None:
        """Fail if the log tells of a bug."""
        text = self.text()
        assert not BAD_LOG.search(text), f"the daemon's log:\n{text}"

    def kill(self) -> None:
        """End it at once; the mount, if any, stays behind and answers ENOTCONN."""
        self._disarm()
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def escape(path: object) -> str:
    """A path as a mount option's value."""
    return re.sub(r"([\\:,\"])", r"\\\1", str(path))


def traces(path: Path) -> Tree:
    """Everything in a lower directory that would change if anybody touched it."""
    tree = record(str(path), identity=True)
    if MODE != "root":
        # readlink(2) moves the access time, and only root can avoid that (by a private mount).
        # test_copyup checks whether it is put back.
        for entry in tree.values():
            if entry.kind == "symlink":
                entry.atime_ns = None
    return tree


class Space:
    """The layer directories, upper, work directory and mount point of one test.

    `lowers` run from top to bottom, `lower` is the top one.
    """

    def __init__(self, base: Path, lowers: int = 1) -> None:
        self.base = base
        self.lowers = [base / f"l{index}" for index in range(lowers)]
        #: Lowers that only hold the data of metacopy files.
        self.data_only: list[Path] = []
        self.upper, self.work, self.mnt = base / "upper", base / "work", base / "mnt"
        for path in (*self.lowers, self.upper, self.work, self.mnt):
            path.mkdir()
        self.log = base / "log"
        self.daemon: Daemon | None = None
        #: Whether the kernel can read these layers as well (no OCI whiteouts, for example).
        self.kernel_reads = True
        #: Overlay options that both implementations understand, and those that only ours does.
        self.features: tuple[str, ...] = ()
        self.extra: tuple[str, ...] = ()

    @property
    def lower(self) -> Path:
        """The topmost lower directory."""
        return self.lowers[0]

    def add_lower(self) -> Path:
        """One more lower directory, at the bottom."""
        path = self.base / f"l{len(self.lowers)}"
        path.mkdir()
        self.lowers.append(path)
        return path

    def stack(self) -> None:
        """Make the upper the top lower, and start a new upper: changes go there from the next mount
        on."""
        number = len(self.lowers)
        for path in (self.upper, self.work):
            path.rename(f"{path}{number}")
            path.mkdir()
        old = self.base / f"{self.upper.name}{number}"
        self.lowers.insert(0, old)
        # The root of the mount shows the attributes of the upper's root, so the new upper gets the
        # same.
        st = old.stat()
        os.chown(self.upper, st.st_uid, st.st_gid)
        self.upper.chmod(stat.S_IMODE(st.st_mode))
        for name in os.listxattr(old):
            if "overlay" not in name:
                os.setxattr(self.upper, name, os.getxattr(old, name))
        os.utime(self.upper, ns=(st.st_atime_ns, st.st_mtime_ns))

    def options(self, *, read_only: bool = False) -> str:
        """The mount options."""
        text = "lowerdir=" + ":".join(escape(path) for path in self.lowers)
        text += "".join(f"::{escape(path)}" for path in self.data_only)
        if not read_only:
            text += f",upperdir={escape(self.upper)},workdir={escape(self.work)}"
        return ",".join([text, *self.features, *self.extra])

    def mount(
        self,
        *,
        read_only: bool = False,
        impl: str = IMPL,
        args: tuple[str, ...] = (),
        descriptors: int | None = None,
    ) -> Path:
        """Mount; returns the mount point. `descriptors` limits the daemon's open files."""
        if impl == "kernel":
            self._mount_kernel(read_only)
            return self.mnt
        argv = command("mount", "-f", *args, "-o", self.options(read_only=read_only), self.mnt)
        if descriptors is not None:
            argv = ["prlimit", f"--nofile={descriptors}:{descriptors}", *argv]
        depth = len(mounts_at(self.mnt)) + 1
        self.daemon = Daemon(argv, self.mnt, self.log)
        self.daemon.wait_until_mounted(depth)
        return self.mnt

    def _mount_kernel(self, read_only: bool) -> None:
        if MODE == "user":
            pytest.skip("a plain user cannot mount kernel overlayfs")
        # A read-only kernel overlay needs two lower directories. Paths have to be short, because
        # the options of mount(2) must fit one page.
        lowers = ":".join(os.path.relpath(path, self.base) for path in self.lowers)
        lowers += "".join(f"::{os.path.relpath(path, self.base)}" for path in self.data_only)
        options = f"lowerdir={lowers}"
        if read_only:
            empty = self.base / "empty"
            empty.mkdir(exist_ok=True)
            options += ":empty"
        else:
            options += f",upperdir={self.upper},workdir={self.work}"
        if MODE == "userns":
            options += ",userxattr"
        options = ",".join([options, *self.features])
        argv = ["mount", "-t", "overlay", "overlay", "-o", options, str(self.mnt)]
        done = subprocess.run(argv, cwd=self.base, timeout=30, capture_output=True, text=True)
        assert done.returncode == 0, f"kernel overlayfs refused the layers: {done.stderr}"

    def unmount(self) -> None:
        """Unmount and see the daemon end."""
        unmount(self.mnt)
        if self.daemon is not None:
            daemon, self.daemon = self.daemon, None
            daemon.finish()

    def alive(self) -> bool:
        """Whether the mount answers."""
        if self.daemon is not None:
            return self.daemon.alive()
        return bool(mounts_at(self.mnt))

    def drop(self) -> None:
        """Get rid of the mount whatever its state."""
        detach(self.mnt)
        if self.daemon is not None:
            daemon, self.daemon = self.daemon, None
            ends(daemon.process, 2)
            daemon.kill()

    def remount(self, *, read_only: bool = False) -> Path:
        """Unmount and mount again."""
        self.unmount()
        return self.mount(read_only=read_only)

    def evidence(self) -> list[Tree]:
        """The traces of all lower directories, for `check_lowers`."""
        return [traces(path) for path in self.lowers]

    def check_lowers(self, before: list[Tree]) -> None:
        """Fail if a lower directory is not what it was."""
        for path, old, new in zip(self.lowers, before, self.evidence(), strict=True):
            lines = compare(old, new)
            assert not lines, f"{path.name} was touched:\n" + "\n".join(lines)

    def settle(self, *, read_only: bool = False) -> None:
        """Unmount, and check that a remount and the kernel show the same tree."""
        was = record(str(self.mnt))
        self.remount(read_only=read_only)
        # Without file handles (in a user namespace) the kernel loses the inode numbers of hard
        # links.
        ignore = {"same_as"} if IMPL == "kernel" else set()
        lines = compare(was, record(str(self.mnt)), ignore=ignore)
        self.unmount()
        assert not lines, "after a remount:\n" + "\n".join(lines)
        # In a user namespace the kernel supports none of the features.
        able = MODE == "root" or (MODE == "userns" and not self.features)
        if self.kernel_reads and able and IMPL == "fuse" and not read_only:
            self.mount(impl="kernel")
            lines = compare(was, record(str(self.mnt)))
            unmount(self.mnt)
            assert not lines, "under kernel overlayfs:\n" + "\n".join(lines)

    @contextlib.contextmanager
    def mounted(self, *, read_only: bool = False, settle: bool = True) -> Iterator[Path]:
        """Mount for a block; then check the lowers, and with `settle` the remounted tree."""
        before = self.evidence()
        try:
            yield self.mount(read_only=read_only)
            if settle:
                self.settle(read_only=read_only)
            else:
                self.unmount()
            self.check_lowers(before)
        except BaseException:
            if self.daemon is not None:
                print(f"daemon's log:\n{self.daemon.text()}")
            raise
        finally:
            self.drop()


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory that other users may enter, removed afterwards."""
    path = Path(tempfile.mkdtemp(prefix="fuseoverlay-test-")).resolve()
    path.chmod(0o755)
    try:
        yield path
    finally:
        remove_tree(path)


def is_whiteout(path: os.PathLike[str] | str) -> bool:
    """Whether this is a character device 0:0."""
    st = os.lstat(path)
    return stat.S_ISCHR(st.st_mode) and st.st_rdev == 0


def overlay_xattr(path: os.PathLike[str] | str, what: str) -> bytes | None:
    """The overlay attribute in the namespace that this mode writes; None if it is not set."""
    namespace = "trusted" if MODE == "root" else "user"
    try:
        return os.getxattr(path, f"{namespace}.overlay.{what}", follow_symlinks=False)
    except OSError as exc:
        if exc.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise


def set_overlay_xattr(path: os.PathLike[str] | str, what: str, value: bytes) -> None:
    """Set an overlay attribute in the namespace that this mode writes."""
    namespace = "trusted" if MODE == "root" else "user"
    os.setxattr(path, f"{namespace}.overlay.{what}", value, follow_symlinks=False)


def make_whiteout(path: os.PathLike[str] | str) -> None:
    """Make a whiteout in the kernel's form, which anybody may do."""
    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))


def is_opaque(path: os.PathLike[str] | str) -> bool:
    """Whether the directory has the opaque mark of this mode's namespace."""
    return overlay_xattr(path, "opaque") == b"y"
