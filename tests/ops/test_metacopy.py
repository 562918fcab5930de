"""`metacopy=on`: metadata is copied up first, data only when it changes; and data-only lowers."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.helpers.changes import exchange
from tests.helpers.dialects import WHITEOUTS
from tests.helpers.mounts import (
    MODE,
    Space,
    differs,
    fails,
    fuse_only,
    root_only,
    set_overlay_xattr,
    unmount,
)

pytestmark = [fuse_only]

DATA = os.urandom(300_000)
FEATURES = ("metacopy=on", "redirect_dir=on")


def blocks(path: os.PathLike) -> int:
    """Bytes on the disk, without a block of attributes."""
    return max(0, os.lstat(path).st_blocks * 512 - 4096)


CHANGES = {
    "chmod": lambda path: os.chmod(path, 0o600),
    "utime": lambda path: os.utime(path, ns=(1, 2)),
    "setxattr": lambda path: os.setxattr(path, "user.x", b"y"),
    "link": lambda path: os.link(path, path.with_name("second")),
    "rename": lambda path: os.rename(path, path.with_name("renamed")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_data_is_copied(space: Space, change: str) -> None:
    space.features = FEATURES
    (space.lower / "f").write_bytes(DATA)
    name = "renamed" if change == "rename" else "f"
    with space.mounted() as mnt:
        CHANGES[change](mnt / "f")
        assert blocks(space.upper / name) == 0
        assert (mnt / name).read_bytes() == DATA
        assert blocks(mnt / name) > 0
    with space.mounted() as mnt:
        assert (mnt / name).read_bytes() == DATA


@pytest.mark.parametrize("remount", [False, True])
def test_first_write_brings_the_data(space: Space, remount: bool) -> None:
    space.features = FEATURES
    (space.lower / "f").write_bytes(DATA)
    mnt = space.mount()
    os.chmod(mnt / "f", 0o600)
    if remount:
        space.unmount()
        space.mount()
    with open(mnt / "f", "r+b") as stream:
        stream.seek(5)
        stream.write(b"changed")
    expected = DATA[:5] + b"changed" + DATA[12:]
    assert (mnt / "f").read_bytes() == expected
    assert (space.upper / "f").read_bytes() == expected
    assert not [n for n in os.listxattr(space.upper / "f") if n.endswith("overlay.metacopy")]
    space.unmount()


def test_truncation_copies_what_is_left(space: Space) -> None:
    space.features = FEATURES
    (space.lower / "f").write_bytes(DATA)
    with space.mounted() as mnt:
        os.chmod(mnt / "f", 0o600)
        os.truncate(mnt / "f", 7)
        assert (mnt / "f").read_bytes() == (space.upper / "f").read_bytes() == DATA[:7]


def _make_metacopy(path: Path, where: bytes) -> None:
    """A metacopy file whose `DATA` is at the path `where`."""
    with open(path, "wb") as stream:
        stream.truncate(len(DATA))
    set_overlay_xattr(path, "metacopy", b"")
    set_overlay_xattr(path, "redirect", where)


def test_refused_unless_asked_for(space: Space) -> None:
    """Otherwise somebody who can write to a layer could expose what others may not read."""
    bottom = space.add_lower()
    (bottom / "secret").write_bytes(DATA)
    _make_metacopy(space.lower / "bait", b"/secret")
    mnt = space.mount()
    with fails(errno.EPERM):
        os.stat(mnt / "bait")
    assert (mnt / "secret").read_bytes() == DATA
    space.unmount()


@pytest.mark.parametrize(
    ("where", "code"), [(b"/nowhere", errno.EIO), (b"/../f", errno.EACCES), (b"/d", errno.EIO)]
)
def test_data_that_is_nowhere(space: Space, where: bytes, code: int) -> None:
    """The errors are the kernel's; no other file's content is shown."""
    space.features = ("metacopy=on",)
    bottom = space.add_lower()
    (bottom / "d").mkdir()
    (bottom / "f").write_bytes(DATA)
    (space.lower / "f").write_bytes(b"\0" * 100)
    set_overlay_xattr(space.lower / "f", "metacopy", b"")
    set_overlay_xattr(space.lower / "f", "redirect", where)
    mnt = space.mount()
    with fails(code):
        (mnt / "f").read_bytes()
    space.unmount()


@pytest.mark.parametrize("hide", WHITEOUTS)
def test_data_behind_a_whiteout(space: Space, hide: str) -> None:
    """In every dialect, as in the kernel: the data is missing, and a whiteout is no empty file."""
    space.features = ("metacopy=on",)
    middle, bottom = space.add_lower(), space.add_lower()
    (bottom / "x").write_bytes(DATA)
    WHITEOUTS[hide](middle / "x")
    _make_metacopy(space.lower / "f", b"/x")
    mnt = space.mount()
    with fails(errno.EIO):
        (mnt / "f").read_bytes()
    space.unmount()


@differs("daemon")
def test_data_only_lower(space: Space) -> None:
    """It is not merged, and holds the data of metacopy files of the layers above."""
    data = space.base / "data"
    (data / "x").mkdir(parents=True)
    (data / "x" / "blob").write_bytes(DATA)
    _make_metacopy(space.lower / "f", b"/x/blob")
    space.features = ("metacopy=on",)
    space.extra = (f"datadir+={data}",)
    space.kernel_reads = False
    with space.mounted() as mnt:
        assert os.listdir(mnt) == ["f"]
        assert (mnt / "f").read_bytes() == DATA
        with open(mnt / "f", "ab") as stream:
            stream.write(b"more")
        assert (mnt / "f").read_bytes() == DATA + b"more"
    assert (data / "x" / "blob").read_bytes() == DATA


@pytest.mark.parametrize("index", ["on", "off"])
@pytest.mark.parametrize("change", ["replaced", "removed", "exchanged back"])
def test_data_of_another_file(space: Space, index: str, change: str) -> None:
    """It is refused. Otherwise a user who may write to a directory of a lower could put a file
    there and read it with the owner and mode of the copy of their own file."""
    space.features = (*FEATURES, f"index={index}")
    for name in ("mine", "secret"):
        (space.lower / name).write_bytes(name.encode())
    os.chmod(space.mount() / "mine", 0o604)
    os.rename(space.lower / "mine", space.lower / "old")
    os.rename(space.lower / "secret", space.lower / "mine")
    if change == "removed":
        os.unlink(space.lower / "old")
    if change == "exchanged back":
        os.rename(space.lower / "mine", space.lower / "secret")
        os.rename(space.lower / "old", space.lower / "mine")
    space.unmount()
    for impl in ("fuse", "kernel")[: 1 + (MODE == "root")]:
        mnt = space.mount(impl=impl)
        # If the original is gone the kernel compares nothing.
        compared = change == "replaced" or (change == "removed" and impl == "fuse")
        if compared and index == "on":
            for _ in range(2):
                with fails(errno.ESTALE):
                    (mnt / "mine").read_bytes()
            if space.daemon is not None:
                assert space.daemon.text().count("mine: refused") == 1
        else:
            expected = b"mine" if change == "exchanged back" else b"secret"
            # Of a size that the other does not have, see `test_data_that_is_nowhere`.
            assert (mnt / "mine").read_bytes()[:4] == expected[:4]
        space.unmount()


def test_layers_that_were_copied(space: Space) -> None:
    """For a metacopy file of a lower only the path counts, as in the kernel: layers may be copied,
    and then its data is another file."""
    space.features = (*FEATURES, "index=on")
    (space.lower / "f").write_bytes(DATA)
    os.chmod(space.mount() / "f", 0o604)
    space.unmount()
    space.stack()
    bottom = space.lowers[1]
    (bottom / "f").rename(bottom / "old")
    (bottom / "f").write_bytes(DATA[::-1])
    for impl in ("fuse", "kernel")[: 1 + (MODE == "root")]:
        mnt = space.mount(impl=impl)
        assert (mnt / "f").read_bytes() == DATA[::-1]
        space.unmount()


#: What is done with the copy at `dir/sub/f`, and where its data is shown afterwards.
MOVES = {
    "rename": (lambda mnt: os.rename(mnt / "dir/sub/f", mnt / "g"), "g"),
    "rename in its directory": (
        lambda mnt: os.rename(mnt / "dir/sub/f", mnt / "dir/sub/g"),
        "dir/sub/g",
    ),
    "over another": (lambda mnt: os.rename(mnt / "dir/sub/f", mnt / "dir/sub/k"), "dir/sub/k"),
    "to a lower name": (lambda mnt: os.rename(mnt / "dir/sub/f", mnt / "taken"), "taken"),
    "exchange": (lambda mnt: exchange(mnt / "dir/sub/f", mnt / "taken"), "taken"),
    "link": (lambda mnt: os.link(mnt / "dir/sub/f", mnt / "g"), "g"),
    "with its directory, then out": (
        lambda mnt: (
            os.rename(mnt / "dir/sub", mnt / "moved"),
            os.rename(mnt / "moved/f", mnt / "g"),
        ),
        "g",
    ),
}


#: A copy that was renamed within its directory needs no other redirect there.
BEFORE = [
    (move, before)
    for move in MOVES
    for before in ("in place", "renamed by the kernel")
    if before == "in place" or move != "rename in its directory"
]


@root_only
@pytest.mark.parametrize(("move", "before"), BEFORE)
def test_the_kernels_copies_keep_their_data(space: Space, move: str, before: str) -> None:
    """A metacopy made by the kernel has no absolute redirect while it is in its place or directory:
    a move has to set one."""
    space.features = FEATURES
    bottom = space.add_lower()
    (bottom / "dir/sub").mkdir(parents=True)
    (bottom / "dir/sub" / ("f" if before == "in place" else "first")).write_bytes(DATA)
    (bottom / "dir/sub/k").write_bytes(b"another")
    (space.lower / "taken").write_bytes(b"of another")
    mnt = space.mount(impl="kernel")
    if before != "in place":
        os.chown(mnt / "dir/sub/first", 7, 8)
        os.rename(mnt / "dir/sub/first", mnt / "dir/sub/f")
    os.chown(mnt / "dir/sub/f", 7, 8)
    unmount(mnt)
    change, name = MOVES[move]
    with space.mounted() as mnt:
        change(mnt)
        assert (mnt / name).read_bytes() == DATA
    assert blocks(space.upper / name) == 0
    for impl in ("fuse", "kernel"):
        mnt = space.mount(impl=impl)
        assert (mnt / name).read_bytes() == DATA
        assert (mnt / name).stat().st_uid == 7
        (unmount(mnt) if impl == "kernel" else space.unmount())
