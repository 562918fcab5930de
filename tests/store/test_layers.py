"""The store holds whole layers or none, whatever happens."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fuseoverlay.errors import DigestError, FuseOverlayError, ImageError, StoreError
from fuseoverlay.oci import metadata, unpack
from fuseoverlay.oci.layout import LayoutWriter, Node, directory, layer_tar, symlink
from fuseoverlay.store import root as rooted
from fuseoverlay.store.layers import Progress, unpacked
from fuseoverlay.store.root import Store, default_root
from tests.oci.conftest import WAYS
from tests.oci.helpers import implied, is_whiteout, names, see

OVERRIDE = WAYS == ["override"]
PROJECT = Path(__file__).resolve().parents[2]


def image(path: Path, *tars: bytes, compression: str | None = None) -> str:
    """A layout of these layers, bottom first; its path."""
    writer = LayoutWriter(path)
    writer.add_image([writer.add_layer(tar, compression) for tar in tars], ref="x")
    return str(path)


def published(root: Path) -> list[Path]:
    """All layers in the store."""
    return sorted(path for path in root.glob("layers*/*/*"))


def assert_clean(root: Path) -> None:
    """Check that nothing is half-unpacked: `tmp` is empty."""
    assert not (root / "tmp").exists() or os.listdir(root / "tmp") == []


@pytest.fixture
def kept(place: Path) -> Store:
    return Store(place / "store")


BASE = layer_tar([directory("./"), Node("a", data=b"a"), Node("d/b", uid=5)])
TOP = layer_tar([Node(".wh.a"), Node("d/c")])


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_layers(kept: Store, place: Path, compression: str | None) -> None:
    name = image(place / "l", BASE, TOP, compression=compression)
    top, base = unpacked(kept, f"{name}:x")
    assert (base / "a").read_bytes() == b"a"
    assert is_whiteout(top / "a")
    assert see(base / "d/b", OVERRIDE).uid == 5
    assert top.is_relative_to(kept.root / ("layers-override" if OVERRIDE else "layers"))
    assert_clean(kept.root)


def test_layers_are_unpacked_once(kept: Store, place: Path) -> None:
    name = image(place / "l", BASE, TOP)
    first = unpacked(kept, name)
    inodes = [path.stat().st_ino for path in first]
    for blob in (place / "l/blobs/sha256").iterdir():
        if blob.read_bytes() in (BASE, TOP):
            blob.write_bytes(bytes(len(blob.read_bytes())))
    reports: list[Progress] = []
    assert unpacked(kept, name, progress=reports.append) == first
    assert [path.stat().st_ino for path in first] == inodes
    assert not reports


def test_images_share_layers(kept: Store, place: Path) -> None:
    one = unpacked(kept, image(place / "1", BASE, TOP))
    two = unpacked(kept, image(place / "2", BASE, compression="zstd"))
    assert one[1] == two[0]
    assert len(published(kept.root)) == 2


def test_both_ways_in_one_store(kept: Store, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = image(place / "l", BASE)
    first = unpacked(kept, name)
    monkeypatch.setattr(metadata, "can_own", lambda fd: False)
    second = unpacked(kept, name)
    assert see(second[0] / "d/b", True).uid == 5
    assert (first == second) == OVERRIDE


def test_progress(kept: Store, place: Path) -> None:
    reports: list[Progress] = []
    unpacked(kept, image(place / "l", BASE, TOP), progress=reports.append)
    total, top = len(BASE) + len(TOP), reports[-1].blob
    assert reports[0] == Progress(1, 2, 0, total, reports[0].blob)
    assert reports[-1] == Progress(2, 2, total, total, top, len(TOP), complete=True)
    assert [report.layer for report in reports if report.complete] == [1, 2]
    assert [report.done for report in reports] == sorted(report.done for report in reports)


def test_warnings(kept: Store, place: Path) -> None:
    lines: list[str] = []
    tar = layer_tar([Node("f", xattrs={"user.overlay.x": b"1"}), Node("g")])
    unpacked(kept, image(place / "l", tar), warn=lines.append)
    assert len(lines) == 1
    assert "user.overlay.x" in lines[0]


def test_no_layers(kept: Store, place: Path) -> None:
    (layer,) = unpacked(kept, image(place / "l"))
    assert names(layer) == set()
    assert unpacked(kept, image(place / "l")) == [layer]


def test_the_same_layer_twice(kept: Store, place: Path) -> None:
    again = layer_tar([Node("a", data=b"again")])
    layers = unpacked(kept, image(place / "l", BASE, again, BASE))
    assert len(layers) == 2
    assert (layers[0] / "d/b").exists()
    assert (layers[1] / "a").read_bytes() == b"again"


def test_empty_layers_twice(kept: Store, place: Path) -> None:
    assert len(unpacked(kept, image(place / "l", bytes(1024), BASE, bytes(1024)))) == 2


def test_a_link_to_a_lower_layer(kept: Store, place: Path) -> None:
    """The same layer above other layers is a different directory."""
    link = layer_tar([Node("l", hardlink="a")])
    other = layer_tar([Node("a", data=b"other")])
    one = unpacked(kept, image(place / "1", BASE, link))
    two = unpacked(kept, image(place / "2", other, link))
    assert (one[0] / "l").read_bytes() == b"a"
    assert (two[0] / "l").read_bytes() == b"other"
    assert unpacked(kept, str(place / "1")) == one
    assert len(published(kept.root)) == 4


def test_a_link_to_nothing_leaves_what_is_below(kept: Store, place: Path) -> None:
    with pytest.raises(ImageError, match=r"l.*hard link to nowhere"):
        unpacked(kept, image(place / "l", BASE, layer_tar([Node("l", hardlink="nowhere")])))
    assert len(published(kept.root)) == 1
    assert_clean(kept.root)


# bad images


EVIL = {
    "dotdot": layer_tar([Node("fine"), Node("../x")]),
    "absolute dotdot": layer_tar([Node("fine"), Node("/a/../../x")]),
    "link to itself": layer_tar([symlink("l", "l"), Node("l/x")]),
    "hard link out": layer_tar([Node("l", hardlink="../../x")]),
    "whiteout of dot": layer_tar([Node(".wh..")]),
    "whiteout of dotdot": layer_tar([Node("d/.wh...")]),
    "rubbish": b"rubbish" * 1000,
    "cut": BASE[:700],
}


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_evil_layers(kept: Store, place: Path, evil: str, compression: str | None) -> None:
    name = image(place / "l", BASE, EVIL[evil], compression=compression)
    with pytest.raises(ImageError) as caught:
        unpacked(kept, name)
    assert "\n" not in str(caught.value)
    assert len(published(kept.root)) == 1
    assert_clean(kept.root)
    # The same below a good layer: nothing above it is there either.
    with pytest.raises(ImageError):
        unpacked(kept, image(place / "m", EVIL[evil], TOP, compression=compression))
    assert len(published(kept.root)) == 1


def damage(path: Path, change: Any) -> None:
    """Change the largest blob."""
    blob = max((path / "blobs/sha256").iterdir(), key=lambda item: item.stat().st_size)
    blob.write_bytes(change(blob.read_bytes()))


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
@pytest.mark.parametrize("at", [3, 300, -1])
def test_damaged_blob(kept: Store, place: Path, compression: str | None, at: int) -> None:
    """The error is the wrong digest, whatever the decompressor or tar failed on."""
    data = os.urandom(200_000)
    name = image(place / "l", layer_tar([Node("f", data=data)]), compression=compression)

    def flip(blob: bytes) -> bytes:
        changed = bytearray(blob)
        changed[at] ^= 0x55
        return bytes(changed)

    damage(place / "l", flip)
    with pytest.raises(DigestError):
        unpacked(kept, name)
    assert not published(kept.root)
    assert_clean(kept.root)


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_cut_blob(kept: Store, place: Path, compression: str | None) -> None:
    data = os.urandom(200_000)
    name = image(place / "l", layer_tar([Node("f", data=data)]), compression=compression)
    damage(place / "l", lambda blob: blob[:-5000])
    with pytest.raises(ImageError, match="cut short, 5000 bytes are missing"):
        unpacked(kept, name)
    assert not published(kept.root)
    assert_clean(kept.root)


def test_wrong_diff_id(kept: Store, place: Path) -> None:
    writer = LayoutWriter(place / "l")
    layer, other = writer.add_layer(BASE), writer.add_layer(TOP)
    swapped = type(layer)(layer.descriptor, other.diff_id)
    writer.add_image([swapped])
    with pytest.raises(DigestError, match="image config says"):
        unpacked(kept, str(place / "l"))
    assert not published(kept.root)
    assert_clean(kept.root)


def test_missing_image_and_bad_platform(kept: Store, place: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        unpacked(kept, str(place / "missing"))
    with pytest.raises(ImageError, match="not a platform"):
        unpacked(kept, image(place / "l", BASE), platform="a/b/c/d")


# trouble while unpacking


@pytest.mark.parametrize(
    "trouble", [KeyboardInterrupt(), SystemExit(), MemoryError(), OSError(errno.ENOSPC, "full")]
)
def test_interruptions(
    kept: Store, place: Path, monkeypatch: pytest.MonkeyPatch, trouble: BaseException
) -> None:
    name = image(place / "l", BASE)

    def stop(self: object) -> None:
        raise trouble

    monkeypatch.setattr(unpack.Layer, "finish", stop)
    expected = {OSError: StoreError, MemoryError: ImageError}.get(type(trouble), type(trouble))
    with pytest.raises(expected):
        unpacked(kept, name)
    assert not published(kept.root)
    assert_clean(kept.root)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_store_errors_say_where(
    kept: Store, place: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(rooted.syscalls, "syncfs", fail)
    with pytest.raises(StoreError) as caught:
        unpacked(kept, image(place / "l", BASE))
    assert os.strerror(number) in str(caught.value)
    assert str(kept.root) in str(caught.value)
    assert not published(kept.root)
    assert_clean(kept.root)


def test_full_disk(small: Path, place: Path) -> None:
    kept = Store(small / "store")
    big = layer_tar([Node("d/ok", data=b"x"), Node("big", data=os.urandom(8 << 20))])
    unpacked(kept, image(place / "l", BASE))
    before = published(kept.root)
    with pytest.raises(StoreError, match=r"cannot unpack big: No space left.*make room"):
        unpacked(kept, image(place / "m", BASE, big))
    assert published(kept.root) == before
    assert_clean(kept.root)
    assert shutil.disk_usage(small).free > 3 << 20


def test_no_inodes_left(place: Path, small: Path) -> None:
    if subprocess.run(["mount", "-o", "remount,nr_inodes=100", small]).returncode:
        pytest.skip("no remount here")
    kept = Store(small / "store")
    many = layer_tar([Node(f"d{number}/f") for number in range(100)])
    with pytest.raises(StoreError, match="No space left"):
        unpacked(kept, image(place / "l", many))
    assert_clean(kept.root)


def test_unusable_store(place: Path) -> None:
    name = image(place / "l", BASE)
    (place / "file").write_text("")
    with pytest.raises(StoreError, match="Not a directory"):
        unpacked(Store(place / "file/store"), name)
    if os.geteuid() == 0:
        return
    (place / "closed").mkdir(mode=0o500)
    with pytest.raises(StoreError, match=r"Permission denied.*FUSEOVERLAY_ROOT"):
        unpacked(Store(place / "closed/store"), name)
    unreadable = Store(place / "again")
    unpacked(unreadable, name)
    unreadable.root.chmod(0)
    with pytest.raises(StoreError, match="Permission denied"):
        unpacked(unreadable, name)
    unreadable.root.chmod(0o700)


# processes


SLOW = """
import sys, time
from fuseoverlay.oci import unpack
from fuseoverlay.store.layers import unpacked
from fuseoverlay.store.root import Store
finish = unpack.Layer.finish
def slow(self):
    finish(self)
    print("here", flush=True)
    time.sleep(float(sys.argv[3]))
