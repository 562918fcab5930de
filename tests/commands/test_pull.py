"""`pull`, and images that `mount` gets from a registry by name."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseoverlay.oci import model
from fuseoverlay.oci.layout import LayoutWriter, Node, directory, layer_tar
from tests.commands.conftest import Cli
from tests.helpers.mounts import BARE_ENV, PROJECT, command, daemon_env, detach, fuse_only, wait_for
from tests.registry.daemon import Daemon
from tests.registry.hostile import Answer, Asked, as_manifest, hostile, ranged

pytestmark = fuse_only


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A registries.conf with which a registry of the test's own is Docker Hub. It has the tags 11
    and 12 of `debian`."""
    base = tmp_path_factory.mktemp("hub")
    (base / "registry").mkdir()
    with Daemon(base / "registry") as daemon:
        for tag in ("12", "11"):
            daemon.push(Path(f"{_layout(base, tag)}:{tag}"), f"library/debian:{tag}")
        daemon.push(Path(f"{_of_two_platforms(base)}:two"), "library/debian:two")
        yield _is_hub(base, daemon.host)


def _layout(base: Path, tag: str) -> Path:
    """An image with a small layer, and a large one that does not get smaller."""
    writer = LayoutWriter(base / f"layout-{tag}")
    nodes = [directory("etc"), directory("root"), Node("etc/version", data=tag.encode())]
    layer = writer.add_layer(layer_tar(nodes), "gzip")
    data = writer.add_layer(layer_tar([Node("data", data=os.urandom(4 << 20))]))
    writer.add_image([layer, data], ref=tag)
    return writer.path


def _of_two_platforms(base: Path) -> Path:
    """Each with a file that has its name."""
    writer = LayoutWriter(base / "layout-two")
    images = []
    for name in ("linux/arm64", "linux/amd64"):
        layer = writer.add_layer(layer_tar([Node(name.removeprefix("linux/"))]))
        images.append(writer.add_image([layer], platform=name).to_json())
    index = {"schemaVersion": 2, "mediaType": model.OCI_INDEX, "manifests": images}
    entry = writer.add_json(model.OCI_INDEX, index).to_json()
    listed = {"schemaVersion": 2, "manifests": [entry | {"annotations": {model.REF_NAME: "two"}}]}
    (writer.path / "index.json").write_text(json.dumps(listed))
    return writer.path


def _is_hub(base: Path, host: str) -> Path:
    path = base / "registries.conf"
    path.write_text(
        f'[[registry]]\nprefix = "docker.io"\nlocation = "{host}"\ninsecure = true\n'
        '[aliases]\n"bookworm" = "docker.io/library/debian"\n'
    )
    return path


@pytest.fixture
def hub(cli: Cli, conf: Path) -> Cli:
    """The command line, for which that registry is Docker Hub."""
    cli.env = {"CONTAINERS_REGISTRIES_CONF": str(conf), "HOME": str(cli.base)}
    return cli


def test_pull(hub: Cli) -> None:
    done = hub.run("pull", "debian:12")
    assert done.returncode == 0, done.stderr
    digest, status, name = done.stdout.splitlines()
    assert re.fullmatch("Digest: sha256:[0-9a-f]{64}", digest)
    assert status == "Status: Downloaded newer image for debian:12"
    assert name == "docker.io/library/debian:12"
    assert len(re.findall("^[0-9a-f]{12}: Pull complete$", done.stderr, re.M)) == 2
    done = hub.run("image", "pull", "debian:12")
    assert "Status: Image is up to date for debian:12" in done.stdout
    assert done.stderr.count("Already exists") == 2
    done = hub.run("pull", "-q", "debian:11", "docker://debian:12")
    assert done.stdout.splitlines() == ["docker.io/library/debian:11", name]
    assert done.stderr == ""
    (data,) = json.loads(hub.said("inspect", "debian:12"))
    assert data["RepoDigests"] == [digest.replace("Digest: ", "debian@")]


