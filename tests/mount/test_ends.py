"""The end of a mount: what it releases, and what is written before."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import pwd
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.mounts import (
    MODE,
    Space,
    command,
    daemon_env,
    detach,
    mounts_at,
    root_only,
    wait_for,
)
from tests.mount.conftest import Cli

_libc = ctypes.CDLL(None, use_errno=True)

no_user = pytest.mark.skipif(MODE == "user", reason="a plain user mounts no tmpfs")


def _umount(path: Path) -> None:
    """umount(2) itself, so that the next step follows at once."""
    if _libc.umount2(os.fsencode(path), 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))


def _back(space: Space) -> None:
    backing = space.base / "backing"
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", backing], check=True, timeout=30)
    for name in ("lower", "upper", "work"):
        (backing / name).mkdir()
    space.lowers = [backing / "lower"]
    space.upper, space.work = backing / "upper", backing / "work"
    for number in range(50):
        (space.lower / f"f{number}").write_bytes(b"from the lower")


@pytest.fixture
def backed(cli: Cli) -> Iterator[Cli]:
    """A command line whose layers are all on a tmpfs of their own, `base/backing`."""
    backing = cli.space.base / "backing"
    backing.mkdir()
    _back(cli.space)
    try:
        yield cli
    finally:
        detach(cli.space.mnt)
        cli.clean()
        detach(backing)


def _use(space: Space, *, write: bool) -> None:
    """Use the mount, so that the daemon opens descriptors."""
    for path in sorted(space.mnt.iterdir()):
        path.read_bytes()
    if write:
        (space.mnt / "f1").write_bytes(b"changed")
        (space.mnt / "f2").unlink()
        (space.mnt / "d" / "e").mkdir(parents=True)
        (space.mnt / "d" / "new").write_bytes(b"new")


@no_user
@pytest.mark.parametrize("kind", ["", ",ro", "lowers"])
def test_what_holds_the_layers_can_be_unmounted_at_once(backed: Cli, kind: str) -> None:
    space = backed.space
    for _ in range(5):
        options = space.options(read_only=kind == "lowers")
        backed.mount("-o", options + (kind if kind == ",ro" else ""), space.mnt)
        _use(space, write=not kind)
        _umount(space.mnt)
        _umount(space.base / "backing")
        backed.wait_until_gone()
        _back(space)


@root_only
def test_what_holds_the_layers_of_a_plain_user_can_be_unmounted_at_once(backed: Cli) -> None:
    space = backed.space
    user = pwd.getpwnam("daemon").pw_uid
    prefix = tuple(f"setpriv --reuid={user} --regid={user} --clear-groups --".split())
    space.base.chmod(0o755)
    os.chown(space.mnt, user, user)
    for _ in range(20):
        for where, names, files in os.walk(space.base / "backing"):
            for name in ("", *names, *files):
                os.chown(Path(where, name), user, user)
        backed.mount("-o", space.options(), space.mnt, prefix=prefix)
        script = "cat f*; echo changed > f1; rm f2; mkdir d; cd /; exec fusermount3 -u "
        done = subprocess.run(
            [*prefix, "sh", "-ec", f"cd {space.mnt}; {script}{space.mnt}"],
            cwd="/", check=False, timeout=30, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        _umount(space.base / "backing")
        backed.wait_until_gone()
        _back(space)


def _mapped(path: Path) -> mmap.mmap:
    """A shared mapping of a file, with a change that the kernel has not written back yet."""
    fd = os.open(path, os.O_RDWR)
    try:
        mapped = mmap.mmap(fd, 0)
    finally:
        os.close(fd)
    # Whole pages in the middle and part of the last one.
    mapped[5000:5004] = mapped[-4:] = b"DATA"
    return mapped


@pytest.fixture
def mapped(cli: Cli) -> Iterator[tuple[Cli, int, list[mmap.mmap]]]:
    """A mount, the daemon's pid, and changed mappings of `low` (in the lower), `up` and `new`."""
    space = cli.space
    (space.lower / "low").write_bytes(_CONTENT)
    (space.upper / "up").write_bytes(_CONTENT)
    pid = cli.mount("-o", space.options(), space.mnt)
    (space.mnt / "new").write_bytes(_CONTENT)
    os.listdir(space.mnt)
    mappings = [_mapped(space.mnt / name) for name in ("low", "up", "new")]
    try:
        yield cli, pid, mappings
    finally:
        for mapping in mappings:
            mapping.close()


_CONTENT = b"." * 30_000


