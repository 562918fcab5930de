"""The directory of the store: taken over, refused, read-only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseoverlay.errors import StoreError
from fuseoverlay.oci.layout import LayoutWriter, Node, directory, layer_tar
from fuseoverlay.store.layers import unpacked
from fuseoverlay.store.root import VERSION, Store

BASE = layer_tar([directory("./"), Node("a", data=b"a")])
TOP = layer_tar([Node("b", data=b"b")])


def image(path: Path, *tars: bytes) -> str:
    """A layout of these layers; its path."""
    writer = LayoutWriter(path)
    writer.add_image([writer.add_layer(tar) for tar in tars])
    return str(path)


def test_a_new_store_is_a_layout(kept: Store) -> None:
    assert json.loads((kept.root / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert json.loads((kept.root / "index.json").read_bytes())["manifests"] == []
    assert (kept.root / "blobs/sha256").is_dir()
    assert (kept.root / "version").read_text() == f"{VERSION}\n"
    assert os.listdir(kept.tmp) == []


def test_a_store_of_layers_alone_is_taken_over(place: Path) -> None:
    """That is what earlier versions made."""
    store = Store(place / "store")
    first = unpacked(store, image(place / "l", BASE))
    for name in ("version", "oci-layout", "index.json", "lock"):
        (store.root / name).unlink()
    for name in ("blobs/sha256", "blobs", "partial"):
        (store.root / name).rmdir()
    inode = first[0].stat().st_ino
    assert unpacked(store, image(place / "l2", BASE)) == first
    assert first[0].stat().st_ino == inode
    test_a_new_store_is_a_layout(store)


def test_a_foreign_layout_is_completed(place: Path) -> None:
    LayoutWriter(place / "store")
    before = (place / "store/index.json").read_bytes()
    Store(place / "store").prepare()
    assert (place / "store/index.json").read_bytes() == before
    assert (place / "store/version").exists()


@pytest.mark.parametrize("text", [str(VERSION + 1), "999", "new", ""])
def test_a_newer_store_is_refused(kept: Store, text: str) -> None:
    (kept.root / "version").write_text(text)
    with pytest.raises(StoreError, match=r"is of version.*newer fuseoverlay") as caught:
        kept.prepare()
    assert str(kept.root) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def read_only(place: Path) -> Iterator[Store]:
    """A store with the layer BASE that cannot be written."""
    store = Store(place / "store")
    unpacked(store, image(place / "l", BASE))
    mounted = False
    if os.geteuid() == 0:
        subprocess.run(["mount", "--bind", store.root, store.root], check=True)
        mounted = True
        subprocess.run(["mount", "-o", "remount,bind,ro", store.root], check=True)
    else:
        store.root.chmod(0o500)
        store.tmp.chmod(0o500)
    yield store
    if mounted:
        subprocess.run(["umount", store.root], check=True)
    else:
        store.root.chmod(0o700)
        store.tmp.chmod(0o700)


def test_a_read_only_store_serves_what_it_holds(read_only: Store, place: Path) -> None:
    (layer,) = unpacked(read_only, image(place / "again", BASE))
    assert (layer / "a").read_bytes() == b"a"


def test_nothing_is_added_to_a_read_only_store(read_only: Store, place: Path) -> None:
    with pytest.raises(StoreError, match=r"Read-only|Permission denied"):
        unpacked(read_only, image(place / "more", BASE, TOP))


def test_writing_replaces_a_file_whole(kept: Store) -> None:
    with (kept.root / "index.json").open("rb") as old:
        kept.write("index.json", b"new")
        assert b"manifests" in old.read()
    assert (kept.root / "index.json").read_bytes() == b"new"
    assert os.listdir(kept.tmp) == []


def test_a_store_that_goes_away(kept: Store) -> None:
    """It is told as such."""
    shutil.rmtree(kept.root)
    assert not kept.is_writable()
    with pytest.raises(StoreError, match="No such file"), kept.workspace():
        pass
