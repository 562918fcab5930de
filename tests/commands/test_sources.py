"""Images where other tools keep them: skopeo's directories, podman's store."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseoverlay.oci.layout import LayoutWriter, Node, directory, layer_tar
from tests.commands.conftest import Cli
from tests.helpers import tree
from tests.helpers.mounts import MODE, detach, fuse_only

pytestmark = fuse_only


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A layout with an image of three layers, which delete things."""
    writer = LayoutWriter(tmp_path / "image")
    low = [directory("etc"), directory("old")]
    low += [Node("etc/a", data=b"a" * 900), Node("old/x")]
    middle = [directory("etc"), Node("etc/.wh.a"), Node("etc/b", data=b"b", mode=0o640, uid=7)]
    high = [directory("old"), Node("old/.wh..wh..opq"), Node("old/y"), Node("top", data=b"t")]
    layers = [writer.add_layer(layer_tar(nodes), "gzip") for nodes in (low, middle, high)]
    writer.add_image(layers, ref="1")
    return writer.path


def skopeo(*words: object) -> None:
    """Copy an image."""
    argv = ["skopeo", "--insecure-policy", "copy", "-q", *map(str, words)]
    subprocess.run(argv, check=True, timeout=60)


def shown(cli: Cli, *words: object) -> tree.Tree:
    """What a read-only mount shows."""
    cli.said("mount", "--read-only", *words, cli.mnt)
    try:
        return tree.record(str(cli.mnt))
    finally:
        cli.said("unmount", cli.mnt)


@pytest.mark.parametrize("form", ["layout", "oci", "oci-archive", "docker-archive", "dir"])
def test_described_where_it_lies(cli: Cli, image: Path, form: str) -> None:
    """As when it is loaded; and nothing is."""
    name = f"{image}:1" if form == "layout" else f"oci:{image}:1"
    if form not in ("layout", "oci"):
        name = f"{form}:{cli.base}/there" + (".tar" if form.endswith("archive") else "")
        skopeo(f"oci:{image}:1", f"{name}:x:1" if form == "docker-archive" else name)
    inspected, history = cli.said("inspect", name), cli.said("history", "--no-trunc", name)
    assert cli.said("images", "-q") == ""
    assert list(cli.root.glob("blobs/sha256/*")) == []
    cli.said("load", "-q", "-i", name, "--name", "y")
    # Not what docker's layers are: it is not known of a file, where the blob's size is shown.
    (expected,) = json.loads(cli.said("inspect", "y"))
    (found,) = json.loads(inspected)
    same = ("Id", "Config", "RootFS", "Created", "Os", "Architecture")
    assert {key: found[key] for key in same} == {key: expected[key] for key in same}
    assert found["Descriptor"]["digest"] == expected["Descriptor"]["digest"]
    assert found["RepoTags"] == (["x:1"] if form == "docker-archive" else [])
    assert [line.split()[0] for line in history.splitlines()] == [
        line.split()[0] for line in cli.said("history", "--no-trunc", "y").splitlines()
    ]
    cli.refused(7, "no image", "inspect", "--platform", "linux/s390x", name)


@pytest.mark.parametrize("options", [(), ("--all",), ("--format", "v2s2")], ids=str)
def test_directories_of_skopeo(cli: Cli, image: Path, options: tuple[str, ...]) -> None:
    """Mounted, and loaded bit for bit."""
    expected = shown(cli, f"oci:{image}:1")
    skopeo(*options, f"oci:{image}:1", f"dir:{cli.base}/copy")
    assert not tree.compare(expected, shown(cli, "dir:copy"))
    said = cli.said("load", "-q", "-i", "dir:copy", "--name", "x")
    assert said == "Loaded image: x:latest\n"
    (data,) = json.loads(cli.said("inspect", "x"))
    top = (cli.root / "blobs/sha256" / data["Descriptor"]["digest"][7:]).read_bytes()
    assert top == (cli.base / "copy/manifest.json").read_bytes()
    assert not tree.compare(expected, shown(cli, "x"))


