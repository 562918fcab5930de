"""unlink, rmdir, and files that are open while their names go."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
from pathlib import Path

from tests.helpers import libc
from tests.helpers.mounts import fails
from tests.posix.table import (
    CONTENT,
    behaviour,
    expect,
    in_child,
    in_directory,
    kind_of,
    on_each_kind,
    opened,
    same,
    seen,
)

_BOTH = os.O_RDWR


@behaviour()
def unlink_each_kind(d: Path) -> object:
    got = on_each_kind(d, os.unlink)
    assert sorted(os.listdir(d)) == ["d", "e", "g"]
    return expect(got, dir="EISDIR")


@behaviour()
def rmdir_each_kind(d: Path) -> object:
    return expect(on_each_kind(d, os.rmdir), others="ENOTDIR", dir="ENOTEMPTY")


@behaviour()
def remove_missing(d: Path) -> object:
    for remove in (os.unlink, os.rmdir):
        with fails(errno.ENOENT):
            remove(d / "missing")
        with fails(errno.ENOENT):
            remove(d / "missing" / "x")
        with fails(errno.ENOTDIR):
            remove(d / "f" / "x")
    os.unlink(d / "f")
    with fails(errno.ENOENT):
        os.unlink(d / "f")
    os.rmdir(d / "e")
    with fails(errno.ENOENT):
        os.rmdir(d / "e")


@behaviour()
def remove_dots(d: Path) -> object:
    with fails(errno.EINVAL):
        os.rmdir(f"{d}/e/.")
    with fails(errno.ENOTEMPTY):
        os.rmdir(f"{d}/e/..")
    with fails(errno.EISDIR):
        os.unlink(f"{d}/e/.")
    with fails(errno.EISDIR):
        os.unlink(f"{d}/e/..")
    assert kind_of(d / "e") == "dir"


@behaviour()
def remove_with_slash(d: Path) -> object:
    with fails(errno.ENOTDIR):
        os.unlink(f"{d}/f/")
    with fails(errno.EISDIR):
        os.unlink(f"{d}/e/")
    os.rmdir(f"{d}/e/")
    assert kind_of(d / "e") == "ENOENT"


@behaviour()
def unlinkat_flags(d: Path) -> object:
    with fails(errno.EINVAL):
        libc.unlinkat(d / "f", 0x1)
    with fails(errno.ENOTDIR):
        libc.unlinkat(d / "f", libc.AT_REMOVEDIR)
    with fails(errno.EISDIR):
        libc.unlinkat(d / "e", 0)
    libc.unlinkat(d / "e", libc.AT_REMOVEDIR)
    libc.unlinkat(d / "f", 0)
    return sorted(set(os.listdir(d)) - {"b", "c"})


@behaviour()
def rmdir_after_emptying(d: Path) -> object:
    steps = []
    for remove, name in ((os.rmdir, "sub"), (os.unlink, "sub/leaf"), (os.rmdir, "sub"),
                         (os.rmdir, "."), (os.unlink, "child")):  # fmt: skip
        steps.append(seen(remove, d / "d" / name))
    assert steps == ["ENOTEMPTY", None, None, "ENOTEMPTY", None]
    os.rmdir(d / "d")
    for name in ("", "child", "sub", "sub/leaf"):
        assert kind_of(d / "d" / name) == "ENOENT"


@behaviour()
def names_come_back_as_new_files(d: Path) -> object:
    """Nothing of the removed file shows through."""
    os.unlink(d / "f")
    (d / "f").write_bytes(b"new")
    assert (d / "f").read_bytes() == b"new"
    assert os.listxattr(d / "f") == []
    return oct(os.stat(d / "f").st_mode), os.stat(d / "f").st_nlink


@behaviour()
def names_come_back_as_empty_directories(d: Path) -> object:
    for name in ("sub/leaf", "child"):
        os.unlink(d / "d" / name)
    os.rmdir(d / "d" / "sub")
    os.rmdir(d / "d")
    os.mkdir(d / "d")
    assert os.listdir(d / "d") == []
    assert kind_of(d / "d" / "child") == "ENOENT"
    os.mkdir(d / "d" / "sub")
    assert os.listdir(d / "d" / "sub") == []


@behaviour()
def remove_a_whole_tree(d: Path) -> object:

    for index in range(30):
        (d / "d" / "sub" / f"n{index}").touch()
        os.mkdir(d / "d" / f"dir{index}")
    shutil.rmtree(d / "d")
    assert kind_of(d / "d") == "ENOENT"


@behaviour()
def unlinked_file_lives_while_open(d: Path) -> object:
    with opened(d / "f", _BOTH) as fd:
        os.unlink(d / "f")
        assert kind_of(d / "f") == "ENOENT"
        assert os.fstat(fd).st_nlink == 0
        assert os.read(fd, 99999) == CONTENT
        os.pwrite(fd, b"HELLO", 0)
        assert os.pread(fd, 7, 0) == b"HELLO" + CONTENT[5:7]


@behaviour(answers=0)
def unlinked_file_opened_for_reading(d: Path) -> object:
    with opened(d / "f") as fd:
        os.unlink(d / "f")
        assert os.pread(fd, 99999, 0) == CONTENT
        return os.fstat(fd).st_nlink


@behaviour()
def unlinked_file_is_truncated(d: Path) -> object:
    with opened(d / "f", _BOTH) as fd:
        os.unlink(d / "f")
        os.ftruncate(fd, 5)
        assert os.fstat(fd).st_size == 5
        os.ftruncate(fd, 10_000)
        return os.pread(fd, 20, 0), os.fstat(fd).st_size


@behaviour()
def unlinked_file_takes_attributes(d: Path) -> object:
    with opened(d / "f", _BOTH) as fd:
        os.unlink(d / "f")
        os.fchmod(fd, 0o604)
        os.utime(fd, ns=(1, 2))
        os.fchown(fd, os.getuid(), os.getgid())
        os.fsync(fd)
        st = os.fstat(fd)
        return oct(st.st_mode), st.st_atime_ns, st.st_mtime_ns, st.st_nlink


@behaviour()
def unlinked_file_takes_xattrs(d: Path) -> object:
    with opened(d / "f", _BOTH) as fd:
        os.unlink(d / "f")
        assert os.getxattr(fd, "user.colour") == b"red"
        os.setxattr(fd, "user.x", b"y")
        os.removexattr(fd, "user.colour")
        return os.listxattr(fd), os.getxattr(fd, "user.x")


@behaviour()
def unlinked_file_gets_no_name(d: Path) -> object:
    with opened(d / "f", _BOTH) as fd:
        os.unlink(d / "f")
        with fails(errno.ENOENT):
            libc.linkat(Path(f"/proc/self/fd/{fd}"), d / "new", libc.AT_SYMLINK_FOLLOW)


@behaviour()
def unlinked_file_opened_again(d: Path) -> object:
    """By way of /proc; that is how a shell's here-document works."""
    with opened(d / "f", _BOTH) as fd:
        os.unlink(d / "f")
        os.pwrite(fd, b"HELLO", 0)
        with opened(f"/proc/self/fd/{fd}") as again:
            assert same(os.fstat(again), os.fstat(fd))
            assert os.readlink(f"/proc/self/fd/{fd}") == f"{d}/f (deleted)"
            return os.pread(again, 5, 0)


