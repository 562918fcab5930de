"""scripts/bench: every measurement is reported, and requests are counted where possible."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.helpers.mounts import IMPL, MODE, daemon_env, root_only, scratch

EVENT = "/sys/kernel/tracing/events/fuse/fuse_request_send"
#: Directories of the small tree: four at the top and 66 below, and the root.
DIRECTORIES = 71


@pytest.fixture(scope="module")
def report() -> dict:
    """The report of a short run against a plain directory."""
    if IMPL == "kernel":
        pytest.skip("benchmarks fuseoverlay")
    options = ["--quick", "--workload", "stat-ro-1", "--workload", "create", "--only", "raw"]
    with scratch() as base:
        path, work = base / "bench.json", base / "work"
        work.mkdir()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks", *options, "--dir", work, "--json", path],
            cwd="/",
            env=daemon_env(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert os.listdir(work) == [], "something was left behind"
        assert "| stat-ro-1/warm |" in done.stdout
        return json.loads(path.read_text())


def test_every_phase_is_measured(report: dict) -> None:
    """Seconds of all contenders in all phases, and their ratio."""
    assert report["failures"] == []
    assert report["about"]["mode"] == MODE
    assert set(report["measures"]) == {
        "stat-ro-1/cold", "stat-ro-1/warm", "create/files", "create/writes",
    }  # fmt: skip
    for row in report["measures"].values():
        ours, raw = row["fuseoverlay"], row["raw"]
        assert ours["unit"] == "s"
        assert ours["median"] > 0
        assert ours["median"] in ours["values"]
        assert raw["ours_to_this"] == ours["median"] / raw["median"]
        assert raw["requests"] is None


@pytest.mark.skipif(not os.path.exists(EVENT), reason="this kernel does not trace FUSE requests")
@root_only
def test_requests_are_counted(report: dict) -> None:
    """A cold walk lists each directory to its last entry and to its end; a file is made once."""
    measures = report["measures"]
    walk = measures["stat-ro-1/cold"]["fuseoverlay"]["requests"]
    assert walk["READDIRPLUS"] == 2 * DIRECTORIES
    new = measures["create/files"]["fuseoverlay"]["requests"]
    assert new["CREATE"] == 100
    assert new["WRITE"] == 100
    reached = {one["target"]: one["reached"] for one in report["targets"]}
    assert reached["create a file of 100 bytes"] >= 2
