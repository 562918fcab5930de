"""The full-screen program in a real terminal, which tmux plays."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.mounts import SLOWER, command, daemon_env
from tests.view.explored import layers

TIMEOUT = 30 * SLOWER
#: What hides the package from Python.
WITHOUT_TEXTUAL = "import sys; sys.modules['textual'] = None; "
_SGR = re.compile(r"\x1b\[([0-9;]*)m")
#: Those of the eight colours, of 256, of their bright ones; not those of the terminal's own.
_COLOUR = re.compile("[34][0-8]|9[0-7]|10[0-7]")


class Terminal:
    """A shell in a terminal of 100 columns and 30 lines."""

    def __init__(self, base: Path) -> None:
        self._tmux = ["tmux", "-S", str(base / "socket"), "-f", "/dev/null"]
        env = {**daemon_env(PS1="$ ", LANG="C.UTF-8"), "FUSEOVERLAY_ROOT": str(base / "store")}
        argv = ["new-session", "-d", "-x", "100", "-y", "30", "sh"]
        subprocess.run([*self._tmux, *argv], env=env, cwd=base, check=True, timeout=TIMEOUT)

    def _run(self, *argv: str) -> str:
        done = subprocess.run([*self._tmux, *argv], capture_output=True, text=True, check=True,
                              timeout=TIMEOUT)  # fmt: skip
        return done.stdout

    def send(self, *keys: str) -> None:
        """Press keys, by tmux's names."""
        self._run("send-keys", *keys)

    def run(self, *argv: str) -> None:
        """Have the shell run a command, and say its exit code."""
        self._run("send-keys", "-l", f"{shlex.join(argv)}; echo code=$?")
        self.send("Enter")

    def shown(self, *words: str) -> str:
        """The screen, once all these words are there."""
        end = time.monotonic() + TIMEOUT
        while True:
            text = self._run("capture-pane", "-p", "-J")
            if all(word in text for word in words):
                return text
            assert time.monotonic() < end, text
            time.sleep(0.02)

    def colours(self) -> list[str]:
        """The parameters of escape sequences that set a colour on the screen, as it is now."""
        text = self._run("capture-pane", "-p", "-e")
        said = [part for found in _SGR.findall(text) for part in found.split(";")]
        return [part for part in said if _COLOUR.fullmatch(part)]

    def state(self, name: str) -> str:
        """What tmux knows of the terminal."""
        return self._run("display-message", "-p", f"#{{{name}}}").strip()

    def close(self) -> None:
        """End the shell, and tmux."""
        self._run("kill-server")


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    if shutil.which("tmux") is None:
        pytest.skip("missing tool: tmux")
    terminal = Terminal(tmp_path)
    try:
        yield terminal
    finally:
        terminal.close()


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """Two layers."""
    paths = layers(tmp_path, {"etc/passwd": b"root\n", "old": b""}, {"new": b"", "old": None})
    return ["explore", "-o", "lowerdir=" + ":".join(path.decode() for path in paths)]


def test_it_runs_and_leaves_the_terminal_as_it_was(terminal: Terminal, options: list[str]) -> None:
    terminal.run("stty", "-g")
    before = terminal.shown("code=0").splitlines()[1]
    terminal.run("clear")
    terminal.run(*command(*options))
    terminal.shown("Layers", "Tree", "changes of layer 1", "Waste: ")
    assert terminal.state("alternate_on") == "1"
    terminal.send("Down")
    terminal.shown("changes of layer 2", "A -", "new", "D -", "old")
    terminal.send("Tab")
    terminal.shown("space open")
    terminal.send("Down", "Space")
    terminal.shown("▾ etc", "passwd")
    # Ctrl-space, and the keys that are no letters.
    terminal.send("C-Space")
    terminal.shown("▸ etc")
    terminal.send("F1")
    terminal.shown("Everywhere")
    terminal.send("Escape")
    terminal.shown("changes of layer 2")
    terminal.send("q")
    terminal.shown("code=0")
    assert [terminal.state(name) for name in ("alternate_on", "mouse_any_flag")] == ["0", "0"]
    assert terminal.state("cursor_flag") == "1"
    terminal.run("clear")
    terminal.run("stty", "-g")
    assert before in terminal.shown("code=0", before)


def test_no_colour_means_none(terminal: Terminal, options: list[str]) -> None:
    terminal.run(*command(*options))
    terminal.shown("Waste: 0B of 5B", "dive: ")
    assert terminal.colours()
    terminal.send("q")
    terminal.shown("code=0")
    terminal.run("clear")
    terminal.run("env", "NO_COLOR=1", *command(*options))
    terminal.shown("Waste: 0B of 5B", "dive: ")
    assert not terminal.colours()
    terminal.send("F1")
    terminal.shown("Everywhere")
    assert not terminal.colours()


def test_ctrl_c_quits(terminal: Terminal, options: list[str]) -> None:
    terminal.run(*command(*options))
    terminal.shown("Layers")
    terminal.send("C-c")
    terminal.shown("code=0")


def test_without_textual_it_says_what_to_install(terminal: Terminal, options: list[str]) -> None:
    run = "from fuseoverlay.__main__ import main; main()"
    terminal.run(sys.executable, "-c", WITHOUT_TEXTUAL + run, *options)
    said = (
        "explore needs the Python package textual; install it: pip install 'fuseoverlay[explore]'"
    )
    assert said in " ".join(terminal.shown("code=1").split())


def test_a_dumb_terminal_is_refused(terminal: Terminal, options: list[str]) -> None:
    terminal.run("env", "TERM=dumb", *command(*options))
    text = " ".join(terminal.shown("code=2").split())
    assert "painted on; use fuseoverlay layers, tree or efficiency" in text


def test_without_a_terminal_it_says_what_to_use(options: list[str]) -> None:
    done = subprocess.run(command(*options), env=daemon_env(), stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=TIMEOUT, check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line == (
        "fuseoverlay: error: explore needs a terminal; use fuseoverlay layers, tree or efficiency"
    )


def test_help_needs_no_terminal() -> None:
    done = subprocess.run(command("explore", "--help"), env=daemon_env(), capture_output=True,
                          text=True, timeout=TIMEOUT, check=True)  # fmt: skip
    assert "? shows the keys" in done.stdout