def test_what_is_not_there(hub: Cli) -> None:
    hub.refused(11, "debian:13: no such tag; similar tags: 12, 11", "pull", "debian:13")
    hub.refused(11, "docker.io has no such image", "pull", "nothing")
    hub.refused(7, "", "pull", "No Name")
    hub.refused(7, "error: Debian: has capital letters; write debian", "pull", "Debian")
    for words in (("pull", "https://docker.io/debian"), ("mount", "https://docker.io/x", hub.mnt)):
        hub.refused(7, "a URL, and no name; leave https:// out", *words)
    for name in ("./debian", "/debian", "debian.tar", "oci:x", "docker-archive:x", "dir:x:12"):
        hub.refused(2, f"{name} is in no registry; write fuseoverlay load -i {name}", "pull", name)
    hub.refused(2, "nosuch.json: there is no such file", "pull", "--authfile", "nosuch.json", "x")
    done = hub.run("pull", "-q", "nothing", "debian:12")
    assert done.returncode == 11 and done.stdout == "docker.io/library/debian:12\n"


def test_all_registries_that_were_asked_are_named(hub: Cli) -> None:
    path = Path(hub.env["CONTAINERS_REGISTRIES_CONF"])
    host = re.findall('location = "(.*)"', path.read_text())[0]
    conf = hub.base / "two.conf"
    conf.write_text(f'unqualified-search-registries = ["{host}", "docker.io"]\n{path.read_text()}')
    hub.env["CONTAINERS_REGISTRIES_CONF"] = str(conf)
    done = hub.run("pull", "nosuch")
    assert done.returncode == 11
    assert f"{host} has no such image; nosuch:latest: docker.io has no such" in done.stderr


def test_login_and_logout(hub: Cli) -> None:
    hub.env["XDG_CONFIG_HOME"] = hub.env["XDG_RUNTIME_DIR"] = str(hub.base)
    assert hub.said("logout", "127.0.0.1:1") == "Not logged in to 127.0.0.1:1\n"
    done = hub.run("login", "-u", "me", "-p", "secret", "--authfile", "new.json", "127.0.0.1:1")
    assert done.returncode == 11 and "127.0.0.1:1" in done.stderr
    assert done.stderr.startswith("WARNING! Using --password via the CLI is insecure. Use")


def test_mount_gets_what_is_missing(hub: Cli) -> None:
    hub.refused(7, "debian:12: no such image", "mount", "--pull", "never", "debian:12", hub.mnt)
    for name in ("debian:12", "docker://debian:12", "docker.io/library/debian:12", "bookworm:12"):
        hub.said("mount", name, hub.mnt)
        assert (hub.mnt / "etc/version").read_text() == "12"
        hub.said("unmount", hub.mnt)
    assert len(hub.said("images", "-q").split()) == 1
    for words in (("inspect", "-f", "{{index .RepoTags 0}}"), ("rmi", "--dry-run")):
        assert "debian:12\n" in hub.said(*words, "bookworm:12"), "an alias"
    hub.said("mount", "--pull", "never", "bookworm:12", hub.mnt)
    hub.said("unmount", hub.mnt)
    id_ = hub.said("images", "-q").strip()
    for policy in ("missing", "always", "newer", "never"):
        name = id_ if policy in ("missing", "never") else "debian:12"
        hub.said("mount", "--pull", policy, name, hub.mnt)
        hub.said("unmount", hub.mnt)


def test_mount_gets_the_platform_that_is_missing(hub: Cli) -> None:
    for platform in ("amd64", "arm64"):
        words = ["mount", "--platform", f"linux/{platform}", "debian:two", hub.mnt]
        hub.refused(7, "debian:two: no", words[0], "--pull", "never", *words[1:])
        hub.said(*words)
        assert os.listdir(hub.mnt) == [platform]
        hub.said("unmount", hub.mnt)
    hub.refused(
        7, "no image for linux/s390x", "mount", "--platform", "linux/s390x", "debian:two", hub.mnt
    )


def test_registry_that_is_away(hub: Cli) -> None:
    hub.said("pull", "-q", "debian:12")
    conf = hub.base / "away.conf"
    conf.write_text('[[registry]]\nprefix = "docker.io"\nlocation = "127.0.0.1:1"\n')
    hub.env["CONTAINERS_REGISTRIES_CONF"] = str(conf)
    hub.said("mount", "debian:12", hub.mnt)
    hub.said("unmount", hub.mnt)
    done = hub.run("mount", "--pull", "newer", "debian:12", hub.mnt)
    assert done.returncode == 0 and "what is here is used" in done.stderr, done.stderr
    hub.said("unmount", hub.mnt)
    hub.refused(11, "127.0.0.1:1", "mount", "--pull", "always", "debian:12", hub.mnt)


