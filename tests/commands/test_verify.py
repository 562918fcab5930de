"""`image verify`: what is wrong is found, told and repaired."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseoverlay.oci.layout import LayoutWriter, Node, directory, layer_tar, symlink
from tests.commands.conftest import Cli
from tests.helpers.mounts import fuse_only
from tests.registry.daemon import Daemon

pytestmark = fuse_only
WRONG = 8


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A registry with the image `team/x:1`."""
    base = tmp_path_factory.mktemp("registry")
    writer = LayoutWriter(base / "layout")
    low = writer.add_layer(
        layer_tar([directory("etc"), Node("etc/name", data=b"n" * 5000, xattrs={"user.a": b"1"})]),
        "gzip",
    )
    link = symlink("etc/link", "name")
    again = Node("etc/again", hardlink="etc/name")
    high = writer.add_layer(layer_tar([link, again, Node("top", data=b"t" * 3000)]), "zstd")
    writer.add_image([low, high], ref="1")
    with Daemon(base) as running:
        running.push(Path(f"{writer.path}:1"), "team/x:1")
        yield running


@pytest.fixture
def pulled(cli: Cli, daemon: Daemon) -> Cli:
    """A store with the image, as `x:1`, too."""
    cli.said("pull", "-q", name(daemon))
    cli.said("tag", name(daemon), "x:1")
    return cli


def name(daemon: Daemon) -> str:
    return f"{daemon.host}/team/x:1"


def parts(cli: Cli) -> dict[str, Path]:
    """The blobs of the image."""
    (data,) = json.loads(cli.said("inspect", "x:1"))
    blobs = cli.root / "blobs/sha256"
    top = blobs / data["Descriptor"]["digest"][7:]
    manifest = json.loads(top.read_bytes())
    config, *layers = (
        blobs / item["digest"][7:] for item in (manifest["config"], *manifest["layers"])
    )
    return {"manifest": top, "config": config, "layer": layers[0], "top": layers[1]}


def test_all_is_right(pulled: Cli) -> None:
    for words in ((), ("x:1",), ("--repair",)):
        assert pulled.said("image", "verify", *words) == "Everything is as its digest says.\n"
    pulled.refused(7, "no such image", "image", "verify", "nothing")


@pytest.mark.parametrize("what", ["manifest", "config", "layer", "all"])
@pytest.mark.parametrize("damage", ["missing", "wrong", "cut"])
def test_blobs(pulled: Cli, daemon: Daemon, what: str, damage: str) -> None:
    paths = parts(pulled)
    before = {path: path.read_bytes() for path in paths.values()}
    for path in paths.values() if what == "all" else [paths[what]]:
        if damage == "missing":
            path.unlink()
        else:
            *rest, last = before[path]
            path.write_bytes(bytes(rest if damage == "cut" else [*rest, last ^ 1]))
    done = pulled.run("image", "verify")
    assert done.returncode == WRONG
    line = done.stdout.splitlines()[0]
    first = paths["manifest" if what == "all" else what]
    assert line.startswith(f"sha256:{first.name}: ")
    assert f"; needed by {name(daemon)}, x:1; --repair fetches it from " in line
    done = pulled.run("image", "verify", "--repair")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"sha256:{first.name}: repaired from {daemon.host}/team/x" in done.stdout
    assert {path: path.read_bytes() for path in before} == before
    assert pulled.said("image", "verify") == "Everything is as its digest says.\n"
    assert list((pulled.root / "tmp").iterdir()) == []


def test_what_nobody_has(cli: Cli, layout: Path) -> None:
    """It is told, and stays as it is: it is not forgotten that it is wrong."""
    cli.said("load", "-q", "-i", layout)
    (path,) = [path for path in cli.root.glob("blobs/sha256/*") if path.stat().st_size > 1000]
    path.write_bytes(bytes(path.stat().st_size))
    for words in ((), ("--repair",)):
        done = cli.run("image", "verify", *words)
        assert done.returncode == WRONG
        assert path.name in done.stdout and "from where it came" in done.stdout + done.stderr
        assert path.exists()


def test_a_registry_that_is_away(cli: Cli, layout: Path) -> None:
    cli.add(layout, "one", "127.0.0.1:1/one:1")
    blobs = cli.root.glob("blobs/sha256/*")
    path = next(path for path in blobs if b"diff_ids" in path.read_bytes())
    path.write_bytes(bytes(path.stat().st_size))
    done = cli.run("image", "verify", "--repair")
    assert done.returncode == WRONG
    assert "127.0.0.1:1" in done.stderr and "not repaired" in done.stderr
    assert path.exists()


def upper_layer(cli: Cli) -> Path:
    """Where the upper layer is unpacked."""
    lowers = cli.said("inspect", "-f", "{{.GraphDriver.Data.LowerDir}}", "x:1")
    return Path(lowers.split(":")[0])


def spoil(lower: Path, how: str) -> None:
    """Change something in the unpacked upper layer."""
    match how:
        case "content":
            (lower / "top").write_bytes(b"T" * 3000)
        case "size":
            (lower / "top").write_bytes(b"t")
        case "mode":
            (lower / "top").chmod(0o711)
        case "more":
            (lower / "etc/more").touch()
        case "less":
            (lower / "etc/link").unlink()
        case "link":
            (lower / "etc/link").unlink()
            os.symlink("elsewhere", lower / "etc/link")
        case "kind":
            (lower / "top").unlink()
            (lower / "top").mkdir()
        case "attribute":
            os.setxattr(lower / "top", "user.b", b"2")


@pytest.mark.parametrize(
    "how", ["content", "size", "mode", "more", "less", "link", "kind", "attribute"]
)
def test_unpacked_layers(pulled: Cli, how: str) -> None:
    """One that was changed goes, and the next mount makes it again."""
    lower = upper_layer(pulled)
    where = str(lower.relative_to(pulled.root))
    spoil(lower, how)
    done = pulled.run("image", "verify")
    assert done.returncode == WRONG
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"{where}: ./") and "--repair removes it" in line
    done = pulled.run("image", "verify", "--repair")
    assert done.returncode == 0 and "removed, the next mount" in done.stdout
    assert not lower.exists()
    pulled.said("mount", "x:1", pulled.mnt)
    assert (pulled.mnt / "top").read_bytes() == b"t" * 3000
    pulled.said("unmount", pulled.mnt)
    assert pulled.said("image", "verify") == "Everything is as its digest says.\n"


def test_a_layer_in_use(pulled: Cli) -> None:
    lower = upper_layer(pulled)
    pulled.said("mount", "x:1", pulled.mnt)
    spoil(lower, "more")
    done = pulled.run("image", "verify", "--repair")
    assert done.returncode == WRONG
    assert "a mount uses it" in done.stderr
    assert (lower / "etc/more").exists()
    pulled.said("unmount", pulled.mnt)
    assert pulled.run("image", "verify", "--repair").returncode == 0
