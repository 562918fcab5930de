"""`--layer` and `--only-layer`: an image as of a layer, and a layer alone."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fuseoverlay.oci import model
from fuseoverlay.oci.layout import LayoutWriter, Node, directory, layer_tar
from tests.commands.conftest import Cli
from tests.helpers.mounts import fuse_only

pytestmark = fuse_only

#: Bottom first; the second has a hard link to a file of the first, the third deletes one.
LAYERS = [
    [directory("etc"), Node("etc/base", data=b"base"), Node("f", data=b"one")],
    [Node("f", data=b"two"), Node("linked", hardlink="etc/base")],
    [Node(".wh.f"), Node("top")],
]
#: What the tree has as of each, and what each alone has.
AS_OF = [["etc", "f"], ["etc", "f", "linked"], ["etc", "linked", "top"]]
ALONE = [["etc", "f"], ["f", "linked"], ["top"]]
#: The history, oldest first: whether a line made a layer.
LINES = [False, True, False, True, True, False]


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """A layout with an image of these layers, and this history."""
    writer = LayoutWriter(tmp_path / "stack")
    layers = [writer.add_layer(layer_tar(nodes), "gzip") for nodes in LAYERS]
    writer.add_image(layers, ref="1")
    (entry,) = json.loads((writer.path / "index.json").read_text())["manifests"]
    manifest = _blob(writer.path, entry["digest"])
    config = _blob(writer.path, manifest["config"]["digest"])
    config["history"] = [
        {"created_by": f"step {at}"} | ({} if made else {"empty_layer": True})
        for at, made in enumerate(LINES)
    ]
    changed = writer.add_json(model.OCI_CONFIG, config)
    whole = writer.add_json(model.OCI_MANIFEST, {**manifest, "config": changed.to_json()})
    listed = {**whole.to_json(), "annotations": {model.REF_NAME: "1"}}
    index = {"schemaVersion": 2, "manifests": [listed]}
    (writer.path / "index.json").write_text(json.dumps(index))
    return writer.path


def _blob(layout: Path, digest: str) -> Any:
    return json.loads((layout / "blobs" / digest.replace(":", "/")).read_text())


@pytest.fixture(params=["store", "layout", "oci-archive", "docker-archive"])
def image(request: pytest.FixtureRequest, cli: Cli, stack: Path) -> str:
    """The image as it may be named."""
    match request.param:
        case "store":
            cli.add(stack, "1", "docker.io/library/stack:1")
            stack.rename(stack.with_name("away"))
            return "stack:1"
        case "layout":
            return f"{stack}:1"
        case transport:
            path = f"{cli.base / transport}.tar"
            argv = ["skopeo", "copy", "--quiet", f"oci:{stack}:1", f"{transport}:{path}:stack:1"]
            subprocess.run(argv, check=True, timeout=60)
            return path


def _digests(stack: Path) -> list[tuple[str, str]]:
    """Blob and diff_id of each layer, bottom first."""
    path = next(path for path in (stack, stack.with_name("away")) if path.exists())
    (entry,) = json.loads((path / "index.json").read_text())["manifests"]
    manifest = _blob(path, entry["digest"])
    plain = _blob(path, manifest["config"]["digest"])["rootfs"]["diff_ids"]
    return [(blob["digest"], plain[at]) for at, blob in enumerate(manifest["layers"])]


def _shown(cli: Cli, image: str, *words: str) -> list[str]:
    """What the root directory of a mount has."""
    cli.said("mount", *words, image, cli.mnt)
    try:
        return sorted(os.listdir(cli.mnt))
    finally:
        cli.said("unmount", cli.mnt)


def test_numbers_and_digests(cli: Cli, image: str, stack: Path) -> None:
    for at, (blob, plain) in enumerate(_digests(stack)):
        words = [str(at + 1), plain[7:19]]
        if image == "stack:1":
            words += [plain, plain[:19], blob, blob[7:]]
        for word in words:
            assert _shown(cli, image, "--layer", word, "--read-only") == AS_OF[at], word
        assert _shown(cli, image, "--only-layer", str(at + 1)) == ALONE[at]


def test_lines_of_the_history(cli: Cli, image: str) -> None:
    """Counted as `history` prints them; a line that made no layer means the one below."""
    made = {1: 3, 2: 3, 3: 2, 4: 1, 5: 1} if image == "stack:1" else {1: 3, 3: 2, 4: 1}
    for line, layer in made.items():
        assert _shown(cli, image, "--layer", f"history:{line}") == AS_OF[layer - 1], line
    assert _shown(cli, image, "--only-layer", "history:3") == ALONE[1]
    if image == "stack:1":
        said = cli.said("history", "--format", "{{.CreatedBy}}", image).splitlines()
        assert said == [f"step {5 - at}" for at in range(6)]


def test_a_layer_alone_without_the_layers_below_in_the_store(cli: Cli, stack: Path) -> None:
    """What a hard link leads to in another layer is in it."""
    cli.said("mount", "--only-layer", "2", f"{stack}:1", cli.mnt)
    assert (cli.mnt / "linked").read_bytes() == b"base"
    assert (cli.mnt / "f").read_bytes() == b"two"
    assert len(list(cli.root.glob("layers*/*/*"))) == 2, "the third was unpacked, too"


def test_what_is_not_there(cli: Cli, image: str, stack: Path) -> None:
    listed = ", ".join(f"{at} {plain[7:19]}" for at, (_, plain) in enumerate(_digests(stack), 1))
    ending = f"; the image has 3 layers, from the bottom: {listed}"
    for word, says in {
        "0": "there is no layer 0",
        "4": "there is no layer 4",
        "f" * 20: f"there is no layer {'f' * 20}",
        "history:0": "the history has no line 0, but 6",
        "history:7": "the history has no line 7, but 6",
        "history:6": "neither line 6 of the history nor any below made a layer",
    }.items():
        for flag in ("--layer", "--only-layer"):
            cli.refused(7, f"{image}: {says}{ending}", "mount", flag, word, image, cli.mnt)
    assert list(cli.root.glob("layers*/*/*")) == []


def test_what_could_be_several(cli: Cli) -> None:
    writer = LayoutWriter(cli.base / "twice")
    layer = writer.add_layer(layer_tar([Node("a")]))
    other = writer.add_layer(layer_tar([Node("b")]))
    writer.add_image([layer, other, layer])
    (word,) = {str(layer.diff_id)}
    says = f"{word} may be layer 1 or 3; say which"
    cli.refused(7, says, "mount", "--layer", word, writer.path, cli.mnt)
    assert _shown(cli, str(writer.path), "--layer", "1") == ["a"]
    assert _shown(cli, str(writer.path), "--layer", "3") == ["a", "b"]


def test_no_layers(cli: Cli) -> None:
    writer = LayoutWriter(cli.base / "empty")
    writer.add_image([])
    says = "there is no layer 1; the image has no layers"
    cli.refused(7, says, "mount", "--layer", "1", writer.path, cli.mnt)
    cli.refused(7, "no line 1, but 0", "mount", "--layer", "history:1", writer.path, cli.mnt)


@pytest.mark.parametrize("word", ["-1", "1.5", "history:", "history:x", "sha256:", "xyz", "md5:ab"])
def test_words_that_can_be_no_layer(cli: Cli, stack: Path, word: str) -> None:
    cli.refused(2, "no layer can be called", "mount", f"--layer={word}", stack, cli.mnt)
    assert not cli.root.exists(), "the store was made first"


def test_options_that_exclude_each_other(cli: Cli, stack: Path) -> None:
    cli.refused(2, "not allowed with", "mount", "--layer=1", "--only-layer=1", stack, cli.mnt)
    cli.refused(2, "--layer is empty", "mount", "--layer=", stack, cli.mnt)
    cli.refused(2, "--only-layer is for images", "mount", "--only-layer=1", "-o",
                f"lowerdir={cli.base}", cli.mnt)  # fmt: skip
    cli.refused(2, "--layer is for images", "fsck", "--layer=1", "-o", f"lowerdir={stack}", stack)


def test_changes_belong_to_these_layers(cli: Cli, stack: Path) -> None:
    image, upper = f"{stack}:1", cli.base / "changes"
    kept = ("--upper", upper)
    cli.said("mount", "--layer", "2", *kept, image, cli.mnt)
    (cli.mnt / "f").unlink()
    cli.said("unmount", cli.mnt)
    assert sorted(os.listdir(upper / "diff")) == ["f"]
    says = f"holds the changes of another image, {image}, as of layer 2"
    for words in ((), ("--layer", "1"), ("--only-layer", "2"), ("--layer", "history:1")):
        cli.refused(4, says, "mount", *words, *kept, image, cli.mnt)
        cli.refused(4, says, "fsck", *words, *kept, image)
    # However the layer is named.
    cli.said("mount", "--layer", "history:3", *kept, image, cli.mnt)
    assert sorted(os.listdir(cli.mnt)) == ["etc", "linked"]
    cli.said("unmount", cli.mnt)
    assert cli.said("fsck", "--layer", "2", *kept, image).startswith("clean")
