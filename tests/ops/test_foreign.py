"""Foreign things in the work directory and its index, and layers with odd private attributes.

Whatever is there, the mount is refused in one line with exit code 4, or works and shows what the
layers hold.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fuseoverlay.system import handles
from fuseoverlay.system.syscalls import filesystem_uuid
from tests.helpers.mounts import (
    Space,
    command,
    daemon_env,
    fails,
    fuse_only,
    make_whiteout,
    root_only,
    set_overlay_xattr,
    unmount,
)
from tests.helpers.tree import record

pytestmark = [fuse_only, pytest.mark.timeout(60)]

SECRET = b"SECRET: nobody asked for this file\n"
UPPER = 4


def _layers(space: Space) -> None:
    """`h1` and `h2` are one file of the lower; so are `k1` and `k2`. `secret` is outside."""
    for one, two in (("h1", "h2"), ("k1", "k2")):
        (space.lower / one).write_bytes(b"linked " + one.encode())
        os.link(space.lower / one, space.lower / two)
    (space.lower / "f").write_bytes(b"plain")
    (space.lower / "d").mkdir()
    (space.base / "outside").mkdir()
    (space.base / "outside" / "secret").write_bytes(SECRET)


def entry(space: Space, directory: str, name: str = "h1") -> Path:
    """The path at which the index or the notes keep something about a lower file."""
    fd = os.open(space.lower, os.O_RDONLY)
    try:
        origin = handles.encode(fd, name.encode(), filesystem_uuid(fd))
    finally:
        os.close(fd)
    assert origin is not None
    (space.work / directory).mkdir(exist_ok=True)
    return space.work / directory / origin.hex()


def _deep_junk(space: Space) -> None:
    path = space.work / "work" / "#1"
    for _ in range(60):
        path = path / ("x" * 100)
    subprocess.run(["mkdir", "-p", path.relative_to(space.work)], cwd=space.work, check=True)


def _junk_without_modes(space: Space) -> None:
    (space.work / "work" / "#a" / "b").mkdir(parents=True)
    (space.work / "work" / "#a" / "b" / "f").touch(0o000)
    (space.work / "work" / "#a" / "b").chmod(0o000)
    (space.work / "work" / "#a").chmod(0o000)


def _junk_of_all_types(space: Space) -> None:
    work = space.work / "work"
    work.mkdir()
    os.mkfifo(work / "#2")
    os.symlink(space.base / "outside", work / "#3")
    os.symlink(space.base / "outside" / "secret", work / "4")
    make_whiteout(work / "#5")
    (work / "#1").write_bytes(b"a name that we use")
    (work / "#d").mkdir()
    os.symlink("../../../outside", work / "#d" / "out")
    os.link(space.base / "outside" / "secret", work / "6")


def _work_is_a_file(space: Space) -> None:
    (space.work / "work").write_bytes(b"junk")


def _work_is_a_link(space: Space) -> None:
    os.symlink(space.base / "outside", space.work / "work")


def _work_is_a_fifo(space: Space) -> None:
    os.mkfifo(space.work / "work")


def _named(directory: str, kind: str) -> Callable[[Space], None]:
    def make(space: Space) -> None:
        path = space.work / directory
        if kind == "file":
            path.write_bytes(b"junk")
        elif kind == "link":
            os.symlink(space.base / "outside", path)
        else:
            make_whiteout(path)

    return make


def _unknown_feature(space: Space) -> None:
    (space.work / "work" / "incompat" / "time travel").mkdir(parents=True)


def _incompat_is_a_file(space: Space) -> None:
    (space.work / "work").mkdir()
    (space.work / "work" / "incompat").touch()


def _index_garbage(space: Space) -> None:
    index = space.work / "index"
    index.mkdir()
    for name in ("garbage", "00fb", "zz" * 30, "00fb15", "#1a", "x" * 255, "caf\udce9"):
        (index / name).write_bytes(SECRET)
    (index / "d").mkdir()
    (index / "d" / "inside").touch()
    os.symlink("../../outside/secret", index / "link")


def _index_entry(kind: str) -> Callable[[Space], None]:
    def make(space: Space) -> None:
        path = entry(space, "index")
        if kind == "directory":
            path.mkdir()
        elif kind == "link":
            os.symlink(space.base / "outside" / "secret", path)
        elif kind == "dangling":
            os.symlink("nowhere", path)
        elif kind == "whiteout":
            make_whiteout(path)
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "foreign":
            os.link(space.base / "outside" / "secret", path)
        else:
            path.write_bytes(SECRET)

    return make


def _note(kind: str) -> Callable[[Space], None]:
    def make(space: Space) -> None:
        path = entry(space, "links")
        if kind == "file":
            path.write_bytes(b"x")
        elif kind == "directory":
            path.mkdir()
        elif kind == "many":
            os.symlink("x" * 3000, path)
        else:
            os.symlink("/etc/passwd", path)

    return make


CASES: dict[str, Callable[[Space], None]] = {
    "deep junk": _deep_junk,
    "junk without modes": _junk_without_modes,
    "junk of all types": _junk_of_all_types,
    "work is a file": _work_is_a_file,
    "work is a link": _work_is_a_link,
    "work is a fifo": _work_is_a_fifo,
    **{
        f"{directory} is a {kind}": _named(directory, kind)
        for directory in ("index", "links")
        for kind in ("file", "link", "whiteout")
    },
    "unknown feature": _unknown_feature,
    "incompat is a file": _incompat_is_a_file,
    "garbage in the index": _index_garbage,
    **{
        f"index entry: {kind}": _index_entry(kind)
        for kind in ("directory", "link", "dangling", "whiteout", "fifo", "foreign", "file")
    },
    **{f"note: {kind}": _note(kind) for kind in ("file", "directory", "many", "path")},
}


@root_only
def test_immutable_junk(space: Space) -> None:
    """The mount is refused if the staging directory cannot be cleared."""
    junk = space.work / "work" / "#9"
    junk.mkdir(parents=True)
    subprocess.run(["chattr", "+i", junk], check=True, timeout=30)
    try:
        assert not _mounts(space)
    finally:
        subprocess.run(["chattr", "-i", junk], check=True, timeout=30)
    assert _mounts(space)


@pytest.mark.parametrize("what", CASES)
def test_work_directory(space: Space, what: str) -> None:
    _layers(space)
    CASES[what](space)
    before = space.evidence()
    outside = record(str(space.base / "outside"))
    if not _mounts(space):
        assert record(str(space.base / "outside")) == outside
        return
    for _ in range(2):
        mnt = space.mount()
        for name, content in (("h1", b"linked h1"), ("h2", b"linked h1"), ("f", b"plain")):
            assert (mnt / name).read_bytes() == content
        space.unmount()
    mnt = space.mount()
    (mnt / "h1").write_bytes(b"changed")
    assert (mnt / "h1").read_bytes() == (mnt / "h2").read_bytes() == b"changed"
    os.unlink(mnt / "k1")
    os.chmod(mnt / "k2", 0o600)
    os.rmdir(mnt / "d")
    os.mkdir(mnt / "d")
    was = record(str(mnt))
    space.remount()
    assert record(str(mnt)) == was
    space.unmount()
    space.check_lowers(before)
    now = record(str(space.base / "outside"))
    for tree in (outside, now):
        tree[b"secret"].nlink = tree[b"secret"].same_as = None  # junk may have been a link to it
    assert now == outside


def _mounts(space: Space) -> bool:
    """Whether it mounts; if not, it must be refused as documented."""
    done = subprocess.run(
        command("mount", "-o", space.options(), space.mnt),
        capture_output=True,
        env=daemon_env(),
        text=True,
        timeout=30,
        check=False,
    )
    if done.returncode == 0:
        unmount(space.mnt)
        return True
    print(done.stderr)
    assert re.fullmatch(r"fuseoverlay: error: [^\n]+\n", done.stderr), done.stderr
    assert done.returncode == UPPER
    return False


OVERRIDES = {
    "garbage": b"garbage",
    "empty": b"",
    "negative": b"-1:-1:0644:file",
    "huge ids": b"99999999999999999999:4294967296:0644:file",
    "largest ids": b"4294967295:4294967295:0644:file",
    "bad type": b"0:0:0644:door",
    "mode": b"0:0:077777777777777:file",
    "no octal": b"0:0:0999:file",
    "device": b"0:0:0644:char-99999999999999-99999999999999",
    "half a device": b"0:0:0644:block-1",
    "device without numbers": b"0:0:0644:char",
    "directory": b"0:0:0755:dir",
    "file": b"0:0:0644:file",
    "link": b"0:0:0777:symlink",
    "trailing": b"0:0:0644:file\n",
    "not ascii": "\u0660:\u0660:0644:file".encode(),
    "nul": b"0:0:0644:file\0",
    "long": b"0" * 2000,
}
TARGETS = {"empty": b"", "nul": b"a\0b", "longest": b"x" * 4095, "binary": bytes(range(1, 256))}
#: Sizes with which a file cannot stand for a symbolic link.
TOO_LONG = (4096, 1 << 40)


def test_override_stat(space: Space) -> None:
    """A malformed attribute counts as none: the real owner, mode and type are shown."""
    name = "user.containers.override_stat"
    os.setxattr(space.lower, name, b"0:0:0755:dir")
    for what, value in OVERRIDES.items():
        (space.lower / f"f {what}").write_bytes(b"target")
        (space.lower / f"d {what}").mkdir()
        (space.lower / f"d {what}" / "in").write_bytes(what.encode())
        for kind in ("f", "d"):
            os.setxattr(space.lower / f"{kind} {what}", name, value)
    for what, target in TARGETS.items():
        (space.lower / f"t {what}").write_bytes(target)
        os.setxattr(space.lower / f"t {what}", name, b"0:0:0777:symlink")
    for size in TOO_LONG:
        (space.lower / f"{size}").touch()
        os.truncate(space.lower / f"{size}", size)
        os.setxattr(space.lower / f"{size}", name, b"0:0:0777:symlink")
    mnt = space.mount()
    for _ in range(2):
        names = os.listdir(mnt)
        assert len(names) == 2 * len(OVERRIDES) + len(TARGETS) + len(TOO_LONG)
        for size in TOO_LONG:
            with fails(errno.EIO):
                os.readlink(mnt / f"{size}")
        for what in ("longest", "binary"):
            assert os.readlink(os.fsencode(mnt / f"t {what}")) == TARGETS[what]
        for what in OVERRIDES:
            assert (mnt / f"d {what}" / "in").read_bytes() == what.encode()
        for what in ("garbage", "empty", "negative", "huge ids", "bad type", "no octal", "device"):
            st = os.lstat(mnt / f"f {what}")
            assert stat.S_ISREG(st.st_mode), what
            assert (mnt / f"f {what}").read_bytes() == b"target"
        for entry_name in names:
            with contextlib.suppress(OSError):
                os.stat(mnt / entry_name)
                os.setxattr(mnt / entry_name, "user.x", b"y")
        space.remount()
    space.unmount()


@root_only
def test_more_attributes_than_can_be_listed(space: Space) -> None:
    """The object loses what cannot be read of it, but its directory can be listed."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", space.lower], check=True, timeout=30)
    try:
        for name in ("f", "d", "."):
            path = space.lower / name
            path.touch() if name == "f" else path.mkdir(exist_ok=True)
            for number in range(400):
                os.setxattr(path, "user." + f"{number:03}" * 80, b"")
        (space.lower / "d" / "in").touch()
        os.setxattr(space.lower, "trusted.overlay.opaque", b"x")
        (space.add_lower() / "below").touch()
        mnt = space.mount(read_only=True)
        assert sorted(os.listdir(mnt)) == ["below", "d", "f"]
        assert os.listdir(mnt / "d") == ["in"]
        assert os.stat(mnt / "f").st_size == 0
        with fails(errno.E2BIG):
            os.listxattr(mnt / "f")
        space.unmount()
    finally:
        space.drop()
        subprocess.run(["umount", "-l", space.lower], check=True, timeout=30)


