"""Run clients and daemons with time limits, and ask /proc about daemons."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Collection
from pathlib import Path

CLIENT_SOURCE = Path(__file__).with_name("client.c")


#: Seconds from one look at the memory of processes to the next.
_LOOK = 0.05


class Failure(Exception):
    """A contender did not do a workload; the text says why."""


def build_client(directory: Path) -> Path:
    """Compile the C client into `directory`."""
    client = directory / "client"
    subprocess.run(["gcc", "-O2", "-o", str(client), str(CLIENT_SOURCE)], check=True)
    return client


def run(
    argv: list[str],
    *,
    limit: float,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    fatal: int | None = None,
    codes: Collection[int] = (0,),
) -> str:
    """The output of a command. Raises `Failure` if it ends with none of the exit codes `codes`, or
    takes more than `limit` seconds.

    The error output goes to a file: a daemon that keeps a pipe open would make us wait.
    """
    with open(os.memfd_create("errors"), "w+b") as errors:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=cwd,
            env=env,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=limit)
        except BaseException as exc:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(exc, subprocess.TimeoutExpired):
                raise Failure(f"no end after {limit:g} s") from None
            raise
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip()
    if process.returncode not in codes:
        last = said.splitlines()[-1] if said else f"exit code {process.returncode}"
        raise Failure(last)
    return output.decode()


def users_of(path: Path) -> list[int]:
    """Processes that have `path` in an argument: the daemons that are mounted there."""
    wanted = os.fsencode(path)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                arguments = (entry / "cmdline").read_bytes()
                if re.search(re.escape(wanted) + rb"(?![^/\0])", arguments):
                    found.append(int(entry.name))
    return found


def kill_users_of(path: Path) -> None:
    """Kill them, and wait until they are gone, for 10 seconds at most."""
    end = time.monotonic() + 10
    while (pids := users_of(path)) and time.monotonic() < end:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def wait_for_users_of(path: Path, limit: float) -> None:
    """Wait until they have ended by themselves, as they do after an unmount."""
    end = time.monotonic() + limit
    while users_of(path) and time.monotonic() < end:
        time.sleep(0.01)


def cpu_times(pids: list[int]) -> dict[int, float]:
    """User and system time of each process that still exists, in seconds, to some 10 ms."""
    times = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            times[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return times


def memory(pids: list[int]) -> dict[str, float]:
    """The sums of the processes' `rss` and `pss`, in MiB."""
    total = {"rss": 0.0, "pss": 0.0}
    for pid in pids:
        text = ""
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        for key in total:
            found = re.search(rf"^{key}: *(\d+)", text, re.M | re.I)
            total[key] += int(found[1]) / 1024 if found else 0
    return total


def peak(argv: list[str], *, limit: float, env: dict[str, str] | None = None) -> float:
    """The most memory that a command and all that it starts have at once, in MiB: the sum of their
    proportional set sizes, every 50 ms. Raises `Failure` as `run` does."""
    null = subprocess.DEVNULL
    process = subprocess.Popen(
        argv, stdin=null, stdout=null, stderr=null, env=env, start_new_session=True
    )
    most, end = 0.0, time.monotonic() + limit
    try:
        while process.poll() is None:
            if time.monotonic() > end:
                raise Failure(f"no end after {limit:g} s")
            most = max(most, memory(_of_session(process.pid))["pss"])
            time.sleep(_LOOK)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        raise Failure(f"exit code {process.returncode}")
    return most


def _of_session(session: int) -> list[int]:
    """The processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session:
                    found.append(int(entry.name))
    return found


def mounted_at(path: Path) -> bool:
    """Whether something is mounted at `path`, without asking any filesystem."""
    name = os.fsencode(path)
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    return any(line.split(b" ", 5)[4] == name for line in lines)
