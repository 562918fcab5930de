"""The command: spellings, options, going to the background, ending."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseoverlay import __version__
from tests.helpers import libc
from tests.helpers.mounts import (
    BARE_ENV,
    MODE,
    NATIVE,
    PROJECT,
    Daemon,
    Space,
    command,
    detach,
    escape,
    fails,
    mounts_at,
    unmount,
    wait_for,
)
from tests.helpers.tree import compare, record
from tests.mount.conftest import Cli

SPELLINGS = {
    "mount": lambda opts, mnt: ("mount", "-o", opts, mnt),
    "mount, options last": lambda opts, mnt: ("mount", mnt, "-o", opts),
    "short": lambda opts, mnt: ("-o", opts, mnt),
    "glued": lambda opts, mnt: (f"-o{opts}", mnt),
    "several -o": lambda opts, mnt: ("-o", "noatime", "-o", opts, mnt),
    "source first": lambda opts, mnt: ("overlay", "-o", opts, mnt),
    "mount.fuse": lambda opts, mnt: ("overlay", mnt, "-o", f"rw,dev,suid,{opts}"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(cli: Cli, spelling: str) -> None:
    space = cli.space
    cli.mount(*SPELLINGS[spelling](space.options(), space.mnt))
    assert os.listdir(space.mnt) == ["f"]
    (space.mnt / "f").write_bytes(b"changed")
    assert (space.upper / "f").read_bytes() == b"changed"
    unmount(space.mnt)
    cli.wait_until_gone()
    assert (space.lower / "f").read_bytes() == b"from the lower"


def test_without_path_in_the_environment(cli: Cli) -> None:
    """mount(8) runs its helpers like this; fusermount3 must be found nevertheless."""
    space = cli.space
    cli.mount("overlay", space.mnt, "-o", f"rw,dev,suid,{space.options()}", env={})
    assert (space.mnt / "f").read_bytes() == b"from the lower"
    done = cli.run("unmount", space.mnt, env={})
    assert done.returncode == 0, done.stderr
    cli.wait_until_gone()


def test_answers_at_once_when_it_returns(cli: Cli) -> None:
    space = cli.space
    assert cli.run("-o", space.options(), space.mnt).returncode == 0
    start = time.monotonic()
    assert os.listdir(space.mnt) == ["f"]
    assert time.monotonic() - start < 1
    unmount(space.mnt)
    cli.wait_until_gone()


def test_daemon_keeps_nothing_of_the_callers_output(cli: Cli) -> None:
    """podman reads stderr to its end; `Cli.run` does as well."""
    space = cli.space
    pid = cli.mount("-o", space.options(), space.mnt)
    for fd in (0, 1, 2):
        assert os.readlink(f"/proc/{pid}/fd/{fd}") == "/dev/null"
    assert os.getsid(pid) != os.getsid(0)
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    unmount(space.mnt)
    cli.wait_until_gone()


def test_read_only_without_upperdir(cli: Cli) -> None:
    space = cli.space
    cli.mount("mount", "-o", space.options(read_only=True), space.mnt)
    with fails(errno.EROFS):
        (space.mnt / "new").touch()
    unmount(space.mnt)
    cli.wait_until_gone()


@pytest.mark.parametrize("how", ["command", "umount", "lazy"])
def test_daemon_ends_with_the_mount(cli: Cli, how: str) -> None:
    space = cli.space
    cli.mount("-o", space.options(), space.mnt)
    if how == "command":
        done = cli.run("unmount", space.mnt)
        assert (done.returncode, done.stderr) == (0, "")
    elif how == "umount":
        unmount(space.mnt)
    else:
        detach(space.mnt)
    cli.wait_until_gone()
    assert mounts_at(space.mnt) == []


def test_lazily_unmounted_with_a_file_open(cli: Cli) -> None:
    """The daemon serves the open file until it is closed."""
    space = cli.space
    cli.mount("-o", space.options(), space.mnt)
    with open(space.mnt / "f", "r+b", buffering=0) as stream:
        detach(space.mnt)
        time.sleep(0.3)
        assert cli.daemons()
        stream.write(b"LATE")
    cli.wait_until_gone()
    assert (space.upper / "f").read_bytes() == b"LATE the lower"


#: SIGCHLD may be ignored from the start: then no child could be waited for.
IGNORING = ("env", "--ignore-signal=CHLD")


@pytest.mark.parametrize("prefix", [(), IGNORING])
def test_unmounting_a_busy_mount(cli: Cli, prefix: tuple[str, ...]) -> None:
    space = cli.space
    cli.mount("-o", space.options(), space.mnt)
    with open(space.mnt / "f", "rb"):
        done = cli.run("unmount", space.mnt, prefix=prefix)
        assert done.returncode == 6, done.stderr
        expected = r"fuseoverlay: error: .*busy.*; end the processes that use it\n"
        assert re.fullmatch(expected, done.stderr), done.stderr
        assert len(mounts_at(space.mnt)) == 1
    assert cli.run("unmount", space.mnt).returncode == 0
    cli.wait_until_gone()


def test_more_layers_than_the_soft_limit_of_descriptors(cli: Cli) -> None:
    space = cli.space
    for number in range(50):
        (space.base / f"more{number}").mkdir()
    lowers = ":".join(["l0", *(f"more{number}" for number in range(50))])
    limit = ("prlimit", "--nofile=40:1024")
    cli.mount("-o", f"lowerdir={lowers}", space.mnt, prefix=limit)
    assert (space.mnt / "f").read_bytes() == b"from the lower"


def test_limits_of_the_shell_that_mounts_are_not_those_of_the_mount(cli: Cli) -> None:
    space = cli.space
    limit = ("prlimit", f"--fsize={1 << 20}:unlimited", "--cpu=1:unlimited")
    cli.mount("-o", space.options(), space.mnt, prefix=limit)
    (space.mnt / "large").write_bytes(b"x" * (3 << 20))
    assert (space.mnt / "large").stat().st_size == 3 << 20
    limits = _limits(cli)
    assert re.search(r"Max cpu time +unlimited", limits), limits


def test_a_limit_that_stays_is_told(cli: Cli) -> None:
    """A hard limit, which only a superuser could raise, is reported with its effect."""
    space = cli.space
    size = 1 << 20
    limit = ("prlimit", f"--fsize={size}:{size}", "--cpu=1000:1000")
    done = cli.run("-o", space.options(), space.mnt, prefix=limit)
    assert done.returncode == 0, done.stderr
    stays = "Max file size             unlimited" not in _limits(cli)
    told = re.findall(r"warning: (.*): a limit of the shell that mounts \((.*)\)", done.stderr)
    expected = [
        (f"no file can become larger than {size} bytes", "ulimit -f"),
        ("the daemon will be killed after 1000 seconds of CPU time", "ulimit -t"),
    ]
    assert told == (expected if stays else [])


def _limits(cli: Cli) -> str:
    (pid,) = cli.daemons()
    return Path(f"/proc/{pid}/limits").read_text()


def test_what_is_wrong_is_named(cli: Cli) -> None:
    space = cli.space
    (space.work / "index").write_bytes(b"")
    done = cli.run("-o", space.options(), space.mnt)
    assert done.returncode == 4
    assert done.stderr.endswith(
        f"{space.work}: index in the work directory is not a directory; remove it, or name an "
        "empty directory as workdir\n"
    )
    done = cli.run("-o", f"{space.options()},noxattrs", space.mnt)
    assert done.returncode == 2
    assert done.stderr.endswith("noxattrs needs a value; use noxattrs=0 or noxattrs=1\n")


def test_strict_access_times_that_cannot_be_had(cli: Cli) -> None:
    """A plain user, and root of a user namespace over a mount from outside, cannot have them."""
    space = cli.space
    done = cli.run("-o", f"{space.options()},strictatime", space.mnt)
    assert done.returncode == 0
    flags = os.statvfs(space.upper).f_flag
    chosen = MODE == "root" or not flags & (os.ST_NOATIME | os.ST_RELATIME)
    assert ("strictatime has no effect" in done.stderr) == (not chosen), done.stderr
    unmount(space.mnt)
    cli.wait_until_gone()


def test_unmounting_what_does_not_exist(cli: Cli) -> None:
    done = cli.run("unmount", cli.space.mnt / "nothing")
    assert done.returncode == 5
    assert done.stderr.endswith(
        "nothing: cannot be unmounted: No such file or directory; name the mount point\n"
    )


@pytest.mark.skipif(MODE != "root", reason="takes another mount namespace")
@pytest.mark.parametrize("prefix", [(), IGNORING])
def test_unmounting_what_another_namespace_has_too(cli: Cli, prefix: tuple[str, ...]) -> None:
    """It is gone here, and a line says why the daemon continues."""
    cli.mount("mount", "-o", cli.space.options(), cli.space.mnt)
    other = subprocess.Popen(["unshare", "-m", "--propagation=private", "sleep", "100"])
    try:
        wait_for(lambda: _namespace(other.pid) != _namespace("self"), 10, "another namespace")
        done = cli.run("unmount", cli.space.mnt, prefix=prefix)
        assert done.returncode == 0
        assert "its daemon goes on" in done.stderr
        assert not mounts_at(cli.space.mnt)
    finally:
        other.kill()
        other.wait()
    cli.wait_until_gone()


def _namespace(pid: int | str) -> str:
    return os.readlink(f"/proc/{pid}/ns/mnt")


def test_unmounting_what_is_not_mounted(cli: Cli) -> None:
    done = cli.run("unmount", cli.space.mnt)
    assert done.returncode == 5
    assert re.fullmatch(r"fuseoverlay: error: .+\n", done.stderr)


def test_relative_paths_and_links(cli: Cli) -> None:
    """The way podman names its layers: `l/XXXX`, links relative to the working directory."""
    space = cli.space
    (space.base / "l").mkdir()
    os.symlink("../l0", space.base / "l" / "ABCDEF")
    options = "lowerdir=l/ABCDEF,upperdir=upper,workdir=work"
    cli.mount("-o", options, space.mnt, cwd=space.base)
    assert (space.mnt / "f").read_bytes() == b"from the lower"
    unmount(space.mnt)
    cli.wait_until_gone()
    done = cli.run("-o", options, "mnt", cwd=space.base)
    assert done.returncode == 0, done.stderr
    assert (space.mnt / "f").read_bytes() == b"from the lower"
    unmount(space.mnt)
    wait_for(lambda: not Path(space.mnt / "f").exists(), 5, "unmounting")


@pytest.mark.parametrize(
    "odd",
    [
        "{},,volatile",
        "{},",
        ",{}",
        "{},private",
        "{},xattr_permissions=0",
        "defaults,{},noauto,_netdev",
    ],
)
def test_odd_option_strings(cli: Cli, odd: str) -> None:
    space = cli.space
    cli.mount("-o", odd.format(space.options()), space.mnt)
    (space.mnt / "f").write_bytes(b"x")
    unmount(space.mnt)
    cli.wait_until_gone()


@pytest.mark.parametrize(
    "name",
    ["a:b", "a,b", "a\\b", "a b", "a=b", 'a"b', "ü", "a\nb", ":", ",,", "\\:", "\udcff\udcfe"],
)
def test_escaped_paths(cli: Cli, name: str) -> None:
    space = cli.space
    for path in (space.lower, space.upper, space.work):
        path.rename(path.with_name(path.name + name))
    space.lowers[0] = space.lower.with_name(space.lower.name + name)
    space.upper = space.upper.with_name("upper" + name)
    space.work = space.work.with_name("work" + name)
    space.mnt.rename(space.mnt.with_name("mnt" + name))
    space.mnt = space.mnt.with_name("mnt" + name)
    extra = space.base / f"second{name}"
    extra.mkdir()
    (extra / "g").touch()
    space.lowers.append(extra)
    done = cli.run("-o", space.options(), space.mnt)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(space.mnt)) == ["f", "g"]
    (space.mnt / "new").touch()
    assert (space.upper / "new").exists()
    done = cli.run("unmount", space.mnt)
    assert done.returncode == 0, done.stderr
    cli.wait_until_gone()


def test_options_with_quotes_and_commas(cli: Cli) -> None:
    """SELinux labels hold commas; unknown options are ignored with a warning."""
    space = cli.space
    label = 'context="system_u:object_r:container_file_t:s0:c1,c2"'
    done = cli.run("-o", f"{space.options()},{label}", space.mnt)
    assert done.returncode == 0, done.stderr
    assert os.listdir(space.mnt) == ["f"]
    assert all(line.startswith("fuseoverlay: warning: ") for line in done.stderr.splitlines())
    unmount(space.mnt)
    cli.wait_until_gone()


def test_unknown_options_are_ignored_with_a_warning(cli: Cli) -> None:
    space = cli.space
    unknown = "nonsense,uidmapping=:0:100000:65536,more=1"
    done = cli.run("-o", f"{space.options()},{unknown}", space.mnt)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert all(line.startswith("fuseoverlay: warning: ") for line in lines)
    assert any("nonsense" in line for line in lines)
    assert any("more=1" in line for line in lines)
    assert os.listdir(space.mnt) == ["f"]
    unmount(space.mnt)
    cli.wait_until_gone()


def test_known_options_bring_no_warning(cli: Cli) -> None:
    space = cli.space
    known = "rw,relatime,volatile,timeout=1.5,whiteout=char,fsname=test,redirect_dir=off,index=off"
    known += ",xino=auto,uuid=on,nfs_export=off,metacopy=off,index=on"
    done = cli.run("-o", f"{space.options()},{known}", space.mnt)
    assert (done.returncode, done.stderr) == (0, "")
    unmount(space.mnt)
    cli.wait_until_gone()


def test_version_and_help(cli: Cli) -> None:
    done = cli.run("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"fuseoverlay {__version__}\n"
    for args in (("--help",), ("mount", "--help"), ("unmount", "--help")):
        done = cli.run(*args)
        assert (done.returncode, done.stderr) == (0, "")
        assert "usage:" in done.stdout


@contextlib.contextmanager
def _logged(space: Space, *args: str) -> Iterator[Path]:
    """Mount in the foreground with these arguments; yields the file with the output, which is
    complete after the block."""
    log = space.base / "log-of-the-command"
    daemon = Daemon(command(*args, "-o", space.options(), space.mnt), space.mnt, log)
    try:
        daemon.wait_until_mounted(1)
        yield log
        unmount(space.mnt)
        daemon.finish()
    finally:
        daemon.kill()


def test_debug_logs_requests_with_answers(cli: Cli) -> None:
    space = cli.space
    with _logged(space, "mount", "-d") as log:
        (space.mnt / "f").read_bytes()
        with fails(errno.ENOENT):
            os.unlink(space.mnt / "nothing")
        with fails(errno.ENOTEMPTY):
            (space.mnt / "dir" / "sub").mkdir(parents=True)
            os.rmdir(space.mnt / "dir")
        (space.mnt / "new").write_bytes(b"x" * 5)
        assert (space.mnt / "f").read_bytes() == b"from the lower"
        with fails(errno.ENOENT):
            os.stat(space.mnt / "absent")
    text = log.read_text()
    # With -d the extension runs, as it does without.
    assert bool(re.search(r"open\(.* = ENOSYS", text)) == NATIVE, text
    for expected in (
        r"lookup\(1, .*'f'.*= (ok|.*ino=\d+)",
        r"read\(.*= ",
        r"mkdir\(.*'dir'.*= ",
        r"rmdir\(.*'dir'.*= ENOTEMPTY",
        r"create\(.*'new'.*= ",
        r"write\(.*= (5|ok)",
        r"lookup\(.*'absent'.*= ok, no such name\n",
    ):
        assert re.search(expected, text), f"no {expected} in\n{text}"


@pytest.mark.skipif(not NATIVE, reason="needs the extension")
def test_debug_logs_requests_that_the_extension_keeps(cli: Cli) -> None:
    """They are logged like all others: request and answer, not bytes."""
    space = cli.space
    with _logged(space, "mount", "-d") as log:
        path = space.mnt / "new"
        with path.open("w+b") as stream:
            stream.write(b"x" * 5)
            stream.flush()
            fd = stream.fileno()
            ino = os.fstat(fd).st_ino
            libc.fallocate(fd, libc.FALLOC_FL_KEEP_SIZE, 7, 9000)
            with fails(errno.ENXIO):
                os.lseek(fd, 77, os.SEEK_DATA)
            assert os.lseek(fd, 1, os.SEEK_HOLE) == 5
            assert os.copy_file_range(fd, fd, 3, 0, 16) == 3
            fcntl.ioctl(fd, libc.FS_IOC_GETFLAGS, bytes(8))
        libc.statx_mask(path, libc.STATX_BTIME)
        os.close(os.open(space.mnt, os.O_TMPFILE | os.O_RDWR, 0o640))
    text = log.read_text()
    for expected in (
        rf"fallocate\({ino}, uid=\d+ gid=\d+ pid=\d+, 1, 7, 9000\) = ok\n",
        rf"lseek\({ino}, uid=.*, 77, 3\) = ENXIO\n",
        rf"lseek\({ino}, uid=.*, 1, 4\) = 5\n",
        rf"copy_file_range\({ino}, uid=.*, 0, {ino}, 16, 3\) = 3\n",
        rf"statx\({ino}, uid=.*\) = \(ino={ino} mode=100644 size=19, \d+\)\n",
        rf"ioctl\({ino}, uid=.*, 2148034049, b''\) = b'.*'\n",
        r"tmpfile\(1, uid=.*, 33184, \d+\) = ino=\d+ mode=100640 size=0\n",
    ):
        assert re.search(expected, text), f"no {expected} in\n{text}"


def test_foreground_prints_one_line(cli: Cli) -> None:
    space = cli.space
    with _logged(space, "-f") as log:
        (space.mnt / "f").write_bytes(b"x")
        with fails(errno.ENOENT):
            os.unlink(space.mnt / "nothing")
    assert re.fullmatch(r"fuseoverlay: INFO: .*extension .*\n", log.read_text())


@pytest.mark.skipif(MODE == "user", reason="needs mount(2)")
def test_lower_detached_right_after_the_start(cli: Cli) -> None:
    """Container engines unmount their layers lazily once the overlay is mounted."""
    space = cli.space
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(space.lower)], check=True, timeout=30)
    try:
        (space.lower / "d").mkdir()
        (space.lower / "d" / "inside").write_bytes(b"still there")
        cli.mount("-o", space.options(), space.mnt)
    finally:
        subprocess.run(["umount", "-l", str(space.lower)], check=False, timeout=30)
    assert (space.mnt / "d" / "inside").read_bytes() == b"still there"
    (space.mnt / "d" / "inside").write_bytes(b"changed")
    assert (space.upper / "d" / "inside").read_bytes() == b"changed"
    unmount(space.mnt)
    cli.wait_until_gone()


def test_directories_moved_away_after_the_start(cli: Cli) -> None:
    space = cli.space
    (space.lower / "d").mkdir()
    (space.lower / "d" / "g").write_bytes(b"g")
    cli.mount("-o", space.options(), space.mnt)
    for path in (space.lower, space.upper, space.work):
        path.rename(path.with_name(path.name + "-moved"))
    (space.mnt / "d" / "g").write_bytes(b"changed")
    assert (space.base / "upper-moved" / "d" / "g").read_bytes() == b"changed"
    unmount(space.mnt)
    cli.wait_until_gone()


def test_console_script_is_declared() -> None:
    import tomllib

    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    module, function = project["scripts"]["fuseoverlay"].split(":")
    code = f"import sys, {module}; sys.argv = ['fuseoverlay', '--version']; {module}.{function}()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=BARE_ENV,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout == f"fuseoverlay {__version__}\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("foreground", [True, False])
def test_signals_unmount(cli: Cli, number: int, foreground: bool) -> None:
    space = cli.space
    daemon = None
    if foreground:
        argv = command("-f", "-o", space.options(), space.mnt)
        daemon = Daemon(argv, space.mnt, space.base / "out")
        daemon.wait_until_mounted(1)
        pid = daemon.process.pid
    else:
        pid = cli.mount("-o", space.options(), space.mnt)
    (space.mnt / "new").write_bytes(b"n" * 100_000)
    (space.mnt / "f").write_bytes(b"changed")
    os.mkdir(space.mnt / "dir")
    was = record(str(space.mnt))
    os.kill(pid, number)
    wait_for(lambda: not mounts_at(space.mnt), 10, "unmounting after a signal")
    if daemon is not None:
        daemon.finish()
    cli.wait_until_gone()
    assert (space.upper / "new").read_bytes() == b"n" * 100_000
    assert (space.upper / "f").read_bytes() == b"changed"
    cli.mount("-o", space.options(), space.mnt)
    assert compare(was, record(str(space.mnt))) == []
    unmount(space.mnt)
    cli.wait_until_gone()


def test_signal_with_an_open_file(cli: Cli) -> None:
    """The mount ends even so; users of an open file get an error, and the daemon ends."""
    space = cli.space
    pid = cli.mount("-o", space.options(), space.mnt)
    fd = os.open(space.mnt / "f", os.O_RDWR)
    os.write(fd, b"WRITTEN")
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not mounts_at(space.mnt), 10, "unmounting after a signal")
    cli.wait_until_gone()
    with fails(errno.ENOTCONN, errno.ECONNABORTED):
        os.pwrite(fd, b"more", 0)
    with contextlib.suppress(OSError):
        os.close(fd)
    assert (space.upper / "f").read_bytes() == b"WRITTENe lower"


def _kill(cli: Cli, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    cli.wait_until_gone()
    # Not stat: the kernel may answer that from its cache.
    with fails(errno.ENOTCONN, errno.ECONNABORTED):
        os.statvfs(cli.space.mnt)


def test_after_sigkill_everything_finished_is_there(cli: Cli) -> None:
    space = cli.space
    for name in ("a", "b", "c"):
        (space.lower / name).write_bytes(b"lower")
    (space.lower / "d").mkdir()
    (space.lower / "d" / "child").touch()
    pid = cli.mount("-o", space.options(), space.mnt)
    mnt = space.mnt
    (mnt / "new").write_bytes(b"n" * 200_000)
    (mnt / "a").write_bytes(b"changed")
    os.unlink(mnt / "b")
    os.rename(mnt / "c", mnt / "renamed")
    os.chmod(mnt / "f", 0o600)
    os.unlink(mnt / "d" / "child")
    os.rmdir(mnt / "d")
    os.mkdir(mnt / "d")
    os.symlink("x", mnt / "link")
    was = record(str(mnt))
    _kill(cli, pid)
    detach(mnt)
    cli.mount("-o", space.options(), mnt)
    assert compare(was, record(str(mnt))) == []
    unmount(mnt)
    cli.wait_until_gone()


def test_dead_mount_is_named_in_the_error(cli: Cli) -> None:
    space = cli.space
    _kill(cli, cli.mount("-o", space.options(), space.mnt))
    done = cli.run("-o", space.options(), space.mnt)
    assert done.returncode == 5
    assert re.fullmatch(r"fuseoverlay: error: .*\n", done.stderr)
    done = cli.run("unmount", space.mnt)
    assert done.returncode == 0, done.stderr
    assert mounts_at(space.mnt) == []
    cli.mount("-o", space.options(), space.mnt)
    unmount(space.mnt)
    cli.wait_until_gone()


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03, 0.1])
def test_sigkill_in_the_middle_of_a_copy_up(cli: Cli, delay: float) -> None:
    """It leaves the old file or the new one, nothing between, and nothing else after the next
    mount."""
    space = cli.space
    block = os.urandom(1 << 20)
    with open(space.lower / "big", "wb") as stream:
        for _ in range(200):
            stream.write(block)
    os.utime(space.lower / "big", ns=(1, 1))
    pid = cli.mount("-o", space.options(), space.mnt)
    writer = subprocess.Popen(
        [sys.executable, "-c", f"open({str(space.mnt / 'big')!r}, 'r+b').write(b'NEW')"],
        stderr=subprocess.DEVNULL,
    )
    time.sleep(delay + 0.02)
    _kill(cli, pid)
    writer.wait(30)
    detach(space.mnt)
    cli.mount("-o", space.options(), space.mnt)
    left = [Path(top, name) for top, _, files in os.walk(space.work) for name in files]
    assert left == []
    data = (space.mnt / "big").read_bytes()
    assert len(data) == 200 << 20
    assert data[:3] in (block[:3], b"NEW")
    assert data[3 : 1 << 20] == block[3:]
    assert data[-(1 << 20) :] == block
    assert data[100 << 20 : 101 << 20] == block
    unmount(space.mnt)
    cli.wait_until_gone()


def test_litter_in_the_work_directory_is_cleaned(cli: Cli) -> None:
    space = cli.space
    cli.mount("-o", space.options(), space.mnt)
    unmount(space.mnt)
    cli.wait_until_gone()
    (staging,) = [path for path in space.work.iterdir() if path.name == "work"]
    (staging / "#1").write_bytes(b"litter")
    (staging / "#2" / "er").mkdir(parents=True)
    (staging / "#2" / "er" / "file").touch()
    (staging / "#2" / "er").chmod(0o500)
    os.symlink("/etc", staging / "#3")
    cli.mount("-o", space.options(), space.mnt)
    assert os.listdir(staging) == []
    assert Path("/etc/passwd").exists()
    (space.mnt / "f").write_bytes(b"x")
    unmount(space.mnt)
    cli.wait_until_gone()


def test_two_mounts_beside_each_other(cli: Cli) -> None:
    """With the same lowers and two uppers they do not see each other's changes."""
    space = cli.space
    second = [space.base / name for name in ("upper2", "work2", "mnt2")]
    for path in second:
        path.mkdir()
    cli.mount("-o", space.options(), space.mnt)
    options = f"lowerdir={escape(space.lower)},upperdir={second[0]},workdir={second[1]}"
    try:
        done = cli.run("-o", options, second[2])
        assert done.returncode == 0, done.stderr
        (space.mnt / "f").write_bytes(b"one")
        assert (second[2] / "f").read_bytes() == b"from the lower"
        unmount(second[2])
    finally:
        detach(second[2])
    unmount(space.mnt)
    cli.wait_until_gone()


