"""What cannot be mounted: one line, a documented exit code, and nothing mounted."""

from __future__ import annotations

import errno
import os
import re
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.mounts import (
    MODE,
    Space,
    command,
    detach,
    escape,
    fails,
    mounts_at,
    root_only,
    unmount,
)
from tests.mount.conftest import Cli

USAGE, LOWER, UPPER, MOUNTPOINT, FUSE, IMAGE = 2, 3, 4, 5, 6, 7


def mounts_below(path: Path) -> list[str]:
    """The mounts below; others may mount elsewhere meanwhile."""
    lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    return [line for line in lines if str(path) in line]


def refused(cli: Cli, code: int, *args: object, word: str = "", **how: object) -> str:
    """Run the command, which must refuse in the documented way; returns the message."""
    before, running = mounts_below(cli.space.base), cli.daemons()
    done = cli.run(*args, **how)
    assert done.stdout == ""
    assert re.fullmatch(r"fuseoverlay: error: [^\n]+\n", done.stderr), done.stderr
    assert done.returncode == code, done.stderr
    assert word in done.stderr
    assert mounts_below(cli.space.base) == before, "something was mounted"
    assert cli.daemons() == running
    return done.stderr


def _file(path: Path) -> Path:
    path.rmdir()
    path.touch()
    return path


def _missing_lower(space: Space) -> None:
    space.lowers.append(space.base / "missing")


def _lower_is_a_file(space: Space) -> None:
    space.lowers.append(space.base / "file")
    space.lowers[-1].touch()


def _lower_below_a_file(space: Space) -> None:
    space.lowers.append(space.lower / "f" / "x")


def _same_lower_twice(space: Space) -> None:
    space.lowers.append(space.lower)


def _same_lower_twice_by_a_link(space: Space) -> None:
    os.symlink("l0", space.base / "link")
    space.lowers.append(space.base / "link")


def _dangling_link(space: Space) -> None:
    os.symlink("nowhere", space.base / "link")
    space.lowers.append(space.base / "link")


LOWERS = {
    "missing": _missing_lower,
    "a file": _lower_is_a_file,
    "below a file": _lower_below_a_file,
    "a dangling link": _dangling_link,
    "twice": _same_lower_twice,
    "twice, by a link": _same_lower_twice_by_a_link,
}


@pytest.mark.parametrize("what", LOWERS)
@pytest.mark.parametrize("read_only", [False, True])
def test_lower(cli: Cli, what: str, read_only: bool) -> None:
    LOWERS[what](cli.space)
    options = cli.space.options(read_only=read_only)
    message = refused(cli, LOWER, "-o", options, cli.space.mnt)
    assert str(cli.space.lowers[-1]) in message, "the message names the directory"


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        ("lowerdir=l0:l0", LOWER, "l0: lowerdir names this directory again; name each layer once"),
        ("lowerdir=l0:./l0", LOWER, "./l0: lowerdir names this directory also as l0; name each"),
        ("lowerdir=l0,upperdir=l0,workdir=work", UPPER, "l0: upperdir is a lowerdir, too; an"),
    ],
)
def test_a_directory_in_two_parts(cli: Cli, options: str, code: int, word: str) -> None:
    refused(cli, code, "-o", options, cli.space.mnt, word=word, cwd=cli.space.base)


@pytest.mark.parametrize("which", ["lower", "upper", "work"])
def test_dangling_link(cli: Cli, which: str) -> None:
    """Like an engine's `l/XXXX` whose layer was removed: the message says so, with its target."""
    space = cli.space
    (space.base / "l").mkdir()
    os.symlink("../gone/diff", space.base / "l" / "XXXX")
    names = {"lower": "l0", "upper": "upper", "work": "work", which: "l/XXXX"}
    options = "lowerdir={lower},upperdir={upper},workdir={work}".format(**names)
    word = f"l/XXXX: {which}dir is a link to ../gone/diff, which does not exist"
    code = LOWER if which == "lower" else UPPER
    refused(cli, code, "-o", options, space.mnt, word=word, cwd=space.base)


@pytest.mark.skipif(MODE != "user", reason="root reads everything")
def test_unreadable_lower(cli: Cli) -> None:
    extra = cli.space.add_lower()
    extra.chmod(0o000)
    refused(cli, LOWER, "-o", cli.space.options(), cli.space.mnt, word=str(extra))
    extra.chmod(0o700)


