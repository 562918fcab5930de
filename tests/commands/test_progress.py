"""What `pull`, `push` and `load` show on a terminal while they are at work."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuseoverlay.oci.layout import LayoutWriter, Node, layer_tar
from tests.commands.conftest import Cli
from tests.commands.terminal import on_terminal
from tests.helpers.mounts import command, daemon_env, fuse_only, wait_for
from tests.registry.daemon import Daemon
from tests.registry.hostile import Answer, Asked, as_manifest, hostile, ranged

pytestmark = fuse_only

_SMALL, _LARGE = 3, 12 << 20


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout with `few` (small layers and a large one) and `many` (60 layers)."""
    writer = LayoutWriter(tmp_path_factory.mktemp("images") / "layout")
    small = [writer.add_layer(layer_tar([Node(f"small-{at}")]), "gzip") for at in range(60)]
    large = writer.add_layer(layer_tar([Node("large", data=os.urandom(_LARGE))]), "gzip")
    writer.add_image([*small[:_SMALL], large], ref="few")
    writer.add_image([*small, large], ref="many")
    return writer.path


@pytest.fixture(scope="module")
def daemon(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("registry")) as running:
        running.push(Path(f"{images}:few"), "team/few:1")
        yield running


def _layers(images: Path, ref: str) -> tuple[bytes, list[str]]:
    """The manifest, and the digests of the layers in it."""
    for entry in json.loads((images / "index.json").read_text())["manifests"]:
        if entry["annotations"]["org.opencontainers.image.ref.name"] == ref:
            data = (images / "blobs/sha256" / entry["digest"][7:]).read_bytes()
            return data, [layer["digest"] for layer in json.loads(data)["layers"]]
    raise AssertionError(ref)