@behaviour()
def unlinked_file_of_two_descriptors(d: Path) -> object:
    with opened(d / "f") as reader, opened(d / "f", _BOTH) as writer:
        os.unlink(d / "f")
        os.pwrite(writer, b"HELLO", 0)
        assert os.pread(reader, 5, 0) == b"HELLO"
        os.ftruncate(writer, 2)
        return os.fstat(reader).st_size, os.fstat(reader).st_nlink


@behaviour()
def unlinked_file_and_its_successor(d: Path) -> object:
    with opened(d / "f", _BOTH) as fd:
        os.unlink(d / "f")
        (d / "f").write_bytes(b"successor")
        assert not same(os.fstat(fd), os.stat(d / "f"))
        os.pwrite(fd, b"HELLO", 0)
        os.ftruncate(fd, 5)
        assert os.pread(fd, 99, 0) == b"HELLO"
    return (d / "f").read_bytes(), os.stat(d / "f").st_nlink


@behaviour()
def one_of_two_names_goes_while_open(d: Path) -> object:
    os.link(d / "f", d / "twin")
    with opened(d / "f", _BOTH) as fd:
        os.unlink(d / "f")
        assert os.fstat(fd).st_nlink == 1
        os.pwrite(fd, b"HELLO", 0)
        os.unlink(d / "twin")
        assert os.fstat(fd).st_nlink == 0
        return os.pread(fd, 5, 0)