def _upper_missing(space: Space) -> None:
    space.upper.rmdir()


def _upper_is_a_file(space: Space) -> None:
    _file(space.upper)


def _work_missing(space: Space) -> None:
    space.work.rmdir()


def _work_is_a_file(space: Space) -> None:
    _file(space.work)


def _work_in_upper(space: Space) -> None:
    space.work = space.upper / "work"
    space.work.mkdir()


def _work_deep_in_upper(space: Space) -> None:
    space.work = space.upper / "a" / "b" / "work"
    space.work.mkdir(parents=True)


def _upper_in_work(space: Space) -> None:
    space.upper = space.work / "upper"
    space.upper.mkdir()


def _work_is_upper(space: Space) -> None:
    space.work = space.upper


def _work_is_upper_by_a_link(space: Space) -> None:
    space.work = space.base / "link"
    os.symlink("upper", space.work)


UPPERS = {
    "upper missing": _upper_missing,
    "upper is a file": _upper_is_a_file,
    "work missing": _work_missing,
    "work is a file": _work_is_a_file,
    "work inside the upper": _work_in_upper,
    "work deep inside the upper": _work_deep_in_upper,
    "upper inside the work": _upper_in_work,
    "the same": _work_is_upper,
    "the same by a link": _work_is_upper_by_a_link,
}


@pytest.mark.parametrize("what", UPPERS)
def test_upper_and_work(cli: Cli, what: str) -> None:
    UPPERS[what](cli.space)
    before = sorted(os.listdir(cli.space.base))
    refused(cli, UPPER, "-o", cli.space.options(), cli.space.mnt)
    assert sorted(os.listdir(cli.space.base)) == before, "it made something"


def test_upper_that_is_a_lower(cli: Cli) -> None:
    cli.space.upper = cli.space.lower
    done = cli.run("-o", cli.space.options(), cli.space.mnt)
    assert done.returncode in (LOWER, UPPER)
    refused(cli, done.returncode, "-o", cli.space.options(), cli.space.mnt)


def test_lower_inside_the_upper(cli: Cli) -> None:
    """A write to the mount would change the layer; the kernel refuses that too."""
    space = cli.space
    inside = space.upper / "layer"
    inside.mkdir()
    space.lowers.append(inside)
    done = cli.run("-o", space.options(), space.mnt)
    assert done.returncode in (LOWER, UPPER)
    refused(cli, done.returncode, "-o", space.options(), space.mnt)


@pytest.mark.skipif(MODE != "user", reason="root writes everything")
@pytest.mark.parametrize("which", ["upper", "work"])
def test_unwritable(cli: Cli, which: str) -> None:
    path: Path = getattr(cli.space, which)
    path.chmod(0o500)
    if which == "work":
        refused(cli, UPPER, "-o", cli.space.options(), cli.space.mnt, word=str(path))
    else:
        path.chmod(0o000)
        refused(cli, UPPER, "-o", cli.space.options(), cli.space.mnt, word=str(path))
    path.chmod(0o700)


@pytest.mark.skipif(MODE == "user", reason="needs mount(2)")
def test_upper_on_a_read_only_filesystem(cli: Cli) -> None:
    space = cli.space
    tmpfs = space.base / "tmpfs"
    tmpfs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(tmpfs)], check=True, timeout=30)
    try:
        for name in ("upper", "work"):
            (tmpfs / name).mkdir()
        subprocess.run(["mount", "-o", "remount,bind,ro", str(tmpfs)], check=True, timeout=30)
        space.upper, space.work = tmpfs / "upper", tmpfs / "work"
        refused(cli, UPPER, "-o", space.options(), space.mnt)
    finally:
        subprocess.run(["umount", "-l", str(tmpfs)], check=False, timeout=30)


@pytest.fixture
def bare(cli: Cli) -> Iterator[Cli]:
    """Upper and work directory are on a filesystem without extended attributes."""
    space = cli.space
    ramfs = space.base / "ramfs"
    ramfs.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", str(ramfs)], check=True, timeout=30)
    try:
        space.upper, space.work = ramfs / "upper", ramfs / "work"
        for path in (space.upper, space.work):
            path.mkdir(mode=0o755)
        yield cli
        cli.clean()
    finally:
        subprocess.run(["umount", "-l", str(ramfs)], check=False, timeout=30)


