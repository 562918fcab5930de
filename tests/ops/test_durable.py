"""Copy-up on disk: written before it counts, with shared blocks if the filesystem can share."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseoverlay.system.syscalls import syncfs
from tests.helpers import disks
from tests.helpers.mounts import MODE, Daemon, Space, command, fuse_only, is_whiteout, root_only

BIG = 32 << 20


def _traced(space: Space, trace: Path) -> Daemon:
    """A daemon whose calls that sync or rename are written to `trace`, with paths."""
    if shutil.which("strace") is None:
        pytest.skip("missing tool: strace")
    syncing = "fsync,fdatasync,sync_file_range"
    argv = ["strace", "-f", "-y", "-e", f"trace={syncing},rename,renameat,renameat2"]
    argv += ["-o", str(trace), *command("-f", "-o", space.options(), space.mnt)]
    daemon = space.daemon = Daemon(argv, space.mnt, space.log)
    daemon.wait_until_mounted(1)
    return daemon


#: Calls that wait until the data is written.
_SYNC = re.compile(
    r"(?:f(?:data)?sync\(\d+<.*/([^/>]+)>"
    r"|sync_file_range\(\d+<.*/([^/>]+)>, 0, 0, SYNC_FILE_RANGE_WAIT_BEFORE"
    r"\|SYNC_FILE_RANGE_WRITE\|SYNC_FILE_RANGE_WAIT_AFTER)\)\s+= 0"
)


def _calls(trace: Path) -> list[str]:
    """`sync NAME` and `rename NAME` for each successful call; NAME is the file's final name."""
    found = []
    for line in trace.read_text().splitlines():
        if match := _SYNC.search(line):
            found.append(f"sync {match[1] or match[2]}")
        elif match := re.search(r"rename\w*\(.*\"([^\"]+)\", .*\"([^\"]+)\".*= 0", line):
            found.append(f"rename {match[1]} {match[2]}")
    return found


@fuse_only
@pytest.mark.skipif(MODE == "user", reason="traced, fusermount3 has no privileges")
@pytest.mark.parametrize("size", [100, BIG])
@pytest.mark.parametrize("option", ["", "fsync=0", "volatile"])
def test_copy_is_written_before_it_is_published(space: Space, size: int, option: str) -> None:
    (space.lower / "f").write_bytes(os.urandom(100) * (size // 100))
    space.extra = (option,) if option else ()
    trace = space.base / "trace"
    _traced(space, trace)
    os.chmod(space.mnt / "f", 0o600)
    assert (space.upper / "f").stat().st_size == size // 100 * 100
    space.unmount()
    calls = _calls(trace)
    published = [call.split()[1] for call in calls if call.endswith(" f")]
    assert len(published) == 1, calls
    synced = f"sync {published[0]}"
    if option:
        assert synced not in calls
    else:
        assert calls.index(synced) < calls.index(f"rename {published[0]} f")


def _crash(disk: Path) -> None:
    """Simulate a power failure: from now on neither data nor journal reaches the disk. Source:
    linux/fs.h, FS_IOC_SHUTDOWN without a flush of the log."""
    fd = os.open(disk, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, 0x8004587D, (2).to_bytes(4, "little"))
    finally:
        os.close(fd)


def _commit_journal(disk: Path) -> None:
    """Write what the journal holds so far to disk, but no data of other files."""
    fd = os.open(disk / "other", os.O_CREAT | os.O_WRONLY)
    try:
        os.write(fd, b"x")
        os.fsync(fd)
    finally:
        os.close(fd)


@fuse_only
@root_only
@pytest.mark.parametrize("kind", ["ext4", "xfs", "xfs -m reflink=0"])
@pytest.mark.parametrize("option", ["", "metacopy=on", "fsync=0"])
def test_copies_after_a_crash_of_the_system(space: Space, kind: str, option: str) -> None:
    """Each copy is whole or not there. With `fsync=0`, which permits it, some are incomplete,
    except copies that share their blocks with the lower file."""
    content = {f"f{n}": os.urandom(10) * (n * 200 + 1) for n in range(60)}
    with disks.disk(space.base, *kind.split()) as disk:
        inner = Space(disk)
        for name, data in content.items():
            (inner.lower / name).write_bytes(data)
        os.sync()
        inner.extra = (option,) if option else ()
        try:
            mnt = inner.mount()
            for name in content:
                if option == "metacopy=on":
                    os.chmod(mnt / name, 0o600)
                with open(mnt / name, "ab", buffering=0) as stream:
                    stream.write(b"!")
            _commit_journal(disk)
            _crash(disk)
        finally:
            inner.drop()
        subprocess.run(["umount", str(disk)], check=True, timeout=60)
        disks.attach(space.base / "image", disk)
        copied = {name for name in content if (inner.upper / name).exists()}
        assert len(copied) > len(content) // 2
        lost = {n for n in copied if not (inner.upper / n).read_bytes().startswith(content[n])}
        assert bool(lost) == (option == "fsync=0" and kind != "xfs"), lost


@pytest.fixture(params=["btrfs", "xfs"])
def sharing(request: pytest.FixtureRequest, space: Space) -> Iterator[Space]:
    """A space on a filesystem whose files can share blocks."""
    with disks.disk(space.base, request.param) as disk:
        inner = Space(disk)
        try:
            yield inner
        finally:
            inner.drop()


def _used(path: Path) -> int:
    """The bytes in use on the filesystem, after a sync."""
    fd = os.open(path, os.O_RDONLY)
    try:
        syncfs(fd)
        st = os.fstatvfs(fd)
    finally:
        os.close(fd)
    return (st.f_blocks - st.f_bfree) * st.f_frsize


@root_only
def test_copy_shares_its_blocks(sharing: Space) -> None:
    content = os.urandom(1 << 20) * (BIG >> 20)
    (sharing.lower / "f").write_bytes(content)
    with sharing.mounted(settle=False) as mnt:
        before = _used(sharing.base)
        with open(mnt / "f", "r+b", buffering=0) as stream:
            stream.write(b"changed")
        assert _used(sharing.base) - before < BIG // 4
        assert (sharing.upper / "f").stat().st_size == BIG
        assert (mnt / "f").read_bytes() == b"changed" + content[7:]


@root_only
def test_what_the_filesystem_keeps_is_found_out(sharing: Space) -> None:
    """On Btrfs a descriptor does not list what was made after it was opened."""
    (sharing.lower / "f").touch()
    with sharing.mounted() as mnt:
        (mnt / "f").unlink()
    assert is_whiteout(sharing.upper / "f")
    assert stat.S_ISCHR((sharing.upper / "f").stat().st_mode)
    assert os.listdir(sharing.work / "work") == []
