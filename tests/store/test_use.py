"""Layers in use are locked: by whoever unpacks and mounts them, as long as they are mounted."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fuseoverlay.oci.layout import LayoutWriter, Node, layer_tar
from fuseoverlay.store import places
from fuseoverlay.store.layers import opened, unpacked
from fuseoverlay.store.root import Store
from tests.helpers.mounts import unmount, wait_for

TARS = [layer_tar([Node(name, data=b"x")]) for name in ("a", "b")]


@pytest.fixture
def image(place: Path) -> str:
    writer = LayoutWriter(place / "image")
    writer.add_image([writer.add_layer(tar) for tar in TARS])
    return str(place / "image")


def used(store: Store) -> list[bool]:
    """Whether each unpacked layer is in use."""
    return [places.is_used(path) for path in places.unpacked(store)]


def test_layers_are_held_as_asked(kept: Store, image: str) -> None:
    with contextlib.ExitStack() as held:
        with opened(kept, image) as found:
            found.layers(held)
        assert used(kept) == [True, True]
    assert used(kept) == [False, False]
    unpacked(kept, image)
    assert used(kept) == [False, False]


def test_a_held_layer_cannot_be_taken(kept: Store, image: str) -> None:
    (path, _) = unpacked(kept, image)
    fd = places.hold(path)
    assert fd is not None
    with places.taken(path) as free:
        assert not free
    os.close(fd)
    with places.taken(path) as free:
        assert free


def test_a_layer_that_goes_meanwhile_is_unpacked_again(
    kept: Store, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = Store.publish
    stolen: list[Path] = []

    def steal(store: Store, made: Path, target: Path) -> None:
        publish(store, made, target)
        if not stolen:
            stolen.append(target)
            shutil.rmtree(target)

    monkeypatch.setattr(Store, "publish", steal)
    layers = unpacked(kept, image)
    assert stolen
    assert all(layer.is_dir() for layer in layers)


def test_what_is_not_there_is_neither_held_nor_used(kept: Store) -> None:
    path = kept.root / "layers/sha256/x"
    assert places.hold(path) is None
    with places.taken(path) as free:
        assert not free
    assert not places.is_used(path)


@pytest.mark.parametrize("options", [[], ["-f"]], ids=["background", "foreground"])
def test_a_mount_holds_its_layers(place: Path, image: str, options: list[str]) -> None:
    """Also a daemon in the background, after its parent has ended."""
    store = Store(place / "data/fuseoverlay")
    store.prepare()
    mnt = place / "mnt"
    mnt.mkdir()
    command = [sys.executable, "-m", "fuseoverlay", "mount", *options, image, str(mnt)]
    daemon = subprocess.Popen(command, env={**os.environ, "XDG_DATA_HOME": str(place / "data")})
    try:
        if options:
            wait_for((mnt / "a").exists, 30, "mounting")
        else:
            assert daemon.wait(30) == 0
        assert (mnt / "a").read_bytes() == b"x"
        assert used(store) == [True, True]
    finally:
        unmount(mnt)
        daemon.wait(30)
    # The daemon of the background ends a moment later.
    wait_for(lambda: not any(used(store)), 10, "the end of the daemon")
    assert [path.is_dir() for path in places.unpacked(store)] == [True, True]
