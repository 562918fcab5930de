"""A real Docker daemon of the test's own, to compare with."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.helpers.mounts import ends, wait_for

#: Debian's, and not another one that comes earlier in PATH.
DOCKER = "/usr/bin/docker"
DOCKERD = "/usr/sbin/dockerd"

# The second version of control groups, whatever the machine has. All ends with the namespaces.
_START = """\
mount -t tmpfs none /run && umount -R /sys/fs/cgroup 2>/dev/null
mount -t cgroup2 none /sys/fs/cgroup
exec "$@"
"""


def missing() -> str | None:
    """What is not there of Docker; None: nothing."""
    return next((path for path in (DOCKER, DOCKERD) if not os.access(path, os.X_OK)), None)


class Docker:
    """The daemon with its data below `base`; a context manager."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._socket = f"unix://{base}/sock"
        argv = [
            *("unshare", "-pfm", "--mount-proc", "--kill-child", "bash", "-c", _START, "dockerd"),
            *(DOCKERD, "--data-root", f"{base}/data", "--exec-root", f"{base}/exec"),
            *("--host", self._socket, "--pidfile", f"{base}/pid", "--storage-driver", "vfs"),
            *("--iptables=false", "--ip6tables=false", "--bridge=none"),
        ]
        with (base / "log").open("wb") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
        self._env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(base),
            "DOCKER_HOST": self._socket,
            "DOCKER_BUILDKIT": "0",
        }

    @property
    def host(self) -> str:
        """What `DOCKER_HOST` has to be."""
        return self._socket

    def __enter__(self) -> Docker:
        try:
            wait_for(self._answers, 60, "dockerd")
        except BaseException:
            print((self.base / "log").read_text())
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        self._process.kill()
        assert ends(self._process, 30)

    def _answers(self) -> bool:
        return self.run("version", check=False).returncode == 0

    def run(
        self, *argv: object, check: bool = True, input: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command of Docker's; with `check` it must exit with 0."""
        done = subprocess.run(
            [DOCKER, *map(str, argv)],
            input=input, capture_output=True, env=self._env, timeout=60, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr.decode()
        return done

    def said(self, *argv: object, input: bytes = b"") -> str:
        """What the command prints."""
        return self.run(*argv, input=input).stdout.decode()
