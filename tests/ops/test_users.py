"""Several users on one mount: root mounts, everyone may work within their permissions."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.helpers.mounts import Space, root_only
from tests.ops.conftest import ATIME, CONTENT, MTIME, Case

pytestmark = root_only

ALICE, BOB, STAFF = 4001, 4002, 5000


def run_as(uid: int, work: Callable[[], object], *groups: int, gid: int | None = None) -> int:
    """Run in a child as another user; the errno of its OSError, 0 where it succeeds. The group
    has the user's number unless `gid` says otherwise."""
    return run_all_as(uid, [work], *groups, gid=gid)[0]


def run_all_as(
    uid: int, works: Sequence[Callable[[], object]], *groups: int, gid: int | None = None
) -> list[int]:
    """`run_as` of one after the other, in one child."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups(groups)
            os.setgid(uid if gid is None else gid)
            os.setuid(uid)
            os.umask(0o022)
            for work in works:
                os.write(theirs, bytes([_errno_of(work)]))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(theirs)
    with open(ours, "rb") as stream:
        codes = list(stream.read())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "see what the child wrote"
    return codes


def _errno_of(work: Callable[[], object]) -> int:
    try:
        work()
    except OSError as exc:
        return exc.errno or 0
    return 0


def may(uid: int, work: Callable[[], object], *groups: int) -> None:
    """The user may do it."""
    code = run_as(uid, work, *groups)
    assert code == 0, errno.errorcode.get(code, code)


def may_not(uid: int, work: Callable[[], object], *groups: int, code: int = errno.EACCES) -> None:
    """The user is refused."""
    got = run_as(uid, work, *groups)
    assert got == code, errno.errorcode.get(got, got)


def test_reading(case: Case, where: str) -> None:
    may_not(ALICE, (case.path / "f").read_bytes)  # 0640
    may(ALICE, (case.path / "g").read_bytes)
    may(ALICE, lambda: os.listdir(case.path))
    may_not(ALICE, lambda: os.listdir(case.path / "d"))  # 0750
    may_not(ALICE, lambda: os.stat(case.path / "d" / "child"))
    os.chown(case.path / "f", ALICE, -1)
    may(ALICE, (case.path / "f").read_bytes)
    may_not(BOB, (case.path / "f").read_bytes)


def test_writing(case: Case, where: str) -> None:
    may_not(ALICE, lambda: os.open(case.path / "g", os.O_WRONLY))
    may_not(ALICE, lambda: os.truncate(case.path / "g", 0))
    os.chmod(case.path / "g", 0o666)
    may(ALICE, lambda: (case.path / "g").write_bytes(b"by alice"))
    assert (case.path / "g").read_bytes() == b"by alice"
    st = os.stat(case.upper / "g")
    assert (st.st_uid, st.st_gid) == (0, 0), "copy-up keeps the owner"


def test_making_things(case: Case, where: str) -> None:
    may_not(ALICE, (case.path / "new").touch)
    may_not(ALICE, lambda: os.mkdir(case.path / "newdir"))
    os.chmod(case.path / "e", 0o777)

    def make() -> None:
        (case.path / "e" / "file").write_bytes(b"x")
        os.mkdir(case.path / "e" / "dir")
        os.symlink("x", case.path / "e" / "link")
        os.mkfifo(case.path / "e" / "fifo")

    may(ALICE, make)
    for name in ("file", "dir", "link", "fifo"):
        for place in (case.path, case.upper):
            st = os.lstat(place / "e" / name)
            assert (st.st_uid, st.st_gid) == (ALICE, ALICE), name
    may_not(BOB, lambda: os.open(case.path / "e" / "file", os.O_WRONLY))
    may_not(BOB, lambda: os.mkdir(case.path / "e" / "dir" / "below"))
    may(ALICE, lambda: os.mkdir(case.path / "e" / "dir" / "below"))


def test_removing(case: Case, where: str) -> None:
    may_not(ALICE, lambda: os.unlink(case.path / "g"))
    may_not(ALICE, lambda: os.rmdir(case.path / "e"))
    may_not(ALICE, lambda: os.rename(case.path / "g", case.path / "new"))
    assert (case.path / "g").exists()
    os.chmod(case.path, 0o777)
    may(ALICE, lambda: os.unlink(case.path / "g"))
    may(ALICE, lambda: os.rmdir(case.path / "e"))


def test_sticky_directory(case: Case, where: str) -> None:
    os.chmod(case.path / "e", 0o1777)
    may(ALICE, (case.path / "e" / "hers").touch)
    may_not(BOB, lambda: os.unlink(case.path / "e" / "hers"), code=errno.EPERM)
    may_not(
        BOB,
        lambda: os.rename(case.path / "e" / "hers", case.path / "e" / "his"),
        code=errno.EPERM,
    )
    may(ALICE, lambda: os.unlink(case.path / "e" / "hers"))


def test_owners_rights(case: Case, where: str) -> None:
    may_not(ALICE, lambda: os.chmod(case.path / "g", 0o777), code=errno.EPERM)
    may_not(ALICE, lambda: os.chown(case.path / "g", ALICE, -1), code=errno.EPERM)
    may_not(ALICE, lambda: os.utime(case.path / "g", ns=(1, 1)), code=errno.EPERM)
    may_not(ALICE, lambda: os.utime(case.path / "g"))
    may_not(ALICE, lambda: os.setxattr(case.path / "g", "user.x", b"y"))
    os.chown(case.path / "g", ALICE, ALICE)
    may(ALICE, lambda: os.chmod(case.path / "g", 0o600))
    may(ALICE, lambda: os.utime(case.path / "g", ns=(ATIME, MTIME)))
    may(ALICE, lambda: os.setxattr(case.path / "g", "user.x", b"y"))
    may_not(ALICE, lambda: os.chown(case.path / "g", BOB, -1), code=errno.EPERM)
    may_not(ALICE, lambda: os.chown(case.path / "g", -1, STAFF), code=errno.EPERM)
    may(ALICE, lambda: os.chown(case.path / "g", -1, STAFF), STAFF)
    assert os.stat(case.path / "g").st_gid == STAFF


def test_supplementary_groups(case: Case, where: str) -> None:
    os.chown(case.path / "f", 0, STAFF)
    os.chmod(case.path / "f", 0o060)
    may_not(ALICE, (case.path / "f").read_bytes)
    may(ALICE, (case.path / "f").read_bytes, STAFF)
    may(ALICE, lambda: os.truncate(case.path / "f", 1), STAFF)


def test_setgid_directory(case: Case, where: str) -> None:
    os.chown(case.path / "e", 0, STAFF)
    os.chmod(case.path / "e", 0o2777)

    def make() -> None:
        (case.path / "e" / "file").touch()
        os.mkdir(case.path / "e" / "dir")

    may(ALICE, make)
    st = os.stat(case.path / "e" / "file")
    assert (st.st_uid, st.st_gid) == (ALICE, STAFF)
    st = os.stat(case.path / "e" / "dir")
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (ALICE, STAFF, 0o2755)


def test_setgid_bit_is_for_members(case: Case, where: str) -> None:
    os.chown(case.path / "g", ALICE, STAFF)
    may(ALICE, lambda: os.chmod(case.path / "g", 0o2755))
    assert stat.S_IMODE(os.stat(case.path / "g").st_mode) == 0o755
    may(ALICE, lambda: os.chmod(case.path / "g", 0o2755), STAFF)
    assert stat.S_IMODE(os.stat(case.path / "g").st_mode) == 0o2755


@pytest.mark.parametrize("how", ["write", "truncate", "open"])
def test_set_id_bits_go_with_a_write(case: Case, where: str, how: str) -> None:
    os.chmod(case.path / "g", 0o6777)
    work = {
        "write": lambda: os.write(os.open(case.path / "g", os.O_WRONLY), b"x"),
        "truncate": lambda: os.truncate(case.path / "g", 1),
        "open": lambda: os.open(case.path / "g", os.O_WRONLY | os.O_TRUNC),
    }[how]
    may(ALICE, work)
    assert stat.S_IMODE(os.stat(case.path / "g").st_mode) == 0o777
    assert stat.S_IMODE(os.stat(case.upper / "g").st_mode) == 0o777


def test_created_read_only_file_is_written_by_its_creator(case: Case) -> None:
    os.chmod(case.path / "e", 0o777)

    def work() -> None:
        fd = os.open(case.path / "e" / "object", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o444)
        os.write(fd, b"written")
        os.close(fd)

    may(ALICE, work)
    may_not(ALICE, lambda: os.open(case.path / "e" / "object", os.O_WRONLY))
    assert (case.path / "e" / "object").read_bytes() == b"written"


def test_copy_up_below_directories_of_others(space: Space) -> None:
    """A user may write the file, not its directories: copying those up is not the user's act."""
    (space.lower / "d" / "sub").mkdir(parents=True)
    (space.lower / "d" / "sub" / "f").write_bytes(CONTENT)
    os.chown(space.lower / "d", BOB, BOB)
    os.chown(space.lower / "d" / "sub" / "f", ALICE, ALICE)
    with space.mounted() as mnt:
        may(ALICE, lambda: (mnt / "d" / "sub" / "f").write_bytes(b"hers"))
        may_not(BOB, lambda: os.open(mnt / "d" / "sub" / "f", os.O_WRONLY))
        assert os.stat(space.upper / "d").st_uid == BOB
        assert os.stat(space.upper / "d" / "sub").st_uid == 0
        assert os.stat(space.upper / "d" / "sub" / "f").st_uid == ALICE


