"""Around a run: the working directory, namespaces and the trace are made and removed here.

The measuring process, maybe another user's or in a user namespace, is our child; whatever
becomes of it, nothing of it stays.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import requests
from benchmarks.peers import PROJECT

#: Says to the measuring process that it is that, and where to work.
VARIABLE = "FUSEOVERLAY_BENCH_DIR"
#: Where in there it leaves what it found.
REPORT = "report.json"
TEST_USER = "FUSEOVERLAY_TEST_USER"

# The init of the pid namespace: it has to live and reap until the measuring process has ended.
_INIT = 'trap "" INT TERM; "$@" <&0 & wait $!'
_NAMESPACES = ["unshare", "-pfm", "--mount-proc", "--kill-child", "--"]
# Whatever ends us ends the namespaces.
_WITH_US = ["setpriv", "--pdeathsig", "KILL", "--"]


def own_mode() -> str:
    """The mode in which we run: `root`, `user`, or `userns` where we are root only in there."""
    if os.geteuid():
        return "user"
    # The first user namespace maps every id to itself.
    first = Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
    return "root" if first else "userns"


def supervise(mode: str, parent: Path | None, argv: list[str]) -> tuple[int, str | None]:
    """Run `python -m benchmarks ARGV` in this mode below a new directory in `parent`.

    Returns its exit code and the report (JSON) that it has left behind, if it has.
    """
    user = None
    if mode != "root" and own_mode() == "root":
        user = pwd.getpwnam(os.environ.get(TEST_USER, "fuseoverlay-test"))
    with _directory(parent, user) as base, requests.traced(f"fuseoverlay-{os.getpid()}") as trace:
        env = {**os.environ, **trace, VARIABLE: str(base), "PYTHONPATH": str(PROJECT)}
        command = [*_as(mode, user), sys.executable, "-m", "benchmarks", *argv]
        if os.geteuid() == 0 and _works([*_NAMESPACES, "true"]):
            command = [*_WITH_US, *_NAMESPACES, "bash", "-c", _INIT, "init", *command]
        code = _wait(subprocess.Popen(command, env=env, close_fds=False, start_new_session=True))
        report = base / REPORT
        return code, report.read_text() if report.exists() else None


def _as(mode: str, user: pwd.struct_passwd | None) -> list[str]:
    """The prefix with which a command runs as the user that the mode asks for."""
    prefix = []
    if user is not None:
        ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups"]
        prefix = ["setpriv", *ids, "env", f"HOME={user.pw_dir}", f"USER={user.pw_name}"]
    return [*prefix, "unshare", "-Urm", "--"] if mode == "userns" != own_mode() else prefix


def _works(command: list[str]) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@contextlib.contextmanager
def _directory(parent: Path | None, user: pwd.struct_passwd | None) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="fuseoverlay-bench-", dir=parent)).resolve()
    path.chmod(0o755)
    if user is not None:
        os.chown(path, user.pw_uid, user.pw_gid)
    try:
        yield path
    finally:
        if os.geteuid():
            subprocess.run(["chmod", "-R", "u+rwX", str(path)], check=False, capture_output=True)
        shutil.rmtree(path, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Its exit code. It is told of a signal once, to show what it has, and ends soon after."""
    told = False

    def tell(*_: object) -> None:
        nonlocal told
        if not told:
            told = True
            os.killpg(process.pid, signal.SIGINT)
            signal.alarm(60)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, tell)
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(process.pid, signal.SIGKILL))
    return process.wait()