def test_overlay_on_an_overlay(cli: Cli) -> None:
    """One mount is the lower of another."""
    space = cli.space
    second = [space.base / name for name in ("upper2", "work2", "mnt2")]
    for path in second:
        path.mkdir()
    (space.lower / "d").mkdir()
    (space.lower / "d" / "g").write_bytes(b"g")
    cli.mount("-o", space.options(), space.mnt)
    options = f"lowerdir={escape(space.mnt)},upperdir={second[0]},workdir={second[1]}"
    try:
        done = cli.run("-o", options, second[2])
        assert done.returncode == 0, done.stderr
        os.unlink(second[2] / "f")
        (second[2] / "d" / "g").write_bytes(b"top")
        assert (space.mnt / "f").read_bytes() == b"from the lower"
        assert (space.mnt / "d" / "g").read_bytes() == b"g"
        assert os.listdir(second[2]) == ["d"]
        unmount(second[2])
        wait_for(lambda: not mounts_at(second[2]), 5, "unmounting")
    finally:
        detach(second[2])
    # The second daemon holds the first mount until it has ended.
    wait_for(lambda: cli.run("unmount", space.mnt).returncode == 0, 10, "unmounting the lower one")
    cli.wait_until_gone()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_started_with_a_closed_standard_descriptor(cli: Cli, closed: str) -> None:
    space = cli.space
    cli.mount("-o", space.options(), space.mnt, prefix=("sh", "-c", f'exec "$@" {closed}', "sh"))
    assert (space.mnt / "f").read_bytes() == b"from the lower"
    (space.mnt / "new").write_bytes(b"new")
    assert sorted(os.listdir(space.mnt)) == ["f", "new"]
    unmount(space.mnt)
    cli.wait_until_gone()
    assert (space.upper / "new").read_bytes() == b"new"
