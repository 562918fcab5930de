"""`push`: Docker's output; an interrupted one goes on."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.conftest import Cli
from tests.helpers.mounts import command, daemon_env, wait_for
from tests.registry.daemon import Daemon
from tests.registry.hostile import Answer, Asked, hostile


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("registry")) as running:
        yield running


def test_push(cli: Cli, layout: Path, daemon: Daemon) -> None:
    name = f"{daemon.host}/team/one:1"
    cli.add(layout, "one", name)
    done = cli.run("push", name)
    assert done.returncode == 0, done.stderr
    begin, end = done.stdout.splitlines()
    assert begin == f"The push refers to repository [{daemon.host}/team/one]"
    assert re.fullmatch(r"1: digest: sha256:[0-9a-f]{64} size: [0-9]+", end)
    assert len(re.findall("^[0-9a-f]{12}: Pushed$", done.stderr, re.M)) == 2
    done = cli.run("image", "push", name)
    assert done.stdout.splitlines()[-1] == end
    assert done.stderr.count(": Layer already exists") == 2
    id_ = cli.said("images", "-q").strip()
    done = cli.run("push", id_, f"docker://{daemon.host}/other:2")
    assert done.stdout.splitlines()[-1] == f"2{end[1:]}"
    assert done.stderr.count(": Mounted from team/one") == 2
    done = cli.run("push", "-q", name, f"{daemon.host}/other:3")
    assert (done.stdout, done.stderr) == (f"{daemon.host}/other:3\n", "")
    argv = ["skopeo", "list-tags", "--tls-verify=false", f"docker://{daemon.host}/other"]
    tags = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout
    assert '"2"' in tags and '"3"' in tags


def test_refusals(cli: Cli, layout: Path) -> None:
    cli.add(layout, "one", "127.0.0.1:1/one:1")
    id_ = cli.said("images", "-q").strip()
    cli.refused(7, "no such image", "push", "nothing")
    cli.refused(2, "write DESTINATION after it", "push", id_)
    cli.refused(7, "", "push", id_, "No Name")
    cli.refused(2, "write fuseoverlay save --format oci -o x IMAGE", "push", id_, "oci:x")
    cli.refused(2, "write fuseoverlay save --format oci -o x IMAGE", "push", id_, "dir:x")
    cli.refused(2, "save --format docker-archive -o x.tar", "push", id_, "docker-archive:x.tar")
    cli.refused(2, "write fuseoverlay save -o FILE IMAGE", "push", id_, "./x")
    cli.refused(7, "load -i oci:x, and then the name", "push", "oci:x", "127.0.0.1:1/x")
    cli.refused(11, "127.0.0.1:1", "push", "127.0.0.1:1/one:1")


def test_interrupted(cli: Cli, layout: Path) -> None:
    """Ctrl-C is one line, with how to go on."""
    stalled, going_on = threading.Event(), threading.Event()

    def answer(asked: Asked) -> Answer:
        if asked.method == "HEAD":
            stalled.set()
            going_on.wait(30)
        return Answer(404)

    with hostile(answer) as server:
        name = f"{server.host}/one:1"
        cli.add(layout, "one", name)
        process = subprocess.Popen(
            command("push", name),
            env=daemon_env(FUSEOVERLAY_ROOT=str(cli.root)),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            wait_for(stalled.is_set, 20, "a request")
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
            going_on.set()
    assert process.returncode == 130, err
    assert "interrupted; the same command goes on with what is there" in err
    assert "Traceback" not in err