unpack.Layer.finish = slow
print(unpacked(Store(sys.argv[1]), sys.argv[2]), flush=True)
"""


def slowly(root: Path, name: str, seconds: float) -> subprocess.Popen[str]:
    """Start a process that unpacks and waits before it publishes; it waits when this returns."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, root, name, str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    return process


def test_junk_of_the_dead_goes(kept: Store, place: Path) -> None:
    closed = layer_tar([directory("d", 0), Node("d/e/f"), directory("d/e", 0)])
    name = image(place / "l", closed)
    process = slowly(kept.root, name, 60)
    assert len(os.listdir(kept.root / "tmp")) == 1
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(os.listdir(kept.root / "tmp")) == 1
    unpacked(kept, name)
    assert_clean(kept.root)


def test_the_living_keep_theirs_and_both_succeed(kept: Store, place: Path) -> None:
    name = image(place / "l", BASE)
    process = slowly(kept.root, name, 1)
    ours = unpacked(kept, name)
    inode = ours[0].stat().st_ino
    assert len(os.listdir(kept.root / "tmp")) == 1
    output, _ = process.communicate()
    assert process.returncode == 0
    assert str(ours[0]) in output
    assert ours[0].stat().st_ino == inode
    assert_clean(kept.root)


def test_many_at_once(kept: Store, place: Path) -> None:
    name = image(place / "l", BASE, TOP, bytes(1024))
    results: list[object] = []

    def run() -> None:
        try:
            results.append(tuple(unpacked(kept, name)))
        except FuseOverlayError as exc:
            results.append(exc)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(results)) == 1, results
    assert_clean(kept.root)


