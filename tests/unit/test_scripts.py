"""What the scripts print while they set up their environment."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.helpers.mounts import PROJECT

#: A new environment for which nothing can be installed: the output in question comes before that
#: fails.
PREPARE = """
. scripts/lib.sh
fo_retry() { echo "now: $2" >&2; false; }
fo_venv
"""


def test_what_takes_long_is_said_before(tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "FUSEOVERLAY_HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-euc", PREPARE],
        env=env,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert lines[0] == f"preparing a virtual environment in {tmp_path}/venv, once"
    assert lines[1].startswith("installing fuseoverlay in it, with the Python packages")
    assert lines[2].startswith("now: ")
