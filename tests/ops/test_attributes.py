"""Attributes: chmod, chown, utimens, xattrs, ACLs, set-id bits."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import time

import pytest

from tests.helpers.mounts import (
    IMPL,
    MODE,
    NATIVE,
    Space,
    fails,
    needs_root_ids,
    root_only,
    set_overlay_xattr,
)
from tests.ops.conftest import ATIME, CONTENT, MTIME, Case

NAMESPACE = "trusted.overlay." if MODE == "root" else "user.overlay."


def mode_of(path: os.PathLike) -> int:
    """Permission bits."""
    return stat.S_IMODE(os.lstat(path).st_mode)


@pytest.mark.parametrize("name", ["f", "d", "p", "k"])
@pytest.mark.parametrize("mode", [0o600, 0o777, 0o4755, 0o1711, 0o000])
def test_chmod(case: Case, where: str, name: str, mode: int) -> None:
    before = os.lstat(case.path / name)
    os.chmod(case.path / name, mode)
    after = os.lstat(case.path / name)
    assert stat.S_IMODE(after.st_mode) == mode
    assert mode_of(case.upper / name) == mode
    assert after.st_mtime_ns == before.st_mtime_ns
    assert after.st_ctime_ns > before.st_ctime_ns
    assert stat.S_IFMT(after.st_mode) == stat.S_IFMT(before.st_mode)
    os.chmod(case.path / name, 0o700)


def test_fchmod(case: Case, where: str) -> None:
    fd = os.open(case.path / "f", os.O_RDONLY)
    os.fchmod(fd, 0o604)
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o604
    os.close(fd)
    assert mode_of(case.path / "f") == 0o604


@needs_root_ids
@pytest.mark.parametrize("name", ["f", "d", "s", "p"])
def test_chown(case: Case, where: str, name: str) -> None:
    os.chown(case.path / name, 1234, 5678, follow_symlinks=False)
    st = os.lstat(case.path / name)
    assert (st.st_uid, st.st_gid) == (1234, 5678)
    st = os.lstat(case.upper / name)
    assert (st.st_uid, st.st_gid) == (1234, 5678)
    os.chown(case.path / name, -1, 99, follow_symlinks=False)
    os.chown(case.path / name, 100, -1, follow_symlinks=False)
    st = os.lstat(case.path / name)
    assert (st.st_uid, st.st_gid) == (100, 99)
    assert os.stat(case.path / "f").st_size == len(CONTENT)


@needs_root_ids
def test_chown_clears_set_id_bits(case: Case, where: str) -> None:
    os.chmod(case.path / "f", 0o6755)
    os.chown(case.path / "f", 1234, 1234)
    assert mode_of(case.path / "f") == 0o755
    os.chmod(case.path / "d", 0o6755)
    os.chown(case.path / "d", 1234, 1234)
    assert mode_of(case.path / "d") == 0o6755


def test_chown_to_oneself(case: Case, where: str) -> None:
    os.chown(case.path / "f", os.getuid(), os.getgid())
    st = os.stat(case.path / "f")
    assert (st.st_uid, st.st_gid) == (os.getuid(), os.getgid())
    assert (case.path / "f").read_bytes() == CONTENT


@pytest.mark.skipif(MODE == "root", reason="the superuser may")
def test_chown_to_others_is_refused(case: Case, where: str) -> None:
    # In a user namespace the id has no meaning at all.
    with fails(errno.EPERM if MODE == "user" else errno.EINVAL):
        os.chown(case.path / "f", 12345, -1)
    assert os.stat(case.path / "f").st_uid == os.getuid()


@pytest.mark.parametrize("name", ["f", "d", "s", "p"])
@pytest.mark.parametrize(
    ("atime", "mtime"),
    [(1_500_000_000_000_000_001, 1_600_000_000_999_999_999), (0, 1), (-1_500_000_000, -3)],
)
def test_utimens(case: Case, where: str, name: str, atime: int, mtime: int) -> None:
    os.utime(case.path / name, ns=(atime, mtime), follow_symlinks=False)
    st = os.lstat(case.path / name)
    assert (st.st_atime_ns, st.st_mtime_ns) == (atime, mtime)
    st = os.lstat(case.upper / name)
    assert (st.st_atime_ns, st.st_mtime_ns) == (atime, mtime)


def test_utimens_of_one_time_only(case: Case, where: str) -> None:
    subprocess.run(["touch", "-m", "-d", "@1234.5", case.path / "f"], check=True, timeout=30)
    st = os.stat(case.path / "f")
    assert (st.st_atime_ns, st.st_mtime_ns) == (ATIME, 1_234_500_000_000)
    subprocess.run(["touch", "-a", "-d", "@99.25", case.path / "f"], check=True, timeout=30)
    st = os.stat(case.path / "f")
    assert (st.st_atime_ns, st.st_mtime_ns) == (99_250_000_000, 1_234_500_000_000)


def test_utimens_now(case: Case, where: str) -> None:
    before = time.time() - 2
    os.utime(case.path / "f")
    st = os.stat(case.path / "f")
    assert before < st.st_mtime < time.time() + 2
    assert before < st.st_atime < time.time() + 2


def test_futimens_while_writing(case: Case, where: str) -> None:
    """tar sets the times through the descriptor that it wrote with; close must not move them."""
    with open(case.path / "f", "r+b") as stream:
        stream.write(b"x" * 100_000)
        stream.flush()
        os.utime(stream.fileno(), ns=(ATIME, MTIME))
    assert os.stat(case.path / "f").st_mtime_ns == MTIME
    os.sync()
    assert os.stat(case.path / "f").st_mtime_ns == MTIME
    assert os.stat(case.upper / "f").st_mtime_ns == MTIME


@pytest.mark.parametrize("name", ["f", "d"])
def test_xattrs(case: Case, where: str, name: str) -> None:
    path = case.path / name
    os.setxattr(path, "user.one", b"1")
    os.setxattr(path, "user.empty", b"")
    os.setxattr(path, "user.big", b"b" * 2000)
    os.setxattr(path, "user.bytes", bytes(range(256)))
    assert os.getxattr(path, "user.one") == b"1"
    assert os.getxattr(path, "user.empty") == b""
    assert os.getxattr(path, "user.big") == b"b" * 2000
    assert os.getxattr(path, "user.bytes") == bytes(range(256))
    assert os.getxattr(case.upper / name, "user.one") == b"1"
    expected = {"user.one", "user.empty", "user.big", "user.bytes"}
    expected |= {"user.colour"} if name == "f" else set()
    assert set(os.listxattr(path)) == expected
    os.setxattr(path, "user.one", b"2")
    assert os.getxattr(path, "user.one") == b"2"
    os.removexattr(path, "user.one")
    with fails(errno.ENODATA):
        os.getxattr(path, "user.one")
    assert set(os.listxattr(path)) == expected - {"user.one"}


def test_xattr_flags(case: Case, where: str) -> None:
    path = case.path / "f"
    with fails(errno.EEXIST):
        os.setxattr(path, "user.colour", b"blue", os.XATTR_CREATE)
    with fails(errno.ENODATA):
        os.setxattr(path, "user.new", b"x", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.colour") == b"red"
    os.setxattr(path, "user.colour", b"blue", os.XATTR_REPLACE)
    os.setxattr(path, "user.new", b"x", os.XATTR_CREATE)
    assert os.getxattr(path, "user.colour") == b"blue"
    assert os.getxattr(path, "user.new") == b"x"


def test_xattr_that_is_not_there(case: Case, where: str) -> None:
    with fails(errno.ENODATA):
        os.getxattr(case.path / "f", "user.nothing")
    with fails(errno.ENODATA):
        os.removexattr(case.path / "f", "user.nothing")
    with fails(errno.EOPNOTSUPP):
        os.setxattr(case.path / "f", "nonsense", b"x")


def test_removing_a_lower_xattr(case: Case, where: str) -> None:
    os.removexattr(case.path / "f", "user.colour")
    assert os.listxattr(case.path / "f") == []
    assert os.listxattr(case.upper / "f", follow_symlinks=False).count("user.colour") == 0
    assert (case.path / "f").read_bytes() == CONTENT


def test_failed_xattr_call_copies_nothing(case: Case) -> None:
    with fails(errno.ENODATA):
        os.removexattr(case.path / "f", "user.nothing")
    if IMPL == "fuse":
        assert not case.is_up("f")


def test_xattr_of_an_empty_file(case: Case, where: str) -> None:
    (case.path / "empty").touch()
    os.setxattr(case.path / "empty", "user.x", b"y")
    assert os.stat(case.path / "empty").st_size == 0
    assert "empty" in os.listdir(case.path)
    assert os.getxattr(case.path / "empty", "user.x") == b"y"


def test_names_of_xattrs_after_a_listing(space: Space) -> None:
    """Programs that walk a tree ask this for every file."""
    for name in ("with", "without"):
        (space.lower / name).write_bytes(b"x")
    os.setxattr(space.lower / "with", "user.colour", b"red")
    with space.mounted() as mnt:
        for _ in range(2):
            found = {entry.name: os.listxattr(entry.path) for entry in os.scandir(mnt)}
            assert found == {"with": ["user.colour"], "without": []}
        os.setxattr(mnt / "without", "user.new", b"x")
        os.removexattr(mnt / "with", "user.colour")
        assert os.listxattr(mnt / "with") == []
        assert os.listxattr(mnt / "without") == ["user.new"]
        (mnt / "made").write_bytes(b"x")
        assert os.listxattr(mnt / "made") == []
        os.setxattr(mnt / "made", "user.new", b"x")
        assert os.listxattr(mnt / "made") == ["user.new"]


def test_acls_after_a_listing(space: Space) -> None:
    """`ls -l` asks for the ACL of every file that it lists."""
    me = os.getuid()
    for name in ("with", "without"):
        (space.lower / name).write_bytes(b"x")
    setfacl("-m", f"u:{me}:r", space.lower / "with")
    with space.mounted() as mnt:
        for _ in range(2):
            assert sorted(entry.name for entry in os.scandir(mnt)) == ["with", "without"]
            assert f"user:{me}:r--" in getfacl(mnt / "with")
            with fails(errno.ENODATA):
                os.getxattr(mnt / "without", "system.posix_acl_access")
        setfacl("-m", f"u:{me}:rw", mnt / "without")
        assert f"user:{me}:rw-" in getfacl(mnt / "without")


def test_user_xattrs_do_not_go_on_symlinks(case: Case, where: str) -> None:
    with fails(errno.EPERM):
        os.setxattr(case.path / "s", "user.x", b"y", follow_symlinks=False)
    assert os.listxattr(case.path / "s", follow_symlinks=False) == []
    os.setxattr(case.path / "s", "user.x", b"y")
    assert os.getxattr(case.path / "f", "user.x") == b"y"


@root_only
def test_trusted_xattrs(case: Case, where: str) -> None:
    for name in ("f", "d", "s", "p"):
        os.setxattr(case.path / name, "trusted.mine", b"v", follow_symlinks=False)
        assert os.getxattr(case.path / name, "trusted.mine", follow_symlinks=False) == b"v"
        assert "trusted.mine" in os.listxattr(case.path / name, follow_symlinks=False)
    assert (case.path / "f").read_bytes() == CONTENT


@root_only
def test_xattr_on_a_link_never_leaves_the_layers(space: Space) -> None:
    target = space.base / "target"
    target.touch()
    os.symlink(target, space.lower / "out")
    os.symlink(str(space.mnt / "x"), space.lower / "in")
    (space.lower / "x").touch()
    with space.mounted() as mnt:
        for name in ("out", "in"):
            os.setxattr(mnt / name, "trusted.t", b"v", follow_symlinks=False)
            assert os.getxattr(mnt / name, "trusted.t", follow_symlinks=False) == b"v"
        assert os.listxattr(mnt / "x") == []
    assert os.listxattr(target) == []


def test_private_xattrs_are_hidden(space: Space) -> None:
    (space.upper / "d").mkdir()
    (space.lower / "d").mkdir()
    (space.lower / "d" / "x").touch()
    set_overlay_xattr(space.upper / "d", "opaque", b"y")
    os.setxattr(space.upper / "d", "user.mine", b"shown")
    with space.mounted() as mnt:
        assert os.listxattr(mnt / "d") == ["user.mine"]
        with fails(errno.ENODATA):
            os.getxattr(mnt / "d", NAMESPACE + "opaque")
        with fails(errno.ENODATA):
            os.removexattr(mnt / "d", NAMESPACE + "opaque")
        assert os.listdir(mnt / "d") == []


def test_xattrs_of_a_nested_overlay_are_escaped(case: Case, where: str) -> None:
    """A user's `overlay.*` attribute means nothing to this overlay, but is kept."""
    os.setxattr(case.path / "e", NAMESPACE + "opaque", b"y")
    assert os.getxattr(case.path / "e", NAMESPACE + "opaque") == b"y"
    assert os.listxattr(case.path / "e") == [NAMESPACE + "opaque"]
    assert os.getxattr(case.upper / "e", NAMESPACE + "overlay.opaque") == b"y"
    os.removexattr(case.path / "e", NAMESPACE + "opaque")
    assert os.listxattr(case.path / "e") == []


