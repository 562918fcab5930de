"""A container store of the test's own, for real podman, buildah and skopeo.

Everything is in one temporary directory, and in a /run of the store's own. What the clients start
(containers, mount programs, monitors) lives in mount, pid and cgroup namespaces of the store's own,
a plain user's in a user namespace with his subordinate ids, as rootless podman makes one. They end
with the store, and all mounts with them, also when the test is killed.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.helpers import tree
from tests.helpers.mounts import BARE_ENV, MODE, ends, wait_for

TOOLS = ("podman", "buildah", "skopeo", "crun", *(("newuidmap",) if MODE == "user" else ()))
#: Seconds until a client must be done.
TIMEOUT = 90

#: The mount program, or the driver itself.
DRIVERS = ("fuseoverlay", "fuse-overlayfs", "kernel", "vfs")
#: A driver without any mount, which compares trees as podman does for mount programs.
REFERENCE = "vfs"

_STORAGE = """\
[storage]
driver = "{driver}"
graphroot = "{base}/graph"
rootless_storage_path = "{base}/graph"
runroot = "/run/containers"
[storage.options.overlay]
{overlay}
"""

# Neither systemd nor a network nor a journal is needed, wherever the tests run.
_CONTAINERS = """\
[containers]
cgroups = "disabled"
netns = "none"
log_driver = "k8s-file"
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
[network]
network_config_dir = "{base}/networks"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
tmp_dir = "/run/libpod"
volume_path = "{base}/volumes"
image_copy_tmp_dir = "{base}/tmp"
"""

_POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'

# The first process of the namespaces: it reaps, and ends all when our end of its stdin closes.
# A container wants the second version of control groups, whatever the machine has; podman keeps
# locks of all stores of a user in /dev/shm; crun notes all containers of root in /run. And podman
# refuses a `runroot` of more than 50 characters, but only where it cleans up after a container, and
# says so to nobody: `podman run` then waits for 20 seconds, and the container stays mounted.
_INIT = """\
mount -t cgroup2 none /sys/fs/cgroup && mount -t tmpfs none /dev/shm &&
    mount -t tmpfs -o mode=700 none /run || exit 1
exec 3<&0
cat <&3 &
echo ready
wait $!
"""

_REMOVE = 'umount -l "$1/overlay"; rm -rf "$1"'
_TRIES = 5
_SHM_BUSY = b"userdata/shm: device or resource busy"


def missing() -> str | None:
    """What is not there of the clients and what they need; None: nothing."""
    lacking = next((tool for tool in TOOLS if shutil.which(tool) is None), None)
    if lacking is None and MODE == "user":
        name = pwd.getpwuid(os.getuid()).pw_name
        for file in ("/etc/subuid", "/etc/subgid"):
            lines = Path(file).read_text().splitlines() if Path(file).exists() else []
            if not any(line.startswith(f"{name}:") for line in lines):
                return f"{name} in {file}"
    return lacking


def mount_program(path: Path) -> Path:
    """An executable that is this checkout's fuseoverlay, with the interpreter of the tests."""
    settings = " ".join(f"{name}='{value}'" for name, value in BARE_ENV.items())
    path.write_text(f'#!/bin/sh\nexec env {settings} {sys.executable} -m fuseoverlay "$@"\n')
    path.chmod(0o755)
    return path