@pytest.mark.skipif(MODE == "user", reason="needs mount(2)")
def test_upper_without_attributes(bare: Cli) -> None:
    """Everything works; a warning says what does not last."""
    space = bare.space
    (space.lower / "d" / "sub").mkdir(parents=True)
    (space.lower / "moved").mkdir()
    os.setxattr(space.lower / "f", "user.mine", b"1")
    subprocess.run(["setfacl", "-m", "u:0:r", str(space.lower / "f")], check=True, timeout=30)
    os.link(space.lower / "f", space.lower / "g")
    options = f"{space.options()},redirect_dir=on,metacopy=on"
    for _ in range(2):
        done = bare.run("-o", options, space.mnt)
        assert done.returncode == 0
        line = f"fuseoverlay: warning: {space.upper}: the filesystem of upperdir does not keep"
        assert re.fullmatch(re.escape(line) + r"[^\n]*metacopy=on[^\n]*\n", done.stderr)
        unmount(space.mnt)
        bare.wait_until_gone()
    bare.run("-o", options, space.mnt)
    mnt = space.mnt
    os.chmod(mnt / "f", 0o640)
    assert (mnt / "f").read_bytes() == (mnt / "g").read_bytes() == b"from the lower"
    # As in the kernel: the next mount could not know that they are one file.
    assert os.stat(mnt / "f").st_ino != os.stat(mnt / "g").st_ino
    (mnt / "d" / "sub").rmdir()
    (mnt / "d").rmdir()
    (mnt / "d").mkdir()
    assert os.listdir(mnt / "d") == []
    (mnt / "d" / "new").touch()
    with fails(errno.EXDEV):
        os.rename(mnt / "moved", mnt / "away")
    with fails(errno.EOPNOTSUPP):
        os.setxattr(mnt / "d" / "new", "user.mine", b"1")
    os.unlink(mnt / "g")
    unmount(mnt)
    bare.wait_until_gone()
    bare.run("-o", options, space.mnt)
    assert sorted(os.listdir(mnt)) == ["d", "f", "moved"]
    assert os.listdir(mnt / "d") == ["new"]
    assert os.stat(mnt / "f").st_mode & 0o7777 == 0o640
    assert (mnt / "f").read_bytes() == b"from the lower"
    unmount(mnt)
    bare.wait_until_gone()


@pytest.mark.skipif(MODE == "user", reason="needs mount(2)")
def test_upper_without_attributes_for_owners(bare: Cli) -> None:
    options = f"{bare.space.options()},xattr_permissions=2"
    refused(bare, UPPER, "-o", options, bare.space.mnt, word="extended attributes")


def test_work_on_another_filesystem(cli: Cli) -> None:
    space = cli.space
    with tempfile.TemporaryDirectory(prefix="fuseoverlay-test-", dir="/dev/shm") as other:
        space.work = Path(other)
        refused(cli, UPPER, "-o", space.options(), space.mnt, word=other)


@pytest.mark.parametrize("shared", ["upper and work", "upper", "work"])
def test_in_use_by_a_living_mount(cli: Cli, shared: str) -> None:
    space = cli.space
    pid = cli.mount("-o", space.options(), space.mnt)
    upper, work, mnt = space.upper, space.work, space.mnt
    other = Cli(Space.__new__(Space))
    other.space.__dict__.update(space.__dict__)
    (space.base / "mnt2").mkdir()
    other.space.mnt = space.base / "mnt2"
    if "upper" not in shared:
        other.space.upper = space.base / "upper2"
        other.space.upper.mkdir()
    if "work" not in shared:
        other.space.work = space.base / "work2"
        other.space.work.mkdir()
    options = other.space.options()
    word = f"in use by another mount, whose daemon is process {pid};"
    refused(other, UPPER, "-o", options, other.space.mnt, word=word)
    assert cli.daemons() == [pid]
    (mnt / "f").write_bytes(b"the first goes on")
    assert (upper / "f").read_bytes() == b"the first goes on"
    unmount(mnt)
    cli.wait_until_gone()
    assert work.is_dir()
    done = other.run("-o", options, other.space.mnt)
    assert done.returncode == 0, done.stderr
    unmount(other.space.mnt)
    other.wait_until_gone()


