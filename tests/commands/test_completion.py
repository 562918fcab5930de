"""Completion: what the program offers, and the scripts of the shells."""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from fuseoverlay.commands import complete
from fuseoverlay.commands.image import words
from tests.commands.conftest import Cli
from tests.helpers.mounts import PROJECT, daemon_env, fuse_only

FILES = PROJECT / "fuseoverlay" / "completion"
DEBIAN = "docker.io/library/debian:12"
ALL = [[name] for name in complete._MODULES] + [["image", name] for name in words.COMMANDS]


@pytest.fixture
def named(cli: Cli, layout: Path) -> Cli:
    """A store with three names."""
    cli.add(layout, "one", DEBIAN)
    cli.add(layout, "two", "quay.io/team/tool:2")
    cli.said("tag", "debian:12", "debian:bookworm")
    return cli


def _offered(cli: Cli, *line: str) -> tuple[str, list[str]]:
    """The kind of files, and the words."""
    kind, *lines = cli.said("__complete", *line).splitlines()
    return kind, [text.partition("\t")[0] for text in lines]


@pytest.mark.parametrize("line", ALL, ids=" ".join)
def test_every_parser(line: list[str]) -> None:
    """Whatever takes a value, it is known which."""
    found = complete.parser_of(line)
    assert found is not None and found[1] == len(line)
    parser = found[0]
    flags = {flag for action in parser._actions if action.help != argparse.SUPPRESS
             for flag in action.option_strings}  # fmt: skip
    _, offered = complete.candidates([*line, "-"])
    assert {word for word, _ in offered} == flags
    for action in parser._actions:
        if action.nargs != 0 and action.help != argparse.SUPPRESS:
            assert action.choices or str(action.metavar) in complete.VALUES, action.dest


def test_commands(cli: Cli) -> None:
    assert _offered(cli, "mo") == ("none", ["mount", "mounts"])
    assert _offered(cli, "image", "h") == ("none", ["history"])
    assert _offered(cli, "help", "ver") == ("none", ["version"])
    _, every = _offered(cli, "")
    assert {"mount", "images", "rmi", "completion"} <= {*every} and "__complete" not in every
    assert _offered(cli, "nothing", "") == ("none", [])
    assert not cli.root.exists()


def test_options_and_values(cli: Cli) -> None:
    assert _offered(cli, "mount", "--pul") == ("none", ["--pull"])
    assert _offered(cli, "mount", "--pull", "ne") == ("none", ["newer", "never"])
    assert _offered(cli, "mount", "--pull=al") == ("none", ["--pull=always"])
    assert _offered(cli, "mount", "--upper", "") == ("directories", [])
    assert _offered(cli, "mount", "--upper=") == ("directories", [])
    assert _offered(cli, "images", "--no-trunc", "--sort", "si") == ("none", ["size"])
    assert _offered(cli, "load", "-i", "") == ("files", [])
    assert _offered(cli, "-f", "--read") == ("none", ["--read-only"])
    assert _offered(cli, "mount", "--", "--pul") == ("files", [])


def test_images(named: Cli) -> None:
    assert _offered(named, "inspect", "deb") == ("none", ["debian:12", "debian:bookworm"])
    assert _offered(named, "inspect", "-f", "x", "debian:1") == ("none", ["debian:12"])
    assert _offered(named, "image", "rm", "debian:12", "q") == ("none", ["quay.io/team/tool:2"])
    assert _offered(named, "mount", "--read-only", "q") == ("files", ["quay.io/team/tool:2"])
    assert _offered(named, "history", "debian:12", "") == ("none", []), "it takes one"
    assert _offered(named, "rmi", "--root", str(named.base / "none"), "d") == ("none", [])
    assert _offered(named, "inspect", "docker.io/library/d")[1] == [
        "docker.io/library/debian:12", "docker.io/library/debian:bookworm",
    ]  # fmt: skip


@fuse_only
def test_mounts(named: Cli) -> None:
    named.said("mount", "debian:12", named.mnt)
    assert _offered(named, "unmount", "deb") == ("directories", ["debian:12"])
    assert _offered(named, "unmount", str(named.mnt)[:-1]) == ("directories", [str(named.mnt)])


