"""Mount options: each has its meaning, whoever wrote it and however it is spelled."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fuseoverlay.overlay import mountoptions
from tests.helpers.mounts import (
    MODE,
    NATIVE,
    Daemon,
    command,
    detach,
    escape,
    fails,
    mounts_at,
    root_only,
    unmount,
    wait_for,
)
from tests.mount.conftest import Cli

LABEL = "system_u:object_r:container_file_t:s0:c1,c2"
ACL = "system.posix_acl_access"


@contextmanager
def mounted(cli: Cli, *options: str) -> Iterator[Path]:
    """Mount with these options too, which must bring no warning."""
    space = cli.space
    done = cli.run("-o", ",".join([space.options(), *options]), space.mnt)
    assert (done.returncode, done.stderr) == (0, "")
    yield space.mnt
    unmount(space.mnt)
    cli.wait_until_gone()


def source_of(mnt: Path) -> str:
    """The source in the kernel's list of mounts, its octal escapes undone."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[4] == str(mnt):
            field = right.split(" ")[1]
            return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
    raise AssertionError(f"nothing is mounted at {mnt}")


def _directories(cli: Cli) -> None:
    """One directory of each kind: merged, of the lower, of the upper."""
    space = cli.space
    for top, names in (
        (space.lower, ("merged/a", "merged/b", "lower/a")),
        (space.upper, ("merged/c", "upper/a", "upper/b")),
    ):
        for name in names:
            (top / name).mkdir(parents=True)


def _links(mnt: Path) -> dict[str, int]:
    """Link counts of all directories; by listing first, which brings attributes along."""
    names = [os.path.relpath(top, mnt) for top, _, _ in os.walk(mnt)]
    return {name: os.stat(mnt / name).st_nlink for name in names}


def test_static_nlink(cli: Cli) -> None:
    _directories(cli)
    with mounted(cli, "static_nlink") as mnt:
        (mnt / "new" / "sub").mkdir(parents=True)
        (mnt / "lower" / "more").mkdir()
        assert set(_links(mnt).values()) == {1}
        for name in ("merged", "lower", "upper", "new"):
            os.stat(mnt / name)
            assert os.stat(mnt / name).st_nlink == 1, "asked again"
        fd = os.open(mnt / "new" / "sub", os.O_RDONLY)
        os.rmdir(mnt / "new" / "sub")
        assert os.fstat(fd).st_nlink == 0
        os.close(fd)
        os.link(mnt / "f", mnt / "g")
        assert os.stat(mnt / "f").st_nlink == 2, "files are counted"
    with mounted(cli) as mnt:
        assert (_links(mnt)["merged"], _links(mnt)["lower"]) == (5, 4), "else they are counted"


def test_static_nlink_is_that_of_fuse_overlayfs(cli: Cli) -> None:
    if shutil.which("fuse-overlayfs") is None:
        pytest.skip("fuse-overlayfs is not installed")
    _directories(cli)
    space = cli.space
    options = f"{space.options()},static_nlink"
    subprocess.run(
        ["fuse-overlayfs", "-o", options, space.mnt], check=True, timeout=30, capture_output=True
    )
    theirs = _links(space.mnt)
    unmount(space.mnt)
    (space.work / "work").rmdir()
    with mounted(cli, "static_nlink") as mnt:
        assert _links(mnt) == theirs


def _sees_xattrs(path: Path) -> list[str]:
    """What each call says: the errno's name or what it returns."""
    told = []
    for call in (
        lambda: os.listxattr(path),
        lambda: os.getxattr(path, "user.mine"),
        lambda: os.getxattr(path, "security.capability"),
        lambda: os.getxattr(path, ACL),
        lambda: os.setxattr(path, "user.new", b"1"),
        lambda: os.setxattr(path, ACL, b"\2\0\0\0"),
    ):
        try:
            told.append(str(call()))
        except OSError as exc:
            told.append(errno.errorcode[exc.errno or 0])
    return told