def test_terminated(kept: Store, place: Path) -> None:
    """SIGTERM raises an exception, as on the command line."""
    name = image(place / "l", BASE)
    code = textwrap.dedent("""
        import signal, sys
        def stop(*_):
            raise SystemExit(1)
        signal.signal(signal.SIGTERM, stop)
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", code + SLOW, kept.root, name, "60"],
        stdout=subprocess.PIPE,
        cwd=PROJECT,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.terminate()
    process.communicate()
    assert process.returncode == 1
    assert not published(kept.root)
    assert_clean(kept.root)


def test_without_noreplace(kept: Store, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(rooted.syscalls, "renameat2", refuse)
    name = image(place / "l", BASE)
    layers = unpacked(kept, name)
    with kept.workspace() as work:
        (work / "other").mkdir()
        kept.publish(work / "other", layers[0])
    assert (layers[0] / "a").exists()


def test_the_store_is_private(kept: Store, place: Path) -> None:
    """Set-user-id files of an image are not for other users of the machine."""
    unpacked(kept, image(place / "l", BASE))
    assert kept.root.stat().st_mode & 0o777 == 0o700


def test_default_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEOVERLAY_ROOT", "/images")
    assert default_root() == Path("/images")
    monkeypatch.setenv("FUSEOVERLAY_ROOT", "")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_root() == Path("/data/fuseoverlay")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_DATA_HOME", value)
        monkeypatch.setenv("HOME", "/h")
        assert default_root() == Path("/h/.local/share/fuseoverlay")


def test_implied_root_of_an_image(kept: Store, place: Path) -> None:
    top, base = unpacked(kept, image(place / "l", BASE, TOP))
    assert implied(top)
    assert implied(base / "d")


def test_speed_of_many_files(kept: Store, place: Path) -> None:
    """Ten thousand files take seconds, not minutes; the limit is far from tight."""
    tar = layer_tar([Node(f"d{n % 100}/f{n}", data=b"x" * 500, uid=n) for n in range(10_000)])
    name = image(place / "l", tar, compression="gzip")
    start = time.monotonic()
    unpacked(kept, name)
    assert time.monotonic() - start < 60