@pytest.mark.parametrize("damage", ["{", '{"schemaVersion":2,"manifests":7}', None])
def test_silent_on_errors(named: Cli, damage: str | None) -> None:
    if damage is None:
        (named.root / "index.json").unlink()
        (named.root / "index.json").mkdir()
    else:
        (named.root / "index.json").write_text(damage)
    done = named.run("__complete", "inspect", "d")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_names_that_a_shell_would_run(named: Cli) -> None:
    index = json.loads((named.root / "index.json").read_text())
    for name in ("d$(touch ran)", "d;x", "d x", "d\x1b[31m", "d\nnone"):
        entry = json.loads(json.dumps(index["manifests"][0]))
        entry["annotations"]["org.opencontainers.image.ref.name"] = name
        index["manifests"].append(entry)
    (named.root / "index.json").write_text(json.dumps(index))
    assert _offered(named, "inspect", "d") == ("none", ["debian:12", "debian:bookworm"])


# the scripts


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_is_printed_and_installed(cli: Cli, shell: str) -> None:
    names = {"bash": "fuseoverlay", "zsh": "_fuseoverlay", "fish": "fuseoverlay.fish"}
    path = FILES / names[shell]
    assert cli.said("completion", shell) == path.read_text()
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]
    places = [place for place, files in project["data-files"].items()
              if str(path.relative_to(PROJECT)) in files]  # fmt: skip
    assert len(places) == 1 and shell in places[0]
    if shutil.which(shell) is None:
        pytest.skip(f"missing tool: {shell}")
    done = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


def _divided(line: str) -> list[str]:
    """The words of a line as bash divides them for completion."""
    found = re.findall(r"[:=]+|[^\s:=]+", line)
    return [*found, ""] if line[-1] in " :=" else found


def _bash(cli: Cli, line: str) -> list[str]:
    """What bash would offer at the end of the line."""
    program = cli.base / "bin" / "fuseoverlay"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m fuseoverlay "$@"\n')
    program.chmod(0o755)
    script = (
        f'. {FILES}/fuseoverlay; compopt() {{ :; }}; COMP_LINE=$1; COMP_POINT=${{#1}}; shift\n'
        'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _fuseoverlay\n'
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )  # fmt: skip
    path = f"{program.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-uc", script, "bash", line, *_divided(line)],
        env=daemon_env(FUSEOVERLAY_ROOT=str(cli.root), PATH=path),
        capture_output=True, text=True, timeout=60, check=True, cwd=cli.base,
    )  # fmt: skip
    assert done.stderr == ""
    return [word for word in done.stdout.splitlines() if word]


def test_bash(named: Cli) -> None:
    """Only what is after the last colon or equals sign is replaced on the line."""
    for name in ("dir", "dir2/in", "a b"):
        (named.base / name).mkdir(parents=True)
    (named.base / "dir-file").touch()
    for line, offered in {
        "fuseoverlay mo": ["mount", "mounts"],
        "fuseoverlay inspect deb": ["debian:12", "debian:bookworm"],
        "fuseoverlay inspect debian:": ["12", "bookworm"],
        "fuseoverlay inspect debian:b": ["bookworm"],
        "fuseoverlay inspect quay.io/team/tool:2 debian:1": ["12"],
        "fuseoverlay mount --pull=ne": ["newer", "never"],
        "fuseoverlay mount --upper dir": ["dir", "dir2"],
        "fuseoverlay mount --upper=dir2/": ["dir2/in"],
        "fuseoverlay load -i dir-": ["dir-file"],
        "fuseoverlay mount --upper a": ["a b"],
        "fuseoverlay mount quay.io/team/tool:2 dir-": ["dir-file"],
        "fuseoverlay nothing ": [],
    }.items():
        assert sorted(_bash(named, line)) == sorted(offered), line


def test_bash_on_a_terminal(named: Cli) -> None:
    """As a person sees it: the line, and what a tab makes of it."""
    _bash(named, "fuseoverlay ")
    pid, terminal = pty.fork()
    if not pid:
        env = daemon_env(FUSEOVERLAY_ROOT=str(named.root), PS1="> ", TERM="dumb",
                         PATH=f"{named.base}/bin:{os.environ['PATH']}")  # fmt: skip
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], env)
    try:
        os.write(terminal, f". {FILES}/fuseoverlay; echo re''ady\n".encode())
        _read_until(terminal, b"ready")
        os.write(terminal, b"fuseoverlay inspect debian:bo\t-x\x01echo \n")
        assert b"fuseoverlay inspect debian:bookworm -x" in _read_until(terminal, b"bookworm -x\r")
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(terminal)


def _read_until(terminal: int, text: bytes) -> bytes:
    said, end = b"", time.monotonic() + 30
    while text not in said and time.monotonic() < end:
        if select.select([terminal], [], [], 1)[0]:
            said += os.read(terminal, 4096)
    assert text in said, said
    return said