class Store:
    """Images and containers below `base` with one of `DRIVERS`; a context manager."""

    def __init__(self, base: Path, driver: str) -> None:
        self.base, self.driver = base, driver
        #: When it was made, seconds, as times in archives are.
        self.born = int(time.time())
        for name in ("tmp", "networks"):
            (base / name).mkdir(mode=0o700)
        overlay = ""
        if driver == "fuseoverlay":
            overlay = f'mount_program = "{mount_program(base / "fuseoverlay")}"'
        elif driver == "fuse-overlayfs":
            overlay = 'mount_program = "/usr/bin/fuse-overlayfs"'
        (base / "storage.conf").write_text(
            _STORAGE.format(
                base=base, driver="vfs" if driver == "vfs" else "overlay", overlay=overlay
            )
        )
        (base / "containers.conf").write_text(_CONTAINERS.format(base=base))
        (base / ".config/containers").mkdir(parents=True)
        (base / ".config/containers/policy.json").write_text(_POLICY)
        (base / "registries.conf").write_text("")
        self.env = {
            "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin",
            "LANG": "C.UTF-8",
            "HOME": str(base),
            "TMPDIR": str(base / "tmp"),
            "XDG_RUNTIME_DIR": "/run",
            "CONTAINERS_STORAGE_CONF": str(base / "storage.conf"),
            "CONTAINERS_CONF": str(base / "containers.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(base / "registries.conf"),
            "BUILDAH_ISOLATION": "chroot",
        }
        namespaces = ["--mount", "--pid", "--fork", "--mount-proc", "--cgroup", "--kill-child"]
        self._enter = ["--mount", "--pid", "--cgroup"]
        if MODE == "user":
            namespaces += ["--map-root-user", "--map-auto"]
            self._enter += ["--user", "--preserve-credentials"]
            # What podman tells itself once it is in the user namespace.
            self.env |= {
                "_CONTAINERS_USERNS_CONFIGURED": "done",
                "_CONTAINERS_ROOTLESS_UID": str(os.getuid()),
                "_CONTAINERS_ROOTLESS_GID": str(os.getgid()),
            }
        self._unshare = subprocess.Popen(
            ["unshare", *namespaces, "bash", "-c", _INIT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self.env,
            cwd="/",
            # A Ctrl-C is for the clients, not for what has to clean up after them.
            start_new_session=True,
        )
        try:
            assert self._unshare.stdout is not None
            assert self._unshare.stdout.readline() == b"ready\n", "no namespaces"
            self._init = self._child()
            self._mounts_before = set(self._all_mounts())
            self._processes_before = set(self._all_processes())
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            # What subordinate ids own, only "root" of the user namespace can remove.
            self.run("sh", "-c", _REMOVE, "sh", self.base / "graph", check=False)
        finally:
            self._end()

    def _end(self) -> None:
        """End all that is in the namespaces."""
        assert self._unshare.stdin is not None and self._unshare.stdout is not None
        self._unshare.stdin.close()
        self._unshare.stdout.close()
        if not ends(self._unshare, TIMEOUT):
            self._unshare.kill()
            self._unshare.wait()

    def _child(self) -> int:
        pid = self._unshare.pid
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(child)

    def run(
        self,
        *argv: object,
        check: bool = True,
        timeout: float = TIMEOUT,
        input: bytes = b"",
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command in the namespaces to its end; with `check` it must exit with 0."""
        words = [str(word) for word in argv]
        done = subprocess.run(
            ["nsenter", "--target", str(self._init), *self._enter, f"--wd={self.base}", *words],
            input=input,
            capture_output=True,
            env=self.env,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, (
            f"{self.driver}: {' '.join(words)}: exit code {done.returncode}\n"
            f"{done.stdout.decode(errors='replace')[-2000:]}\n"
            f"{done.stderr.decode(errors='replace')[-4000:]}"
        )
        return done

    def said(self, *argv: object, **how: Any) -> str:
        """What a command that succeeds writes to its standard output."""
        return self.run(*argv, **how).stdout.decode(errors="surrogateescape").strip()

    def podman(self, *argv: object, **how: Any) -> str:
        """`said` by podman."""
        return self.said("podman", *argv, **how)

    def remove(self, name: str) -> None:
        """Remove a container that may be running. podman does not wait until a process that it has
        killed lets go of /dev/shm, a mount of podman's own, and fails then; the second time there
        is nothing to wait for."""
        for _ in range(_TRIES):
            argv = ("podman", "rm", "--force", "--ignore", "--time=0", name)
            done = self.run(*argv, check=False)
            if _SHM_BUSY not in done.stderr:
                break
            time.sleep(1)
        assert done.returncode == 0, done.stderr.decode(errors="replace")

    def tree(self, path: object) -> tree.Tree:
        """A record of a tree as the clients see it; times since the store was made are 0."""
        done = self.run(sys.executable, "-c", tree.source(), "record", path)
        shown: tree.Tree = tree.loads(done.stdout)
        for entry in shown.values():
            if entry.mtime_ns >= self.born * 1_000_000_000:
                entry.mtime_ns = 0
        return shown

    def mounted(self, image: str) -> tree.Tree:
        """A record of an image, mounted by `podman image mount`. Its root has the mode 0555 with
        `overlay` and 0755 with `vfs`, whatever the archive says."""
        shown = self.tree(self.podman("image", "mount", image))
        self.podman("image", "unmount", image)
        shown[b"."].mode = 0o755
        return shown

    # What is left

    def _all_mounts(self) -> list[str]:
        lines = self.said("cat", "/proc/self/mountinfo").splitlines()
        return [f"{line.split()[4]} {line.partition(' - ')[2]}" for line in lines]

    def mounts(self) -> list[str]:
        """The mounts that the clients made."""
        return [line for line in self._all_mounts() if line not in self._mounts_before]

    def _all_processes(self) -> dict[str, str]:
        lister = (
            "import os\n"
            "for name in os.listdir('/proc'):\n"
            "    if name.isdigit() and int(name) != os.getpid():\n"
            "        try: words = open(f'/proc/{name}/cmdline', 'rb').read()\n"
            "        except OSError: continue\n"
            "        print(name, words.replace(b'\\0', b' ')[:300])\n"
        )
        lines = self.said(sys.executable, "-c", lister).splitlines()
        return dict(line.split(" ", 1) for line in lines)

    def processes(self) -> dict[str, str]:
        """The command lines of all processes that the clients left running, by process id."""
        before = self._processes_before
        return {pid: argv for pid, argv in self._all_processes().items() if pid not in before}

    def wait_until_idle(self) -> None:
        """Daemons and monitors end a moment after the client."""
        wait_for(lambda: not self.processes(), TIMEOUT, f"the end of {self.processes()}")