def test_left_in_a_namespace_of_its_own(cli: Cli) -> None:
    """The mount stays as long as its daemon, the only process left in the namespace. The message
    about the upper in use says how to end it."""
    space = cli.space
    script = f"{shlex.join(command('-o', space.options(), space.mnt))} && echo kept > {space.mnt}/f"
    enter = ["unshare", "-m"] if MODE == "root" else ["unshare", "-Urm"]
    done = cli.run(prefix=(*enter, "sh", "-c", script))
    assert done.returncode == 0, done.stderr
    (pid,) = cli.daemons()
    assert not mounts_at(space.mnt)
    again = cli.run("-o", space.options(), space.mnt)
    assert again.returncode == UPPER
    assert f"kill {pid} unmounts one that was left" in again.stderr
    os.kill(pid, signal.SIGTERM)
    cli.wait_until_gone()
    cli.mount("-o", space.options(), space.mnt)
    assert (space.mnt / "f").read_text() == "kept\n"
    unmount(space.mnt)
    cli.wait_until_gone()


@pytest.mark.skipif(MODE == "user", reason="a plain user cannot mount kernel overlayfs")
def test_upper_of_a_kernel_overlay(cli: Cli) -> None:
    space = cli.space
    space.mount(impl="kernel")
    (space.base / "mnt2").mkdir()
    (space.base / "work2").mkdir()
    kernels, space.mnt, space.work = space.mnt, space.base / "mnt2", space.base / "work2"
    refused(cli, UPPER, "-o", space.options(), space.mnt, word="kernel overlay")
    unmount(kernels)
    cli.mount("-o", space.options(), space.mnt)
    unmount(space.mnt)
    cli.wait_until_gone()


def test_mount_point_in_proc(cli: Cli) -> None:
    """The daemon itself needs /proc."""
    options = f"lowerdir={escape(cli.space.lower)}"
    for path in ("/proc", "/proc/self/fd"):
        refused(cli, MOUNTPOINT, "-o", options, path, word="/proc")


def test_mount_point_is_busy(cli: Cli) -> None:
    space = cli.space
    pid = cli.mount("-o", space.options(), space.mnt)
    before = mounts_below(space.base)
    done = cli.run("-o", f"lowerdir={escape(space.lower)}", space.mnt)
    assert done.returncode == MOUNTPOINT
    assert re.fullmatch(r"fuseoverlay: error: [^\n]*busy[^\n]*\n", done.stderr), done.stderr
    assert mounts_below(space.base) == before
    assert cli.daemons() == [pid]
    unmount(space.mnt)
    cli.wait_until_gone()


def test_mount_point_missing(cli: Cli) -> None:
    cli.space.mnt.rmdir()
    refused(cli, MOUNTPOINT, "-o", cli.space.options(), cli.space.mnt, word=str(cli.space.mnt))
    assert not cli.space.mnt.exists()


def test_mount_point_is_a_file(cli: Cli) -> None:
    _file(cli.space.mnt)
    refused(cli, MOUNTPOINT, "-o", cli.space.options(), cli.space.mnt, word=str(cli.space.mnt))


@pytest.mark.parametrize("deep", [False, True])
def test_mount_point_inside_the_work_directory(cli: Cli, deep: bool) -> None:
    """Its content is the overlay's; the mount must neither hide nor show it."""
    space = cli.space
    space.mnt = space.work / ("a/b/mnt" if deep else "mnt")
    space.mnt.mkdir(parents=True)
    refused(cli, MOUNTPOINT, "-o", space.options(), space.mnt, word=str(space.work))