def test_mount_root_permissions(space: Space) -> None:
    (space.lower / "f").write_bytes(b"x")
    for layer in (space.lower, space.upper):
        layer.chmod(0o700)
    with space.mounted(settle=False) as mnt:
        may_not(ALICE, lambda: os.listdir(mnt))
        may_not(ALICE, (mnt / "f").read_bytes)
        os.chmod(mnt, 0o755)
        may(ALICE, (mnt / "f").read_bytes)


def test_privileged_xattrs(case: Case, where: str) -> None:
    os.chown(case.path / "g", ALICE, ALICE)
    may_not(ALICE, lambda: os.setxattr(case.path / "g", "trusted.x", b"y"), code=errno.EPERM)
    may_not(
        ALICE,
        lambda: os.setxattr(case.path / "g", "security.capability", b"\1\0\0\2" + bytes(16)),
        code=errno.EPERM,
    )
    os.setxattr(case.path / "g", "trusted.x", b"secret")
    may_not(ALICE, lambda: os.getxattr(case.path / "g", "trusted.x"), code=errno.ENODATA)
    listed = case.path / "e"
    os.chmod(listed, 0o777)

    def write_list() -> None:
        names = os.listxattr(case.path / "g")
        (listed / "names").write_text(",".join(names))

    may(ALICE, write_list)
    assert "trusted.x" not in (listed / "names").read_text()