@root_only
@pytest.mark.parametrize("value", [b"1" * 5000 + b":0:0:file", b"0:0:0644:char-1-" + b"1" * 5000])
@pytest.mark.parametrize("where", ["f", "."])
def test_override_stat_with_very_long_numbers(space: Space, value: bytes, where: str) -> None:
    """The object loses its owner, but its directory can be listed, and the mount succeeds."""
    # Only some filesystems have room for them.
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", space.lower], check=True, timeout=30)
    try:
        os.chmod(space.lower, 0o755)
        for name in ("f", "g"):
            (space.lower / name).write_bytes(b"x")
        os.setxattr(space.lower, "user.containers.override_stat", b"0:0:0755:dir")
        os.setxattr(space.lower / where, "user.containers.override_stat", value)
        mnt = space.mount(read_only=True)
        with os.scandir(mnt) as entries:
            assert sorted((e.name, e.stat().st_size) for e in entries) == [("f", 1), ("g", 1)]
        assert os.stat(mnt / "f").st_uid == 0
        space.unmount()
    finally:
        space.drop()
        subprocess.run(["umount", "-l", space.lower], check=True, timeout=30)


@pytest.mark.parametrize("value", [b"", b"y", b"garbage", b"\0" * 100])
def test_implied(space: Space, value: bytes) -> None:
    """The mark makes only the directory's own metadata irrelevant."""
    bottom = space.add_lower()
    for layer in (space.lower, bottom):
        (layer / "d").mkdir()
        (layer / "d" / layer.name).write_bytes(b"x")
        (layer / "f").write_bytes(layer.name.encode())
        for path in (layer, layer / "d", layer / "f"):
            os.setxattr(path, "user.fuseoverlay.implied", value)
    (space.lower / "alone").mkdir()
    os.setxattr(space.lower / "alone", "user.fuseoverlay.implied", value)
    space.kernel_reads = False
    with space.mounted() as mnt:
        assert sorted(os.listdir(mnt)) == ["alone", "d", "f"]
        assert sorted(os.listdir(mnt / "d")) == ["l0", "l1"]
        assert (mnt / "f").read_bytes() == b"l0"
        os.chmod(mnt / "d", 0o700)
        os.chmod(mnt / "alone", 0o700)
        assert stat.S_IMODE(os.stat(mnt / "d").st_mode) == 0o700