OPTIONS = {
    "no lowerdir": "upperdir={upper},workdir={work}",
    "no workdir": "lowerdir={lower},upperdir={upper}",
    "no upperdir": "lowerdir={lower},workdir={work}",
    "empty lowerdir": "lowerdir=",
    "empty layer between": "lowerdir={lower}::{lower}",
    "colon at the end": "lowerdir={lower}:",
    "empty upperdir": "lowerdir={lower},upperdir=,workdir={work}",
    "whiteout": "lowerdir={lower},whiteout=aufs",
    "timeout": "lowerdir={lower},timeout=soon",
    "negative timeout": "lowerdir={lower},timeout=-1",
    "timeout that is no number": "lowerdir={lower},timeout=nan",
    "infinite timeout": "lowerdir={lower},timeout=inf",
    "timeout with an underscore": "lowerdir={lower},timeout=1_0",
    "timeout in fullwidth digits": "lowerdir={lower},timeout=\uff11",
    "timeout with a space": "lowerdir={lower},timeout= 1",
    "timeout without a digit": "lowerdir={lower},timeout=.",
    "xattr_permissions": "lowerdir={lower},xattr_permissions=3",
    "mapping that is empty": "lowerdir={lower},uidmapping=",
    "mapping without a value": "lowerdir={lower},gidmapping",
    "mapping that is too short": "lowerdir={lower},uidmapping=0:1000",
    "mapping with too much": "lowerdir={lower},gidmapping=0:1000:1:5",
    "mapping in words": "lowerdir={lower},uidmapping=root:1000:1",
    "negative mapping": "lowerdir={lower},uidmapping=0:-1:1",
    "mapping of nothing": "lowerdir={lower},uidmapping=0:1000:0",
    "mapping that ends too high": "lowerdir={lower},gidmapping=0:4294967290:10",
    "mapping beyond all bounds": "lowerdir={lower},gidmapping=0:99999999999999999999:1",
    "overlap in the container": "lowerdir={lower},uidmapping=0:1000:10:9:5000:1",
    "overlap on the host": "lowerdir={lower},gidmapping=0:1000:10:10:1009:1",
    "squash to a name": "lowerdir={lower},squash_to_uid=root",
    "squash to nobody": "lowerdir={lower},squash_to_gid",
    "squash to no id": "lowerdir={lower},squash_to_uid=4294967295",
    "redirect_dir": "lowerdir={lower},redirect_dir=maybe",
    "metacopy": "lowerdir={lower},metacopy=1",
    "data-only without metacopy": "lowerdir={lower}::{upper}",
    "xino": "lowerdir={lower},xino=64",
    "index": "lowerdir={lower},index=yes",
    "nfs_export": "lowerdir={lower},nfs_export=on",
    "max_write without a value": "lowerdir={lower},max_write",
    "max_write in words": "lowerdir={lower},max_write=many",
    "max_write with a unit": "lowerdir={lower},max_write=64K",
    "negative max_write": "lowerdir={lower},max_write=-131072",
    "max_write below a page": "lowerdir={lower},max_write=4095",
    "max_write beyond all bounds": "lowerdir={lower},max_write=99999999999999999999",
    "remount": "remount,ro,lowerdir={lower}",
    "a quote that is not closed": 'lowerdir={lower},context="a:b,c,ro',
    "a quote inside a label": 'lowerdir={lower},context="a"b"',
    "nothing": "",
}


@pytest.mark.parametrize("what", OPTIONS)
def test_options(cli: Cli, what: str) -> None:
    space = cli.space
    options = OPTIONS[what].format(lower=space.lower, upper=space.upper, work=space.work)
    refused(cli, USAGE, "-o", options, space.mnt)


@pytest.mark.parametrize(
    "option",
    ["ro", "rw", "nosuid", "noatime", "allow_other", "volatile", "userxattr", "noacl",
     "static_nlink", "submounts", "debug", "squash_to_root"],
)  # fmt: skip
def test_flags_with_a_value(cli: Cli, option: str) -> None:
    """`ro=1` would be a mount that can be written."""
    space = cli.space
    for value in ("1", "0", "yes"):
        options = f"{space.options()},{option}={value}"
        word = f"{option}={value}: {option} takes no value; write {option}, or leave it out"
        refused(cli, USAGE, "-o", options, space.mnt, word=word)


def test_flag_with_an_empty_value(cli: Cli) -> None:
    """It counts as the flag, as in the kernel."""
    space = cli.space
    cli.mount("-o", f"{space.options()},ro=,static_nlink=", space.mnt)
    with fails(errno.EROFS):
        (space.mnt / "new").touch()


@pytest.mark.parametrize(
    "option", ["fsname", "subtype", "context", "fscontext", "defcontext", "rootcontext", "fsync"]
)
@pytest.mark.parametrize("equals", ["", "="])
def test_names_that_are_empty(cli: Cli, option: str, equals: str) -> None:
    space = cli.space
    options = f"{space.options()},{option}{equals}"
    refused(cli, USAGE, "-o", options, space.mnt, word=f"{option} needs a value; ")


@pytest.mark.parametrize("words", [("--platform", "linux/arm64"), ("--upper", "u")])
def test_what_is_for_images(cli: Cli, words: tuple[str, str]) -> None:
    space = cli.space
    advice = {"--upper": "use upperdir= and workdir=", "--platform": "leave it out"}[words[0]]
    word = f"error: {words[0]} is for images; {advice}\n"
    refused(cli, USAGE, "mount", "-o", space.options(), space.mnt, *words, word=word)