def test_file_and_name(hub: Cli) -> None:
    """What could be both is said."""
    hub.said("pull", "-q", "debian:12")
    writer = LayoutWriter(hub.base / "debian")
    layer = writer.add_layer(layer_tar([Node("file")]))
    writer.add_image([layer], ref="12")
    hub.refused(2, "write ./debian:12 or docker://debian:12", "mount", "debian:12", hub.mnt)
    for name in ("./debian:12", "docker://debian:12", "oci:debian:12"):
        there = "etc" if name.startswith("docker:") else "file"
        hub.said("mount", name, hub.mnt)
        assert (hub.mnt / there).exists()
        hub.said("unmount", hub.mnt)


def test_interrupted(cli: Cli) -> None:
    """Ctrl-C leaves what came, and says how to go on; the next pull asks only for the rest."""
    layout = _layout(cli.base, "12")
    (entry,) = json.loads((layout / "index.json").read_text())["manifests"]
    manifest = (layout / "blobs/sha256" / entry["digest"][7:]).read_bytes()
    *_, large = json.loads(manifest)["layers"]
    half, stalling = large["size"] // 2, threading.Event()
    stalling.set()

    def answer(asked: Asked) -> Answer:
        if "/manifests/" in asked.path:
            return as_manifest(manifest)
        if "/blobs/" not in asked.path:
            return Answer()
        data = (layout / "blobs/sha256" / asked.path.rpartition(":")[2]).read_bytes()
        if large["digest"] in asked.path and stalling.is_set():
            return ranged(data, asked, cut=half, stalls=True)
        return ranged(data, asked)

    with hostile(answer) as server:
        cli.env = {"CONTAINERS_REGISTRIES_CONF": str(_is_hub(cli.base, server.host))}
        cli.said("images")
        process = subprocess.Popen(
            command("pull", "debian:12"),
            env=daemon_env(FUSEOVERLAY_ROOT=str(cli.root), **cli.env),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        # What came is written in pieces; this one, and config and the small layer.
        wait_for(lambda: _partial(cli) >= half - (1 << 20), 20, "half a layer")
        wait_for(lambda: len([*cli.root.glob("blobs/sha256/*")]) >= 2, 20, "small blobs")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130, err
        assert "interrupted; run it again to resume" in err
        assert "Traceback" not in err
        assert cli.said("images", "-q") == ""
        there = _partial(cli)
        assert there > half // 2
        stalling.clear()
        done = cli.run("pull", "debian:12")
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("Already exists") == 1
        assert server.of(large["digest"])[-1].start == there
    cli.said("mount", "--pull", "never", "debian:12", cli.mnt)
    assert (cli.mnt / "data").stat().st_size == 4 << 20
    cli.said("unmount", cli.mnt)


def _partial(cli: Cli) -> int:
    """How many bytes of blobs that are not complete are there."""
    return sum(path.stat().st_size for path in cli.root.glob("partial/*"))


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("docs/images.md", ("changes/diff/root/hello", "Untagged: mine:1", "REPOSITORY")),
        ("README.md", ("REPOSITORY   TAG", "debian       12")),
    ],
)
def test_the_commands_of_the_document(hub: Cli, document: str, words: tuple[str, ...]) -> None:
    """As they stand."""
    text = (PROJECT / document).read_text()
    walk = re.search(r"^```sh\n(fuseoverlay pull.*?)^```", text, re.M | re.S)
    assert walk
    env = {
        **BARE_ENV, **hub.env, "FUSEOVERLAY_ROOT": str(hub.root),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    try:
        done = subprocess.run(
            ["bash", "-euc", walk[1]],
            cwd=hub.base, env=env, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        detach(hub.mnt)
    assert done.returncode == 0, done.stderr
    for said in ("docker.io/library/debian:12", *words):
        assert said in done.stdout
