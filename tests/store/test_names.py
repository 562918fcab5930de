"""Names of images change whole or not at all, and those of others are kept."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fuseoverlay.errors import ImageError, StoreError
from fuseoverlay.oci.layout import LayoutWriter, Node, layer_tar
from fuseoverlay.oci.model import OCI_MANIFEST, REF_NAME, Descriptor, Digest, Platform
from fuseoverlay.store.names import Names, repository_of
from fuseoverlay.store.root import Store

PROJECT = Path(__file__).resolve().parents[2]
DEBIAN = "docker.io/library/debian:12"


def image(text: str) -> Descriptor:
    """The descriptor of a manifest."""
    return Descriptor(OCI_MANIFEST, Digest.of(text.encode()), 10)


ONE, TWO = image("1"), image("2")


@pytest.fixture
def names(kept: Store) -> Names:
    return Names(kept)


def put(names: Names, name: str, descriptor: Descriptor) -> Digest | None:
    """Name an image."""
    with names.editing() as index:
        return index.set(name, descriptor)


def listed(names: Names) -> list[tuple[str | None, Digest]]:
    """Names and digests."""
    return [(entry.name, entry.descriptor.digest) for entry in names.entries()]


def written(store: Store) -> Any:
    return json.loads((store.root / "index.json").read_bytes())


def test_a_name(kept: Store, names: Names) -> None:
    assert names.entries() == []
    assert put(names, DEBIAN, ONE) is None
    assert listed(names) == [(DEBIAN, ONE.digest)]
    assert written(kept)["manifests"] == [
        {
            "mediaType": OCI_MANIFEST,
            "digest": str(ONE.digest),
            "size": 10,
            "annotations": {REF_NAME: DEBIAN},
        }
    ]
    assert os.listdir(kept.tmp) == []


def test_the_same_again_writes_nothing(kept: Store, names: Names) -> None:
    put(names, DEBIAN, ONE)
    inode = (kept.root / "index.json").stat().st_ino
    assert put(names, DEBIAN, ONE) == ONE.digest
    assert (kept.root / "index.json").stat().st_ino == inode


def test_a_name_that_moves_leaves_a_dangling_image(names: Names) -> None:
    put(names, DEBIAN, ONE)
    assert put(names, DEBIAN, TWO) == ONE.digest
    assert sorted(listed(names), key=str) == sorted(
        [(None, ONE.digest), (DEBIAN, TWO.digest)], key=str
    )
    (dangling,) = [entry for entry in names.entries() if entry.name is None]
    assert dangling.repository == "docker.io/library/debian"


def test_a_dangling_image_gets_a_name(names: Names) -> None:
    put(names, DEBIAN, ONE)
    put(names, DEBIAN, TWO)
    put(names, "old", ONE)
    assert sorted(listed(names), key=str) == sorted(
        [("old", ONE.digest), (DEBIAN, TWO.digest)], key=str
    )
    assert all(entry.repository is None for entry in names.entries())


def test_an_image_with_two_names_does_not_dangle(names: Names) -> None:
    put(names, "a", ONE)
    put(names, "b", ONE)
    put(names, "a", TWO)
    assert sorted(listed(names), key=str) == sorted([("b", ONE.digest), ("a", TWO.digest)], key=str)


def test_names_go(names: Names) -> None:
    put(names, "a", ONE)
    put(names, "b", ONE)
    with names.editing() as index:
        index.take_away({"a"})
    assert listed(names) == [("b", ONE.digest)]
    with names.editing() as index:
        index.take_away({"b"})
    assert listed(names) == [(None, ONE.digest)]
    with names.editing() as index:
        index.forget({ONE.digest})
    assert listed(names) == []


def test_listed_without_a_name(names: Names) -> None:
    with names.editing() as index:
        index.keep(ONE, "docker.io/library/debian")
        index.keep(ONE)
    assert [(entry.name, entry.repository) for entry in names.entries()] == [
        (None, "docker.io/library/debian")
    ]


FOREIGN = {
    "schemaVersion": 2,
    "vendor": {"a": [1.5, None, True, 10**30]},
    "manifests": [
        {"mediaType": OCI_MANIFEST, "digest": "md5:0", "size": 1},
        "nonsense",
        {
            "mediaType": "application/x",
            "digest": str(ONE.digest),
            "size": 3,
            "artifactType": "application/y",
            "annotations": {REF_NAME: "x", "org.example": "\ud800", "number": 5},
            "data": "e30=",
        },
    ],
    "annotations": {"b": "c"},
}


def test_what_others_wrote_is_kept(kept: Store, names: Names) -> None:
    (kept.root / "index.json").write_text(json.dumps(FOREIGN))
    put(names, DEBIAN, TWO)
    found = written(kept)
    assert found["manifests"].pop()["annotations"] == {REF_NAME: DEBIAN}
    assert found == FOREIGN


def test_a_name_takes_the_whole_entry_with_it(kept: Store, names: Names) -> None:
    (kept.root / "index.json").write_text(json.dumps(FOREIGN))
    with names.editing() as index:
        (entry,) = index.entries()
        index.set("y", entry)
        index.take_away({"x"})
    third = FOREIGN["manifests"][2]
    assert isinstance(third, dict)
    assert written(kept)["manifests"][2] == {
        **third,
        "annotations": {"org.example": "\ud800", "number": 5, REF_NAME: "y"},
    }


@pytest.mark.parametrize("text", ["", "[]", "{", '{"manifests":{}}', '{"mediaType":"x"}'])
def test_a_damaged_index(kept: Store, names: Names, text: str) -> None:
    (kept.root / "index.json").write_text(text)
    with pytest.raises(ImageError) as caught:
        names.entries()
    assert "index.json" in str(caught.value)
    with pytest.raises(ImageError):
        put(names, DEBIAN, ONE)
    assert (kept.root / "index.json").read_text() == text


@pytest.mark.parametrize("text", ['{"manifests":null}', '{"Manifests":[]}', '{"schemaVersion":2}'])
def test_an_empty_index(kept: Store, names: Names, text: str) -> None:
    (kept.root / "index.json").write_text(text)
    assert names.entries() == []
    put(names, DEBIAN, ONE)
    assert listed(names) == [(DEBIAN, ONE.digest)]


def test_a_missing_index(kept: Store, names: Names) -> None:
    """It had names, so what nothing names is not needless."""
    (kept.root / "index.json").unlink()
    for act in (names.entries, lambda: put(names, DEBIAN, ONE)):
        with pytest.raises(StoreError, match="the names of all images are gone"):
            act()


def test_a_number_too_large_is_not_lost(kept: Store, names: Names) -> None:
    text = '{"manifests":[],"x":1e999}'
    (kept.root / "index.json").write_text(text)
    with pytest.raises(StoreError, match="number"):
        put(names, DEBIAN, ONE)
    assert (kept.root / "index.json").read_text() == text


def test_an_exception_changes_nothing(names: Names) -> None:
    put(names, DEBIAN, ONE)
    with pytest.raises(KeyError), names.editing() as index:
        index.take_away({DEBIAN})
        raise KeyError
    assert listed(names) == [(DEBIAN, ONE.digest)]


def test_a_tool_without_the_lock(kept: Store, names: Names) -> None:
    """What it wrote is not overwritten unseen."""
    with pytest.raises(StoreError, match="another program"), names.editing() as index:
        index.set(DEBIAN, ONE)
        (kept.root / "index.json").write_text('{"manifests":[],"theirs":1}')
    assert "theirs" in written(kept)


WRITER = """
import sys
from fuseoverlay.oci.model import OCI_MANIFEST, Descriptor, Digest
from fuseoverlay.store.names import Names
from fuseoverlay.store.root import Store
store = Store(sys.argv[1])
store.prepare()
for number in range(20):
    name = f"{sys.argv[2]}:{number}"
    with Names(store).editing() as index:
        index.set(name, Descriptor(OCI_MANIFEST, Digest.of(name.encode()), 1))