@pytest.mark.skipif(MODE != "user", reason="a plain user's")
@pytest.mark.parametrize("flag", ["-r", "-U", "-Um", "-c"])
def test_user_namespaces_that_cannot_mount(cli: Cli, flag: str) -> None:
    """Without a mount namespace, or without root in it, no matter who owns the mount point."""
    space = cli.space
    word = "use unshare -Urm, or mount outside"
    words = ("-o", space.options(read_only=True), space.mnt)
    refused(cli, FUSE, *words, word=word, prefix=("unshare", flag))
    script = f'"$@" && cat {space.mnt}/f && umount {space.mnt}'
    done = cli.run(*words, prefix=("unshare", "-Urm", "sh", "-c", script, "sh"))
    assert (done.returncode, done.stdout) == (0, "from the lower"), done.stderr
    cli.wait_until_gone()


@root_only
def test_root_that_may_not_mount(cli: Cli) -> None:
    """As in a container."""
    space = cli.space
    prefix = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
    word = "give the container --cap-add SYS_ADMIN"
    refused(cli, FUSE, "-o", space.options(read_only=True), space.mnt, word=word, prefix=prefix)


@pytest.mark.parametrize("option", ["fsname", "subtype"])
def test_names_that_are_too_long_for_the_kernel(cli: Cli, option: str) -> None:
    space = cli.space
    options = f"{space.options()},fsname={'f' * 1500},subtype={'s' * 1500}"
    word = f"{option}= is 5000 characters long; the kernel takes"
    refused(cli, USAGE, "-o", f"{options},{option}={'x' * 5000}", space.mnt, word=word)
    cli.mount("mount", "x" * 5000, space.mnt, "-o", options)
    unmount(space.mnt)
    cli.wait_until_gone()


def test_names_that_are_not_utf8(cli: Cli) -> None:
    """As a shell would take them."""
    mnt = cli.space.mnt
    for args in (("mount", "-o", "lowerdir=no\udcffpe", mnt), ("mount", "no\udcffpe", mnt)):
        done = cli.run(*args)
        assert done.stderr.startswith("fuseoverlay: error: no\\xffpe: ")


@pytest.mark.parametrize("redirects", ["off", "follow", "nofollow"])
@pytest.mark.parametrize("read_only", [False, True])
def test_metacopy_without_redirects(cli: Cli, redirects: str, read_only: bool) -> None:
    """The kernel refuses it too; without metacopy, or with redirects after all, it is accepted."""
    space = cli.space
    options = f"{space.options(read_only=read_only)},redirect_dir={redirects}"
    refused(cli, USAGE, "-o", f"{options},metacopy=on", space.mnt, word=f"redirect_dir={redirects}")
    for more in ("", ",metacopy=on,metacopy=off", ",metacopy=on,redirect_dir=on"):
        assert cli.run("-o", options + more, space.mnt).returncode == 0, more
        unmount(space.mnt)


@root_only
@pytest.mark.parametrize("redirects", ["", "on", "off", "follow", "nofollow"])
def test_metacopy_and_redirects_in_the_kernel(cli: Cli, redirects: str) -> None:
    """The kernel accepts the same combinations."""
    space = cli.space
    options = f"{space.options()},metacopy=on" + (f",redirect_dir={redirects}" if redirects else "")
    argv = ["mount", "-t", "overlay", "none", "-o", options, str(space.mnt)]
    taken = not subprocess.run(argv, capture_output=True, timeout=30).returncode
    if taken:
        unmount(space.mnt)
        (space.work / "work").rmdir()
    assert (cli.run("-o", options, space.mnt).returncode == 0) == taken
    if taken:
        unmount(space.mnt)


