"""Mount an image for a test, with a time limit, and get rid of the mount whatever happens."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.helpers import warm
from tests.helpers.mounts import Daemon, command, daemon_env, detach, ends, mounts_at, unmount

#: Seconds until a mount must answer, including the unpacking of layers.
START_TIMEOUT = 90


class ImageMount:
    """`fuseoverlay mount IMAGE MNT` with a layer store and an upper directory of its own."""

    def __init__(self, base: Path, image: str) -> None:
        self.image = image
        self.mnt, self.upper, self.data = base / "mnt", base / "upper", base / "data"
        self.log = base / "log"
        self.mnt.mkdir()
        self.daemon: Daemon | None = None

    @property
    def store(self) -> Path:
        """The layer store."""
        return self.data / "fuseoverlay"

    def layers(self) -> list[Path]:
        """The layer directories in the store, in no particular order."""
        return [path for path in self.store.glob("layers*/*/*") if path.is_dir()]

    def mount(self, *options: str) -> Path:
        """Mount in the foreground, as a child; returns the mount point."""
        argv = command("mount", "-f", self.image, self.mnt, *options)
        self.daemon = Daemon(argv, self.mnt, self.log, env={"XDG_DATA_HOME": str(self.data)})
        end = time.monotonic() + START_TIMEOUT
        while not mounts_at(self.mnt):
            code = self.daemon.process.poll()
            if code is not None or time.monotonic() > end:
                text = self.daemon.text()
                self.drop()
                pytest.fail(f"no mount (exit code {code}); log:\n{text}")
            time.sleep(0.01)
        os.stat(self.mnt)
        return self.mnt

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run a command line with this store, to its end."""
        env = daemon_env(XDG_DATA_HOME=str(self.data))
        return warm.run(command(*arguments), cwd="/", env=env, timeout=START_TIMEOUT)

    def unmount(self) -> None:
        """Unmount and see the daemon end without complaints."""
        unmount(self.mnt)
        if self.daemon is not None:
            daemon, self.daemon = self.daemon, None
            daemon.finish()

    def drop(self) -> None:
        """Get rid of the mount, in any state."""
        detach(self.mnt)
        if self.daemon is not None:
            daemon, self.daemon = self.daemon, None
            ends(daemon.process, 2)
            daemon.kill()