@behaviour()
def new_file_unlinked_while_open(d: Path) -> object:
    """A temporary file."""
    with opened(d / "new", _BOTH | os.O_CREAT | os.O_EXCL) as fd:
        os.unlink(d / "new")
        os.write(fd, b"temporary" * 1000)
        assert os.fstat(fd).st_size == 9000
        os.lseek(fd, 0, os.SEEK_SET)
        return os.read(fd, 18), os.fstat(fd).st_nlink


@behaviour()
def many_unlinked_files(d: Path) -> object:
    fds = []
    for index in range(100):
        fds.append(os.open(d / "e" / "same", _BOTH | os.O_CREAT | os.O_EXCL))
        os.write(fds[-1], b"%d" % index)
        os.unlink(d / "e" / "same")
    texts = [os.pread(fd, 9, 0) for fd in fds]
    numbers = {os.fstat(fd).st_ino for fd in fds}
    for fd in fds:
        os.close(fd)
    assert texts == [b"%d" % index for index in range(100)]
    assert len(numbers) == 100
    os.rmdir(d / "e")


@behaviour(answers=(b"through", 0))
def unlinked_fifo(d: Path) -> object:
    with opened(d / "p", _BOTH) as fd:
        os.unlink(d / "p")
        os.write(fd, b"through")
        return os.read(fd, 20), os.fstat(fd).st_nlink


@behaviour()
def unlinked_executable_runs(d: Path) -> object:

    shutil.copy("/bin/sleep", d / "sleep")
    process = subprocess.Popen([d / "sleep", "30"])
    os.unlink(d / "sleep")
    assert process.poll() is None
    assert os.readlink(f"/proc/{process.pid}/exe") == f"{d}/sleep (deleted)"
    process.kill()
    process.wait(10)


@behaviour(answers=0)
def removed_directory_while_open(d: Path) -> object:
    with opened(d / "e", os.O_DIRECTORY) as fd:
        os.rmdir(d / "e")
        with fails(errno.ENOENT):
            os.stat("x", dir_fd=fd)
        with fails(errno.ENOENT):
            os.mkdir("x", dir_fd=fd)
        return os.fstat(fd).st_nlink


@behaviour()
def removed_working_directory(d: Path) -> object:
    def inside() -> object:
        os.rmdir(d / "e")
        return {
            "getcwd": seen(libc.getcwd),
            "create": seen(os.open, "x", os.O_CREAT | os.O_WRONLY),
            "mkdir": seen(os.mkdir, "x"),
            "lookup": seen(os.stat, "x"),
            "here": type(seen(os.stat, ".")).__name__,
            "above": seen(os.stat, "../f").st_size,
        }

    got = in_directory(d / "e", inside)
    return expect(got, others="ENOENT", here="stat_result", above=len(CONTENT))


@behaviour()
def removed_and_remade_directory_while_open(d: Path) -> object:
    with opened(d / "e", os.O_DIRECTORY) as fd:
        os.rmdir(d / "e")
        os.mkdir(d / "e")
        (d / "e" / "new").touch()
        assert not same(os.fstat(fd), os.stat(d / "e"))
        with fails(errno.ENOENT):
            os.stat("new", dir_fd=fd)


@behaviour()
def remove_the_working_directory_of_another(d: Path) -> object:
    reader, writer = os.pipe()

    def removed() -> str:
        os.rmdir(d / "e")
        os.write(writer, b"x")
        return "removed"

    def inside() -> object:
        os.chdir(d / "e")
        assert in_child(removed) == "removed"
        os.read(reader, 1)
        return seen(libc.getcwd)

    answer = in_child(inside)
    os.close(reader)
    os.close(writer)
    return answer


@behaviour()
def locked_file_is_unlinked(d: Path) -> object:
    with opened(d / "f", _BOTH) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.unlink(d / "f")
        (d / "f").write_bytes(b"another")
        with opened(d / "f", _BOTH) as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