@pytest.mark.parametrize("option", ["uidmapping", "gidmapping"])
def test_mapping_does_not_cover_a_layer(cli: Cli, option: str) -> None:
    """Most of it would belong to nobody."""
    space = cli.space
    me = os.geteuid()
    for shown, layer in ((me + 1, space.upper), (me, space.lower)):
        mapping = f"{option}={me + 1}:{shown}:100"
        refused(cli, USAGE, "-o", f"{space.options()},{mapping}", space.mnt, word=str(layer))


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("mount",),
        ("unmount",),
        ("-o",),
        ("--nonsense",),
        ("mount", "--nonsense", "MNT"),
        ("-o", "OPTS"),
        ("-o", "OPTS", "a", "MNT", "c"),
        ("unmount", "a", "b"),
        ("mount", "MNT"),
        ("mount", "MNT\nwith a newline", "-o", "timeout=\n"),
    ],
)
def test_usage(cli: Cli, args: tuple[str, ...]) -> None:
    space = cli.space
    given = [arg.replace("OPTS", space.options()).replace("MNT", str(space.mnt)) for arg in args]
    refused(cli, USAGE, *given)


@pytest.mark.parametrize("name", ["a\nb", "\udcff\udcfe", "\x1b[31m", "ü"])
def test_odd_names_in_messages(cli: Cli, name: str) -> None:
    """The message is one line, printable in any terminal encoding."""
    path = cli.space.base / name
    for env in (None, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        refused(cli, LOWER, "-o", f"lowerdir={escape(path)}", cli.space.mnt, env=env)


def _without_fuse(script: str) -> tuple[str, ...]:
    """Run the command after `script` in a mount namespace of its own."""
    unshare = ["unshare", "-Urm"] if MODE == "user" else ["unshare", "-m"]
    return (*unshare, "sh", "-c", f'set -e; {script}; exec "$@"', "sh")


def test_dev_fuse_is_no_device(cli: Cli) -> None:
    """A file is in its place: libfuse's message fits into our one line."""
    plain = cli.space.base / "plain"
    plain.touch()
    prefix = _without_fuse(f"mount --bind {plain} /dev/fuse")
    refused(cli, FUSE, "-o", cli.space.options(), cli.space.mnt, prefix=prefix)


@pytest.mark.skipif(MODE != "user", reason="root opens everything")
def test_dev_fuse_cannot_be_opened(cli: Cli) -> None:
    """A read-only bind mount of a device that only root may open is in its place."""
    prefix = _without_fuse("mount --bind /dev/kmsg /dev/fuse")
    message = refused(cli, FUSE, "-o", cli.space.options(), cli.space.mnt, prefix=prefix)
    assert "/dev/fuse: cannot be opened: Permission denied" in message
    assert "chmod 666 /dev/fuse" in message
    assert "--device /dev/fuse" in message


def test_dev_fuse_is_forbidden(cli: Cli) -> None:
    """As in a container without access to the device: its mode does not show that."""
    bind = "mount --bind /dev/fuse /dev/fuse; mount -o remount,bind,nosuid,nodev /dev/fuse"
    prefix = _without_fuse(bind)
    message = refused(cli, FUSE, "-o", cli.space.options(), cli.space.mnt, prefix=prefix)
    assert "/dev/fuse: cannot be opened: Permission denied" in message
    assert "--device /dev/fuse" in message


def test_dev_fuse_is_missing(cli: Cli) -> None:
    prefix = _without_fuse(
        "mkdir dev; mount -t tmpfs tmpfs dev; : > dev/null; mount --bind /dev/null dev/null; "
        ": > dev/urandom; mount --bind /dev/urandom dev/urandom; mount --rbind dev /dev"
    )
    message = refused(cli, FUSE, "-o", cli.space.options(), cli.space.mnt, prefix=prefix)
    assert "/dev/fuse: does not exist; load the module (modprobe fuse)" in message
    assert "--device /dev/fuse" in message


@pytest.mark.skipif(MODE != "user", reason="of the plain user")
@pytest.mark.parametrize("call", ["mount", "unmount"])
def test_fusermount3_is_missing(cli: Cli, call: str) -> None:
    """If no such program can be run, the message says which package has it."""
    hidden = 'for dir in /usr/bin /bin; do mount --bind /dev/null "$dir/fusermount3"; done'
    prefix = (
        *("unshare", "--map-current-user", "-m", "--keep-caps", "sh", "-c"),
        f'set -e; {hidden}; exec setpriv --ambient-caps=-all --inh-caps=-all "$@"',
        "sh",
    )
    space = cli.space
    word = "fusermount3 is not installed, without which only root can mount and unmount; install"
    if call == "mount":
        refused(cli, FUSE, "-o", space.options(), space.mnt, prefix=prefix, word=word)
        return
    cli.mount("-o", space.options(), space.mnt)
    done = cli.run("unmount", space.mnt, prefix=prefix)
    assert done.returncode == FUSE
    assert re.fullmatch(rf"fuseoverlay: error: {word}[^\n]* fuse3\n", done.stderr), done.stderr
    unmount(space.mnt)
    cli.wait_until_gone()


@pytest.mark.skipif(MODE != "user", reason="of the plain user")
def test_mount_point_of_another_user(cli: Cli) -> None:
    """fusermount3 refuses, and its reason is in our one line."""
    refused(cli, FUSE, "-o", f"lowerdir={escape(cli.space.lower)}", "/srv")


def test_nothing_is_left_in_the_layers(cli: Cli) -> None:
    """A refused mount made nothing in upper and lower."""
    space = cli.space
    make: list[Callable[[Space], None]] = [_missing_lower, _lower_is_a_file]
    for prepare in make:
        prepare(space)
        refused(cli, LOWER, "-o", space.options(), space.mnt)
        assert os.listdir(space.upper) == []
        assert os.listdir(space.lower) == ["f"]
        space.lowers.pop()


def _end(cli: Cli, pid: int, *, crash: bool) -> None:
    """End the mount, by a crash of the daemon or cleanly."""
    if crash:
        os.kill(pid, signal.SIGKILL)
        cli.wait_until_gone()
        detach(cli.space.mnt)
    else:
        unmount(cli.space.mnt)
        cli.wait_until_gone()


def test_workdir_with_other_content(cli: Cli) -> None:
    """It is left alone, as by the kernel, whatever it is called."""
    space = cli.space
    kept = {}
    for name in ("notes", "#1", "1", "my/work/thesis", "workspace/x"):
        kept[space.work / name] = name.encode()
        (space.work / name).parent.mkdir(parents=True, exist_ok=True)
        (space.work / name).write_bytes(name.encode())
    for crash in (False, True):
        pid = cli.mount("-o", space.options(), space.mnt)
        (space.mnt / "f").write_bytes(b"copied up")
        _end(cli, pid, crash=crash)
        assert {path: path.read_bytes() for path in kept} == kept


@pytest.mark.parametrize("name", ["thesis", "#notes", "1.txt", "-1", "#"])
def test_workdir_with_other_content_in_work(cli: Cli, name: str) -> None:
    """What is in `work/` gets deleted at every mount: it must not be somebody's work."""
    space = cli.space
    (space.work / "work").mkdir()
    (space.work / "work" / name).write_bytes(b"years")
    (space.work / "work" / "#1").write_bytes(b"left by a crash")
    refused(cli, UPPER, "-o", space.options(), space.mnt, word=name)
    assert (space.work / "work" / name).read_bytes() == b"years"
    assert (space.work / "work" / "#1").exists()
    (space.work / "work" / name).unlink()
    cli.mount("-o", space.options(), space.mnt)
    # What somebody puts there during the mount is kept too.
    (space.work / "work" / name).write_bytes(b"years")
    unmount(space.mnt)
    cli.wait_until_gone()
    assert os.listdir(space.work / "work") == [name]
    assert (space.work / "work" / name).read_bytes() == b"years"


@pytest.mark.parametrize("name", ["#1", "#3fe", "17"])
def test_workdir_with_what_overlays_leave(cli: Cli, name: str) -> None:
    """Names that the kernel or fuse-overlayfs left there in a crash are cleared."""
    space = cli.space
    (space.work / "work" / name / "any").mkdir(parents=True)
    (space.work / "work" / name / "any" / "thing").touch()
    cli.mount("-o", space.options(), space.mnt)
    assert not (space.work / "work" / name).exists()
    unmount(space.mnt)
    cli.wait_until_gone()


@pytest.mark.parametrize("crash", [False, True])
def test_upper_that_was_volatile(cli: Cli, crash: bool) -> None:
    """Nobody knows what of it reached the disk, not even after a clean unmount."""
    space = cli.space
    pid = cli.mount("-o", space.options() + ",volatile", space.mnt)
    (space.mnt / "new").write_bytes(b"x")
    _end(cli, pid, crash=crash)
    mark = space.work / "work" / "incompat" / "volatile"
    message = refused(cli, UPPER, "-o", space.options(), space.mnt, word="volatile")
    assert str(mark) in message
    mark.rmdir()
    cli.mount("-o", space.options(), space.mnt)
    assert (space.mnt / "new").read_bytes() == b"x"
    unmount(space.mnt)
    cli.wait_until_gone()