def _check_written(upper: Path) -> None:
    for name in ("low", "up", "new"):
        data = (upper / name).read_bytes()
        assert (len(data), data[5000:5004], data[-4:]) == (30_000, b"DATA", b"DATA"), name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_mount_after_mappings_are_written(
    mapped: tuple[Cli, int, list[mmap.mmap]], number: int
) -> None:
    cli, pid, _ = mapped
    os.kill(pid, number)
    wait_for(lambda: not mounts_at(cli.space.mnt), 30, "unmounting after a signal")
    cli.wait_until_gone()
    _check_written(cli.space.upper)


@pytest.mark.parametrize("number", [signal.SIGTERM, None])
def test_a_mount_that_was_detached_writes_mappings(
    mapped: tuple[Cli, int, list[mmap.mmap]], number: int | None
) -> None:
    """The daemon continues until the last user is gone, or until it is told to end."""
    cli, pid, mappings = mapped
    detach(cli.space.mnt)
    assert cli.daemons() == [pid]
    if number is not None:
        os.kill(pid, number)
    else:
        for mapping in mappings:
            mapping.close()
    cli.wait_until_gone()
    _check_written(cli.space.upper)


def test_a_killed_program_has_its_mapping_written(cli: Cli) -> None:
    space = cli.space
    for name in ("low", "up", "new"):
        (space.lower / name).write_bytes(_CONTENT)
    cli.mount("-o", space.options(), space.mnt)
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        _kept = [_mapped(space.mnt / name) for name in ("low", "up", "new")]
        os.write(tell, b"1")
        signal.pause()
    os.read(ready, 1)
    detach(space.mnt)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    cli.wait_until_gone()
    _check_written(space.upper)


def _caller(cli: Cli, *args: str) -> subprocess.CompletedProcess[str]:
    """Run the command from a shell that holds a lock on `base/lock`, and one more pipe."""
    script = 'exec 9> "$1" && flock -n 9 && shift && "$@" 8>&1'
    shell = ("sh", "-c", script, "sh", str(cli.space.base / "lock"))
    return cli.run(*args, prefix=shell)


def _is_locked(path: Path) -> bool:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.parametrize("word", ["", "mount"])
def test_in_the_background_nothing_of_the_callers_is_kept(cli: Cli, word: str) -> None:
    """`cli.run` reads its pipe to the end, too."""
    space = cli.space
    done = _caller(cli, *filter(None, [word]), "-o", space.options(), str(space.mnt))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(cli.daemons()) == 1
    assert not _is_locked(space.base / "lock")
    (space.mnt / "f").write_bytes(b"changed")
    # The daemon keeps its own lock, on the upper.
    assert cli.run("-o", space.options(), space.base / "other").returncode == 5
    (space.base / "other").mkdir()
    assert cli.run("-o", space.options(), space.base / "other").returncode == 4


def test_in_the_foreground_they_are_left_alone(cli: Cli) -> None:
    space = cli.space
    with (space.base / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        argv = command("-f", "-o", space.options(), space.mnt)
        daemon = subprocess.Popen(argv, env=daemon_env(), pass_fds=[lock.fileno()])
    try:
        wait_for(lambda: mounts_at(space.mnt), 20, "mounting")
        assert _is_locked(space.base / "lock")
    finally:
        detach(space.mnt)
        daemon.wait(20)
    assert not _is_locked(space.base / "lock")


def test_unmount_waits_for_the_daemon(cli: Cli) -> None:
    space = cli.space
    for _ in range(5):
        cli.mount("-o", space.options(), space.mnt)
        (space.mnt / "f").write_bytes(b"changed")
        done = cli.run("unmount", space.mnt)
        assert (done.returncode, done.stderr) == (0, "")
        assert not cli.daemons()
        assert not os.listdir(space.work / "work")


def test_unmount_of_a_daemon_that_is_stopped(cli: Cli) -> None:
    """It is not waited for, because it cannot say who it is."""
    space = cli.space
    pid = cli.mount("-o", space.options(), space.mnt)
    os.kill(pid, signal.SIGSTOP)
    try:
        done = cli.run("unmount", space.mnt)
        assert (done.returncode, done.stderr) == (0, "")
        assert not mounts_at(space.mnt)
    finally:
        os.kill(pid, signal.SIGCONT)
    cli.wait_until_gone()


def test_who_serves_is_not_listed(cli: Cli) -> None:
    space = cli.space
    pid = cli.mount("-o", space.options(), space.mnt)
    name = "user.fuseoverlay.daemon"
    assert os.getxattr(space.mnt, name).split()[1] == str(pid).encode()
    assert name not in os.listxattr(space.mnt)
    with pytest.raises(OSError, match="No data"):
        os.getxattr(space.mnt / "f", name)