"""


def test_many_writers_lose_nothing(place: Path) -> None:
    """They also make the store, at the same time."""
    root = place / "store"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, root, f"w{number}"], cwd=PROJECT)
        for number in range(6)
    ]
    for writer in writers:
        assert writer.wait(60) == 0
    found = {entry.name for entry in Names(Store(root)).entries()}
    assert found == {f"w{writer}:{number}" for writer in range(6) for number in range(20)}
    assert os.listdir(root / "tmp") == []


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        (DEBIAN, "docker.io/library/debian"),
        ("localhost:5000/a/b:1", "localhost:5000/a/b"),
        (f"localhost:5000/a@{ONE.digest}", "localhost:5000/a"),
        (f"h/a:1@{ONE.digest}", "h/a"),
        ("x", "x"),
    ],
)
def test_repositories(name: str, repository: str) -> None:
    assert repository_of(name) == repository


# other tools


def tool(*args: object) -> str:
    """Run a program; its output."""
    if shutil.which(str(args[0])) is None:
        pytest.skip(f"missing tool: {args[0]}")
    done = subprocess.run([str(arg) for arg in args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def named(kept: Store) -> Store:
    """A store with an image DEBIAN."""
    writer = LayoutWriter(kept.root)
    layer = writer.add_layer(layer_tar([Node("f", data=b"x")]), "gzip")
    writer.add_image([layer], ref=DEBIAN)
    return kept


def test_skopeo_reads_and_writes(named: Store, place: Path) -> None:
    config = json.loads(tool("skopeo", "inspect", "--config", f"oci:{named.root}:{DEBIAN}"))
    assert config["architecture"] == Platform.host().architecture
    copied = f"oci:{place / 'copy'}:x"
    tool("skopeo", "copy", "--preserve-digests", f"oci:{named.root}:{DEBIAN}", copied)
    other = "docker.io/library/other:1"
    tool("skopeo", "copy", "--preserve-digests", copied, f"oci:{named.root}:{other}")
    names = Names(named)
    assert {name for name, _ in listed(names)} == {DEBIAN, other}
    assert len({digest for _, digest in listed(names)}) == 1
    with names.editing() as index:
        index.set("docker.io/library/third:1", index.entries()[0])
    tool("skopeo", "inspect", f"oci:{named.root}:docker.io/library/third:1")
    named.prepare()


def test_umoci_reads_and_writes(named: Store, place: Path) -> None:
    assert tool("umoci", "ls", "--layout", named.root).split() == [DEBIAN]
    tool("umoci", "tag", "--image", f"{named.root}:{DEBIAN}", "docker.io/library/debian:13")
    assert len(listed(Names(named))) == 2
    tool("umoci", "unpack", "--rootless", "--image", f"{named.root}:{DEBIAN}", place / "bundle")
    assert (place / "bundle/rootfs/f").read_bytes() == b"x"
    tool("umoci", "gc", "--layout", named.root)
    assert (named.root / "partial").is_dir()
    assert (named.root / "version").exists()
