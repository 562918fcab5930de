"""A process that is killed at any point leaves no half blob, layer or entry.

A scenario is repeated with the process killed before its first, second, third ... call that writes,
until it completes. (The short run takes every eleventh of these calls.) After each kill everything
that is at its place must be whole, and what was completed before must be there. Then the scenario
is run again in the same store, and must end as if nothing had happened.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fuseoverlay.oci.model import Digest
from fuseoverlay.store import places
from fuseoverlay.store.content import Content
from fuseoverlay.store.images import Images
from fuseoverlay.store.layers import stored
from fuseoverlay.store.load import load
from fuseoverlay.store.names import Names
from fuseoverlay.store.reach import reach
from fuseoverlay.store.root import Store
from tests.store.pictures import OTHER, Painter

PROJECT = Path(__file__).resolve().parents[2]
STEP = 1 if os.environ.get("FUSEOVERLAY_LONG") else 11

SCENARIO = """
import builtins, os, signal, sys
from fuseoverlay.oci.model import Descriptor, Digest
from fuseoverlay.store.content import Content
from fuseoverlay.store.garbage import prune, remove
from fuseoverlay.store.images import Images
from fuseoverlay.store.layers import stored
from fuseoverlay.store.load import load
from fuseoverlay.store.root import Store
from fuseoverlay.system import syscalls

left, root, first, second = int(sys.argv[1]), *sys.argv[2:]

def deadly(function, writes=lambda *args, **kwargs: True):
    def wrapper(*args, **kwargs):
        global left
        if writes(*args, **kwargs):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapper

for name in ("chmod chown copy_file_range fchmod fsync ftruncate link mkdir mknod pwrite rename"
             " rmdir setxattr symlink unlink utime").split():
    setattr(os, name, deadly(getattr(os, name)))
os.open = deadly(os.open, lambda path, flags, *args, **kwargs: flags & os.O_CREAT)
builtins.open = deadly(open, lambda path, mode="r", *args, **kwargs: "x" in mode)
syscalls.renameat2 = deadly(syscalls.renameat2)
syscalls.syncfs = deadly(syscalls.syncfs)

store = Store(root)
images = Images(store)
load(store, first)
print("first", flush=True)
with stored(store, images.resolve("debian").manifest, "debian") as found:
    found.layers()
print("unpacked", flush=True)
blob = Descriptor("x", Digest.of(b"12345"), 5)
with images.content.partial(blob) as partial:
    if partial is not None:
        partial.write(b"123"[partial.offset:])
print("partial", flush=True)
images.tag("debian", "mine")
print("tagged", flush=True)
load(store, second)
print("second", flush=True)
remove(images, "mine")
print("removed", flush=True)
prune(images)
print("pruned", flush=True)
"""
ORDER = ["first", "unpacked", "partial", "tagged", "second", "removed", "pruned"]
DEBIAN, MINE = "docker.io/library/debian:latest", "docker.io/library/mine:latest"


def run(left: int, root: Path, sources: list[Path]) -> tuple[bool, list[str]]:
    """Run the scenario; whether it completed, and the steps that did."""
    done = subprocess.run(
        [sys.executable, "-c", SCENARIO, str(left), root, *sources],
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL)
    return done.returncode == 0, done.stdout.split()


def state(root: Path) -> dict[str, str]:
    """All that is in the store but the order of the index, with the content of files."""
    found = {
        str(path.relative_to(root)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "directory"
        )
        for path in sorted(root.rglob("*"))
        if path.name not in ("index.json", "lock")
    }
    entries = [(entry.name, entry.descriptor.digest) for entry in Names(Store(root)).entries()]
    return {**found, "index.json": str(sorted(entries, key=str))}


def check(root: Path, whole: dict[str, str], steps: list[str]) -> None:
    """Check what a kill left after `steps`. `whole`: how any file of a layer looks."""
    store = Store(root)
    content = Content(store)
    if not root.exists():
        assert not steps
        return
    for digest, _ in content.blobs():
        assert Digest.of(content.path(digest).read_bytes()) == digest
    layers = places.unpacked(store)
    for layer in layers:
        place = str(layer.relative_to(root))
        expected = {name: value for name, value in whole.items() if name.startswith(f"{place}/")}
        assert expected
        found = state(root)
        assert {name: found[name] for name in found if name.startswith(f"{place}/")} == expected
    index = root / "index.json"
    if index.exists():
        assert json.loads(index.read_bytes())["manifests"] is not None
    entries = Names(store).entries()
    for entry in entries:
        needed = reach(content, [entry.descriptor])
        assert not needed.unreadable
        assert all(content.size(digest) is not None for digest in needed.blobs)
    names = {entry.name for entry in entries}
    assert (DEBIAN in names) >= ("first" in steps)
    assert not ("tagged" in steps and "second" not in steps) or MINE in names
    assert "removed" not in steps or MINE not in names
    if steps[-1:] in (["unpacked"], ["partial"], ["tagged"]):
        assert len(layers) == 2
    if steps[-1:] in (["partial"], ["tagged"], ["second"]):
        assert (Digest.of(b"12345"), 3) in content.partials()


@pytest.mark.timeout(600 if STEP == 1 else 120)
def test_kills(place: Path) -> None:
    sources = [place / "first", place / "second"]
    for path in sources:
        painter = Painter(path)
        ours = painter.manifest("a", path.name)
        painter.name(painter.index(ours, painter.manifest("s", platform=OTHER)), "debian:latest")
    completed, steps = run(0, place / "reference", sources)
    assert completed
    assert steps == ORDER
    final = state(place / "reference")
    images = Images(Store(place / "whole"))
    for path in sources:
        load(images.store, str(path))
        with stored(images.store, images.resolve("debian").manifest, "debian") as found:
            found.layers()
    whole = state(place / "whole")
    number = 1
    while True:
        root = place / f"store{number}"
        completed, steps = run(number, root, sources)
        assert steps == ORDER[: len(steps)]
        check(root, whole, steps)
        if completed:
            break
        assert run(0, root, sources) == (True, ORDER)
        assert state(root) == final
        number += STEP
    assert number > 200