def setfacl(*args: object) -> None:
    """setfacl(1), which must succeed."""
    argv = ["setfacl", *(str(arg) for arg in args)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def getfacl(path: os.PathLike) -> list[str]:
    """The entries of getfacl(1), numeric, without comments."""
    argv = ["getfacl", "-n", "-c", "-p", "-E", str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.split()


@pytest.mark.parametrize("name", ["f", "d"])
def test_acl(case: Case, where: str, name: str) -> None:
    other = 1234 if MODE != "userns" else 0
    os.chmod(case.path / name, 0o640)
    assert getfacl(case.path / name) == ["user::rw-", "group::r--", "other::---"]
    setfacl("-m", f"u:{other}:rw", case.path / name)
    expected = ["user::rw-", f"user:{other}:rw-", "group::r--", "mask::rw-", "other::---"]
    assert getfacl(case.path / name) == expected
    assert mode_of(case.path / name) == 0o660
    assert "system.posix_acl_access" in os.listxattr(case.path / name)
    assert getfacl(case.upper / name) == expected
    os.chmod(case.path / name, 0o600)
    expected[3] = "mask::---"
    assert getfacl(case.path / name) == expected
    # setfacl gives the group what the mask had left of it.
    setfacl("-b", case.path / name)
    assert getfacl(case.path / name) == ["user::rw-", "group::---", "other::---"]
    assert "system.posix_acl_access" not in os.listxattr(case.path / name)
    # What is inside is looked at when the module is done, by whoever runs this.
    os.chmod(case.path / name, 0o700)


def test_acl_is_copied_up(space: Space) -> None:
    other = 1234 if MODE != "userns" else 0
    (space.lower / "f").write_bytes(b"x")
    (space.lower / "d").mkdir()
    setfacl("-m", f"u:{other}:rw", space.lower / "f")
    setfacl("-m", f"u:{other}:rwx,d:u:{other}:rx", space.lower / "d")
    with space.mounted() as mnt:
        was = getfacl(mnt / "f"), getfacl(mnt / "d")
        assert f"user:{other}:rw-" in was[0]
        assert f"default:user:{other}:r-x" in was[1]
        (mnt / "f").write_bytes(b"changed")
        os.utime(mnt / "d")
        assert (getfacl(mnt / "f"), getfacl(mnt / "d")) == was
        assert (getfacl(space.upper / "f"), getfacl(space.upper / "d")) == was


#: The kernel applies the umask before it sends a request, unless the daemon agrees to
#: FUSE_DONT_MASK, which only the extension can do.
without_dont_mask = pytest.mark.xfail(
    IMPL == "fuse" and not NATIVE, reason="no FUSE_DONT_MASK", strict=True
)


@pytest.mark.parametrize("umask", [0o000, pytest.param(0o077, marks=without_dont_mask)])
def test_default_acl_is_inherited(case: Case, where: str, umask: int) -> None:
    """A default ACL takes the umask's place."""
    other = 1234 if MODE != "userns" else 0
    os.umask(umask)
    setfacl("-m", f"d:u::rwx,d:u:{other}:rwx,d:g::rx,d:m:rwx,d:o::---", case.path / "d")
    os.close(os.open(case.path / "d" / "file", os.O_CREAT | os.O_WRONLY, 0o666))
    os.mkdir(case.path / "d" / "dir", 0o777)
    os.mkfifo(case.path / "d" / "fifo", 0o666)
    for name in ("file", "fifo"):
        assert getfacl(case.path / "d" / name) == [
            "user::rw-",
            f"user:{other}:rwx",
            "group::r-x",
            "mask::rw-",
            "other::---",
        ]
    made = getfacl(case.path / "d" / "dir")
    assert made[:5] == [
        "user::rwx",
        f"user:{other}:rwx",
        "group::r-x",
        "mask::rwx",
        "other::---",
    ]
    assert f"default:user:{other}:rwx" in made
    os.mkdir(case.path / "d" / "dir" / "below", 0o777)
    assert f"default:user:{other}:rwx" in getfacl(case.path / "d" / "dir" / "below")
    setfacl("-k", case.path / "d")
    os.mkdir(case.path / "d" / "without", 0o777)
    assert mode_of(case.path / "d" / "without") == 0o777 & ~umask


@pytest.mark.skipif(MODE != "user", reason="root keeps the bits")
def test_writing_clears_set_id_bits(case: Case, where: str) -> None:
    os.chmod(case.path / "f", 0o6755)
    with open(case.path / "f", "r+b") as stream:
        stream.write(b"x")
    assert mode_of(case.path / "f") == 0o755
    os.chmod(case.path / "f", 0o6755)
    os.truncate(case.path / "f", 3)
    assert mode_of(case.path / "f") == 0o755
    assert mode_of(case.upper / "f") == 0o755


@root_only
def test_root_keeps_set_id_bits(case: Case, where: str) -> None:
    os.chmod(case.path / "f", 0o6755)
    with open(case.path / "f", "r+b") as stream:
        stream.write(b"x")
    assert mode_of(case.path / "f") == 0o6755


@root_only
def test_writing_removes_capabilities(case: Case, where: str) -> None:
    shutil.copy("/bin/true", case.path / "tool")
    subprocess.run(["setcap", "cap_net_raw=ep", case.path / "tool"], check=True, timeout=30)
    value = os.getxattr(case.path / "tool", "security.capability")
    assert os.getxattr(case.upper / "tool", "security.capability") == value
    with open(case.path / "tool", "ab") as stream:
        stream.write(b"x")
    with fails(errno.ENODATA):
        os.getxattr(case.path / "tool", "security.capability")


@root_only
def test_capabilities_are_copied_up(space: Space) -> None:
    shutil.copy("/bin/true", space.lower / "tool")
    subprocess.run(["setcap", "cap_net_raw=ep", space.lower / "tool"], check=True, timeout=30)
    value = os.getxattr(space.lower / "tool", "security.capability")
    with space.mounted() as mnt:
        assert os.getxattr(mnt / "tool", "security.capability") == value
        os.utime(mnt / "tool", ns=(1, 1))
        assert os.getxattr(mnt / "tool", "security.capability") == value
        assert os.getxattr(space.upper / "tool", "security.capability") == value
        os.rename(mnt / "tool", mnt / "moved")
        assert os.getxattr(mnt / "moved", "security.capability") == value


def test_attributes_of_the_root(space: Space) -> None:
    (space.lower / "x").touch()
    with space.mounted() as mnt:
        os.chmod(mnt, 0o711)
        os.setxattr(mnt, "user.root", b"yes")
        os.utime(mnt, ns=(ATIME, MTIME))
        space.remount()
        st = os.stat(mnt)
        assert stat.S_IMODE(st.st_mode) == 0o711
        assert st.st_mtime_ns == MTIME
        assert os.listxattr(mnt) == ["user.root"]
        with fails(errno.EBUSY):
            os.rmdir(mnt)


def test_access(case: Case, where: str) -> None:
    os.chmod(case.path / "f", 0o400)
    assert os.access(case.path / "f", os.R_OK)
    assert not os.access(case.path / "f", os.X_OK)
    assert os.access(case.path / "f", os.W_OK) == (MODE != "user")
    assert not os.access(case.path / "nothing", os.F_OK)