def test_odd_oci_names(space: Space) -> None:
    """`.wh.` without a name hides nothing; names that begin with `.wh..wh.` are never shown."""
    bottom = space.add_lower()
    for layer in (space.upper, space.lower, bottom):
        for name in (".wh.", ".wh..", ".wh...", ".wh..wh.", ".wh..wh.x", ".wh..wh..wh.x", ".wh.\n"):
            (layer / name).touch()
        (layer / f"keep {layer.name}").touch()
        (layer / ".wh.d").mkdir(exist_ok=True)
        (layer / "x").write_bytes(layer.name.encode())
    (bottom / "d").mkdir()
    (bottom / "d" / "inside").touch()
    space.kernel_reads = False
    with space.mounted() as mnt:
        shown = ["keep l0", "keep l1", "keep upper", "x"]
        assert [name for name in sorted(os.listdir(mnt)) if name in shown] == shown
        assert not [name for name in os.listdir(mnt) if name.startswith(".wh..wh.")]
        assert (mnt / "x").read_bytes() == b"upper"
        for name in os.listdir(mnt):
            os.lstat(mnt / name)


@root_only
def test_device_0_0_below_many_names(space: Space) -> None:
    """A device 0:0 is a whiteout, whatever its overlay attributes say."""
    bottom = space.add_lower()
    (bottom / "d").mkdir()
    make_whiteout(space.lower / "d")
    for what in ("opaque", "redirect", "origin", "metacopy", "whiteout"):
        set_overlay_xattr(space.lower / "d", what, b"y")
    with space.mounted() as mnt:
        assert os.listdir(mnt) == []
        os.mkdir(mnt / "d")
