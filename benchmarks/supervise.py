"""The surroundings of a run: makes and removes its working directory, namespaces and trace.

The measuring process is our child, perhaps as another user or in a user namespace. However it ends,
nothing of it stays.
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

#: Tells the measuring process that it is one, and where to work.
VARIABLE = "FUSEOVERLAY_BENCH_DIR"
#: The file in that directory where it leaves its results.
REPORT = "report.json"
TEST_USER = "FUSEOVERLAY_TEST_USER"

# The init of the pid namespace, which has to live and to reap until the measuring process has
# ended.
_INIT = 'trap "" INT TERM; "$@" <&0 & wait $!'
_NAMESPACES = ["unshare", "-pfm", "--mount-proc", "--kill-child", "--"]
# The namespaces end with us, however we end.
_WITH_US = ["setpriv", "--pdeathsig", "KILL", "--"]


def own_mode() -> str:
    """The mode in which we run: `root`, `user`, or `userns` if we are root of a user namespace
    only."""
    if os.geteuid():
        return "user"
    # The first user namespace maps every id to itself.
    first = Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
    return "root" if first else "userns"


def supervise(mode: str, parent: Path | None, argv: list[str]) -> tuple[int, str | None]:
    """Run `python -m benchmarks ARGV` in this mode below a new directory in `parent`.

    Returns its exit code, and the report (JSON) if it left one.
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
    """The prefix that runs a command as the user that the mode asks for."""
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
    """Wait for its exit code. Our first signal is passed on once, so that it reports what it has;
    it gets 60 seconds to end."""
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
