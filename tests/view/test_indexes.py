"""Indexes in the store: made once, usable without the layers, gone with the image."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
from pathlib import Path

import pytest

from fuseoverlay.oci.layout import LayoutWriter, Node, layer_tar, symlink
from fuseoverlay.store.layers import Progress
from fuseoverlay.store.root import Store
from fuseoverlay.view import opened
from tests.commands.conftest import Cli
from tests.helpers.mounts import command, daemon_env, wait_for
from tests.view.conftest import Painter

BASE = [Node("a", data=b"1"), Node("d/x", data=b"22")]


def kept(cli: Cli) -> list[str]:
    return sorted(str(path.relative_to(cli.root)) for path in cli.root.glob("index/*/*"))


def stored(cli: Cli, image: str, name: str) -> None:
    layout, _, ref = image.rpartition(":")
    cli.add(Path(layout), ref, f"docker.io/library/{name}")


def test_made_once(cli: Cli, paint: Painter) -> None:
    """The second command reads no blob: it would say that one is missing."""
    image = paint("one", BASE, [Node("b")])
    stored(cli, image, "one:1")
    assert cli.said("ls", "docker://one:1").split() == ["a", "b", "d"]
    assert len(kept(cli)) == 2
    cli.said("layers", "docker://one:1")
    names = kept(cli)
    assert [name.split("/")[1] for name in names] == ["found", "sha256", "sha256"]
    before = {name: os.stat(cli.root / name).st_mtime_ns for name in names}
    for blob in (cli.root / "blobs/sha256").iterdir():
        if blob.read_bytes()[:2] == b"\x1f\x8b":
            blob.unlink()
    assert cli.said("ls", "docker://one:1").split() == ["a", "b", "d"]
    assert "22" not in cli.run("cat", "docker://one:1", "d/x").stdout
    assert before == {name: os.stat(cli.root / name).st_mtime_ns for name in kept(cli)}


def test_shared_between_images(cli: Cli, paint: Painter) -> None:
    first, second = paint("one", BASE, [Node("b")]), paint("two", BASE, [Node("c")])
    cli.said("ls", first)
    cli.said("ls", second)
    assert len([name for name in kept(cli) if "/sha256/" in name]) == 3
    store = Store(cli.root)
    with (
        opened.image(store, first, warn=print) as one,
        opened.image(store, second, warn=print) as two,
    ):
        layers = [(a, b) for a, b in zip(one.stack.layers, two.stack.layers, strict=True)]
    assert [a is b for a, b in layers] == [True, False]


def test_what_is_taken_from_below_belongs_to_the_stack(cli: Cli, paint: Painter) -> None:
    """One layer over two bases, with a hard link into them: two indexes."""
    top = [Node("link", hardlink="a")]
    for name, base in (("one", BASE), ("two", [Node("a", data=b"another")])):
        image = paint(name, base, top)
        assert cli.said("cat", image, "link") == base[0].data.decode()
    assert len([name for name in kept(cli) if "/chain/" in name]) == 2


def test_gone_with_the_image(cli: Cli, paint: Painter) -> None:
    """What another image has stays; what was made of a file goes with `prune`."""
    stored(cli, paint("one", BASE, [Node("b")]), "one:1")
    stored(cli, paint("two", BASE, [Node("c")]), "two:1")
    file = paint("file", [Node("f")])
    for name in ("docker://one:1", "docker://two:1", file):
        cli.said("layers", name)
    assert len(kept(cli)) == 4 + 3
    *_, row = cli.said("image", "df").splitlines()
    assert row.split()[:2] == ["Indexes", "7"] and row.split()[3] != "0B"
    before = kept(cli)
    assert "Space that would be reclaimed: 0B" not in cli.said("image", "prune", "--dry-run")
    assert kept(cli) == before
    cli.said("rmi", "docker://one:1")
    assert len(kept(cli)) == 3 + 2
    cli.said("image", "prune", "-f")
    assert len(kept(cli)) == 2 + 1
    assert cli.said("ls", "docker://two:1").split() == ["a", "c", "d"]


def test_side_by_side(cli: Cli) -> None:
    """Layers large enough for processes; one that needs those below it waits for them."""
    writer = LayoutWriter(cli.base / "large")
    nodes = [[Node(f"l{at}/{n}", data=os.urandom(20_000)) for n in range(80)] for at in range(4)]
    nodes[2].append(Node("link", hardlink="l0/7"))
    layers = [writer.add_layer(layer_tar(found), "gzip") for found in nodes]
    writer.add_image(layers)
    done: list[tuple[int, int]] = []

    def progress(now: Progress) -> None:
        assert (now.layer, now.layers) == (len(done) + 1, 4)
        done.append((now.done, now.total))

    with opened.image(
        Store(cli.root), str(writer.path), progress=progress, warn=print
    ) as view:  # fmt: skip
        assert [len(index) for index in view.stack.layers] == [82, 82, 83, 82]
        node = view.stack.node((b"link",))
        assert node is not None and view.stack.entry(node).size == 20_000
        with view.content(node.layer, node.row) as file:
            assert b"".join(iter(lambda: file.read(9999), b"")) == nodes[0][7].data
    total = sum(layer.descriptor.size for layer in layers)
    assert len(done) == 4 and done[-1] == (total, total) and sorted(done) == done


def test_two_at_once(cli: Cli, paint: Painter) -> None:
    """Both make the indexes; one is kept, whole."""
    image = paint("one", *([Node(f"{at}/{n}") for n in range(300)] for at in range(8)))
    env = daemon_env(FUSEOVERLAY_ROOT=str(cli.root))
    argv = command("tree", image)
    running = [
        subprocess.Popen(argv, env=env, cwd=cli.base, stdout=-1, text=True) for _ in range(3)
    ]
    outputs = {process.communicate(timeout=60)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert outputs == {cli.said("tree", image)} and len(kept(cli)) == 8
    assert not os.listdir(cli.root / "tmp")


def test_a_layer_below_that_cannot_be_read(cli: Cli, paint: Painter) -> None:
    """What was decided without it is not kept: it would be wrong once it can be read."""
    image = paint(
        "one", [Node("real/secret", data=b"s")], [symlink("ln", "real"), Node("ln/.wh.secret")]
    )
    layout = Path(image.rpartition(":")[0])
    (base,) = (path for path in layout.glob("blobs/sha256/*") if _holds(path, b"secret"))
    whole = base.read_bytes()
    base.write_bytes(bytes(len(whole)))
    assert "layer 1 cannot be read" in cli.run("ls", "-R", image).stderr
    base.write_bytes(whole)
    assert cli.said("ls", "-R", image).split() == [".", "ln", "real"]


def _holds(path: Path, name: bytes) -> bool:
    data = path.read_bytes()
    return data.startswith(b"\x1f\x8b") and gzip.decompress(data).startswith(b"real/" + name)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers that take a while."""
    writer = LayoutWriter(tmp_path_factory.mktemp("large"))
    data = [os.urandom(1 << 20) for _ in range(40)]
    layers = [
        writer.add_layer(layer_tar([Node(f"{at}/{n}", data=one) for n, one in enumerate(data)]))
        for at in range(4)
    ]
    writer.add_image(layers)
    return writer.path


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_no_process_is_left(cli: Cli, large: Path, number: int) -> None:
    """Whatever ends the command ends its processes; the next one sweeps away what is left."""
    cli.said("images")
    env = daemon_env(FUSEOVERLAY_ROOT=str(cli.root))
    process = subprocess.Popen(
        command("layers", large), env=env, cwd=cli.base, stdout=-1, stderr=-1
    )
    try:
        wait_for(lambda: _children(process.pid), 30, "processes")
        children = _children(process.pid)
        process.send_signal(number)
        # Its output is not held open by anybody.
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert b"Traceback" not in err
    assert process.returncode in (-number, 128 + number)
    wait_for(lambda: not any(map(_lives, children)), 10, "their end")
    assert number == signal.SIGKILL or not os.listdir(cli.root / "tmp")
    cli.said("ls", large)
    assert not os.listdir(cli.root / "tmp")


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]


def _lives(pid: int) -> bool:
    """Whether it does more than wait for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