@pytest.mark.parametrize("where", ["lower", "upper"])
def test_noxattrs(cli: Cli, where: str) -> None:
    """None are shown or taken; the overlay keeps its own, and copies keep theirs."""
    layer: Path = getattr(cli.space, where)
    (layer / "with").write_bytes(b"x")
    (layer / "without").write_bytes(b"x")
    os.setxattr(layer / "with", "user.mine", b"1")
    (cli.space.lower / "full" / "below").mkdir(parents=True)
    with mounted(cli, "noxattrs=1") as mnt:
        for _ in range(2):
            os.listdir(mnt)
            for name in ("without", "with", "."):
                told = _sees_xattrs(mnt / name)
                # The kernel then says by itself that there is no ACL.
                assert told.pop(3) == ("ENOTSUP" if MODE == "userns" else "ENODATA")
                assert told == ["ENOTSUP"] * 5
        with fails(errno.EOPNOTSUPP):
            os.removexattr(mnt / "with", "user.mine")
        for name in ("with", "without"):
            (mnt / name).write_bytes(b"more")
        shutil.rmtree(mnt / "full")
        (mnt / "full").mkdir()
    assert os.getxattr(cli.space.upper / "with", "user.mine") == b"1"
    with mounted(cli, "noxattrs=0") as mnt:
        assert os.listdir(mnt / "full") == [], "it is opaque"
        assert os.getxattr(mnt / "with", "user.mine") == b"1"
        os.setxattr(mnt / "with", "user.new", b"1")


def test_noxattrs_is_that_of_fuse_overlayfs(cli: Cli) -> None:
    if shutil.which("fuse-overlayfs") is None:
        pytest.skip("missing tool: fuse-overlayfs")
    space = cli.space
    os.setxattr(space.lower / "f", "user.mine", b"1")
    options = f"{space.options()},noxattrs=1"
    subprocess.run(
        ["fuse-overlayfs", "-o", options, space.mnt], check=True, timeout=30, capture_output=True
    )
    theirs = _sees_xattrs(space.mnt / "f")
    unmount(space.mnt)
    (space.work / "work").rmdir()
    with mounted(cli, "noxattrs=1") as mnt:
        ours = _sees_xattrs(mnt / "f")
    # In a user namespace the kernel speaks differently of ACLs where the mount knows them.
    assert theirs.pop(3) == "ENODATA"
    assert ours.pop(3) == ("ENOTSUP" if MODE == "userns" else "ENODATA")
    assert ours == theirs


