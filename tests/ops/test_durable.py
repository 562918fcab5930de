"""Copy-up on disk: synced before it counts, sharing blocks where the filesystem can."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseoverlay.syscalls import syncfs
from tests.helpers.mounts import (
    MODE,
    Daemon,
    Space,
    command,
    fuse_only,
    root_only,
)

BIG = 32 << 20


def _traced(space: Space, trace: Path) -> Daemon:
    """A daemon whose calls that sync or rename are written to `trace`, with paths."""
    if shutil.which("strace") is None:
        pytest.skip("missing tool: strace")
    argv = ["strace", "-f", "-y", "-e", "trace=fsync,fdatasync,rename,renameat,renameat2"]
    argv += ["-o", str(trace), *command("-f", "-o", space.options(), space.mnt)]
    daemon = space.daemon = Daemon(argv, space.mnt, space.log)
    daemon.wait_until_mounted(1)
    return daemon


def _calls(trace: Path) -> list[str]:
    """`sync NAME` and `rename NAME` for the successful ones, NAME where the file ends up."""
    found = []
    for line in trace.read_text().splitlines():
        if match := re.search(r"f(?:data)?sync\(\d+<.*/([^/>]+)>\)\s+= 0", line):
            found.append(f"sync {match[1]}")
        elif match := re.search(r"rename\w*\(.*\"([^\"]+)\", .*\"([^\"]+)\".*= 0", line):
            found.append(f"rename {match[1]} {match[2]}")
    return found


@fuse_only
@pytest.mark.skipif(MODE == "user", reason="traced, fusermount3 has no privileges")
@pytest.mark.parametrize("size", [100, BIG])
@pytest.mark.parametrize("option", ["", "fsync=0", "volatile"])
def test_copy_is_synced_before_it_is_published(space: Space, size: int, option: str) -> None:
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


@pytest.fixture(params=["btrfs", "xfs"])
def sharing(request: pytest.FixtureRequest, space: Space) -> Iterator[Space]:
    """A space on a filesystem whose files can share blocks."""
    tool = shutil.which(f"mkfs.{request.param}", path=f"/sbin:/usr/sbin:{os.environ['PATH']}")
    if tool is None:
        pytest.skip(f"missing tool: mkfs.{request.param}")
    image, disk = space.base / "image", space.base / "disk"
    disk.mkdir()
    with image.open("wb") as stream:
        stream.truncate(512 << 20)
    subprocess.run([tool, "-q", str(image)], check=True, timeout=60)
    subprocess.run(["mount", "-o", "loop", str(image), str(disk)], check=True, timeout=60)
    try:
        inner = Space(disk)
        try:
            yield inner
        finally:
            inner.drop()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False, timeout=60)


def _used(path: Path) -> int:
    """Bytes in use on the filesystem, once everything is on it."""
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