def _registry(images: Path, ref: str, stalls: Callable[[str], bool]) -> Callable[[Asked], Answer]:
    """A registry that sends half of the blobs that `stalls` says, and no more."""
    manifest, _ = _layers(images, ref)

    def answer(asked: Asked) -> Answer:
        if "/manifests/" in asked.path:
            return as_manifest(manifest)
        if "/blobs/" not in asked.path:
            return Answer()
        digest = asked.path.rpartition("/")[2]
        data = (images / "blobs/sha256" / digest[7:]).read_bytes()
        if stalls(digest):
            return ranged(data, asked, cut=len(data) // 2, stalls=True)
        return ranged(data, asked)

    return answer


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_pull(cli: Cli, daemon: Daemon, images: Path, columns: int) -> None:
    """No line wraps, sizes are whole, each layer ends with Docker's last word; no config."""
    _, layers = _layers(images, "few")
    seen = on_terminal(cli, "pull", f"{daemon.host}/team/few:1", size=(24, columns))
    assert seen.code == 0, seen.text
    first, *lines = seen.lines
    assert first == "1: Pulling from team/few"
    shown = [line for line in lines if re.match("[0-9a-f]{12} ", line)]
    assert {line[:12] for line in shown} == {digest[7:19] for digest in layers}
    assert all(len(line) <= columns for line in shown)
    for line in shown:
        assert re.search(r" [0-9.]+/[0-9.]+ (bytes|MB)( [0-9.]+ [kM]?B/s)?$", line), line
        assert "?" not in line
    last = shown[-len(layers) :]
    assert [line[13:26] for line in last] == ["Pull complete"] * len(layers)
    assert any(re.search(r" 12\.6/12\.6 MB$", line) for line in last)
    assert ("[==" in last[-1]) == (columns > 40)
    assert not re.search(r"\x1b\[[0-9;]*m", seen.text), "no colours"


def test_unpacking_is_shown(cli: Cli, daemon: Daemon) -> None:
    """Of what is there and not unpacked, how far that is."""
    name = f"{daemon.host}/team/few:1"
    cli.said("pull", "-q", "--no-unpack", name)
    seen = on_terminal(cli, "pull", name)
    assert seen.code == 0, seen.text
    assert "Unpacking" in seen.plain
    assert "Pull complete" in seen.plain
    again = on_terminal(cli, "pull", name)
    assert "Already exists" in again.plain
    assert "Unpacking" not in again.plain and "Pull complete" not in again.plain


def test_lines(cli: Cli, daemon: Daemon, images: Path) -> None:
    """Elsewhere than on a terminal, in Docker's words."""
    _, layers = _layers(images, "few")
    done = cli.run("pull", f"{daemon.host}/team/few:1")
    first, *lines = done.stderr.splitlines()
    assert first == "1: Pulling from team/few"
    for word in ("Download complete", "Pull complete"):
        assert sorted(line for line in lines if line.endswith(word)) == sorted(
            f"{digest[7:19]}: {word}" for digest in layers
        )
    assert len(lines) == 2 * len(layers)


def test_a_terminal_that_cannot_go_back(cli: Cli, daemon: Daemon) -> None:
    """Gets the lines."""
    seen = on_terminal(cli, "pull", f"{daemon.host}/team/few:1", term="dumb")
    assert seen.code == 0, seen.text
    assert re.findall("^[0-9a-f]{12}: Pull complete\r$", seen.text, re.M)
    assert "\x1b" not in seen.text


def test_push(cli: Cli, daemon: Daemon) -> None:
    """What the registry has is complete, however it came there."""
    name = f"{daemon.host}/team/few:1"
    cli.said("pull", "-q", name)
    for to, word in (("x/mine", "Mounted from team/few"), ("x/mine", "Layer already exists")):
        seen = on_terminal(cli, "push", name, f"{daemon.host}/{to}:1", size=(24, 100))
        assert seen.code == 0, seen.text
        ends = [line for line in seen.lines if f" {word}" in line]
        assert ends and all("[===" in line for line in ends)
        for line in ends:
            sizes = re.search(r"([0-9.]+)/([0-9.]+) ", line)
            assert sizes and sizes[1] == sizes[2] != "0", line


@pytest.mark.parametrize("columns", [20, 40])
def test_load_does_not_wrap(cli: Cli, images: Path, columns: int) -> None:
    seen = on_terminal(cli, "load", "-i", images, size=(24, columns))
    assert seen.code == 0, seen.text
    shown = [line for line in seen.lines if line.startswith("Unpack")]
    assert shown and all(len(line) <= columns for line in shown)
    assert any(re.search(r"[0-9]/12\.[0-9] MB", line) for line in shown)


def test_more_layers_than_lines(cli: Cli, images: Path) -> None:
    """Those that are on their way can be seen, with how many are done."""
    _, layers = _layers(images, "many")
    with hostile(_registry(images, "many", lambda digest: digest == layers[-1])) as server:
        coming = rf"{layers[-1][7:19]} Downloading .*\n.*60 of 61 layers are done"

        def stop(text: str, process: subprocess.Popen[bytes]) -> bool:
            plain = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", text)
            if found := re.search(coming, plain):
                process.send_signal(signal.SIGINT)
            return bool(found)

        seen = on_terminal(cli, "pull", "--tls-verify=false", f"{server.host}/many:1", act=stop)
    assert seen.code == 130, seen.text
    assert re.search(coming, seen.plain), seen.plain[-3000:]
    assert "interrupted; run it again to resume" in seen.plain


def test_the_cursor_after_sigterm(cli: Cli, images: Path) -> None:
    with hostile(_registry(images, "few", lambda digest: True)) as server:

        def end(text: str, process: subprocess.Popen[bytes]) -> bool:
            if "Downloading" in text:
                process.terminate()
            return "Downloading" in text

        seen = on_terminal(cli, "pull", "--tls-verify=false", f"{server.host}/few:1", act=end)
    assert seen.code == -signal.SIGTERM and "Downloading" in seen.text
    assert seen.text.rfind("\x1b[?25l") <= seen.text.rfind("\x1b[?25h")


def test_mount_says_only_what_is_new(cli: Cli, daemon: Daemon) -> None:
    name = f"{daemon.host}/team/few:1"
    for policy, said in (("missing", True), ("newer", False), ("always", False)):
        done = cli.run("mount", "--pull", policy, name, cli.mnt)
        assert done.returncode == 0, done.stderr
        assert ("1: Pulling from team/few" in done.stderr) == said
        assert said or done.stderr == ""
        cli.said("unmount", cli.mnt)


def test_interrupted_mount(cli: Cli, images: Path) -> None:
    with hostile(_registry(images, "few", lambda digest: True)) as server:
        conf = cli.base / "registries.conf"
        conf.write_text(f'[[registry]]\nlocation = "{server.host}"\ninsecure = true\n')
        cli.env = {"CONTAINERS_REGISTRIES_CONF": str(conf)}
        seen = on_terminal(cli, "mount", f"{server.host}/few:1", cli.mnt, act=_interrupt_at("Down"))
    assert seen.code == 130
    assert "interrupted; run it again to resume" in seen.plain


def test_interrupted_load(cli: Cli) -> None:
    """While it waits for the rest of a pipe."""
    cli.said("images")
    process = subprocess.Popen(
        command("load"), env=daemon_env(FUSEOVERLAY_ROOT=str(cli.root)),
        stdin=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        wait_for(lambda: [*cli.root.glob("tmp/*/standard-input.tar")], 20, "the copy")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert err == b"fuseoverlay: error: interrupted; run it again to resume\n"


def _interrupt_at(word: str) -> Callable[[str, subprocess.Popen[bytes]], bool]:
    def act(text: str, process: subprocess.Popen[bytes]) -> bool:
        if word in text:
            process.send_signal(signal.SIGINT)
        return word in text

    return act