def test_open_descriptor_works_for_another_user(case: Case, where: str) -> None:
    """A descriptor is a permission: passed on, it works for who could not have opened it."""
    fd = os.open(case.path / "f", os.O_RDWR)

    def work() -> None:
        assert os.pread(fd, 7, 0) == CONTENT[:7]
        os.pwrite(fd, b"by bob!", 0)

    may(BOB, work)
    os.close(fd)
    assert (case.path / "f").read_bytes()[:7] == b"by bob!"


def test_hidden_directory(space: Space) -> None:
    """Names below a directory that a user cannot enter are not revealed by errors."""
    (space.lower / "secret").mkdir(mode=0o700)
    (space.lower / "secret" / "f").touch()
    with space.mounted(settle=False) as mnt:
        for name in ("f", "not there"):
            may_not(ALICE, lambda name=name: os.stat(mnt / "secret" / name))


def test_sockets_and_fifos_of_others(case: Case, where: str) -> None:
    path: Path = case.path / "p"  # 0620
    may_not(ALICE, lambda: os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    os.chmod(path, 0o666)
    may(ALICE, lambda: os.open(path, os.O_RDONLY | os.O_NONBLOCK))


def test_setuid_programs_work(space: Space) -> None:
    """A mount by root honours setuid bits, of a lower file and of one that was copied up."""
    shutil.copy("/usr/bin/id", space.lower / "id")
    (space.lower / "id").chmod(0o4755)
    with space.mounted() as mnt:

        def effective() -> None:
            done = subprocess.run([mnt / "id", "-u"], capture_output=True, timeout=30)
            if done.stdout != b"0\n":
                raise PermissionError(errno.EPERM, done.stdout)

        may(ALICE, effective)
        os.utime(mnt / "id", ns=(1, 1))
        may(ALICE, effective)
        os.chmod(mnt / "id", 0o755)
        may_not(ALICE, effective, code=errno.EPERM)
