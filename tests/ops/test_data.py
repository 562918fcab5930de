"""Reading and writing the data of files, and what depends on it."""

from __future__ import annotations

import errno
import mmap
import os
import platform
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.helpers.mounts import IMPL, MODE, Space, differs, fails
from tests.ops.conftest import CONTENT, Case

SIZES = (0, 1, 4095, 4096, 4097, 131072, 131073, 3_000_001)


def pattern(size: int) -> bytes:
    """Bytes that differ from page to page."""
    return b"".join(b"%07d\n" % index for index in range(size // 8 + 1))[:size]


def test_read(case: Case, where: str) -> None:
    assert (case.path / "f").read_bytes() == CONTENT
    fd = os.open(case.path / "f", os.O_RDONLY)
    assert os.pread(fd, 5, 13) == CONTENT[13:18]
    assert os.pread(fd, 100, len(CONTENT) - 3) == CONTENT[-3:]
    assert os.pread(fd, 10, len(CONTENT)) == b""
    assert os.pread(fd, 10, 1 << 40) == b""
    with fails(errno.EBADF):
        os.write(fd, b"x")
    os.close(fd)


def test_sizes(space: Space) -> None:
    for size in SIZES:
        (space.lower / f"low{size}").write_bytes(pattern(size))
    with space.mounted() as mnt:
        for size in SIZES:
            assert (mnt / f"low{size}").read_bytes() == pattern(size)
            (mnt / f"new{size}").write_bytes(pattern(size))
            assert (mnt / f"new{size}").stat().st_size == size
            with open(mnt / f"low{size}", "ab") as stream:
                stream.write(b"END")
        for size in SIZES:
            assert (mnt / f"new{size}").read_bytes() == pattern(size)
            assert (mnt / f"low{size}").read_bytes() == pattern(size) + b"END"
            assert (space.upper / f"low{size}").read_bytes() == pattern(size) + b"END"


def test_overwrite_in_the_middle(case: Case, where: str) -> None:
    fd = os.open(case.path / "f", os.O_RDWR)
    assert os.pwrite(fd, b"NEW", 100) == 3
    assert os.pread(fd, 3, 100) == b"NEW"
    os.close(fd)
    expected = CONTENT[:100] + b"NEW" + CONTENT[103:]
    assert (case.path / "f").read_bytes() == expected
    assert (case.upper / "f").read_bytes() == expected


def test_append(case: Case, where: str) -> None:
    with open(case.path / "f", "ab") as stream:
        stream.write(b"one")
        stream.flush()
        assert os.stat(case.path / "f").st_size == len(CONTENT) + 3
        stream.write(b"two")
    assert (case.path / "f").read_bytes() == CONTENT + b"onetwo"


def test_two_appenders(case: Case, where: str) -> None:
    """O_APPEND writes at the end of the file, even if somebody else has moved that."""
    one = os.open(case.path / "f", os.O_WRONLY | os.O_APPEND)
    two = os.open(case.path / "f", os.O_WRONLY | os.O_APPEND)
    for index in range(10):
        os.write(one if index % 2 else two, b"%d" % index)
    os.close(one)
    os.close(two)
    assert (case.path / "f").read_bytes() == CONTENT + b"0123456789"


@pytest.mark.parametrize("size", [0, 1, 1000, len(CONTENT), 100_000])
def test_truncate(case: Case, where: str, size: int) -> None:
    os.truncate(case.path / "f", size)
    expected = CONTENT[:size].ljust(size, b"\0")
    assert os.stat(case.path / "f").st_size == size
    assert (case.path / "f").read_bytes() == expected
    assert (case.upper / "f").read_bytes() == expected


def test_ftruncate(case: Case, where: str) -> None:
    fd = os.open(case.path / "f", os.O_RDWR)
    os.ftruncate(fd, 7)
    assert os.fstat(fd).st_size == 7
    assert os.pread(fd, 100, 0) == CONTENT[:7]
    os.close(fd)
    assert (case.path / "f").read_bytes() == CONTENT[:7]


def test_open_truncates(case: Case, where: str) -> None:
    fd = os.open(case.path / "f", os.O_WRONLY | os.O_TRUNC)
    assert os.fstat(fd).st_size == 0
    assert os.stat(case.path / "f").st_size == 0
    os.close(fd)
    assert (case.path / "f").read_bytes() == b""
    assert (case.upper / "f").read_bytes() == b""
    assert stat.S_IMODE(os.stat(case.path / "f").st_mode) == 0o640
    assert os.getxattr(case.path / "f", "user.colour") == b"red"


def test_open_for_reading_truncates_too(case: Case, where: str) -> None:
    """POSIX leaves this unspecified; Linux truncates."""
    fd = os.open(case.path / "f", os.O_RDONLY | os.O_TRUNC)
    assert os.read(fd, 10) == b""
    os.close(fd)
    assert os.stat(case.path / "f").st_size == 0
    assert (case.path / "f").read_bytes() == b""


def test_open_truncates_and_writes(case: Case, where: str) -> None:
    (case.path / "f").write_bytes(b"short")
    assert (case.path / "f").read_bytes() == b"short"


def test_truncate_of_an_empty_file_changes_times(case: Case) -> None:
    (case.path / "f").write_bytes(b"")
    os.utime(case.path / "f", ns=(0, 0))
    os.truncate(case.path / "f", 0)
    assert os.stat(case.path / "f").st_mtime_ns > 0


def test_truncate_of_a_directory(case: Case, where: str) -> None:
    with fails(errno.EISDIR):
        os.truncate(case.path / "d", 0)


@differs("late-copy-up")
def test_opening_for_writing_copies_nothing(case: Case) -> None:
    fd = os.open(case.path / "f", os.O_RDWR)
    assert not case.is_up("f")
    os.read(fd, 10)
    os.close(fd)
    assert not case.is_up("f")


def test_opening_for_reading_copies_nothing(case: Case) -> None:
    (case.path / "f").read_bytes()
    os.stat(case.path / "f")
    os.listdir(case.path / "d")
    os.readlink(case.path / "s")
    assert not os.path.lexists(case.upper) or os.listdir(case.upper) == []


@differs("fresh-descriptors")
def test_descriptor_opened_before_copy_up_sees_new_data(case: Case) -> None:
    fd = os.open(case.path / "f", os.O_RDONLY)
    assert os.pread(fd, 7, 0) == CONTENT[:7]
    with open(case.path / "f", "r+b") as stream:
        stream.write(b"CHANGED")
    assert os.pread(fd, 7, 0) == b"CHANGED"
    assert os.fstat(fd).st_size == len(CONTENT)
    os.truncate(case.path / "f", 3)
    assert os.pread(fd, 100, 0) == b"CHA"
    assert os.fstat(fd).st_size == 3
    os.close(fd)


@differs("fresh-descriptors")
def test_mapping_made_before_copy_up_sees_new_data(case: Case) -> None:
    with open(case.path / "f", "rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED)
    assert mapped[:7] == CONTENT[:7]
    with open(case.path / "f", "r+b") as stream:
        stream.write(b"CHANGED")
    assert mapped[:7] == b"CHANGED"
    mapped.close()


def test_unlinked_file_stays_readable_and_writable(case: Case, where: str) -> None:
    fd = os.open(case.path / "f", os.O_RDWR)
    os.unlink(case.path / "f")
    assert os.pread(fd, 10_000, 0) == CONTENT
    os.pwrite(fd, b"still here", 5000)
    assert os.pread(fd, 10, 5000) == b"still here"
    assert os.fstat(fd).st_size == 5010
    assert os.fstat(fd).st_nlink == 0
    os.ftruncate(fd, 3)
    assert os.fstat(fd).st_size == 3
    os.fsync(fd)
    os.close(fd)
    with fails(errno.ENOENT):
        os.stat(case.path / "f")


def test_unlinked_file_only_reader(case: Case, where: str) -> None:
    fd = os.open(case.path / "f", os.O_RDONLY)
    os.unlink(case.path / "f")
    (case.path / "f").write_bytes(b"another file")
    assert os.pread(fd, 10_000, 0) == CONTENT
    os.close(fd)
    assert (case.path / "f").read_bytes() == b"another file"


def test_file_replaced_while_open(case: Case, where: str) -> None:
    old = os.open(case.path / "f", os.O_RDWR)
    os.rename(case.path / "g", case.path / "f")
    assert os.pread(old, 12, 0) == CONTENT[:12]
    os.pwrite(old, b"goes nowhere", 0)
    assert os.pread(old, 12, 0) == b"goes nowhere"
    os.close(old)
    assert (case.path / "f").read_bytes() == b"content of g\n"


def test_file_renamed_while_written(case: Case, where: str) -> None:
    with open(case.path / "f", "r+b", buffering=0) as stream:
        stream.write(b"one")
        os.rename(case.path / "f", case.path / "e" / "moved")
        stream.write(b"two")
        stream.seek(0, os.SEEK_END)
        stream.write(b"end")
    expected = b"onetwo" + CONTENT[6:] + b"end"
    assert (case.path / "e" / "moved").read_bytes() == expected
    assert (case.upper / "e" / "moved").read_bytes() == expected


def test_read_only_file_is_writable_for_its_creator(case: Case) -> None:
    """Git writes its objects this way."""
    fd = os.open(case.path / "object", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o444)
    os.write(fd, b"written")
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o444
    os.fsync(fd)
    assert os.pread(fd, 10, 0) == b"written"
    os.ftruncate(fd, 4)
    os.close(fd)
    assert (case.path / "object").read_bytes() == b"writ"
    assert stat.S_IMODE(os.stat(case.path / "object").st_mode) == 0o444


def test_mode_000_file_is_usable_through_its_descriptor(case: Case) -> None:
    fd = os.open(case.path / "none", os.O_RDWR | os.O_CREAT, 0o000)
    os.write(fd, b"secret")
    assert os.pread(fd, 10, 0) == b"secret"
    os.close(fd)
    if MODE == "user":
        with fails(errno.EACCES):
            os.open(case.path / "none", os.O_RDONLY)
    os.chmod(case.path / "none", 0o600)
    assert (case.path / "none").read_bytes() == b"secret"


def test_chmod_000_while_open(case: Case, where: str) -> None:
    fd = os.open(case.path / "f", os.O_RDWR)
    os.chmod(case.path / "f", 0o000)
    os.pwrite(fd, b"yes", 0)
    assert os.pread(fd, 3, 0) == b"yes"
    os.close(fd)
    os.chmod(case.path / "f", 0o600)
    assert (case.path / "f").read_bytes() == b"yes" + CONTENT[3:]


def test_readers_need_no_write_permission(case: Case, where: str) -> None:
    os.chmod(case.path / "f", 0o400)
    assert (case.path / "f").read_bytes() == CONTENT
    if MODE == "user":
        with fails(errno.EACCES):
            os.open(case.path / "f", os.O_WRONLY)


def test_fsync(case: Case, where: str) -> None:
    fd = os.open(case.path / "f", os.O_RDWR)
    os.write(fd, b"synced")
    os.fsync(fd)
    os.fdatasync(fd)
    assert (case.upper / "f").read_bytes()[:6] == b"synced"
    os.close(fd)
    here = os.open(case.path / "d", os.O_RDONLY)
    os.fsync(here)
    os.close(here)


def test_shared_mapping(case: Case, where: str) -> None:
    fd = os.open(case.path / "f", os.O_RDWR)
    mapped = mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    assert mapped[:] == CONTENT
    mapped[10:13] = b"MAP"
    mapped.flush()
    assert os.pread(fd, 3, 10) == b"MAP"
    os.pwrite(fd, b"PWR", 20)
    assert mapped[20:23] == b"PWR"
    os.close(fd)
    mapped[30:33] = b"LATE"[:3]
    mapped.close()
    expected = bytearray(CONTENT)
    expected[10:13], expected[20:23], expected[30:33] = b"MAP", b"PWR", b"LAT"
    assert (case.path / "f").read_bytes() == expected
    # Dirty pages of a mapping that is gone reach the upper with the next sync.
    again = os.open(case.path / "f", os.O_RDONLY)
    os.fsync(again)
    os.close(again)
    assert (case.upper / "f").read_bytes() == expected


def test_private_mapping(case: Case, where: str) -> None:
    with open(case.path / "f", "rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    mapped[:3] = b"own"
    assert mapped[:3] == b"own"
    mapped.close()
    assert (case.path / "f").read_bytes() == CONTENT
    if case.where == "lower":
        assert not case.is_up("f")


def test_mapping_outlives_unlink(case: Case, where: str) -> None:
    with open(case.path / "f", "r+b") as stream:
        mapped = mmap.mmap(stream.fileno(), 0)
    os.unlink(case.path / "f")
    assert mapped[:] == CONTENT
    mapped[:4] = b"gone"
    mapped.flush()
    assert mapped[:4] == b"gone"
    mapped.close()


def test_sparse_file_stays_sparse(space: Space) -> None:
    size = 64 << 20
    with open(space.lower / "sparse", "wb") as stream:
        stream.write(b"start")
        stream.seek(32 << 20)
        stream.write(b"middle")
        stream.truncate(size)
    with space.mounted(settle=False) as mnt:
        assert os.stat(mnt / "sparse").st_blocks < 2048
        with open(mnt / "sparse", "r+b") as stream:
            stream.seek(16 << 20)
            stream.write(b"new")
        up = os.stat(space.upper / "sparse")
        assert up.st_size == size
        assert up.st_blocks < 8192, "the holes were filled"  # 4 MiB of 64
        with open(mnt / "sparse", "rb") as stream:
            assert stream.read(8) == b"start\0\0\0"
            assert os.pread(stream.fileno(), 5, 16 << 20) == b"new\0\0"
            assert os.pread(stream.fileno(), 8, 32 << 20) == b"middle\0\0"
            assert os.pread(stream.fileno(), 100, size - 2) == b"\0\0"


def test_hole_made_by_a_write_past_the_end(case: Case, where: str) -> None:
    fd = os.open(case.path / "f", os.O_WRONLY)
    os.pwrite(fd, b"far", 1_000_000)
    os.close(fd)
    data = (case.path / "f").read_bytes()
    assert data[: len(CONTENT)] == CONTENT
    assert data[len(CONTENT) : 1_000_000].count(0) == 1_000_000 - len(CONTENT)
    assert data[1_000_000:] == b"far"


def test_big_file_copied_up_whole(space: Space) -> None:
    data = os.urandom(1 << 20) * 24
    (space.lower / "big").write_bytes(data)
    with space.mounted(settle=False) as mnt:
        with open(mnt / "big", "r+b") as stream:
            stream.seek(12 << 20)
            stream.write(b"changed")
        expected = data[: 12 << 20] + b"changed" + data[(12 << 20) + 7 :]
        assert (mnt / "big").read_bytes() == expected
        assert (space.upper / "big").read_bytes() == expected


def test_writing_changes_mtime_and_ctime(case: Case, where: str) -> None:
    before = os.stat(case.path / "f")
    with open(case.path / "f", "ab") as stream:
        stream.write(b"x")
    after = os.stat(case.path / "f")
    assert after.st_mtime_ns > before.st_mtime_ns
    assert after.st_ctime_ns > before.st_ctime_ns


def test_exec_of_a_binary(space: Space) -> None:
    shutil.copy(shutil.which("true") or "/bin/true", space.lower / "true")
    (space.lower / "script").write_text("#!/bin/sh\necho from a script: $1\n")
    (space.lower / "script").chmod(0o755)
    (space.lower / "noexec").write_text("#!/bin/sh\n")
    (space.lower / "noexec").chmod(0o644)
    with space.mounted() as mnt:
        assert subprocess.run([mnt / "true"], timeout=30, check=False).returncode == 0
        done = subprocess.run([mnt / "script", "hello"], capture_output=True, timeout=30)
        assert done.stdout == b"from a script: hello\n"
        with fails(errno.EACCES):
            subprocess.run([mnt / "noexec"], check=False, timeout=30)
        shutil.copy(mnt / "true", mnt / "copy")
        assert subprocess.run([mnt / "copy"], timeout=30, check=False).returncode == 0
        with open(mnt / "script", "a") as stream:
            stream.write("echo and more\n")
        done = subprocess.run([mnt / "script", "hello"], capture_output=True, timeout=30)
        assert done.stdout == b"from a script: hello\nand more\n"


@pytest.mark.skipif(platform.system() != "Linux", reason="Linux loads it")
def test_shared_library_is_mapped_for_execution(space: Space) -> None:
    import ctypes

    source = next(Path("/lib").glob("*-linux-gnu/libz.so.1"), None) or next(
        Path("/usr/lib").glob("*-linux-gnu/libz.so.1")
    )
    shutil.copy(source, space.lower / "libcopied.so")
    with space.mounted(settle=False) as mnt:
        code = (
            "import ctypes, sys\n"
            "lib = ctypes.CDLL(sys.argv[1])\n"
            "assert lib.crc32(0, b'abc', 3) & 0xffffffff == 0x352441c2\n"
        )
        argv = [os.sys.executable, "-c", code, str(mnt / "libcopied.so")]
        done = subprocess.run(argv, capture_output=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
    assert ctypes


def test_writing_to_a_running_binary(space: Space) -> None:
    shutil.copy("/bin/sleep", space.lower / "sleep")
    with space.mounted(settle=False) as mnt:
        child = subprocess.Popen([mnt / "sleep", "30"])
        try:
            with fails(errno.ETXTBSY):
                os.open(mnt / "sleep", os.O_WRONLY)
        finally:
            child.kill()
            child.wait()


def test_fifo_carries_data(case: Case, where: str) -> None:
    read_end = os.open(case.path / "p", os.O_RDONLY | os.O_NONBLOCK)
    write_end = os.open(case.path / "p", os.O_WRONLY | os.O_NONBLOCK)
    os.write(write_end, b"through the pipe")
    assert os.read(read_end, 100) == b"through the pipe"
    os.close(read_end)
    os.close(write_end)


def test_symlink_is_not_followed_with_nofollow(case: Case, where: str) -> None:
    with fails(errno.ELOOP):
        os.open(case.path / "s", os.O_RDONLY | os.O_NOFOLLOW)
    with open(case.path / "s", "ab") as stream:
        stream.write(b"by the link")
    assert (case.path / "f").read_bytes().endswith(b"by the link")
    assert os.path.islink(case.path / "s")


def test_many_open_files(space: Space) -> None:
    """More files can be open than the daemon may have descriptors; all keep their data."""
    for index in range(1500):
        (space.lower / f"n{index}").write_bytes(b"%d" % index)
    with space.mounted(settle=False) as mnt:
        fds = [os.open(mnt / f"n{index}", os.O_RDWR) for index in range(1500)]
        for index, fd in enumerate(fds):
            if index % 3 == 0:
                os.pwrite(fd, b"new%d" % index, 0)
        for index, fd in enumerate(fds):
            expected = (b"new%d" if index % 3 == 0 else b"%d") % index
            assert os.pread(fd, 20, 0) == expected
        for fd in fds:
            os.close(fd)


def test_copy_file_range(case: Case, where: str) -> None:
    source = os.open(case.path / "f", os.O_RDONLY)
    target = os.open(case.path / "new", os.O_RDWR | os.O_CREAT)
    try:
        copied = os.copy_file_range(source, target, len(CONTENT))
    except OSError as exc:
        assert exc.errno in (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS)
        shutil.copyfile(case.path / "f", case.path / "new")
        copied = len(CONTENT)
    os.close(source)
    os.close(target)
    assert copied == len(CONTENT)
    assert (case.path / "new").read_bytes() == CONTENT


def test_fallocate(case: Case, where: str) -> None:
    """If the daemon cannot do it, it returns EOPNOTSUPP; glibc then writes zeros."""
    fd = os.open(case.path / "f", os.O_RDWR)
    os.posix_fallocate(fd, 0, 100_000)
    assert os.fstat(fd).st_size == 100_000
    os.close(fd)
    assert (case.path / "f").read_bytes() == CONTENT.ljust(100_000, b"\0")


def test_seek_data_and_hole(case: Case, where: str) -> None:
    fd = os.open(case.path / "f", os.O_RDONLY)
    assert os.lseek(fd, 0, os.SEEK_DATA) == 0
    assert os.lseek(fd, 0, os.SEEK_HOLE) == len(CONTENT)
    with fails(errno.ENXIO):
        os.lseek(fd, len(CONTENT), os.SEEK_DATA)
    os.close(fd)


def test_o_direct(case: Case, where: str) -> None:
    """O_DIRECT either works or makes open(2) fail with EINVAL, as on any filesystem."""
    try:
        fd = os.open(case.path / "f", os.O_RDONLY | os.O_DIRECT)
    except OSError as exc:
        assert exc.errno == errno.EINVAL
        return
    buffer = mmap.mmap(-1, 4096)
    count = os.preadv(fd, [buffer], 0)
    assert buffer[:count] == CONTENT[:4096]
    os.close(fd)


def test_o_tmpfile_says_what_it_can(case: Case) -> None:
    try:
        fd = os.open(case.path, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError as exc:
        assert IMPL == "fuse"
        assert exc.errno in (errno.EOPNOTSUPP, errno.ENOSYS)
        return
    os.write(fd, b"nameless")
    assert os.pread(fd, 10, 0) == b"nameless"
    os.close(fd)