def test_an_index_in_a_directory(cli: Cli, image: Path) -> None:
    """With all that it names."""
    (entry,) = json.loads((image / "index.json").read_text())["manifests"]
    host = os.uname().machine.replace("x86_64", "amd64").replace("aarch64", "arm64")
    inner = {key: entry[key] for key in ("mediaType", "digest", "size")}
    inner["platform"] = {"os": "linux", "architecture": host}
    writer = LayoutWriter(image)
    top = writer.add_json(
        "application/vnd.oci.image.index.v1+json", {"schemaVersion": 2, "manifests": [inner]}
    )
    listed = {**top.to_json(), "annotations": {"org.opencontainers.image.ref.name": "all"}}
    (image / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [listed]}))
    skopeo("--all", f"oci:{image}:all", f"dir:{cli.base}/copy")
    assert list((cli.base / "copy").glob("*.manifest.json"))
    assert b"etc/b" in shown(cli, "dir:copy")
    cli.said("load", "-q", "-i", "dir:copy", "--name", "x")
    (data,) = json.loads(cli.said("inspect", "x"))
    assert data["Descriptor"]["digest"] == str(top.digest)


@pytest.mark.parametrize(
    ("manifest", "word"), [("", "JSON"), ("[]", "object"), ('{"mediaType": 5}', "media type")]
)
def test_damaged_directories(cli: Cli, manifest: str, word: str) -> None:
    (cli.base / "copy").mkdir()
    (cli.base / "copy/version").write_text("Directory Transport Version: 1.1\n")
    (cli.base / "copy/manifest.json").write_text(manifest)
    cli.refused(7, word, "mount", "dir:copy", cli.mnt)
    cli.refused(7, word, "load", "-i", "dir:copy")


def test_what_is_not_loaded(cli: Cli) -> None:
    cli.refused(2, "podman save x | fuseoverlay load", "load", "-i", "containers-storage:x")
    cli.refused(2, "fuseoverlay pull docker://x", "load", "-i", "docker://x")
    (cli.base / "text").write_text("login\nsystem\n" * 100)
    cli.refused(7, "text: not a tar archive; it is", "load", "-i", "text")
    for text, word in (("", "there is nothing in it"), ("foo\n", "not a tar archive")):
        done = cli.run("load", input=text)
        assert done.returncode == 7
        assert done.stderr.startswith(f"fuseoverlay: error: standard input: {word}; ")


#: In namespaces of its own, because podman allows only short paths for what it keeps there.
_PODMAN = """\
mount -t tmpfs none /run
exec podman --root "$1" --runroot /run/p --storage-driver overlay "${@:2}"
"""
root_only = pytest.mark.skipif(MODE != "root", reason="podman's store is made by root")