@pytest.mark.parametrize("value", ["1", "0", ""])
@pytest.mark.parametrize("option", [None, "whiteout=xattr"])
def test_environment_of_fuse_overlayfs(cli: Cli, value: str, option: str | None) -> None:
    """Set to whatever, it asks for whiteouts that are files; an option has the last word."""
    space = cli.space
    env = {"PATH": os.environ["PATH"], "FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT": value}
    options = ",".join([space.options(), *([option] if option else [])])
    done = cli.run("-o", options, space.mnt, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    (space.mnt / "f").unlink()
    unmount(space.mnt)
    cli.wait_until_gone()
    assert os.listdir(space.upper) == ["f" if option else ".wh.f"]
    with mounted(cli) as mnt:
        assert not (mnt / "f").exists()


def _set_acl(path: Path, *entries: str) -> None:
    subprocess.run(["setfacl", *entries, str(path)], check=True, timeout=30)


@pytest.mark.parametrize("where", ["lower", "upper"])
def test_noacl(cli: Cli, where: str) -> None:
    """There are no ACLs to be seen or set, and those in the layers give nobody anything."""
    layer: Path = getattr(cli.space, where)
    (layer / "with").write_bytes(b"x")
    (layer / "dir").mkdir(mode=0o755)
    os.setxattr(layer / "with", "user.mine", b"1")
    _set_acl(layer / "with", "-m", "u:0:r")
    _set_acl(layer / "dir", "-d", "-m", "u:0:rwx")
    with mounted(cli, "noacl") as mnt:
        assert os.listxattr(mnt / "with") == ["user.mine"]
        assert "f" in [entry.name for entry in os.scandir(mnt)]
        for call in (
            lambda: os.getxattr(mnt / "with", ACL),
            lambda: os.getxattr(mnt / "f", ACL),
            lambda: os.setxattr(mnt / "f", ACL, b"\2\0\0\0"),
            lambda: os.removexattr(mnt / "with", ACL),
        ):
            with fails(errno.EOPNOTSUPP):
                call()
        script = 'umask 027; : > "$0/file"; mkdir "$0/sub"'
        subprocess.run(["sh", "-c", script, mnt / "dir"], check=True, timeout=30)
        assert stat.S_IMODE(os.stat(mnt / "dir" / "file").st_mode) == 0o640
        assert stat.S_IMODE(os.stat(mnt / "dir" / "sub").st_mode) == 0o750
        os.chmod(mnt / "with", 0o600)
        assert stat.S_IMODE(os.stat(mnt / "with").st_mode) == 0o600
    # That it is limited goes on in there.
    for name, acls in (("file", []), ("sub", ["system.posix_acl_default"])):
        found = os.listxattr(cli.space.upper / "dir" / name)
        assert [attribute for attribute in found if "acl" in attribute] == acls, name
    assert ACL in os.listxattr(cli.space.upper / "with"), "the file keeps what it had"


def _written(cli: Cli, option: str) -> tuple[set[int], str]:
    """Sizes of the WRITE requests for 100000 bytes, and the daemon's log."""
    space = cli.space
    log = space.base / f"debug{option}"
    options = f"{space.options()},debug{option}"
    daemon = Daemon(command("-o", options, space.mnt), space.mnt, log)
    try:
        daemon.wait_until_mounted(1)
        (space.mnt / "new").write_bytes(b"x" * 100_000)
        assert (space.mnt / "new").read_bytes() == b"x" * 100_000
        unmount(space.mnt)
        daemon.finish()
    finally:
        daemon.kill()
    text = log.read_text()
    # As the extension's log has it, and as pyfuse3's handler does.
    sizes = re.findall(r"^write\((?:.* size=(\d+).* = ok|.* = (\d+))$", text, re.M)
    return {int(one or other) for one, other in sizes}, text


def test_max_write(cli: Cli) -> None:
    whole, log = _written(cli, "")
    assert "max_write" not in log
    halves, log = _written(cli, ",max_write=8192")
    if NATIVE:
        assert max(halves) == 8192 < max(whole)
    else:
        assert halves == whole
        assert re.search(r"^max_write is ignored: it needs the extension", log, re.M)


def test_debug(cli: Cli) -> None:
    """As with -d: in the foreground, and requests are logged."""
    sizes, log = _written(cli, "")
    assert sum(sizes) >= 4096
    assert re.search(r"^create\(.*'new'", log, re.M)


@pytest.mark.parametrize("name", ["context", "fscontext", "defcontext", "rootcontext"])
@pytest.mark.parametrize("quote", ['"', ""])
def test_labels_without_selinux(cli: Cli, name: str, quote: str) -> None:
    label = LABEL if quote else LABEL.replace(",", r"\,")
    space = cli.space
    if "selinuxfs" in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has SELinux")
    done = cli.run("-o", f"{space.options()},{name}={quote}{label}{quote},noatime", space.mnt)
    assert done.returncode == 0, done.stderr
    line = f'fuseoverlay: warning: option {name}="{LABEL}" is ignored: '
    assert re.fullmatch(re.escape(line) + r"[^\n]+\n", done.stderr), done.stderr
    assert (space.mnt / "f").read_bytes() == b"from the lower"
    unmount(space.mnt)
    cli.wait_until_gone()


@pytest.mark.parametrize("name", ['a"b', '"', '"a"', 'a"b"c', 'a"b:c'])
@pytest.mark.parametrize("escaped", [False, True])
def test_quotes_in_paths(cli: Cli, name: str, escaped: bool) -> None:
    """There they are characters, as in the kernel: what follows is an option of its own."""
    space = cli.space
    paths = {}
    for which in ("lower", "upper", "work"):
        paths[which] = space.base / which / name
        paths[which].mkdir(parents=True)
    (paths["lower"] / "f").touch()
    written = {
        which: escape(path) if escaped else str(path).replace(":", r"\:")
        for which, path in paths.items()
    }
    options = "lowerdir={lower},upperdir={upper},workdir={work},fsname=mine".format(**written)
    cli.mount("-o", options, space.mnt)
    (space.mnt / "f").write_text("x")
    assert source_of(space.mnt) == "mine"
    assert (paths["upper"] / "f").read_text() == "x"
    unmount(space.mnt)
    cli.wait_until_gone()


#: mount(8) has an opinion on quotes, mount(2) has none.
_MOUNT = (
    "import ctypes, os, sys; mnt, options = map(os.fsencode, sys.argv[1:]);"
    " sys.exit(ctypes.CDLL(None).mount(b'overlay', mnt, b'overlay', 0, options))"
)


@root_only
@pytest.mark.parametrize("name", ['a"b', '"a"'])
def test_quotes_in_paths_of_the_kernel(cli: Cli, name: str) -> None:
    """What the test before states is what mount(2) does with the same text."""
    space = cli.space
    lower = space.base / name
    lower.mkdir()
    (lower / "f").touch()
    options = f"lowerdir={lower}:{space.lower},xino=off"
    done = subprocess.run(
        ["python3", "-c", _MOUNT, space.mnt, options], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert (space.mnt / "f").read_bytes() == b""
    unmount(space.mnt)


def test_quotes_in_other_values() -> None:
    """A quote that opens a value keeps commas in it; one inside of it does not."""
    assert mountoptions.parse(b'fsname="a,b",ro').fuse_options == ("ro", "fsname=a,b")
    assert mountoptions.parse(b'fsname=a"b,ro').fuse_options == ("ro", 'fsname=a"b')
    assert mountoptions.parse(b'context="a,b",ro').contexts == ('context="a,b"',)
    assert mountoptions.parse(rb"context=a\,b,ro").contexts == ('context="a,b"',)
    assert mountoptions.parse(b'lowerdir=a":b,ro').lowerdirs == (b'a"', b"b")
    assert mountoptions.parse(b'lowerdir="a:b",ro').lowerdirs == (b'"a', b'b"')


@root_only
def test_labels_reach_the_kernel(cli: Cli) -> None:
    """As one option, in quotes, where it says that it knows SELinux."""
    if shutil.which("strace") is None:
        pytest.skip("missing tool: strace")
    space = cli.space
    said, log = space.base / "filesystems", space.base / "strace"
    said.write_text("nodev\tselinuxfs\nnodev\tfuse\n")
    script = f'set -e; mount --bind {said} /proc/filesystems; exec "$@"'
    trace = ("strace", "-f", "-qq", "-s", "500", "-e", "trace=mount", "-o", log)
    prefix = ("unshare", "-m", "sh", "-c", script, "sh", *map(str, trace))
    options = f'{space.options()},context="{LABEL}",fscontext=a:b:c:s0'
    done = cli.run("-o", options, space.mnt, prefix=prefix)
    assert done.returncode in (0, 6), done.stderr
    (call,) = re.findall(r'mount\([^\n]*"fuse.fuseoverlay"[^\n]*', log.read_text())
    assert rf"context=\"{LABEL}\"" in call
    assert r"fscontext=\"a:b:c:s0\"" in call


@pytest.mark.parametrize(
    "source", ["overlay", "none", "/a/path/image.tar:tag", "a,b", "a\\b", "a b", "ümlaut"]
)
def test_source_is_shown(cli: Cli, source: str) -> None:
    space = cli.space
    cli.mount(source, space.mnt, "-o", space.options())
    assert source_of(space.mnt) == (source if source.isascii() else "fuseoverlay")
    unmount(space.mnt)
    cli.wait_until_gone()


@pytest.mark.parametrize("fsname", ["mine", "a\\,b"])
def test_fsname_goes_before_the_source(cli: Cli, fsname: str) -> None:
    space = cli.space
    cli.mount("overlay", space.mnt, "-o", f"{space.options()},fsname={fsname},subtype=other")
    assert source_of(space.mnt) == fsname.replace("\\", "")
    assert mounts_at(space.mnt) == ["fuse.other"]
    unmount(space.mnt)
    cli.wait_until_gone()


@pytest.mark.parametrize("killed", [False, True])
def test_auto_unmount(cli: Cli, killed: bool) -> None:
    """The mount goes with the daemon, however that ends; nobody keeps the caller's stderr."""
    if killed and MODE == "user":
        pytest.skip("older libfuse does not where root may not look: without allow_other")
    space = cli.space
    for last in (False, False, True):
        pid = cli.mount("-o", f"{space.options()},auto_unmount", space.mnt)
        (space.mnt / "f").write_bytes(b"changed")
        if not killed:
            unmount(space.mnt)
            break
        os.kill(pid, signal.SIGKILL)
        # On a busy machine fusermount3 may look before the kernel has noticed, and then leaves it,
        # https://github.com/libfuse/libfuse/issues/586
        with contextlib.suppress(() if last else AssertionError):
            wait_for(lambda: not mounts_at(space.mnt), 10, "unmounting")
            break
        detach(space.mnt)
    cli.wait_until_gone()
    assert (space.upper / "f").read_bytes() == b"changed"


#: As the callers of mount programs write them, and what /etc/fstab may leave.
QUIET = (
    "rw,nosuid,nodev,noexec,noatime,nodiratime,lazytime,sync,dirsync",
    "volatile,fsync=0,timeout=1.5,xino=off,index=off,metacopy=off,redirect_dir=off",
    "allow_other,fsname=overlay,subtype=overlay,default_permissions",
    "user=somebody,users,noauto,nofail,_netdev,x-systemd.automount,x-gvfs-show,X-mount.mkdir",
    "comment=from the installer,private,,defaults,",
    'fsname="overlay"',
    "clone_fd,max_idle_threads=10,max_threads=4,threaded=1,fast_ino=1,writeback=0",
)


@pytest.mark.parametrize("options", QUIET)
def test_known_options_bring_no_warning(cli: Cli, options: str) -> None:
    if MODE == "user":
        # Only root may let others in, unless /etc/fuse.conf says so.
        options = options.replace("allow_other,", "")
    with mounted(cli, options) as mnt:
        (mnt / "f").write_bytes(b"changed")
    assert (cli.space.upper / "f").read_bytes() == b"changed"


UNKNOWN = (
    "plugins=/usr/lib/some.so",
    "max_read=131072",
    "threaded=maybe",
    "noxattr=1",
    "something,else",
    'quoted="with, comma"',
)


@pytest.mark.parametrize("options", UNKNOWN)
def test_unknown_options_bring_a_warning(cli: Cli, options: str) -> None:
    space = cli.space
    done = cli.run("-o", f"{space.options()},{options}", space.mnt)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == (2 if options == "something,else" else 1)
    for line in lines:
        assert re.fullmatch(r"fuseoverlay: warning: option .+ is unknown and ignored", line)
    assert (space.mnt / "f").read_bytes() == b"from the lower"
    unmount(space.mnt)
    cli.wait_until_gone()


def test_as_a_container_engine_calls(cli: Cli) -> None:
    """In its directory, with short links to the layers, and all that it leaves in the list."""
    graph = cli.space.base / "graph: root"
    for name in ("l", "ID1/diff", "ID2/diff", "ID3/diff", "ID3/work", "ID3/empty", "ID3/merged"):
        (graph / name).mkdir(parents=True)
    for number in (1, 2):
        (graph / f"ID{number}" / "diff" / "f").write_text(f"from layer {number}")
        os.symlink(f"../ID{number}/diff", graph / "l" / f"SHORT{number}")
    merged = cli.space.mnt = graph / "ID3" / "merged"
    options = (
        "lowerdir=l/SHORT2:l/SHORT1:ID3/empty,upperdir=ID3/diff,workdir=ID3/work,,volatile,"
        f'context="{LABEL}",private,plugins=none,'
    )
    done = cli.run("-o", options, merged, cwd=graph)
    assert done.returncode == 0, done.stderr
    assert all("ignored" in line for line in done.stderr.splitlines())
    assert (merged / "f").read_text() == "from layer 2"
    (merged / "f").write_text("changed")
    assert (graph / "ID3" / "diff" / "f").read_text() == "changed"
    assert (graph / "ID3/work/work/incompat/volatile").is_dir()
    unmount(merged)
    cli.wait_until_gone()
    lower = str(graph / "ID2" / "diff").replace(":", "\\:")
    cli.mount("-o", f"lowerdir={lower}:l/SHORT1", merged, cwd=graph)
    assert (merged / "f").read_text() == "from layer 2"
    unmount(merged)
    cli.wait_until_gone()


@pytest.mark.parametrize("seconds", ["1e9", "1.9e10", "1e20", "1e300", "1e999", "9" * 400])
def test_timeout_longer_than_anybody_waits(cli: Cli, seconds: str) -> None:
    space = cli.space
    cli.mount("-o", f"{space.options()},timeout={seconds}", space.mnt)
    assert (space.mnt / "f").read_bytes() == b"from the lower"
    (space.mnt / "new").write_bytes(b"new")
    assert sorted(os.listdir(space.mnt)) == ["f", "new"]
    unmount(space.mnt)
    cli.wait_until_gone()