@pytest.fixture
def podman(cli: Cli, image: Path) -> Iterator[Path]:
    """Podman's store with the image, as localhost/x:1."""
    if shutil.which("podman") is None:
        pytest.skip("missing tool: podman")
    root = cli.base / "podman"
    skopeo(f"oci:{image}:1", f"oci-archive:{cli.base}/a.tar:localhost/x:1")
    argv = ["unshare", "-m", "bash", "-euc", _PODMAN, "podman", root, "load", "-q", "-i", "a.tar"]
    done = subprocess.run(
        argv, cwd=cli.base, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    yield root
    detach(root / "overlay")


@root_only
def test_podmans_store(cli: Cli, image: Path, podman: Path) -> None:
    """The same tree as of our own layers. Nothing is copied or written."""
    expected = shown(cli, f"oci:{image}:1")
    shutil.rmtree(cli.root)

    def same(name: str) -> None:
        actual = shown(cli, f"containers-storage:{name}")
        # The root directory is podman's.
        lines = tree.compare({**expected, b".": actual[b"."]}, actual)
        assert not lines, name

    before = tree.record(str(podman))
    (data,) = json.loads((podman / "overlay-images/images.json").read_text())
    conf = cli.base / "storage.conf"
    conf.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{podman}"\n')
    cli.env = {"CONTAINERS_STORAGE_CONF": str(conf)}
    names = ("x:1", "localhost/x:1", data["id"], data["id"][:12], f"[overlay@{podman}+/run]x:1")
    for name in names:
        same(name)
    conf.write_text(
        '[storage]\ndriver = "overlay"\ngraphroot = "/nowhere"\n'
        f'[storage.options]\nadditionalimagestores = ["{podman}"]\n'
    )
    same("x:1")
    assert not list(cli.root.glob("layers*/*/*"))
    assert not tree.compare(before, tree.record(str(podman)))


@root_only
def test_changes_to_an_image_of_podman(cli: Cli, podman: Path) -> None:
    """They are kept elsewhere, and belong to this image."""
    name = f"containers-storage:[{podman}]x:1"
    cli.said("mount", "--upper", "changes", name, cli.mnt)
    (cli.mnt / "etc/b").write_text("changed")
    (cli.mnt / "old/y").unlink()
    cli.said("unmount", cli.mnt)
    assert (cli.base / "changes/diff/etc/b").read_text() == "changed"
    assert stat.S_ISCHR((cli.base / "changes/diff/old/y").lstat().st_mode)
    for path in podman.glob("overlay/*/diff/etc/b"):
        assert path.read_text() == "b"
    cli.said("mount", "--upper", "changes", name, cli.mnt)
    assert (cli.mnt / "etc/b").read_text() == "changed"
    cli.said("unmount", cli.mnt)


@root_only
def test_what_is_wrong_with_podmans_store(cli: Cli, podman: Path) -> None:
    name = f"containers-storage:[{podman}]x:1"
    cli.refused(7, "no such image", "mount", f"containers-storage:[{podman}]y", cli.mnt)
    cli.refused(7, "driver btrfs", "mount", f"containers-storage:[btrfs@{podman}]x:1", cli.mnt)
    cli.refused(2, "leave --platform out", "mount", "--platform", "linux/amd64", name, cli.mnt)
    (podman / "vfs-images").mkdir()
    (podman / "vfs-images/images.json").write_text("[]")
    hint = "only the driver overlay is read; write podman save y | fuseoverlay load"
    cli.refused(7, hint, "mount", f"containers-storage:[{podman}]y", cli.mnt)
    path = podman / "overlay-layers/layers.json"
    layers = json.loads(path.read_text())
    for change, word in (
        ({"flags": {"incomplete": True}}, "incomplete"),
        ({"parent": "missing"}, "layer missing is missing"),
        ({"parent": layers[-1]["id"]}, "without end"),
        ({"id": "../../etc"}, "is missing"),
    ):
        path.write_text(json.dumps([{**layer, **change} for layer in layers]))
        cli.refused(7, word, "mount", name, cli.mnt)
    path.write_text("{")
    cli.refused(7, "JSON", "mount", name, cli.mnt)


@root_only
def test_a_store_that_cannot_be_written(cli: Cli, layout: Path) -> None:
    """A mount of what is there works; where changes would go is said."""
    cli.add(layout, "one", "x:1")
    # Unpacks it.
    cli.said("mount", "x:1", cli.mnt)
    cli.said("unmount", cli.mnt)
    subprocess.run(["mount", "--bind", cli.root, cli.root], check=True, timeout=30)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", cli.root], check=True, timeout=30)
        cli.refused(9, "mount with --read-only, or name a directory", "mount", "x:1", cli.mnt)
        for words in (("--read-only",), ("--upper", cli.base / "upper")):
            cli.said("mount", *words, "x:1", cli.mnt)
            assert os.listdir(cli.mnt)
            cli.said("unmount", cli.mnt)
    finally:
        subprocess.run(["umount", cli.root], check=True, timeout=30)


@pytest.mark.parametrize("form", ["layout", "docker-archive"])
def test_one_image_of_a_file_is_loaded(cli: Cli, layout: Path, form: str) -> None:
    name = f"{layout}"
    if form == "docker-archive":
        for ref in ("one", "two"):
            cli.add(layout, ref, f"docker.io/library/{ref}:1")
        cli.said("save", "-o", "both.tar", "one:1", "two:1")
        shutil.rmtree(cli.root)
        name = "docker-archive:both.tar"
    ref = "two" if form == "layout" else "two:1"
    cli.said("load", "-q", "-i", f"{name}:{ref}")
    (id_,) = cli.said("images", "-q", "--no-trunc").split()
    cli.refused(7, "there is no image 'three'", "load", "-q", "-i", f"{name}:three")
    cli.said("load", "-q", "-i", name)
    assert len(cli.said("images", "-q").split()) == 2
    cli.said("mount", "--read-only", id_, cli.mnt)
    assert "two" in os.listdir(cli.mnt)
    cli.said("unmount", cli.mnt)
